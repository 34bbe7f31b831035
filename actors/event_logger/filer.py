"""Writes the files behind the table: every event once, closed segments packed, roots appended, the head last.

For a thread of its own. It has no memory that matters: where a file ends, and whether it agrees with the table, it sees
from the file itself. A torn last line is cut; a file that does not agree is set aside and written anew.
"""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from actors.event_logger.chain import Segment, root_line, seal_head
from actors.event_logger.files import DAMAGED, LogFiles
from actors.event_logger.lines import LineFormat, seq_of
from actors.runtime.database import READ_S_MAX, reading
from actors.runtime.identity import boot_id
from actors.runtime.paths import sync_directory
from protocol.limits import KIB

SLICE_ROWS: Final = 2000
SLICES_MAX: Final = 25
"""Slices of one turn; the loop is told that there is more."""
PACK_LEVEL: Final = 4
"""Of gzip: beyond it the time doubles for a tenth of the size."""
_CHUNK_BYTES: Final = 256 * KIB
_SEGMENTS: Final = (
    "SELECT day, first_seq, first_prev_hash, last_seq, last_hash, count, mac, retired FROM event_days"
    " WHERE last_seq IS NULL OR last_seq > ? ORDER BY first_seq"
)
_ROWS: Final = (
    "SELECT seq, id, timestamp_ms, severity, component, event_type, message, attributes, hash FROM events"
    " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
)
_SEQ_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Filed:
    """What a turn did.

    Attributes:
        seq: the newest event that is in the files.
        more: whether there is more to do.
        rebuilt: days whose file did not agree with the table and is written anew.
    """

    seq: int
    more: bool
    rebuilt: tuple[str, ...] = ()


@dataclass(slots=True)
class _At:
    """How far the file of one segment is written.

    Attributes:
        day: of the segment.
        seq: the newest event in it; the place before its first if there is none.
        size_bytes: its length.
    """

    day: str
    seq: int
    size_bytes: int


