"""event_logger on a loop of its own: what is acknowledged is committed, whatever the disk and the neighbours do."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig
from actors.event_logger.queries import read_events
from actors.event_logger.records import EventFilter
from actors.runtime.database import Database
from actors.runtime.journal import Journal, new_entry
from actors.runtime.liveness import Board, LauncherRecord
from protocol.errors import ErrorCode
from tests.actors.conftest import resize
from tests.actors.harness import Harness

HOLDER = """
import os, signal, sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("holding", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
EVENT = {"severity": "INFO", "component": "shop", "event_type": "order_paid"}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Makes event loggers on one data directory."""
    (tmp_path / "journal").mkdir()
    board = Board.create(str(tmp_path / "board"))
    board.slots[1].launcher.write(
        LauncherRecord(
            "broker",
            "broker",
            1,
            1,
            1,
            "quarantined",
            0,
            0,
            restarts_in_period=3,
            restarts_left=0,
            retry_at_ms=0,
            hang_timeout_ms=1,
            start_timeout_ms=1,
        )
    )

    made: list[Harness] = []

    def make(path: Path | None = None, **config: float) -> Harness:
        database = str(path or tmp_path / "reliability.db")
        settings = EventLoggerConfig(**config)  # type: ignore[arg-type]
        actor = EventLogger(database, str(tmp_path / "journal"), board, settings, lambda: time.time_ns() // 1_000_000)
        made.append(Harness(actor))
        return made[-1]

    yield make
    for harness in made:
        harness.stop()
    board.close()


def stored(path: Path) -> list[str]:
    return [event["message"] for event in read_events(str(path), EventFilter(limit=10_000), bytes_max=10**9)["events"]]


def test_an_event_is_answered_with_its_place_and_found(make: Callable[..., Harness], tmp_path: Path) -> None:
    logger = make()
    answer = logger.call("emit", **EVENT, message="order 7", attributes={"total": 12.5})
    assert answer == {"id": (1).to_bytes(16).hex(), "seq": 1}
    assert stored(tmp_path / "reliability.db") == ["order 7"]
    (found,) = logger.call("query", component="shop")["events"]
    assert (found["seq"], found["attributes"]) == (1, {"total": 12.5})
    assert [event["seq"] for event in logger.call("search", text="ORDER 7")["events"]] == [1]
    assert logger.call("search", text="nowhere")["events"] == []


def test_a_request_that_is_sent_again_after_a_death_makes_no_second_event(make: Callable[..., Harness]) -> None:
    logger, successor = make(), make()
    asked = logger.ask("emit", request_id=b"r" * 16, **EVENT, message="once")
    logger.until(lambda: asked.done)
    again = successor.ask("emit", request_id=b"r" * 16, **EVENT, message="once")
    successor.until(lambda: again.done)
    assert again.result == asked.result == {"id": (b"r" * 16).hex(), "seq": 1}


def test_many_events_go_together_and_a_foreign_id_is_told(make: Callable[..., Harness]) -> None:
    logger = make()
    events = [EVENT | {"message": str(number), "id": f"{number:032x}"} for number in range(5)]
    answer = logger.call("emit_many", events=events)
    assert [item["seq"] for item in answer["events"]] == [1, 2, 3, 4, 5]
    conflict = logger.ask("emit", **EVENT, message="other", id=f"{3:032x}")
    logger.until(lambda: conflict.done)
    assert conflict.error is not None
    assert conflict.error.code == ErrorCode.ID_CONFLICT
    answer = logger.call(
        "emit_many", events=[EVENT | {"message": "other", "id": f"{3:032x}"}, EVENT | {"message": "new"}]
    )
    assert [item["seq"] for item in answer["events"]] == [None, 6]


def test_a_wrong_event_is_refused_at_once(make: Callable[..., Harness]) -> None:
    logger = make()
    for change in ({"severity": "LOUD"}, {"severity": None}, {"component": ""}, {"colour": "red"}):
        asked = logger.ask("emit", **(EVENT | {"message": "x"} | change))
        assert asked.error is not None
        assert asked.error.code == ErrorCode.BAD_REQUEST


def test_a_pipelined_client_gets_group_commits(make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    transactions = 0
    write = Database.write

    def counted(self: Database, *arguments: object) -> object:
        nonlocal transactions
        transactions += 1
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "write", counted)
    logger = make()
    asked = [logger.ask("emit", **EVENT, message=str(number)) for number in range(500)]
    logger.until(lambda: all(item.done for item in asked))
    assert [item.result["seq"] for item in asked] == list(range(1, 501))
    assert transactions < 50


def test_committed_events_are_published_within_the_rate(make: Callable[..., Harness]) -> None:
    logger = make(publish_per_second_max=5.0)
    logger.call("emit_many", events=[EVENT | {"message": str(number)} for number in range(100)])
    logger.until(lambda: ("state.events", {"last_seq": 100}) in logger.published)
    topics = [topic for topic, _ in logger.published if topic != "state.events"]
    assert topics == ["event.shop"] * 10


def test_journals_arrive_in_the_log(make: Callable[..., Harness], tmp_path: Path) -> None:
    logger = make()
    journal = Journal(str(tmp_path / "journal"), "launcher")
    entry = new_entry("restart", name="broker", incarnation=1, reason="killed", exit_code=None, signal=9, charged=True)
    journal.append(entry)
    logger.until(lambda: bool(logger.call("restart_status", name="broker")["processes"][0]["history"]))
    status = logger.call("restart_status")["processes"]
    assert status[0]["quarantined"]
    assert (status[0]["name"], status[0]["history"][0]["signal"]) == ("broker", 9)
    assert logger.call("query", component="broker")["events"][0]["event_type"] == "restart"


def test_a_frozen_lock_holder_costs_one_clear_error_in_time_and_nothing_else(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    path = tmp_path / "reliability.db"
    logger = make()
    logger.call("emit", **EVENT, message="before")
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            Journal(str(tmp_path / "journal"), "watchdog").append(
                new_entry("event", severity="WARN", component="watchdog", event_type="t", message="journalled")
            )
            hasty = logger.ask("emit", timeout_s=2.0, **EVENT, message="hasty")
            patient = logger.ask("emit", timeout_s=30.0, **EVENT, message="patient")
            logger.until(lambda: hasty.done)
            assert hasty.error is not None
            assert (hasty.error.code, hasty.answered_at is not None) == (ErrorCode.LOCKED, True)
            assert hasty.request is not None
            assert hasty.answered_at is not None
            assert hasty.answered_at < hasty.request.deadline, "the error must reach the caller in time"
            assert [event["message"] for event in logger.call("query")["events"]] == ["before"]
            assert logger.actor.status()["database"]["problem"]["code"] == ErrorCode.LOCKED
            assert not patient.done
        finally:
            holder.send_signal(signal.SIGKILL)
    logger.until(lambda: patient.done)
    assert patient.error is None
    logger.until(lambda: "journalled" in stored(path))
    assert "hasty" not in stored(path)
    assert sorted(stored(path)) == ["before", "journalled", "patient"]
    assert logger.actor.status()["database"]["problem"] is None
    assert logger.longest_turn_s < 0.3
    kinds = [kind for _, kind, _ in logger.logged]
    assert kinds == ["database_unavailable", "database_available"]


def test_a_disk_that_stalls_ten_seconds_does_not_stop_the_loop(
    make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, released = threading.Event(), threading.Event()
    write = Database.write

    def stall(self: Database, *arguments: object) -> object:
        if stalled.is_set():
            released.wait(60)
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "write", stall)
    logger = make()
    logger.call("emit", **EVENT, message="before")
    stalled.set()
    expiring = logger.ask("emit", timeout_s=0.2, **EVENT, message="first in the stall")
    waiting = logger.ask("emit", timeout_s=0.2, **EVENT, message="behind it")
    patient = logger.ask("emit", timeout_s=30, **EVENT, message="patient")
    until = time.monotonic() + 1.0  # the loop does nothing else in ten seconds than in one
    while time.monotonic() < until:
        logger.turn()
    assert [event["message"] for event in logger.call("query")["events"]] == ["before"]
    assert logger.longest_turn_s < 0.3
    released.set()
    logger.until(lambda: patient.done and waiting.done and expiring.done)
    assert waiting.error is not None
    assert waiting.error.code == ErrorCode.DEADLINE_PASSED
    assert patient.error is None
    assert [event["message"] for event in logger.call("query")["events"]] == ["before", "first in the stall", "patient"]


def garbage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def someone_elses(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


@pytest.mark.parametrize("spoil", [garbage, someone_elses])
def test_a_database_that_is_not_ours_is_one_clear_error_and_the_actor_lives(
    make: Callable[..., Harness], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "reliability.db"
    spoil(path)
    logger = make()
    for op, arguments in (("emit", EVENT | {"message": "x"}), ("query", {}), ("restart_status", {})):
        asked = logger.ask(op, **arguments)
        logger.until(lambda asked=asked: asked.done)
        assert asked.error is not None
        assert asked.error.code == ErrorCode.INTEGRITY
        assert "reliability.db is not a database of this system" in asked.error.message
    assert logger.actor.status()["database"]["problem"]["code"] == ErrorCode.INTEGRITY
    path.unlink()
    assert logger.call("emit", **EVENT, message="a new start")["seq"] == 1


def test_a_full_disk_acknowledges_nothing_that_is_not_there(make: Callable[..., Harness], small_disk: Path) -> None:
    path = small_disk / "reliability.db"
    logger = make(path)
    acknowledged: list[str] = []
    failure = None
    for number in range(1000):
        message = f"{number}:" + "x" * 5000
        asked = logger.ask("emit", **EVENT, message=message)
        logger.until(lambda asked=asked: asked.done)
        if asked.error is not None:
            failure = asked.error
            break
        acknowledged.append(message)
    assert failure is not None
    assert failure.code == ErrorCode.FAILED
    assert stored(path) == acknowledged
    resize(small_disk, "16m")
    logger.call("emit", **EVENT, message="space again")
    assert stored(path) == [*acknowledged, "space again"]


def test_a_stop_commits_what_was_accepted_and_leaves_an_empty_wal(make: Callable[..., Harness], tmp_path: Path) -> None:
    logger = make()
    asked = [logger.ask("emit", **EVENT, message=str(number)) for number in range(100)]
    Journal(str(tmp_path / "journal"), "watchdog").append(
        new_entry("event", severity="WARN", component="watchdog", event_type="t", message="last words")
    )
    logger.stop()
    assert all(item.done and item.error is None for item in asked)
    path = tmp_path / "reliability.db"
    assert Path(f"{path}-wal").stat().st_size == 0
    assert "last words" in stored(path)
    assert len(stored(path)) == 101


def test_verify_puts_back_what_was_removed_from_the_middle_unless_it_is_told_not_to(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    path = tmp_path / "reliability.db"
    harness = make()
    events = [EVENT | {"message": f"order {number}"} for number in range(50)]
    places = [item["seq"] for item in harness.call("emit_many", events=events)["events"]]
    head = tmp_path / "events" / "head.json"
    harness.until(lambda: head.exists() and json.loads(head.read_text())["seq"] >= places[-1])
    before = stored(path)
    with apsw.Connection(str(path)) as connection:
        connection.execute("DELETE FROM events WHERE seq = ?", (places[20],))
    connection.close()
    report = harness.call("verify", repair=False)
    assert (report["finding_count"], len(report["broken_days"])) == (1, 1)
    assert stored(path) != before
    harness.call("verify")
    harness.until(lambda: stored(path)[: len(before)] == before)
    assert harness.call("verify")["findings"] == []
