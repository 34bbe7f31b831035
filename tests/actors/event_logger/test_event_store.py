"""Events, restart records and journals in a real database, and how they are found again."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from actors.event_logger.journals import JournalDrain
from actors.event_logger.queries import read_events, read_restarts, restart_status
from actors.event_logger.records import Event, EventFilter
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime import journal as journal_module
from actors.runtime.database import APPLICATION_ID, Database, reading
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.journal import Journal, new_entry
from actors.runtime.liveness import LauncherRecord
from protocol.errors import ErrorCode, LocalError
from protocol.severity import Severity
from tests.actors.conftest import resize


def event(number: int, **changes: object) -> Event:
    fields = {
        "id": number.to_bytes(16),
        "timestamp_ms": 1_000 * number,
        "severity": Severity.INFO,
        "component": "shop",
        "event_type": "order_paid",
        "message": f"order {number}",
    }
    return Event(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "reliability.db")


@pytest.fixture
def store(path: str) -> Iterator[EventStore]:
    store = EventStore(Database(path, SCHEMA))
    yield store
    store.database.close()


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


def messages(path: str, **wanted: object) -> list[str]:
    return [item["message"] for item in read_events(path, EventFilter(**wanted))["events"]]  # type: ignore[arg-type]


def test_events_get_consecutive_places_each_once_by_id(store: EventStore, path: str) -> None:
    first = store.append([event(1), event(2), event(1)], 1)
    assert [(item.seq, item.new) for item in first] == [(1, True), (2, True), (1, False)]
    second = store.append([event(2), event(3)], 1)
    assert [(item.seq, item.new) for item in second] == [(2, False), (3, True)]
    assert messages(path) == ["order 1", "order 2", "order 3"]


def test_an_id_of_another_event_is_told_and_costs_the_others_nothing(store: EventStore, path: str) -> None:
    store.append([event(1)], 1)
    found = store.append([event(1, message="something else"), event(2)], 1)
    assert [item.seq for item in found] == [None, 2]
    assert messages(path) == ["order 1", "order 2"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"limit": 2}, [4, 5]),
        ({"limit": 2, "reverse": True}, [5, 4]),
        ({"after_seq": 2, "limit": 2}, [3, 4]),
        ({"after_seq": 2, "limit": 2, "reverse": True}, [4, 3]),
        ({"before_seq": 4, "limit": 2}, [2, 3]),
        ({"component": "llm"}, [4]),
        ({"since_ms": 3_000}, [3, 4, 5]),
        ({"until_ms": 3_000}, [1, 2, 3]),
        ({"low": Severity.WARN}, [3, 5]),
        ({"low": Severity.WARN, "high": Severity.ERROR}, [3]),
        ({"grep": "^order [35]$"}, [3, 5]),
        ({"text": "ORDER 4"}, [4]),
        ({"text": "50%_"}, [5]),
        ({"text": "gpt"}, [4]),
        ({"limit": 0}, []),
    ],
)
def test_filters(store: EventStore, path: str, wanted: dict[str, object], expected: list[int]) -> None:
    special = {
        3: {"severity": Severity.WARN},
        4: {"component": "llm", "attributes": '{"model":"gpt"}'},
        5: {"severity": Severity.FATAL, "attributes": '{"share":"50%_x"}'},
    }
    store.append([event(number, **special.get(number, {})) for number in range(1, 6)], 1)
    assert messages(path, **wanted) == [f"order {number}" for number in expected]


def test_a_wrong_pattern_is_one_clear_error(store: EventStore, path: str) -> None:
    store.append([event(1)], 1)
    with pytest.raises(LocalError, match=r"'\(' is no regular expression") as caught:
        messages(path, grep="(")
    assert caught.value.code == ErrorCode.USAGE


def test_a_long_result_comes_in_pages_that_leave_nothing_out(store: EventStore, path: str) -> None:
    store.append([event(number, message="x" * 10_000 + str(number)) for number in range(1, 51)], 1)
    seen: list[int] = []
    page = read_events(path, EventFilter(limit=50))
    while True:
        seen = [item["seq"] for item in page["events"]] + seen
        if not page["more"]:
            break
        page = read_events(path, EventFilter(limit=50, before_seq=seen[0]))
    assert seen == list(range(1, 51))
    assert read_events(path, EventFilter(limit=3))["more"]


def test_every_journal_entry_arrives_once(store: EventStore, path: str, journals: Path) -> None:
    drain = JournalDrain(str(journals), store)
    launcher, watchdog = Journal(str(journals), "launcher"), Journal(str(journals), "watchdog")
    for number in range(3):
        launcher.append(new_entry("event", severity="INFO", component="launcher", event_type="t", message=f"l{number}"))
    cause = new_entry("event", severity="WARN", component="watchdog", event_type="t", message="w")
    watchdog.append(cause | {"mono_ms": 0})
    assert [item.event.message for item in drain.drain(0).stored] == ["w", "l0", "l1", "l2"], "in their order"
    assert drain.drain(0).stored == []
    launcher.append(new_entry("event", severity="INFO", component="launcher", event_type="t", message="l3"))
    again = JournalDrain(str(journals), store)
    assert [item.event.message for item in again.drain(0).stored] == ["l3"], "a successor goes on where it ended"
    assert messages(path) == ["w", "l0", "l1", "l2", "l3"]


def test_a_restart_and_its_recovery_are_one_row(store: EventStore, path: str, journals: Path) -> None:
    drain = JournalDrain(str(journals), store)
    launcher = Journal(str(journals), "launcher")
    restart = new_entry(
        "restart",
        name="broker",
        incarnation=4,
        reason="hung: frozen (stopped by a signal)",
        exit_code=None,
        signal=9,
        charged=True,
        manual=False,
        evidence="broker-4.txt",
    )
    launcher.append(restart)
    drain.drain(0)
    launcher.append(new_entry("recovery", restart_id=restart["id"], recovery_ms=17))
    drain.drain(0)
    row = {
        "timestamp": restart["at"],
        "reason": "hung: frozen (stopped by a signal)",
        "exit_code": None,
        "signal": 9,
        "recovery_ms": 17,
        "incarnation": 4,
        "charged": True,
        "manual": False,
        "evidence": "broker-4.txt",
    }
    assert read_restarts(path) == {"broker": [row]}
    assert read_restarts(path, "watchdog") == {}
    assert messages(path, component="broker") == [
        "broker: hung: frozen (stopped by a signal)",
        "ready again after 17 ms",
    ]


def test_a_journal_turned_over_between_and_during_drains_loses_nothing(
    store: EventStore, path: str, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "JOURNAL_BYTES_MAX", 2_000)
    drain = JournalDrain(str(journals), store)
    launcher = Journal(str(journals), "launcher")
    for number in range(200):
        launcher.append(new_entry("event", severity="INFO", component="l", event_type="t", message=f"{number:03d}"))
        if number % 4 == 0:
            drain.drain(0)
    drain.drain(0)
    assert os.path.exists(launcher.path + ".1")
    assert messages(path, limit=500) == [f"{number:03d}" for number in range(200)]


def test_entries_that_nobody_drained_in_time_are_missed_aloud(
    store: EventStore, path: str, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "JOURNAL_BYTES_MAX", 2_000)
    launcher = Journal(str(journals), "launcher")
    drain = JournalDrain(str(journals), store)
    launcher.append(new_entry("event", severity="INFO", component="l", event_type="t", message="first"))
    drain.drain(0)
    for number in range(100):
        launcher.append(new_entry("event", severity="INFO", component="l", event_type="t", message=str(number)))
    drain.drain(0)
    drain.drain(0)
    assert len(read_events(path, EventFilter(text="journal_lost"))["events"]) == 1


def test_torn_and_senseless_lines_cost_themselves_alone(store: EventStore, path: str, journals: Path) -> None:
    launcher = Journal(str(journals), "launcher")
    good = json.dumps(new_entry("event", severity="INFO", component="l", event_type="t", message="good"))
    Path(launcher.path).write_text(f'{{"id": "torn\nnot json\n[1]\n{{"kind":"event"}}\n{good}\n{{"id":"abc')
    drained = JournalDrain(str(journals), store).drain(0)
    assert messages(path) == ["good"]
    assert drained.refused == 1, "what is not even an entry is not counted as one"
    launcher.append(new_entry("event", severity="INFO", component="l", event_type="t", message="after"))
    JournalDrain(str(journals), store).drain(0)
    assert messages(path) == ["good", "after"]


def test_a_drain_that_fails_begins_again_at_the_same_place(store: EventStore, path: str, journals: Path) -> None:
    drain = JournalDrain(str(journals), store)
    launcher = Journal(str(journals), "launcher")
    launcher.append(new_entry("event", severity="INFO", component="l", event_type="t", message="1"))
    drain.drain(0)
    launcher.append(new_entry("event", severity="INFO", component="l", event_type="t", message="2"))
    os.rename(path, path + ".away")
    with pytest.raises(DatabaseError) as caught:
        drain.drain(0)
    assert caught.value.problem is Problem.REPLACED
    os.rename(path + ".away", path)
    assert [item.event.message for item in drain.drain(0).stored] == ["2"]


def test_a_full_disk_refuses_the_whole_batch_and_takes_it_when_there_is_space(small_disk: Path) -> None:
    path = str(small_disk / "reliability.db")
    store = EventStore(Database(path, SCHEMA))
    acknowledged: list[int] = []
    number = 0

    def fill() -> None:
        nonlocal number
        while True:
            number += 1
            (stored,) = store.append([event(number, message="x" * 8_000)], 1)
            assert stored.seq is not None
            acknowledged.append(stored.seq)

    with pytest.raises(DatabaseError) as caught:
        fill()
    assert caught.value.problem in (Problem.FULL, Problem.IO)
    with reading(path) as connection:
        assert [seq for (seq,) in connection.execute("SELECT seq FROM events ORDER BY seq")] == acknowledged
    resize(small_disk, "16m")
    assert store.append([event(number)], 1)[0].seq == acknowledged[-1] + 1
    store.database.close()


def launcher_record(name: str, state: str = "ready") -> LauncherRecord:
    return LauncherRecord(name, "actor", 1, 1, 1, state, 0, 0, 2, 1, 0, 5000, 15000)


def test_restart_status_joins_the_board_and_the_table() -> None:
    history = {"broker": [{"reason": "x"}], "elder": [{"reason": "y"}]}
    records = [launcher_record("broker", "quarantined"), launcher_record("watchdog")]
    assert restart_status(records, history) == {
        "processes": [
            {
                "name": "broker",
                "restarts_in_period": 2,
                "restarts_left": 1,
                "quarantined": True,
                "history": [{"reason": "x"}],
            },
            {"name": "watchdog", "restarts_in_period": 2, "restarts_left": 1, "quarantined": False, "history": []},
            {
                "name": "elder",
                "restarts_in_period": None,
                "restarts_left": None,
                "quarantined": False,
                "history": [{"reason": "y"}],
            },
        ]
    }
    assert [item["name"] for item in restart_status(records, {}, "watchdog")["processes"]] == ["watchdog"]


def test_a_log_that_has_not_begun_reads_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "reliability.db"
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("CREATE TABLE checkpoints (x)")  # another owner's first write came before ours
    connection.close()
    nothing = {"events": [], "more": False, "next_seq": None}
    assert read_events(str(path), EventFilter()) == nothing
    assert read_events(str(path), EventFilter(text="x")) == nothing
    assert read_restarts(str(path)) == {}
