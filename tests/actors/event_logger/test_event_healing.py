"""The chain, and what a database that lost commits gets back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.chain import GENESIS, link, seal_head
from actors.event_logger.files import LogFiles
from actors.event_logger.lines import LineFormat
from actors.event_logger.queries import read_events
from actors.event_logger.records import Event, EventFilter
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database, Schema, reading
from actors.runtime.identity import boot_id
from protocol.severity import Severity

DAY_MS = 86_400_000
NOON_MS = 1_790_000_000_000 // DAY_MS * DAY_MS + DAY_MS // 2


def event(number: int, message: str = "") -> Event:
    text = message or f'order "{number}"\n'
    return Event(number.to_bytes(16), 1_000 * number, Severity.INFO, "shop", "order_paid", text, '{"a":1.0}')


def rows(path: str) -> list[tuple[Any, ...]]:
    with reading(path) as connection:
        return list(connection.execute("SELECT * FROM events ORDER BY seq"))


def check_chain(path: str) -> None:
    previous = GENESIS
    for seq, *values, found in rows(path):
        previous = link(previous, seq, Event(*values))
        assert found == previous, seq


def messages(path: str) -> list[tuple[int, str]]:
    page = read_events(path, EventFilter(after_seq=0, limit=10_000), bytes_max=10**9)
    return [(item["seq"], item["event_type"]) for item in page["events"]]


def write_file(files: LogFiles, day: str, lines: list[tuple[Any, ...]]) -> None:
    files.make_directory()
    Path(files.path(day)).write_bytes(LineFormat().lines(lines))


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[..., EventStore]:
    path = str(tmp_path / "reliability.db")
    return lambda now_ms=NOON_MS: EventStore(Database(path, SCHEMA), lambda: now_ms)


def lose(path: str, behind: int) -> None:
    """Take the newest events away, as a damaged write-ahead log does."""
    database = Database(path, SCHEMA)
    database.write(lambda connection: connection.execute("DELETE FROM events WHERE seq > ?", (behind,)).fetchall())
    database.close()


def test_every_event_is_chained_whatever_else_is_in_its_batch(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    store.append([event(1), event(2)], 1)
    store.append([event(2), event(3), event(3), event(1, "another"), event(4)], 1)
    store.database.close()
    check_chain(store.database.path)
    assert [row[0] for row in rows(store.database.path)] == [1, 2, 3, 4]


def test_events_of_the_release_before_are_chained_and_it_can_go_on(
    open_store: Callable[..., EventStore], tmp_path: Path
) -> None:
    path = str(tmp_path / "reliability.db")
    insert = (
        "INSERT INTO events (seq, id, timestamp_ms, severity, component, event_type, message, attributes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    )

    def older(first: int, last: int) -> None:
        database = Database(path, Schema(SCHEMA.owner, SCHEMA.migrations[:1]))
        values = [(number, *event(number)) for number in range(first, last + 1)]
        database.write(lambda connection: connection.executemany(insert, values))
        database.close()

    older(1, 5000)
    store = open_store()
    assert store.append([event(9001)], 1)[0].seq == 5002, "behind the event that tells of it"
    store.database.close()
    older(5003, 5005)
    store = open_store()
    store.append([event(9002)], 1)
    store.database.close()
    check_chain(path)
    assert [kind for _, kind in messages(path) if kind != "order_paid"] == ["events_chained"] * 2


def test_lost_commits_come_back_from_the_files(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    path = store.database.path
    store.append([event(number) for number in range(1, 3001)], 1)
    before = rows(path)
    store.database.close()
    write_file(store.files, "2026-09-21", before)
    lose(path, 20)
    store = open_store()
    store.append([event(9000)], 1)
    store.database.close()
    assert rows(path)[:3000] == before
    assert messages(path)[3000:] == [(3001, "events_restored"), (3002, "order_paid")]
    check_chain(path)


def test_a_new_database_gets_everything_back(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    path = store.database.path
    store.append([event(number) for number in range(1, 11)], 1)
    before = rows(path)
    store.database.close()
    write_file(store.files, "2026-09-21", before)
    for name in (path, path + "-wal", path + "-shm"):
        os.unlink(name)
    store = open_store()
    assert store.append([event(5)], 1)[0].seq == 5
    store.database.close()
    assert rows(path)[:10] == before


@pytest.mark.parametrize(("boot", "cause"), [("another", "power_cut"), (boot_id(), "damage")])
def test_what_no_file_has_is_lost_aloud_and_its_places_are_not_given_again(
    open_store: Callable[..., EventStore], boot: str, cause: str
) -> None:
    store = open_store()
    path = store.database.path
    store.append([event(number) for number in range(1, 101)], 1)
    before = rows(path)
    store.database.close()
    damaged = list(before)
    damaged[79] = (*damaged[79][:6], "changed", *damaged[79][7:])
    write_file(store.files, "2026-09-21", damaged)
    store.files.write_head(seal_head(100, before[-1][-1], boot, store.files.read_or_make_key()))
    lose(path, 50)
    store = open_store()
    store.append([event(9000)], 1)
    store.database.close()
    assert rows(path)[:79] == before[:79]
    assert messages(path)[79:] == [(101, "events_lost"), (102, "events_restored"), (103, "order_paid")]
    (lost,) = read_events(path, EventFilter(text="events_lost"))["events"]
    assert lost["attributes"] == {"count": 21, "cause": cause, "first_seq": 80, "last_seq": 100}
    check_chain(path)


def test_a_damaged_number_in_a_file_skips_nothing(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    path = store.database.path
    store.append([event(number) for number in range(1, 11)], 1)
    before = rows(path)
    store.database.close()
    write_file(store.files, "2026-09-21", before)
    content = Path(store.files.path("2026-09-21")).read_bytes()
    Path(store.files.path("2026-09-21")).write_bytes(content.replace(b'{"seq":10,', b'{"seq":90,'))
    store = open_store()
    assert store.append([event(11)], 1)[0].seq == 11


def test_a_forged_head_is_told_and_not_believed(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    store.append([event(1)], 1)
    store.database.close()
    store.files.make_directory()
    store.files.write_head(seal_head(1000, GENESIS, boot_id(), b"x" * 32))
    store = open_store()
    store.append([event(2)], 1)
    assert messages(store.database.path)[1] == (2, "event_head_unsealed")


def test_a_table_that_was_changed_behind_the_heads_back_is_told(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    store.append([event(1), event(2)], 1)
    store.database.close()
    store.files.make_directory()
    store.files.write_head(seal_head(2, GENESIS, boot_id(), store.files.read_or_make_key()))
    store = open_store()
    store.append([event(3)], 1)
    assert messages(store.database.path)[2] == (3, "event_chain_mismatch")


def test_a_clock_set_back_neither_repeats_nor_loses_a_day(open_store: Callable[..., EventStore]) -> None:
    clock = [NOON_MS]
    path = open_store().database.path
    store = EventStore(Database(path, SCHEMA), lambda: clock[0])
    number = 0

    def at(days: float) -> None:
        nonlocal number
        number += 1
        clock[0] = NOON_MS + int(days * DAY_MS)
        store.append([event(number)], 1)

    for days in (0, 0.5, 0.45, 0.6, 1.5, 1.4, 30, 29.9, 2.6, 3, 2.7, 3.6, 29.5, 30, 31):
        at(days)
    with reading(path) as connection:
        days = list(connection.execute("SELECT day, first_seq, last_seq, count FROM event_days ORDER BY first_seq"))
    assert days == [
        ("2026-09-21", 1, 1, 1),
        ("2026-09-22", 2, 4, 3),
        ("2026-09-23", 5, 6, 2),
        ("2026-10-21", 7, 8, 2),
        ("2026-09-24", 9, 11, 3),
        ("2026-09-25", 12, 14, 3),
        ("2026-10-22", 15, None, None),
    ]
