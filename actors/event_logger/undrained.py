"""What event_logger has not taken over yet, for offline reading: entries of journals, and calls in the spool.

So the story of a crash can be read with every process dead, its last lines included. Nothing is changed or locked.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

import apsw

from actors.event_logger.folding import fold, holds
from actors.event_logger.records import Event, EventFilter, JournalEntry, event_document, parse_journal_entries
from actors.event_logger.spooled import parse_spooled
from actors.runtime.database import READ_S_MAX, reading
from actors.runtime.database_problem import DatabaseError
from actors.runtime.journal import parse_lines
from actors.runtime.paths import DATABASE_FILE, JOURNAL_DIR
from actors.runtime.spool_reader import peek
from protocol.errors import ProtocolError
from protocol.names import EVENT_LOGGER

EVENTS_MAX: Final = 10_000
"""The newest are kept."""
_JOURNAL_SUFFIXES: Final = (".jsonl.1", ".jsonl")
_IDS_PER_QUERY: Final = 500


def read_undrained(data_dir: str, runtime_dir: str, wanted: EventFilter, now_ms: int) -> list[dict[str, Any]]:
    """Return the events that are in no table yet and match, oldest first, their seq None.

    The filter's bounds on places and its limit do not count. `now_ms` is the time of what was spooled without one.
    """
    entries = [*_journal_entries(os.path.join(runtime_dir, JOURNAL_DIR)), *_spooled_entries(data_dir, now_ms)]
    events = {event.id: event for event in _named(entries)}
    for event_id in _known(os.path.join(data_dir, DATABASE_FILE), list(events)):
        events.pop(event_id, None)
    by_time = sorted(events.values(), key=lambda event: event.timestamp_ms)
    matching = [event for event in by_time if _matches(event, wanted)]
    if wanted.grep is not None:
        matching = _grep(matching, wanted.grep)
    return [{**event_document(0, event), "seq": None} for event in matching[-EVENTS_MAX:]]


def _journal_entries(directory: str) -> Iterator[JournalEntry]:
    """Yield what the journals hold; of one journal the elder file comes first."""
    try:
        names = sorted(os.listdir(directory), key=lambda name: (name.partition(".")[0], not name.endswith(".1")))
    except OSError:
        return
    for name in names:
        if name.endswith(_JOURNAL_SUFFIXES):
            try:
                with open(os.path.join(directory, name), "rb") as file:
                    found, _ = parse_lines(file.read())
            except OSError:  # turned over a moment ago
                continue
            yield from sorted(parse_journal_entries(found)[0], key=lambda entry: entry.mono_ms)


def _spooled_entries(data_dir: str, now_ms: int) -> Iterator[JournalEntry]:
    for call in peek(data_dir, EVENT_LOGGER):
        try:
            yield from parse_spooled(call, now_ms)
        except ProtocolError:
            continue


def _named(entries: Iterable[JournalEntry]) -> Iterator[Event]:
    """Yield the events; that of a recovery is about the process whose restart it ends, as in the table."""
    restarted: dict[bytes, str] = {}
    for entry in entries:
        event = entry.event
        if entry.restart is not None:
            restarted[entry.restart.id] = entry.restart.name
        if entry.recovery is not None and entry.recovery.restart_id in restarted:
            event = event._replace(component=restarted[entry.recovery.restart_id])
        yield event


def _known(path: str, ids: list[bytes]) -> list[bytes]:
    """Return which of these ids the table has; none of them if it cannot be read."""
    known: list[bytes] = []
    if not os.path.exists(path):
        return known
    try:
        with reading(path, READ_S_MAX) as connection:
            for begin in range(0, len(ids), _IDS_PER_QUERY):
                part = ids[begin : begin + _IDS_PER_QUERY]
                marks = ",".join("?" * len(part))
                known += [row[0] for row in connection.execute(f"SELECT id FROM events WHERE id IN ({marks})", part)]  # noqa: S608 - question marks
    except DatabaseError:
        return known
    return known


def _matches(event: Event, wanted: EventFilter) -> bool:
    """Apply every condition but the regular expression."""
    if wanted.component is not None and event.component != wanted.component:
        return False
    if wanted.since_ms is not None and event.timestamp_ms < wanted.since_ms:
        return False
    if wanted.until_ms is not None and event.timestamp_ms > wanted.until_ms:
        return False
    if not wanted.low <= event.severity <= wanted.high:
        return False
    return wanted.text is None or holds(event, fold(wanted.text))


def _grep(events: list[Event], pattern: str) -> list[Event]:
    """Return those whose message matches, by SQLite's own regular expressions as in the table."""
    from apsw import sqlite_extra  # noqa: PLC0415 - costs tens of milliseconds, and few queries need it

    connection = apsw.Connection(":memory:")
    try:
        sqlite_extra.load(connection, "regexp")
        return [event for event in events if connection.execute("SELECT ? REGEXP ?", (event.message, pattern)).get]
    except (sqlite_extra.NotAvailable, apsw.SQLError):  # the query of the table has told of it
        return []
    finally:
        connection.close()
