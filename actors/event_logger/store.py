"""The tables of event_logger: every statement that writes them stands here; `queries` reads them."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import apsw

from actors.event_logger import outputs_store
from actors.event_logger.core import Position
from actors.event_logger.event_table import EventTable, Stored
from actors.event_logger.files import LogFiles
from actors.event_logger.healing import Healing
from actors.event_logger.records import Event, JournalEntry, Recovery, Restart
from actors.runtime.database import Database, Migration, Schema
from actors.runtime.database_problem import DatabaseError, Problem
from protocol.names import EVENT_LOGGER

__all__ = ["SCHEMA", "DrainBatch", "EventStore", "Stored"]

Result = TypeVar("Result")

PREPARATIONS_MAX: Final = 3
"""Times that one write prepares its connection, if that is replaced meanwhile."""

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
        Migration(
            # The release before reads and writes `events` as it did; what it writes has no hash until this one is back.
            """
            ALTER TABLE events ADD COLUMN hash BLOB;
            CREATE TABLE event_days (
                day TEXT PRIMARY KEY,
                first_seq INTEGER NOT NULL UNIQUE,
                first_prev_hash BLOB NOT NULL,
                last_seq INTEGER,
                last_hash BLOB,
                count INTEGER,
                mac BLOB,
                lost INTEGER NOT NULL DEFAULT 0,
                expired_at_run_s INTEGER,
                retired INTEGER NOT NULL DEFAULT 0
            ) STRICT;
            CREATE TABLE event_retention (
                only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
                run_s INTEGER NOT NULL
            ) STRICT;
            INSERT INTO event_retention VALUES (1, 0);
            """,
            usable_from=1,
        ),
        # The release before reads no output of programs.
        Migration(outputs_store.TABLE, usable_from=1),
    ),
)

_INSERT_RESTART: Final = (
    "INSERT INTO restart_records"
    " (id, timestamp_ms, name, incarnation, reason, exit_code, signal, charged, manual, evidence)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


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


class _UnpreparedError(Exception):
    """The connection is new."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class EventStore:
    """Writes events, restart records and journal positions; the only one that does. For the worker thread.

    A connection that is new to it - the first, and any after the file was replaced - is prepared before its first write
    (`healing`): what the database lost is put back from the files.

    Attributes:
        database: the connection.
        files: the log outside the database.
        log: the events' table.
    """

    def __init__(self, database: Database, wall_ms: Callable[[], int] = _wall_ms) -> None:
        """Write through `database`, whose schema is `SCHEMA`; the files lie beside it."""
        self.database = database
        self.files = LogFiles(os.path.dirname(database.path))
        self.log = EventTable(self.files, wall_ms)
        self._wall_ms = wall_ms
        self._prepared: apsw.Connection | None = None

    def append(self, events: Sequence[Event], patience_s: float) -> list[Stored]:
        """Commit events, each once by its id, in their order.

        Raises:
            DatabaseError: none of them is stored.
        """
        return self.write(lambda connection: self.log.append(connection, events), patience_s)

    def drain(self, batch: DrainBatch, patience_s: float) -> list[Stored]:
        """Commit what was read from journals together with how far they have been read.

        Raises:
            DatabaseError: nothing of it is stored.
        """
        return self.write(lambda connection: _drain(connection, self.log, batch), patience_s)

    def write(self, work: Callable[[apsw.Connection], Result], patience_s: float) -> Result:
        """Run `work` as one transaction, on a connection that is prepared.

        Raises:
            DatabaseError: nothing was written.
        """

        def prepared_work(connection: apsw.Connection) -> Result:
            if connection is not self._prepared:
                raise _UnpreparedError
            return work(connection)

        for _ in range(PREPARATIONS_MAX):
            try:
                return self.database.write(prepared_work, patience_s)
            except _UnpreparedError:
                self._prepared = Healing(self.database, self.log, self.files, self._wall_ms()).run(patience_s)
        raise DatabaseError(Problem.REPLACED, self.database.path)

    def look_for_expired(self, run_s: int, days_kept: int, patience_s: float) -> list[str]:
        """Take note of `run_s` more seconds of run time; return the days of the segments to retire (`EventTable`).

        Raises:
            DatabaseError: nothing was written.
        """
        return self.write(lambda connection: self.log.look_for_expired(connection, run_s, days_kept), patience_s)

    def retire(self, day: str, patience_s: float) -> bool:
        """Remove a segment's file and its next rows; tell whether more are left.

        Raises:
            DatabaseError, OSError: the next call goes on.
        """
        self.files.remove(day)
        return self.write(lambda connection: self.log.retire(connection, day), patience_s)

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

        return self.write(work, patience_s)


def _drain(connection: apsw.Connection, log: EventTable, batch: DrainBatch) -> list[Stored]:
    events = []
    for entry in batch.entries:
        event = entry.event
        if entry.restart is not None:
            _add_restart(connection, entry.restart)
        if entry.recovery is not None:
            name = _recover(connection, entry.recovery)
            event = event._replace(component=name) if name else event
        events.append(event)
    stored = log.append(connection, events)
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
