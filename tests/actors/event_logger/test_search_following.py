"""event_logger's index behind its log: how far, how much it takes, and what becomes of it and of events in trouble."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from actors.event_logger import search_follower, search_index, searching
from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig
from actors.event_logger.search_follower import INTERVAL_S, LAG_S_MAX, SearchFollower
from actors.event_logger.search_index import Progress
from actors.runtime.liveness import Board
from tests.actors.harness import Harness

EVENT = {"severity": "INFO", "component": "shop", "event_type": "t"}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Harness]]:
    """Makes event loggers on one data directory."""
    monkeypatch.setattr(searching, "SELECTIVE_EVENTS_MAX", 0)
    (tmp_path / "journal").mkdir()
    board = Board.create(str(tmp_path / "board"))
    made: list[Harness] = []

    def make() -> Harness:
        actor = EventLogger(
            str(tmp_path / "reliability.db"),
            str(tmp_path / "journal"),
            board,
            EventLoggerConfig(),
            lambda: time.time_ns() // 1_000_000,
        )
        made.append(Harness(actor))
        return made[-1]

    yield make
    for harness in made:
        harness.stop()
    board.close()


def index_of(logger: Harness) -> dict[str, Any]:
    status = logger.actor.status()["search"]
    assert isinstance(status, dict)
    return status


def followed(logger: Harness, seq: int) -> Callable[[], bool]:
    return lambda: index_of(logger)["through_seq"] == seq and not index_of(logger)["behind"]


def emit_many(logger: Harness, *messages: str) -> int:
    """Emit events; return the last one's place."""
    events = [{**EVENT, "message": message} for message in messages]
    reply = logger.call("emit_many", request_id=os.urandom(16), events=events)
    return int(reply["events"][-1]["seq"])


def found(logger: Harness, text: str) -> list[str]:
    return [event["message"] for event in logger.call("search", text=text)["events"]]


def test_the_index_follows_within_its_lag_while_events_go_on(make: Callable[[], Harness]) -> None:
    logger = make()
    committed: dict[int, float] = {}
    began = time.monotonic()
    lag_s = 0.0
    while time.monotonic() < began + 4:
        seq = emit_many(logger, *(f"order {number} paid by somebody" for number in range(100)))
        committed[seq] = time.monotonic()
        assert found(logger, f"order {(seq - 1) % 100} paid")[-1:]
        through = index_of(logger)["through_seq"] or 0
        oldest = next((at for place, at in committed.items() if place > through), None)
        lag_s = max(lag_s, 0.0 if oldest is None else time.monotonic() - oldest)
        for _ in range(3):
            logger.turn()
    logger.until(followed(logger, seq))
    assert len(committed) > 20
    assert lag_s <= LAG_S_MAX
    reply = logger.call("search", text="paid by", limit=1)
    assert reply["index"] == {"through_seq": seq, "last_seq": seq, "rebuilding": False, "problem": None}


def test_a_quiet_log_asks_nothing_of_the_index(make: Callable[[], Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make()
    logger.until(followed(logger, emit_many(logger, "one")))
    steps: list[int] = []
    monkeypatch.setattr(search_index.SearchIndex, "step", lambda *_: steps.append(1))
    until = time.monotonic() + 1.5 * INTERVAL_S
    logger.until(lambda: time.monotonic() > until)
    assert steps == []


def test_another_life_goes_on_where_the_former_one_ended(make: Callable[[], Harness]) -> None:
    first = make()
    first.until(followed(first, emit_many(first, "one", "two")))
    first.stop()
    second = make()
    seq = emit_many(second, "three")
    second.until(followed(second, seq))
    assert [*found(second, "one"), *found(second, "three")] == ["one", "three"]
    assert not any(kind.startswith("search_index") for _, kind, _ in second.logged)


def test_without_space_for_the_index_events_are_acknowledged_and_found(
    make: Callable[[], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "DISK_FREE_BYTES_MIN", 2**62)
    monkeypatch.setattr(search_follower, "RETRY_S_MAX", 0.05)
    monkeypatch.setattr(search_follower, "RETRY_S_MIN", 0.05)
    logger = make()
    emit_many(logger, "order one")
    logger.until(lambda: index_of(logger)["problem"] is not None)
    seq = emit_many(logger, "order two")
    assert found(logger, "order") == ["order one", "order two"]
    monkeypatch.setattr(search_index, "DISK_FREE_BYTES_MIN", 0)
    logger.until(followed(logger, seq))
    assert index_of(logger)["problem"] is None
    assert [kind for _, kind, _ in logger.logged] == ["search_index_behind", "search_index_follows"]


def test_damage_that_a_search_meets_is_repaired_and_told_of(make: Callable[[], Harness], tmp_path: Path) -> None:
    logger = make()
    seq = emit_many(logger, *(f"order {number}" for number in range(500)))
    logger.until(followed(logger, seq))
    connection = apsw.Connection(str(tmp_path / "search.db"))
    connection.execute("UPDATE event_text_data SET block = zeroblob(length(block)) WHERE id > 10")
    connection.close()
    reply = logger.call("search", text="order 499")
    assert [event["message"] for event in reply["events"]] == ["order 499"]
    assert reply["index"]["problem"]
    logger.until(lambda: "search_index_rebuilt" in [kind for _, kind, _ in logger.logged])
    logger.until(followed(logger, seq))
    reply = logger.call("search", text="order 499")
    assert (len(reply["events"]), reply["index"]["problem"]) == (1, None)


def test_an_index_that_cannot_be_made_harms_nobody(
    make: Callable[[], Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_follower, "RETRY_S_MAX", 0.02)
    monkeypatch.setattr(search_follower, "RETRY_S_MIN", 0.02)
    (tmp_path / "search.db").mkdir()
    logger = make()
    logger.until(lambda: index_of(logger)["problem"] is not None)
    emit_many(logger, "order one")
    assert found(logger, "order") == ["order one"]
    assert os.path.isdir(tmp_path / "search.db")
    assert [kind for _, kind, _ in logger.logged] == ["search_index_behind"]


class Broken:
    """An index that is damaged whatever becomes of it."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, _clock: Callable[[], float]) -> Progress:
        self.steps += 1
        return Progress(0, 0, True, 0.0, opening=False, rebuilt="damaged again")

    def close(self) -> None:
        """Have nothing to close."""


def test_an_index_that_is_damaged_again_and_again_is_not_built_for_ever(
    make: Callable[[], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = make()
    broken = Broken()
    follower = SearchFollower(broken)  # type: ignore[arg-type]
    follower.start(logger)  # type: ignore[arg-type]
    follower.ready()
    follower.tick(time.monotonic(), 1)
    logger.until(lambda: follower.status()["problem"] is not None)
    assert broken.steps == search_follower.REBUILDS_IN_A_ROW_MAX + 1
    follower.stop()


def test_a_stop_waits_for_no_step_that_does_not_end(
    make: Callable[[], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = make()
    logger.until(followed(logger, emit_many(logger, "one")))
    until = time.monotonic() + 3
    monkeypatch.setattr(search_index.SearchIndex, "_step", lambda *_: time.sleep(until - time.monotonic()))
    emit_many(logger, "two")
    logger.until(lambda: logger.actor._search._worker.busy_s(time.monotonic()) > 0)  # type: ignore[attr-defined]
    logger.stop()
    assert time.monotonic() < until
