"""Reads the event log for `verify`: table, files, roots, head, in slices that hold nobody up.

What is checked is what was there when it began: a system that runs meanwhile only adds to it.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from actors.event_logger.chain import GENESIS, Head, Segment
from actors.event_logger.files import LogFiles
from actors.event_logger.lines import seq_of
from actors.event_logger.records import Event
from actors.event_logger.verify import (
    FINDINGS_MAX,
    ChainCheck,
    FileCheck,
    Finding,
    Kind,
    check_end,
    check_head,
    check_roots,
)
from actors.runtime.database import READ_S_MAX, reading
from actors.runtime.identity import boot_id
from actors.runtime.paths import DATABASE_FILE

SLICE_ROWS: Final = 1000
_ROWS: Final = (
    "SELECT seq, id, timestamp_ms, severity, component, event_type, message, attributes, hash FROM events"
    " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
)
_SEGMENTS: Final = (
    "SELECT day, first_seq, first_prev_hash, last_seq, last_hash, count, mac, retired"
    " FROM event_days ORDER BY first_seq"
)


class _Lines:
    """The lines of a file, up to a place at a time."""

    def __init__(self, lines: Iterator[bytes], seq: int) -> None:
        self._lines = lines
        self._seq = seq
        self._next: bytes | None = None

    def until(self, seq: int) -> Iterator[bytes]:
        """Yield the next lines that stand for places up to `seq`; a line that names none stands for the next."""
        while (line := self._next if self._next is not None else next(self._lines, None)) is not None:
            place = seq_of(line) or self._seq + 1
            if place > seq:
                self._next = line
                return
            self._next = None
            self._seq = place
            yield line

    def next_seq(self) -> int | None:
        """Return the place that the next line names; None at the end, and for a line that names none."""
        if self._next is None:
            self._next = next(self._lines, None)
        return None if self._next is None else seq_of(self._next)


class Verification:
    """One look at the whole log.

    Attributes:
        findings: what is wrong, at most `FINDINGS_MAX`.
        finding_count: how many there are.
        checked: events of the table that were looked at.
        spoilt_days: days whose file is wrong while the table is not.
        broken_days: days whose events in the table are not what was written.
    """

    def __init__(self, data_dir: str, stop: Callable[[], bool]) -> None:
        """Look at the log in `data_dir` until `stop` says that there is no more time."""
        self.findings: list[Finding] = []
        self.finding_count = self.checked = 0
        self.spoilt_days: list[str] = []
        self.broken_days: list[str] = []
        self._path = os.path.join(data_dir, DATABASE_FILE)
        self._files = LogFiles(data_dir)
        self._stop = stop

    def run(self) -> bool:
        """Look at everything; tells whether there was time for all of it.

        Raises:
            DatabaseError: the table cannot be read.
            OSError: the files cannot be looked for.
        """
        # The files first: what they know, the table knew before.
        key = self._files.read_key()
        head = self._read_head()
        roots, damaged = self._files.read_roots()
        with reading(self._path, READ_S_MAX) as connection:
            rows: list[Any] = connection.execute(_SEGMENTS).fetchall()
            last_seq: int = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
            statement = "SELECT hash FROM events WHERE seq = ?"
            hash_there = connection.execute(statement, (head.seq if head else 0,)).get
        segments = [Segment(*fields) for *fields, _ in rows]
        self._note(check_roots(roots, damaged, segments, key))
        self._note(self._missing_roots(segments, {root.day for root in roots}, head))
        chain = ChainCheck("table", 0, GENESIS)
        for segment, retired in zip(segments, (row[-1] for row in rows), strict=True):
            if retired:
                chain.seq, chain.hash = segment.last_seq or 0, segment.last_hash
            elif not self._check(segment, chain, last_seq, head):
                return False
        if not segments and last_seq:
            self._note([Finding(Kind.MISSING, 1, "table", "the table has events, but knows no days")])
        self._note(check_head(head, key, last_seq, hash_there, boot_id()))
        return True

    def _check(self, segment: Segment, chain: ChainCheck, last_seq: int, head: Head | None) -> bool:
        """Check one segment, its rows beside its lines; False if there was no time for all of it."""
        wrong_before = self.finding_count
        if chain.hash is not None and chain.hash != segment.first_prev_hash:
            text = f"the root of {segment.day} does not begin where the chain before it ends"
            self._note([Finding(Kind.RESEALED, segment.first_seq, "table", text)])
            chain.hash = segment.first_prev_hash
        end = last_seq if segment.last_seq is None else segment.last_seq
        filed_seq = min(end, head.seq) if head else end
        name = os.path.basename(self._files.path(segment.day))
        file = FileCheck(segment, name)
        lines: _Lines | None = _Lines(self._files.lines(segment.day), segment.first_seq - 1)
        if filed_seq < segment.first_seq:  # not written yet
            lines = None
        in_file = in_table = 0
        while chain.seq < end:
            if self._stop():
                return False
            with reading(self._path, READ_S_MAX) as connection:
                rows: list[Any] = connection.execute(_ROWS, (chain.seq, end, SLICE_ROWS)).fetchall()
            if not rows:
                break
            for seq, *values, found_hash in rows:
                in_table += self._note(chain.take(seq, Event(*values), found_hash))
            self.checked += len(rows)
            if lines is not None:
                hashes = {row[0]: row[-1] for row in rows}
                found, more = self._take(file, lines, hashes, chain.seq)
                in_file += found
                lines = lines if more else None
        in_table += self._note(check_end(segment, "table", chain.seq, chain.hash))
        if in_table:
            self.broken_days.append(segment.day)
        if segment.last_seq is not None:
            chain.seq, chain.hash = segment.last_seq, segment.last_hash
        if lines is not None and file.chain.seq < filed_seq:
            found, more = self._take(file, lines, {}, end)
            in_file += found
            if more and file.chain.seq < filed_seq:
                text = f"{filed_seq - file.chain.seq} lines are missing at the end of {name}"
                in_file += self._note([Finding(Kind.TRUNCATED, file.chain.seq + 1, name, text)])
        elif lines is not None and not segment.closed:
            self._note(self._beyond(lines))
        if in_file and self.finding_count - wrong_before == in_file:
            self.spoilt_days.append(segment.day)
        return True

    def _take(self, file: FileCheck, lines: _Lines, hashes: dict[int, bytes | None], seq: int) -> tuple[int, bool]:
        """Check the lines up to a place; returns how much is wrong, and whether the file can be read on."""
        before = self.finding_count
        try:
            return self._note(file.take(lines.until(seq), hashes)), True
        except FileNotFoundError:
            kind, text = Kind.MISSING, f"{file.chain.where} is missing"
        except (OSError, EOFError, zlib.error) as error:
            kind, text = Kind.DAMAGED, f"{file.chain.where} cannot be read on: {error}"
        self._note([Finding(kind, file.chain.seq + 1, file.chain.where, text)])
        return self.finding_count - before, False

    def _beyond(self, lines: _Lines) -> Iterator[Finding]:
        """Tell of a line whose event the table does not have, though it is behind nothing that goes on."""
        seq = lines.next_seq()
        if seq is None:
            return
        with reading(self._path, READ_S_MAX) as connection:
            last_seq = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
        if seq > last_seq:
            yield Finding(
                Kind.TRUNCATED, last_seq + 1, "table", f"the files have event {seq}, which the table does not"
            )

    def _missing_roots(self, segments: list[Segment], known: set[str], head: Head | None) -> Iterator[Finding]:
        """Tell of closed segments without a root in the file, though the files went on behind them."""
        for segment in segments:
            if segment.last_seq is not None and segment.day not in known and head and head.seq > segment.last_seq:
                yield Finding(Kind.MISSING, segment.first_seq, "roots", f"the root of {segment.day} is missing")

    def _read_head(self) -> Head | None:
        try:
            return self._files.read_head()
        except ValueError as error:
            self._note([Finding(Kind.DAMAGED, None, "head", f"the head cannot be read: {error}")])
            return None

    def _note(self, findings: Iterator[Finding] | list[Finding]) -> int:
        before = self.finding_count
        for finding in findings:
            self.finding_count += 1
            if len(self.findings) < FINDINGS_MAX:
                self.findings.append(finding)
        return self.finding_count - before


def verify_log(data_dir: str, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Return what `queries.verify_log` documents."""
    look = Verification(data_dir, stop)
    complete = look.run()
    return {
        "complete": complete,
        "checked": look.checked,
        "finding_count": look.finding_count,
        "findings": [finding.document() for finding in look.findings],
        "spoilt_days": look.spoilt_days,
        "broken_days": look.broken_days,
    }
