"""Puts back events in the middle of the table, where table and file together prove what was written.

A day is walked along its chain: the next event is the table's if that is what was chained, else the file's if that is.
What the walk chose instead of the table's is believed only if it ends in something that is sealed: the root of a closed
day, or the log's head. So nobody without the key can have an event of his own put back. Every slice that is put back
is told by an event of the same transaction, place by place: what was done to the log stays visible.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import apsw

from actors.event_logger.chain import Head, Segment, is_head_sealed, is_sealed, link
from actors.event_logger.event_table import EventTable
from actors.event_logger.files import LogFiles
from actors.event_logger.lines import parse_line
from actors.event_logger.records import Event
from actors.event_logger.verify import owned_up
from actors.runtime.database import READ_S_MAX, reading
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

PUT_BACK_TYPE: Final = "events_put_back"
SLICE_ROWS: Final = 500
"""Rows that one transaction puts back."""
TOLD_MAX: Final = 100
"""Characters of places in a message; the attributes have all of them."""
_COLUMNS: Final = "seq, id, timestamp_ms, severity, component, event_type, message, attributes, hash"
_ROWS: Final = f"SELECT {_COLUMNS} FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"  # noqa: S608 - constants
_INSERT: Final = f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
_SEGMENT: Final = "SELECT day, first_seq, first_prev_hash, last_seq, last_hash, count, mac FROM event_days"

Row = tuple[Any, ...]


@dataclass(slots=True)
class Walk:
    """A walk along one chain. Pure.

    Attributes:
        seq: the last place that was reached.
        hash: its hash.
    """

    seq: int
    hash: bytes

    def choose(self, rows: Iterator[Row], lines: Iterator[Row]) -> Iterator[tuple[Row, bool]]:
        """Yield what was chained, place by place, and whether that is the file's; ends where neither side goes on."""
        row, line = next(rows, None), next(lines, None)
        while True:
            while row is not None and row[0] <= self.seq:
                row = next(rows, None)
            while line is not None and line[0] <= self.seq:
                line = next(lines, None)
            if row is not None and self._follows(row):
                chosen, is_line = row, False
            elif line is not None and self._follows(line):
                chosen, is_line = line, True
            else:
                return
            self.seq, self.hash = chosen[0], chosen[-1]
            yield chosen, is_line

    def _follows(self, row: Row) -> bool:
        seq, *values, found_hash = row
        event = Event(*values)
        next_seq = self.seq + 1
        in_place = seq == next_seq or (seq > next_seq and owned_up(event, next_seq, seq - 1) is not None)
        return in_place and link(self.hash, seq, event) == found_hash


class Mending:
    """Finds what can be put back into one day. For a thread that reads; `put_back` is for the one that writes."""

    def __init__(self, path: str, files: LogFiles, day: str) -> None:
        """Look at `day` in the database at `path` and its file among `files`."""
        self._path = path
        self._files = files
        self._day = day
        self._chosen: Iterator[Row] | None = None

    def next_slice(self) -> list[Row]:
        """Return the next rows to put back, with their hashes; none when there are no more, or nothing is proven.

        The first call walks the whole day to its seal; the walk that the slices come from is another one.

        Raises:
            DatabaseError: the table cannot be read.
            OSError: the files cannot be looked for.
        """
        if self._chosen is None:
            self._chosen = self._begin()
        return list(islice(self._chosen, SLICE_ROWS))

    def _begin(self) -> Iterator[Row]:
        with reading(self._path, READ_S_MAX) as connection:
            found = connection.execute(f"{_SEGMENT} WHERE day = ? AND retired = 0", (self._day,)).fetchone()
        if found is None:
            return iter(())
        segment = Segment(*found)
        end = self._end(segment)
        if end is None:
            return iter(())
        walk = Walk(segment.first_seq - 1, segment.first_prev_hash)
        wanted = sum(is_line for _, is_line in self._walk(walk, end[0]))
        if not wanted or (walk.seq, walk.hash) != end:
            return iter(())
        again = self._walk(Walk(segment.first_seq - 1, segment.first_prev_hash), end[0])
        return (row for row, is_line in again if is_line)

    def _end(self, segment: Segment) -> tuple[int, bytes] | None:
        """Return the sealed place and hash that the walk has to arrive at; None if there are none."""
        key = self._files.read_key()
        if key is None:
            return None
        if segment.last_seq is not None and segment.last_hash is not None:
            return (segment.last_seq, segment.last_hash) if is_sealed(segment, key) else None
        try:
            head: Head | None = self._files.read_head()
        except ValueError:
            return None
        if head is None or head.seq < segment.first_seq or not is_head_sealed(head, key):
            return None
        return head.seq, head.hash

    def _walk(self, walk: Walk, end_seq: int) -> Iterator[tuple[Row, bool]]:
        return walk.choose(self._rows(walk.seq, end_seq), self._lines(end_seq))

    def _rows(self, seq: int, end_seq: int) -> Iterator[Row]:
        while True:
            with reading(self._path, READ_S_MAX) as connection:
                rows: list[Row] = connection.execute(_ROWS, (seq, end_seq, SLICE_ROWS)).fetchall()
            if not rows:
                return
            yield from rows
            seq = rows[-1][0]

    def _lines(self, end_seq: int) -> Iterator[Row]:
        """Yield the file's whole lines as rows; where it cannot be read on, it ends."""
        try:
            for raw in self._files.lines(self._day):
                try:
                    line = parse_line(raw)
                except ValueError:
                    continue
                if line.seq > end_seq:
                    return
                yield (line.seq, *line.event, line.hash)
        except (OSError, EOFError, zlib.error):
            return


def put_back(connection: apsw.Connection, log: EventTable, rows: Sequence[Row], now_ms: int) -> int:
    """Put rows in their places inside the caller's transaction, and say so; returns how many, 0 if their ids are taken.

    An id is taken where a caller has sent a lost event again: then it is in the log already, at another place.
    """
    places = [(row[0],) for row in rows]
    connection.execute("SAVEPOINT put_back")
    try:
        changed = sum(
            connection.execute("SELECT EXISTS (SELECT 1 FROM events WHERE seq = ?)", place).get for place in places
        )
        connection.executemany("DELETE FROM events WHERE seq = ?", places)
        connection.executemany(_INSERT, rows)
    except apsw.ConstraintError:
        connection.execute("ROLLBACK TO put_back")
        connection.execute("RELEASE put_back")
        return 0
    connection.execute("RELEASE put_back")
    told = {"count": len(rows), "changed": changed, "removed": len(rows) - changed}
    places_told = spans(row[0] for row in rows)
    text = f"{len(rows)} events that were changed in or removed from the database were put back from the files: "
    event = Event(
        uuid7(now_ms, os.urandom(RANDOMNESS_BYTES)),
        now_ms,
        Severity.ERROR,
        EVENT_LOGGER,
        PUT_BACK_TYPE,
        text + (places_told if len(places_told) <= TOLD_MAX else f"{places_told[:TOLD_MAX]}..."),
        json.dumps({**told, "places": places_told}),
    )
    log.append(connection, [event])
    return len(rows)


def spans(places: Iterable[int]) -> str:
    """Return ascending places for people: ``3-5, 9``."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