class Filer:
    """Brings the files up with the table."""

    def __init__(self, path: str, files: LogFiles) -> None:
        """Read the database at `path`, write `files`."""
        self._path = path
        self._files = files
        self._format = LineFormat()
        self._at: _At | None = None
        self._archived_seq = -1
        self._roots: set[str] | None = None
        self._head: tuple[int, bytes] | None = None
        self._headed: tuple[int, bytes] | None = None
        self._slices = 0
        self._rebuilt: list[str] = []

    def catch_up(self) -> Filed:
        """Write what the table has beyond the files.

        Raises:
            OSError: of the files' disk; what was begun is finished by the next turn.
            DatabaseError: the table cannot be read.
        """
        self._files.make_directory()
        self._slices, self._rebuilt = SLICES_MAX, []
        with reading(self._path, READ_S_MAX) as connection:
            segments: list[Any] = connection.execute(_SEGMENTS, (self._archived_seq,)).fetchall()
        more = False
        for *fields, retired in segments:
            segment = Segment(*fields)
            if segment.closed:
                self._write_root(segment)
            if not retired and not self._is_packed(segment):
                more = not self._write(segment)
                if more:
                    break
                if segment.closed:
                    self._pack(segment)
            if segment.last_seq is not None:
                self._archived_seq = segment.last_seq
        self._write_head()
        return Filed(self._head[0] if self._head else 0, more, tuple(self._rebuilt))

    def rebuild(self, day: str) -> None:
        """Set a segment's files aside; the next turn writes them anew.

        Raises:
            OSError: of the files' disk.
        """
        for path in (self._files.path(day), self._files.packed_path(day)):
            if os.path.exists(path):
                self._files.set_aside(path)
        self._at = None
        self._archived_seq = -1
        self._rebuilt.append(day)

    # --- lines ---

    def _write(self, segment: Segment) -> bool:
        """Append what the segment's file does not have; False if this turn is over before that is done."""
        if self._at is None or self._at.day != segment.day or not self._is_as_left(self._at):
            self._at = self._examine(segment)
        at = self._at
        last_seq = _SEQ_MAX if segment.last_seq is None else segment.last_seq
        with open(self._files.path(segment.day), "ab", opener=_open_private) as file:
            written = False
            while at.seq < last_seq and self._slices:
                with reading(self._path, READ_S_MAX) as connection:
                    rows: list[Any] = connection.execute(_ROWS, (at.seq, last_seq, SLICE_ROWS)).fetchall()
                if rows:
                    self._append(file, at, self._format.lines(rows))
                    at.seq, self._head = rows[-1][0], (rows[-1][0], rows[-1][-1])
                    written = True
                    self._slices -= 1
                if len(rows) < SLICE_ROWS:
                    at.seq = at.seq if segment.last_seq is None else segment.last_seq
                    break
            if written:
                _sync_data(file)
        return self._slices > 0

    def _append(self, file: BinaryIO, at: _At, text: bytes) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError:
            self._at = None  # what of it arrived is seen by the next turn
            raise
        at.size_bytes += len(text)

    def _is_as_left(self, at: _At) -> bool:
        try:
            return os.stat(self._files.path(at.day)).st_size == at.size_bytes
        except FileNotFoundError:
            return False

    def _examine(self, segment: Segment) -> _At:
        """Return how far the segment's file is written; what is torn is cut, what does not agree is set aside."""
        nothing = _At(segment.day, segment.first_seq - 1, 0)
        path = self._files.path(segment.day)
        try:
            tail = self._files.tail(segment.day)
        except FileNotFoundError:
            return nothing
        if tail.whole_bytes < tail.size_bytes:
            os.truncate(path, tail.whole_bytes)
        if tail.whole_bytes == 0:
            return nothing
        first = next(self._files.lines(segment.day), b"")
        if tail.line is not None and seq_of(first) == segment.first_seq:
            with reading(self._path, READ_S_MAX) as connection:
                row = connection.execute(_ROWS, (tail.line.seq - 1, tail.line.seq, 1)).fetchone()
            if row == (tail.line.seq, *tail.line.event, tail.line.hash):
                self._head = (tail.line.seq, tail.line.hash)
                return _At(segment.day, tail.line.seq, tail.whole_bytes)
        self._files.set_aside(path)
        self._rebuilt.append(segment.day)
        return nothing

    # --- closed segments ---

    def _is_packed(self, segment: Segment) -> bool:
        if not segment.closed or not os.path.exists(self._files.packed_path(segment.day)):
            return False
        _unlink(self._files.path(segment.day))  # a death between packing and this
        return True

    def _pack(self, segment: Segment) -> None:
        """Pack a closed segment's file; one that has not the lines that it should is written anew, once."""
        path, packed_path = self._files.path(segment.day), self._files.packed_path(segment.day)
        temporary = packed_path + ".tmp"
        if _pack(path, temporary) != segment.count and not os.path.exists(path + DAMAGED):
            self._files.set_aside(path)
            self._rebuilt.append(segment.day)
            self._at = None
            self._slices = SLICES_MAX
            while not self._write(segment):
                self._slices = SLICES_MAX
            _pack(path, temporary)
        os.replace(temporary, packed_path)
        sync_directory(self._files.directory)
        _unlink(path)
        self._at = None

    def _write_root(self, segment: Segment) -> None:
        if self._roots is None:
            self._roots = self._examine_roots()
        if segment.day in self._roots:
            return
        with open(self._files.roots_path, "ab", opener=_open_private) as file:
            file.write(root_line(segment))
            file.flush()
            os.fsync(file.fileno())
        self._roots.add(segment.day)

    def _examine_roots(self) -> set[str]:
        """Cut a torn last line; return the days that have a root."""
        try:
            with open(self._files.roots_path, "r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
        except FileNotFoundError:
            return set()
        return {root.day for root in self._files.read_roots()[0]}

    def _write_head(self) -> None:
        if self._head is None or self._head == self._headed:
            return
        key = self._files.read_key()
        if key is not None:
            self._files.write_head(seal_head(*self._head, boot_id(), key))
            self._headed = self._head


def _pack(path: str, packed_path: str) -> int:
    """Pack a file into another, durably, and return how many lines it has."""
    import gzip  # noqa: PLC0415 - once a day

    lines = 0
    with open(path, "rb") as plain, open(packed_path, "wb", opener=_open_private) as file:
        with gzip.GzipFile("", "wb", PACK_LEVEL, file, mtime=0) as packed:
            while chunk := plain.read(_CHUNK_BYTES):
                lines += chunk.count(b"\n")
                packed.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return lines


def _sync_data(file: BinaryIO) -> None:
    getattr(os, "fdatasync", os.fsync)(file.fileno())


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
