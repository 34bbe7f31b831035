"""Draining the spool into the table: every call once, whatever is wrong with its neighbours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from actors.event_logger.queries import read_events, read_restarts
from actors.event_logger.records import EventFilter
from actors.event_logger.spooled import BATCH_BYTES_MAX, SpoolDrain
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.paths import DATABASE_FILE
from actors.runtime.spool import SpoolReader, SpoolWriter

NOW_MS = 1_790_000_000_000


class Shelf:
    """A spool, a table, and the drain between them."""

    def __init__(self, data_dir: Path) -> None:
        self.path = str(data_dir / DATABASE_FILE)
        data_dir.mkdir(exist_ok=True)
        self.spool = SpoolWriter(str(data_dir), "event_logger")
        self.database = Database(self.path, SCHEMA)
        self.store = EventStore(self.database, lambda: NOW_MS)
        self.reader = SpoolReader(str(data_dir), "event_logger")
        self.drain = SpoolDrain(self.store, self.reader, lambda: NOW_MS)
        self._number = 0

    def put(self, op: str, arguments: dict[str, Any], raw: tuple[bytes, ...] = ()) -> bytes:
        self._number += 1
        request_id = self._number.to_bytes(16)
        self.spool.append(op, request_id, arguments, raw)
        return request_id

    def messages(self) -> list[str]:
        events = read_events(self.path, EventFilter(after_seq=0, limit=10**6), bytes_max=10**9)["events"]
        return [event["message"] for event in events]

    def close(self) -> None:
        self.reader.close()
        self.database.close()


def event(message: str, **more: Any) -> dict[str, Any]:
    return {"severity": "INFO", "component": "c", "event_type": "t", "message": message, **more}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "data")
    yield made
    made.close()


def test_every_form_of_a_call_is_taken_in(shelf: Shelf) -> None:
    shelf.put("emit", event("one"))
    shelf.put("emit_many", {"events": [event("two"), event("three")]})
    rows = [[bytes([n]) * 16, NOW_MS, 9, "c", "t", f"row {n}", "{}"] for n in range(3)]
    shelf.put("emit_rows", {}, (msgpack.packb(rows),))
    restart = shelf.put("record_restart", {"name": "host", "reason": "failure", "exit_code": 3})
    taken = shelf.drain.drain()
    assert (taken.calls, taken.refused, taken.pending_bytes, taken.damaged) == (4, [], 0, 0)
    assert shelf.messages() == ["one", "two", "three", "row 0", "row 1", "row 2", "host: failure"]
    (entry,) = read_restarts(shelf.path)["host"]
    assert (entry["reason"], entry["exit_code"], entry["charged"]) == ("failure", 3, False)
    assert taken.stored[-1].event.id == restart
    assert shelf.drain.drain().calls == 0


def test_what_was_executed_after_all_is_not_written_again(shelf: Shelf) -> None:
    shelf.put("emit_many", {"events": [event("a"), event("b")]})
    shelf.put("record_restart", {"name": "host", "reason": "failure", "timestamp_ms": NOW_MS})
    first = SpoolReader(str(Path(shelf.path).parent), "event_logger")
    calls = first.read(BATCH_BYTES_MAX)
    first.close()
    assert len(calls) == 2
    shelf.drain.drain()
    for call in calls:  # the same again, as by a reader that was killed between its commit and `done`
        shelf.spool.append(call.op, call.id, call.arguments, call.raw)
    taken = shelf.drain.drain()
    assert (taken.calls, taken.refused) == (2, [])
    assert not any(item.new for item in taken.stored)
    assert shelf.messages() == ["a", "b", "host: failure"]
    assert len(read_restarts(shelf.path)["host"]) == 1


def test_what_no_request_could_ask_for_is_refused_alone(shelf: Shelf) -> None:
    shelf.put("emit", event("good"))
    shelf.put("emit", event("bad", severity="LOUD"))
    shelf.put("launch_missiles", {})
    shelf.put("emit_rows", {}, (b"\xc1",))
    shelf.put("emit_rows", {})
    shelf.put("record_restart", {"name": "", "reason": "r"})
    shelf.put("emit", event("good too"))
    taken = shelf.drain.drain()
    assert len(taken.refused) == 5
    assert shelf.messages() == ["good", "good too"]
    assert shelf.drain.drain().calls == 0, "they are given up"


def test_an_id_of_another_event_is_told(shelf: Shelf) -> None:
    shelf.put("emit", event("first", id="ab" * 16))
    shelf.put("emit", event("second", id="ab" * 16))
    taken = shelf.drain.drain()
    assert len(taken.refused) == 1
    assert "another one has its id" in taken.refused[0]
    assert shelf.messages() == ["first"]


def test_a_database_that_cannot_be_written_to_leaves_it_in_the_spool(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("emit", event("patient"))

    def locked(*_arguments: Any) -> None:
        raise DatabaseError(Problem.LOCKED, shelf.path)

    with monkeypatch.context() as patch:
        patch.setattr(shelf.store, "drain", locked)
        for _ in range(3):
            with pytest.raises(DatabaseError):
                shelf.drain.drain()
    assert shelf.drain.drain().calls == 1
    assert shelf.messages() == ["patient"]


def test_much_is_taken_in_by_parts(shelf: Shelf) -> None:
    for number in range(300):
        shelf.put("emit", event(f"{number} " + "x" * 10_000))
    parts = 0
    while (taken := shelf.drain.drain()).calls:
        parts += 1
    assert parts == 3
    assert taken.pending_bytes == 0
    assert [int(message.split()[0]) for message in shelf.messages()] == list(range(300))
