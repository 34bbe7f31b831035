"""Events in the middle of the table come back where the chain proves them, aloud, and nothing else does."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.chain import link
from actors.event_logger.lines import LineFormat
from actors.event_logger.mending import PUT_BACK_TYPE, Mending, put_back, spans
from actors.event_logger.queries import verify_log
from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA
from actors.runtime.database import Database
from tests.actors.event_logger.filing import DAY_MS, Log

PER_DAY = 1200
FIRST_DAY, SECOND_DAY = "2026-09-21", "2026-09-22"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A closed and packed day and an open one, both in their files."""
    log = Log(tmp_path)
    log.write(PER_DAY)
    log.now_ms += DAY_MS
    log.write(PER_DAY)
    log.file()
    return log


def sql(log: Log, *statements: str) -> None:
    database = Database(log.path, SCHEMA)
    database.write(lambda connection: [connection.execute(text).fetchall() for text in statements])
    database.close()


def mend(log: Log, day: str) -> int:
    """Do what the actor does on its threads; returns how many events were put back."""
    mending, count = Mending(log.path, log.store.files, day), 0
    while rows := mending.next_slice():
        count += log.store.write(
            lambda connection, rows=rows: put_back(connection, log.store.log, rows, log.now_ms),  # type: ignore[misc]
            1,
        )
    return count


def told(log: Log) -> list[str]:
    return [json.loads(row[7])["places"] for row in log.rows() if row[5] == PUT_BACK_TYPE]


def found(log: Log) -> list[tuple[str, int]]:
    report = verify_log(str(Path(log.path).parent))
    assert report["complete"]
    return [(item["kind"], item["seq"]) for item in report["findings"]]


@pytest.mark.parametrize("day", [FIRST_DAY, SECOND_DAY])
@pytest.mark.parametrize(
    ("statement", "places", "count"),
    [
        ("DELETE FROM events WHERE seq = {0} + 5", "{5}", 1),
        ("DELETE FROM events WHERE seq = {0} + 1", "{1}", 1),
        ("DELETE FROM events WHERE seq BETWEEN {0} + 7 AND {0} + 900", None, 894),
        ("UPDATE events SET message = 'paid' WHERE seq = {0} + 5", "{5}", 1),
        ("UPDATE events SET hash = zeroblob(32) WHERE seq = {0} + 5", "{5}", 1),
        ("UPDATE events SET hash = NULL WHERE seq IN ({0} + 5, {0} + 6, {0} + 9)", "{5}-{6}, {9}", 3),
        ("DELETE FROM events WHERE seq BETWEEN {0} + 1190 AND {0} + 1198", "{1190}-{1198}", 9),
    ],
)
def test_what_was_changed_or_removed_comes_back_aloud(
    log: Log, day: str, statement: str, places: str | None, count: int
) -> None:
    before = log.rows()
    base = 0 if day == FIRST_DAY else PER_DAY
    sql(log, statement.format(base))
    report = verify_log(str(Path(log.path).parent))
    assert report["broken_days"] == [day]
    assert mend(log, day) == count
    assert log.rows()[: len(before)] == before
    if places is not None:
        numbered = places.translate(str.maketrans("{}", "  ")).split(",")
        expected = ", ".join("-".join(str(base + int(part)) for part in span.split("-")) for span in numbered)
        assert told(log) == [expected]
    assert sum(json.loads(row[7])["count"] for row in log.rows() if row[5] == PUT_BACK_TYPE) == count
    assert found(log) == []
    assert mend(log, day) == 0, "there is nothing more to do"


def test_two_events_that_changed_places_come_back(log: Log) -> None:
    before = log.rows()
    columns = "timestamp_ms = -seq, message = 'event ' || seq"
    sql(log, "UPDATE events SET seq = -11 WHERE seq = 11", "UPDATE events SET seq = 11 WHERE seq = 12")
    sql(log, "UPDATE events SET seq = 12 WHERE seq = -11", f"UPDATE events SET {columns} WHERE seq = 30")
    assert mend(log, FIRST_DAY) == 3
    assert log.rows()[: len(before)] == before
    assert told(log) == ["11-12, 30"]


def forged(rows: list[tuple[Any, ...]], place: int) -> list[tuple[Any, ...]]:
    """The same log with another event at `place`, rechained behind it: what one does who has no key."""
    rows = list(rows)
    seq, *values, _ = rows[place]
    values[5] = "forged"
    previous = rows[place - 1][-1]
    rows[place] = (seq, *values, b"")
    for at in range(place, len(rows)):
        seq, *values, _ = rows[at]
        previous = link(previous, seq, Event(*values))
        rows[at] = (seq, *values, previous)
    return rows


def test_lines_that_no_seal_covers_are_not_put_back(log: Log) -> None:
    rows = log.rows()
    first = forged([row for row in rows if row[0] <= PER_DAY], 100)
    Path(log.store.files.packed_path(FIRST_DAY)).write_bytes(gzip.compress(LineFormat().lines(first)))
    second = forged(rows, PER_DAY + 100)[PER_DAY:]
    Path(log.store.files.path(SECOND_DAY)).write_bytes(LineFormat().lines(second))
    sql(log, "DELETE FROM events WHERE seq IN (101, 500, 1301, 1700)")
    before = log.rows()
    assert (mend(log, FIRST_DAY), mend(log, SECOND_DAY)) == (0, 0)
    assert log.rows() == before


def test_damage_on_both_sides_at_different_places_is_mended_and_at_one_place_it_is_not(log: Log) -> None:
    path = Path(log.store.files.path(SECOND_DAY))
    lines = path.read_bytes().splitlines(keepends=True)
    before = log.rows()
    path.write_bytes(b"".join([*lines[:49], lines[49][:-9] + b"\n", *lines[50:]]))
    sql(log, "DELETE FROM events WHERE seq = 1300")
    assert mend(log, SECOND_DAY) == 1
    assert log.rows()[: len(before)] == before
    sql(log, "DELETE FROM events WHERE seq IN (1250, 1300)")
    assert mend(log, SECOND_DAY) == 0


def test_without_a_key_or_with_another_nothing_is_put_back(log: Log) -> None:
    sql(log, "DELETE FROM events WHERE seq IN (5, 1300)")
    key = Path(log.path).parent / "keys" / "events.key"
    key.write_bytes(b"another key of the length of ours"[:32])
    assert (mend(log, FIRST_DAY), mend(log, SECOND_DAY)) == (0, 0)
    key.unlink()
    assert (mend(log, FIRST_DAY), mend(log, SECOND_DAY)) == (0, 0)


def test_an_event_that_was_sent_again_meanwhile_is_not_there_twice(log: Log) -> None:
    taken = log.rows()[4]
    sql(log, "DELETE FROM events WHERE seq = 5")
    log.store.append([Event(*taken[1:-1])], 1)
    before = log.rows()
    assert mend(log, FIRST_DAY) == 0
    assert log.rows() == before


def test_places_are_told_as_runs() -> None:
    assert spans([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"
    assert spans([]) == ""
