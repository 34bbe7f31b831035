"""Tables `events` and `event_days`: what is written to them, inside the transactions of `store` and `healing`.

Places are given here, one after another. A place is skipped only where events were lost, and the event behind the gap
says so (`chain.LOST_TYPE`). The newest event is never deleted, so no place is given twice.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

import apsw

from actors.event_logger.chain import DAY_MS, GENESIS, Segment, close, day_of, link_all, next_day
from actors.event_logger.files import LogFiles
from actors.event_logger.records import Event
from protocol.errors import LocalError

SLICE_ROWS_MAX: Final = 2000
"""Rows that one transaction deletes, or chains after the fact."""
EXPIRED_RUN_S: Final = 86_400
"""Run time between the two looks at which a segment must have been too old: a clock that leaps deletes nothing."""

_INSERT: Final = (
    "INSERT INTO events (seq, id, timestamp_ms, severity, component, event_type, message, attributes, hash)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FIND: Final = "SELECT seq, severity, component, event_type, message, attributes FROM events WHERE id = ?"
_OPEN_DAY: Final = "INSERT INTO event_days (day, first_seq, first_prev_hash) VALUES (?, ?, ?)"
_SEGMENT: Final = "day, first_seq, first_prev_hash, last_seq, last_hash, count, mac"


class Stored(NamedTuple):
    """What became of one event.

    Attributes:
        event: as stored.
        seq: its place in the log; None if its id belongs to another event.
        new: False if it was there already.
    """

    event: Event
    seq: int | None
    new: bool


class Place(NamedTuple):
    """The newest event: 0 and `GENESIS` where there is none."""

    seq: int
    hash: bytes


class EventTable:
    """Writes events. Every method runs inside the caller's transaction."""

    def __init__(self, files: LogFiles, wall_ms: Callable[[], int]) -> None:
        """Name days by `wall_ms`, and seal them with the key among `files`."""
        self._files = files
        self._wall_ms = wall_ms
        self._kept_key: bytes | None = None

    @property
    def key(self) -> bytes | None:
        """What roots and head are sealed with; None while it can be neither read nor made."""
        if self._kept_key is None:
            try:
                self._kept_key = self._files.read_or_make_key()
            except (OSError, LocalError):
                return None
        return self._kept_key

    def last(self, connection: apsw.Connection) -> Place:
        """Return the newest event's place."""
        row = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return Place(0, GENESIS) if row is None else Place(row[0], row[1] or GENESIS)

    def append(
        self, connection: apsw.Connection, events: Sequence[Event], first_seq: int | None = None
    ) -> list[Stored]:
        """Add events, each once by its id, in their order; with `first_seq` the places before it are skipped."""
        if not events:
            return []
        last = self.last(connection)
        seq = last.seq + 1 if first_seq is None else first_seq
        rows = link_all(last.hash, seq, events)
        several = len(rows) > 1  # one statement that fails leaves nothing behind, and needs no way back
        if several:
            connection.execute("SAVEPOINT events")
        try:
            connection.executemany(_INSERT, rows)
            stored = list(map(Stored, events, range(seq, seq + len(events)), repeat(True)))
        except apsw.ConstraintError:  # some are there already, which is rare
            if several:
                connection.execute("ROLLBACK TO events")
            stored = _placed(connection, events, seq)
            rows = link_all(last.hash, seq, [item.event for item in stored if item.new])
            connection.executemany(_INSERT, rows)
        if several:
            connection.execute("RELEASE events")
        if rows:
            self._enter(connection, last, seq)
        return stored

    def restore(self, connection: apsw.Connection, day: str, rows: Sequence[tuple[Any, ...]], last: Place) -> bool:
        """Put back rows that the database lost, of a file of `day` and behind `last`; False if it has their ids."""
        try:
            connection.executemany(_INSERT, rows)
        except apsw.ConstraintError:
            return False
        if not connection.execute("SELECT EXISTS (SELECT 1 FROM event_days WHERE day = ?)", (day,)).get:
            self._begin(connection, day, last, rows[0][0])
        return True

    def adopt(self, connection: apsw.Connection) -> int:
        """Chain the next events that another release has written behind the chain's end; returns how many."""
        hashed = "SELECT seq, hash FROM events WHERE hash IS NOT NULL ORDER BY seq DESC LIMIT 1"
        row = connection.execute(hashed).fetchone()
        last = Place(0, GENESIS) if row is None else Place(*row)
        select = (
            "SELECT seq, id, timestamp_ms, severity, component, event_type, message, attributes FROM events"
            " WHERE seq > ? ORDER BY seq LIMIT ?"
        )
        rows: list[Any] = connection.execute(select, (last.seq, SLICE_ROWS_MAX)).fetchall()
        previous, hashes = last.hash, []
        for seq, *values in rows:
            ((*_, previous),) = link_all(previous, seq, [Event(*values)])
            hashes.append((previous, seq))
        connection.executemany("UPDATE events SET hash = ? WHERE seq = ?", hashes)
        if rows:
            self._enter(connection, last, rows[0][0])
        return len(rows)

    def put_roots(self, connection: apsw.Connection, roots: Sequence[Segment]) -> None:
        """Put back the roots of segments that are gone, into a new database."""
        connection.executemany(
            f"INSERT OR IGNORE INTO event_days ({_SEGMENT}, retired) VALUES (?, ?, ?, ?, ?, ?, ?, 1)",  # noqa: S608
            [_values(root) for root in roots],
        )

    # --- segments ---

    def _enter(self, connection: apsw.Connection, last: Place, seq: int) -> None:
        """See to it that place `seq`, just taken behind `last`, is in the segment of its day."""
        row = connection.execute("SELECT day FROM event_days WHERE last_seq IS NULL").fetchone()

        def taken(day: str) -> bool:
            return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM event_days WHERE day = ?)", (day,)).get)

        day = next_day(row and row[0], self._wall_ms(), taken)
        begun = day is not None and self._begin(connection, day, last, seq)
        if not begun and seq > last.seq + 1:
            lost = seq - last.seq - 1
            connection.execute("UPDATE event_days SET lost = lost + ? WHERE last_seq IS NULL", (lost,))

    def _begin(self, connection: apsw.Connection, day: str, last: Place, seq: int) -> bool:
        """Close the present segment at `last` and begin one at `seq`; False if there is no key to seal it with."""
        statement = "SELECT day, first_seq, first_prev_hash, lost FROM event_days WHERE last_seq IS NULL"
        row = connection.execute(statement).fetchone()
        if row is not None:
            present, first_seq, first_prev_hash, lost = row
            key = self.key
            if key is None:
                return False
            segment = Segment(present, first_seq, first_prev_hash)
            root = close(segment, last.seq, last.hash, last.seq - first_seq + 1 - lost, key)
            connection.execute(
                "UPDATE event_days SET last_seq = ?, last_hash = ?, count = ?, mac = ? WHERE day = ?",
                (root.last_seq, root.last_hash, root.count, root.mac, present),
            )
        connection.execute(_OPEN_DAY, (day, seq, last.hash))
        return True

    # --- retention ---

    def look_for_expired(self, connection: apsw.Connection, run_s: int, days_kept: int) -> list[str]:
        """Take note of `run_s` more seconds of run time; return the days of the segments to retire, oldest first.

        A segment is retired when it was older than `days_kept` at two looks that lie `EXPIRED_RUN_S` of run time apart,
        and at all looks between.
        """
        connection.execute("UPDATE event_retention SET run_s = run_s + ?", (run_s,))
        run_total_s = connection.execute("SELECT run_s FROM event_retention").get
        oldest_kept = day_of(self._wall_ms() - days_kept * DAY_MS)
        closed = "retired = 0 AND last_seq IS NOT NULL"
        connection.execute(
            f"UPDATE event_days SET expired_at_run_s = NULL WHERE {closed} AND day >= ?",  # noqa: S608
            (oldest_kept,),
        )
        connection.execute(
            f"UPDATE event_days SET expired_at_run_s = ? WHERE {closed} AND day < ? AND expired_at_run_s IS NULL",  # noqa: S608
            (run_total_s, oldest_kept),
        )
        expired = connection.execute(
            f"SELECT day FROM event_days WHERE {closed} AND expired_at_run_s <= ? ORDER BY first_seq",  # noqa: S608
            (run_total_s - EXPIRED_RUN_S,),
        )
        half_done = connection.execute("SELECT day FROM event_days WHERE retired = 1 ORDER BY first_seq")
        return [day for (day,) in half_done] + [day for (day,) in expired]

    def retire(self, connection: apsw.Connection, day: str) -> bool:
        """Delete the next rows of a closed segment, and the restarts that they tell of; tell whether more are left.

        Its root stays for good.
        """
        row = connection.execute(
            "SELECT first_seq, last_seq FROM event_days WHERE day = ? AND last_seq IS NOT NULL AND retired < 2", (day,)
        ).fetchone()
        if row is None:
            return False
        connection.execute("UPDATE event_days SET retired = 1 WHERE day = ?", (day,))
        between = "SELECT seq FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT 1 OFFSET ?"
        end = connection.execute(between, (*row, SLICE_ROWS_MAX)).get
        stop = row[1] + 1 if end is None else end
        places = (row[0], stop)
        restarts = "DELETE FROM restart_records WHERE id IN (SELECT id FROM events WHERE seq >= ? AND seq < ?)"
        connection.execute(restarts, places)
        connection.execute("DELETE FROM events WHERE seq >= ? AND seq < ?", places)
        if end is None:
            connection.execute("UPDATE event_days SET retired = 2 WHERE day = ?", (day,))
        return end is not None


def _placed(connection: apsw.Connection, events: Sequence[Event], seq: int) -> list[Stored]:
    """Return what becomes of each of `events` if the new ones among them are placed from `seq` on."""
    placed: list[Stored] = []
    fresh: dict[bytes, tuple[Any, ...]] = {}
    for event in events:
        found = fresh.get(event.id) or connection.execute(_FIND, (event.id,)).fetchone()
        if found is None:
            fresh[event.id] = (seq, *_content(event))
            placed.append(Stored(event, seq, new=True))
            seq += 1
        else:
            placed.append(Stored(event, found[0] if found[1:] == _content(event) else None, new=False))
    return placed


def _content(event: Event) -> tuple[Any, ...]:
    return int(event.severity), event.component, event.event_type, event.message, event.attributes


def _values(root: Segment) -> tuple[Any, ...]:
    return root.day, root.first_seq, root.first_prev_hash, root.last_seq, root.last_hash, root.count, root.mac
