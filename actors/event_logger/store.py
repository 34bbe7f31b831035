"""The tables of event_logger: every statement that writes them stands here; `queries` reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import apsw

from actors.event_logger.core import Position
from actors.event_logger.records import Event, JournalEntry, Recovery, Restart
from actors.runtime.database import Database, Migration, Schema
from protocol.names import EVENT_LOGGER

SCHEMA: Final = Schema(
    EVENT_LOGGER,
    (
        Migration(
            # seq is given by the store, without gaps, and the newest row is never deleted: so none is ever used again.
            """
            CREATE TABLE events (
                seq INTEGER PRIMARY KEY,
                id BLOB NOT NULL UNIQUE,
                timestamp_ms INTEGER NOT NULL,
                severity INTEGER NOT NULL,
                component TEXT NOT NULL,
                event_type TEXT NOT NULL,
                message TEXT NOT NULL,
                attributes TEXT NOT NULL
            ) STRICT;
            CREATE INDEX events_by_time ON events (timestamp_ms);
            CREATE INDEX events_by_component ON events (component);
            CREATE TABLE restart_records (
                id BLOB PRIMARY KEY,
                timestamp_ms INTEGER NOT NULL,
                name TEXT NOT NULL,
                incarnation INTEGER NOT NULL,
                reason TEXT NOT NULL,
                exit_code INTEGER,
                signal INTEGER,
                charged INTEGER NOT NULL,
                manual INTEGER NOT NULL,
                evidence TEXT NOT NULL,
                recovery_ms INTEGER
            ) STRICT;
            CREATE INDEX restart_records_by_name ON restart_records (name, timestamp_ms);
            CREATE TABLE journal_positions (
                journal TEXT NOT NULL,
                head BLOB NOT NULL,
                offset INTEGER NOT NULL,
                complete INTEGER NOT NULL,
                boot_id TEXT NOT NULL,
                PRIMARY KEY (journal, head)
            ) STRICT, WITHOUT ROWID;
            """,
            usable_from=1,
        ),
    ),
)

_INSERT_EVENT: Final = (
    "INSERT INTO events (seq, id, timestamp_ms, severity, component, event_type, message, attributes)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING RETURNING seq"
)
_FIND_EVENT: Final = "SELECT seq, severity, component, event_type, message, attributes FROM events WHERE id = ?"
_INSERT_RESTART: Final = (
    "INSERT INTO restart_records"
    " (id, timestamp_ms, name, incarnation, reason, exit_code, signal, charged, manual, evidence)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one event.

    Attributes:
        event: as stored.
        seq: its place in the log; None if its id belongs to another event.
        new: False if it was there already.
    """

    event: Event
    seq: int | None
    new: bool


@dataclass(frozen=True, slots=True)
class DrainBatch:
    """What one drain of the journals commits, all of it or nothing.

    Attributes:
        entries: in the order of their journals.
        positions: to be stored.
        gone: positions to be deleted.
    """

    entries: Sequence[JournalEntry]
    positions: Sequence[Position]
    gone: Sequence[Position]


class EventStore:
    """Writes events, restart records and journal positions; the only one that does."""

    def __init__(self, database: Database) -> None:
        """Write through `database`, whose schema is `SCHEMA`."""
        self.database = database

    def append(self, events: Iterable[Event], patience_s: float) -> list[Stored]:
        """Commit events, each once by its id, in their order.

        Raises:
            DatabaseError: none of them is stored.
        """
        return self.database.write(lambda connection: _append(connection, events), patience_s)

    def drain(self, batch: DrainBatch, patience_s: float) -> list[Stored]:
        """Commit what was read from journals together with how far they have been read.

        Raises:
            DatabaseError: nothing of it is stored.
        """
        return self.database.write(lambda connection: _drain(connection, batch), patience_s)

    def positions(self, patience_s: float) -> list[Position]:
        """Return how far each journal has been drained.

        Raises:
            DatabaseError: the database cannot be used.
        """

        def work(connection: apsw.Connection) -> list[Position]:
            rows = connection.execute("SELECT journal, head, offset, complete, boot_id FROM journal_positions")
            return [
                Position(journal, head, offset, bool(complete), boot) for journal, head, offset, complete, boot in rows
            ]

        return self.database.write(work, patience_s)


def _append(connection: apsw.Connection, events: Iterable[Event]) -> list[Stored]:
    seq: int = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
    stored = []
    for event in events:
        values = (event.id, event.timestamp_ms, int(event.severity), *_content(event))
        if connection.execute(_INSERT_EVENT, (seq + 1, *values)).get is not None:
            seq += 1
            stored.append(Stored(event, seq, new=True))
        else:
            stored.append(_existing(connection, event))
    return stored


def _existing(connection: apsw.Connection, event: Event) -> Stored:
    row = connection.execute(_FIND_EVENT, (event.id,)).fetchone()
    if row is not None and row[1:] == (int(event.severity), *_content(event)):
        return Stored(event, row[0], new=False)
    return Stored(event, None, new=False)


def _content(event: Event) -> tuple[str, str, str, str]:
    return event.component, event.event_type, event.message, event.attributes


def _drain(connection: apsw.Connection, batch: DrainBatch) -> list[Stored]:
    events = []
    for entry in batch.entries:
        event = entry.event
        if entry.restart is not None:
            _add_restart(connection, entry.restart)
        if entry.recovery is not None:
            name = _recover(connection, entry.recovery)
            event = replace(event, component=name) if name else event
        events.append(event)
    stored = _append(connection, events)
    connection.executemany(
        "INSERT OR REPLACE INTO journal_positions (journal, head, offset, complete, boot_id) VALUES (?, ?, ?, ?, ?)",
        [(item.journal, item.head, item.offset, int(item.complete), item.boot_id) for item in batch.positions],
    )
    connection.executemany(
        "DELETE FROM journal_positions WHERE journal = ? AND head = ?",
        [(item.journal, item.head) for item in batch.gone],
    )
    return stored


def _add_restart(connection: apsw.Connection, restart: Restart) -> None:
    values = (
        restart.id,
        restart.timestamp_ms,
        restart.name,
        restart.incarnation,
        restart.reason,
        restart.exit_code,
        restart.signal,
        int(restart.charged),
        int(restart.manual),
        restart.evidence,
    )
    connection.execute(_INSERT_RESTART, values)


def _recover(connection: apsw.Connection, recovery: Recovery) -> str | None:
    """Note how long a restart took; returns whose it was, None if that is not known."""
    row = connection.execute(
        "UPDATE restart_records SET recovery_ms = ? WHERE id = ? RETURNING name",
        (recovery.recovery_ms, recovery.restart_id),
    ).fetchone()
    return None if row is None else str(row[0])
