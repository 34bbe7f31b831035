"""What happens to a database before the first event is written to it: it gets back what it lost.

A power cut, or a damaged write-ahead log, takes the newest commits along, and every check of the database itself says
that all is well. The files know better. In this order, each in transactions of bounded size:

1. events that another release has written are chained;
2. events that stand in the files behind the table's end are put back, as far as their lines verify against the chain;
3. what the head, or a line, knows of beyond that is lost: their places are skipped, for they may have been told to
   somebody, and an event says how many they are and why (`LOST_TYPE`);
4. a head that names another event than the table has at its place is reported.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from actors.event_logger.chain import LOST_TYPE, Head, Segment, is_head_sealed, is_sealed, link
from actors.event_logger.event_table import EventTable, Place
from actors.event_logger.files import LogFiles
from actors.event_logger.lines import Line, parse_line, seq_of
from actors.event_logger.records import Event
from actors.runtime.database import Database
from actors.runtime.identity import boot_id
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

RESTORE_LINES_MAX: Final = 1000
"""Lines that one transaction puts back."""


@dataclass(slots=True)
class _Found:
    """What the files have behind the table's end.

    Attributes:
        first_seq: the first place that was put back; None if none was.
        count: how many were.
        seq_max: the highest place that a line stands for, whether or not it verifies.
    """

    first_seq: int | None = None
    count: int = 0
    seq_max: int = 0
    reports: list[Event] = field(default_factory=list)


class Healing:
    """Prepares one connection."""

    def __init__(self, database: Database, log: EventTable, files: LogFiles, now_ms: int) -> None:
        """Heal the tables behind `database` from `files`; `now_ms` is the time of the events that tell of it."""
        self._database = database
        self._log = log
        self._files = files
        self._now_ms = now_ms

    def run(self, patience_s: float) -> apsw.Connection:
        """Heal, and return the connection that is prepared now.

        Raises:
            DatabaseError: the database cannot be used.
        """
        found = _Found()
        adopted = 0
        while more := self._database.write(self._log.adopt, patience_s):
            adopted += more
        if adopted:
            text = f"{adopted} events of a release without a chain are chained now"
            self._report(found, Severity.NOTICE, "events_chained", text, count=adopted)
        last = self._database.write(self._log.last, patience_s)
        head = self._head(found)
        last = self._restore(found, last, head, patience_s)
        if found.count:
            text = f"{found.count} events that the database had lost were put back from the files"
            places = {"count": found.count, "first_seq": found.first_seq, "last_seq": last.seq}
            self._report(found, Severity.WARN, "events_restored", text, **places)
        return self._database.write(lambda connection: self._finish(connection, found, head), patience_s)

    def _finish(self, connection: apsw.Connection, found: _Found, head: Head | None) -> apsw.Connection:
        """Skip the places that are lost, and say what happened."""
        reports = list(found.reports)
        last = self._log.last(connection)
        known = max(head.seq if head else 0, found.seq_max)
        if known > last.seq:
            lost = known - last.seq
            power_cut = head is not None and head.boot_id != boot_id()
            cause = "power_cut" if power_cut else "damage"
            text = f"{lost} events are lost: the database ended before them" + (" after a power cut" * power_cut)
            places = {"first_seq": last.seq + 1, "last_seq": known}
            event = self._event(Severity.ERROR, LOST_TYPE, text, count=lost, cause=cause, **places)
            self._log.append(connection, [event], first_seq=known + 1)
        elif head is not None:
            there = connection.execute("SELECT hash FROM events WHERE seq = ?", (head.seq,)).get
            if there is not None and there != head.hash:
                text = f"the event at {head.seq} is another one than was written there: see `relctl logs verify`"
                reports.append(self._event(Severity.CRITICAL, "event_chain_mismatch", text, seq=head.seq))
        self._log.append(connection, reports)
        return connection

    def _head(self, found: _Found) -> Head | None:
        """Return the head if it can be believed."""
        try:
            head = self._files.read_head()
            key = self._log.key
        except (OSError, ValueError) as error:
            self._report(found, Severity.ERROR, "event_head_damaged", f"the event log's head cannot be read: {error}")
            return None
        if head is not None and (key is None or not is_head_sealed(head, key)):
            text = "the event log's head is not sealed with its key"
            self._report(found, Severity.CRITICAL, "event_head_unsealed", text, seq=head.seq)
            return None
        return head

    # --- putting back ---

    def _restore(self, found: _Found, last: Place, head: Head | None, patience_s: float) -> Place:
        """Put back what verifies; returns the newest place after that."""
        try:
            days = self._days_behind(last.seq, packed=head is None or head.seq > last.seq)
            if last.seq == 0 and days:
                last = self._begin_behind_roots(days[0], last, patience_s)
            for day in days:
                lines = self._lines(day, found)
                while True:
                    rows, end = self._verified(lines, last)
                    if rows and not self._put_back(day, rows, last, patience_s):
                        rows, end = [], last
                    if not rows:
                        break
                    found.first_seq = found.first_seq or rows[0][0]
                    found.count += len(rows)
                    last = end
                for _ in lines:  # only to see the places that they name
                    continue
        except (OSError, EOFError) as error:
            self._report(found, Severity.ERROR, "event_files_unreadable", f"the event log's files: {error}")
        return last

    def _put_back(self, day: str, rows: list[tuple[Any, ...]], last: Place, patience_s: float) -> bool:
        return self._database.write(lambda connection: self._log.restore(connection, day, rows, last), patience_s)

    def _days_behind(self, seq: int, *, packed: bool) -> list[str]:
        """Return the days whose files may have events behind `seq`, in the order of their places."""
        plain_days, packed_days = self._files.days()
        days = []
        for day in plain_days:
            tail = self._files.tail(day)
            if tail.line is None or tail.line.seq > seq:
                days.append(day)
        if packed and packed_days:
            ends = {root.day: root.last_seq or 0 for root in self._files.read_roots()[0]}
            days += [day for day in packed_days if day not in days and ends.get(day, seq + 1) > seq]
        return sorted(days, key=self._first_seq)

    def _first_seq(self, day: str) -> int:
        first = next(self._files.lines(day), b"")
        return seq_of(first) or 0

    def _lines(self, day: str, found: _Found) -> Iterator[Line | None]:
        """Yield the lines of a file, None for a damaged one, and take note of the highest place they stand for."""
        place = 0
        for raw in self._files.lines(day):
            try:
                line: Line | None = parse_line(raw)
            except ValueError:
                line = None
            # A damaged line may name any place, but lines follow each other; what does not begin as one is none.
            if line is not None and (place == 0 or _owns_up(line.event)):
                place = line.seq
            elif seq_of(raw) is not None:
                place += 1
            found.seq_max = max(found.seq_max, place)
            yield line

    def _verified(self, lines: Iterator[Line | None], last: Place) -> tuple[list[tuple[Any, ...]], Place]:
        """Return the next rows that verify behind `last`, and the newest of them; none if a line does not."""
        rows: list[tuple[Any, ...]] = []
        for line in lines:
            if line is not None and line.seq <= last.seq:
                continue
            follows = line is not None and (line.seq == last.seq + 1 or _owns_up(line.event))
            if line is None or not follows or link(last.hash, line.seq, line.event) != line.hash:
                return rows, last
            rows.append((line.seq, *line.event, line.hash))
            last = Place(line.seq, line.hash)
            if len(rows) == RESTORE_LINES_MAX:
                break
        return rows, last

    def _begin_behind_roots(self, day: str, last: Place, patience_s: float) -> Place:
        """Return where a new database goes on: behind the newest sealed root before the oldest file there is."""
        key, first_seq = self._log.key, self._first_seq(day)
        roots = [root for root in self._files.read_roots()[0] if (root.last_seq or 0) < first_seq]
        if not roots or key is None or not all(is_sealed(root, key) for root in roots):
            return last
        newest: Segment = roots[-1]
        if newest.last_seq is None or newest.last_hash is None:
            return last
        self._database.write(lambda connection: self._log.put_roots(connection, roots), patience_s)
        return Place(newest.last_seq, newest.last_hash)

    # --- reports ---

    def _report(self, found: _Found, severity: Severity, event_type: str, message: str, **attributes: object) -> None:
        found.reports.append(self._event(severity, event_type, message, **attributes))

    def _event(self, severity: Severity, event_type: str, message: str, **attributes: object) -> Event:
        event_id = uuid7(self._now_ms, os.urandom(RANDOMNESS_BYTES))
        return Event(event_id, self._now_ms, severity, EVENT_LOGGER, event_type, message, json.dumps(attributes))


def _owns_up(event: Event) -> bool:
    return event.component == EVENT_LOGGER and event.event_type == LOST_TYPE
