"""What the output of programs becomes: lines, and what of them is written down. Pure.

A file is fed slice by slice. What stands here between two slices - how far it was taken in, the beginning of a line
that has no end yet, what was left out - is an `OutputPosition`, stored in the transaction of the events, so that each
line is taken in once, whoever dies when.

- A line is cut at `LINE_BYTES_MAX`; how long it was is told with it. The rest of it is counted, never kept.
- A line without an end is one when its life is over, or when nothing has followed it for `UNFINISHED_S`.
- At most `LINES_PER_SECOND_MAX` lines a second of one program become events, after a burst of ten times as many. The
  rest stays in its file, and is counted (`Skipped`).
"""

import re
from codecs import getincrementaldecoder
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocol.limits import KIB
from protocol.severity import Severity

LINE_BYTES_MAX: Final = 8 * KIB
LINES_PER_SECOND_MAX: Final = 100.0
BURST_S: Final = 10.0
"""Lines that a program may write at once, in seconds of its rate."""
UNFINISHED_S: Final = 5.0
SKIPPED_REPORT_S: Final = 10.0
"""Between two events that tell of skipped lines, while it lasts."""
MARK_BYTES: Final = 32
"""Bytes before an offset that tell whether a file is the one that was read so far."""

_PRIORITIES: Final = (
    Severity.FATAL,
    Severity.CRITICAL,
    Severity.CRITICAL,
    Severity.ERROR,
    Severity.WARN,
    Severity.NOTICE,
    Severity.INFO,
    Severity.DEBUG,
)
"""Of the prefixes ``<0>`` to ``<7>`` of sd-daemon(3)."""
_PREFIX: Final = re.compile(rb"<([0-7])>")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Line(NamedTuple):
    """One line.

    Attributes:
        data: its bytes without the end, at most `LINE_BYTES_MAX`.
        offset: of its first byte, counted from the beginning of its life.
        size_bytes: all of it, without the end.
    """

    data: bytes
    offset: int
    size_bytes: int


class Skipped(NamedTuple):
    """Output that no event tells.

    Attributes:
        lines: whole lines.
        size_bytes: of them.
        offset: of the first one.
    """

    lines: int = 0
    size_bytes: int = 0
    offset: int = 0

    def plus(self, lines: int, size_bytes: int, offset: int) -> "Skipped":
        """Return the sum."""
        begin = self.offset if self.size_bytes or self.lines else offset
        return Skipped(self.lines + lines, self.size_bytes + size_bytes, begin)


NOTHING: Final = Skipped()


@dataclass(frozen=True, slots=True)
class OutputPosition:
    """How far one file was taken in, as stored.

    Attributes:
        program: whose output it is.
        inode: the file, whatever its name is by now.
        rank: 0 for the present life's, 1 to 5 for those before: it only grows.
        offset: bytes of the file that were taken in.
        base: bytes of its life that went before the file's first byte, because it was cut.
        mark: the last bytes before `offset`.
        head: beginning of the line that has no end yet.
        length: of that line, so far.
        skipped: what no event has told of yet.
    """

    program: str
    inode: int
    rank: int
    offset: int = 0
    base: int = 0
    mark: bytes = b""
    head: bytes = b""
    length: int = 0
    skipped: Skipped = NOTHING

    @property
    def total(self) -> int:
        """Bytes of its life that were taken in."""
        return self.base + self.offset


class Cutter:
    """One file on its way into lines.

    Attributes:
        rank: as in `OutputPosition`.
        offset: as in `OutputPosition`.
        base: as in `OutputPosition`.
        skipped: as in `OutputPosition`.
    """

    def __init__(self, position: OutputPosition) -> None:
        """Go on from `position`."""
        self._program = position.program
        self._inode = position.inode
        self.rank = position.rank
        self.offset = position.offset
        self.base = position.base
        self.skipped = position.skipped
        self._mark = position.mark
        self._head = bytearray(position.head)
        self._length = position.length

    @property
    def position(self) -> OutputPosition:
        """Where it stands."""
        return OutputPosition(
            self._program,
            self._inode,
            self.rank,
            self.offset,
            self.base,
            self._mark,
            bytes(self._head),
            self._length,
            self.skipped,
        )

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun and not ended."""
        return self._length > 0

    def feed(self, data: bytes, lines_max: int) -> list[Line]:
        """Take in the bytes that follow; returns the first `lines_max` lines that end in them, and skips the others.

        Lines of nothing count and are not returned.
        """
        lines: list[Line] = []
        begin = 0
        for _ in range(lines_max):
            end = data.find(b"\n", begin)
            if end < 0:
                break
            line = self._line(data, begin, end)
            begin = end + 1
            if line.size_bytes:
                lines.append(line)
        last = data.rfind(b"\n", begin)
        if last >= 0:
            first = self.base + self.offset + begin - self._length
            self.skipped = self.skipped.plus(data.count(b"\n", begin, last + 1), last + 1 - begin + self._length, first)
            self._clear()
            begin = last + 1
        if begin < len(data):
            self._head += data[begin : begin + LINE_BYTES_MAX - len(self._head)]
            self._length += len(data) - begin
        self.offset += len(data)
        self._mark = (self._mark + data[-MARK_BYTES:])[-MARK_BYTES:]
        return lines

    def finish(self, lines_max: int) -> list[Line]:
        """Take what has no end yet as a line."""
        if not self._length:
            return []
        line = Line(bytes(self._head), self.base + self.offset - self._length, self._length)
        self._clear()
        if lines_max:
            return [line]
        self.skipped = self.skipped.plus(1, line.size_bytes, line.offset)
        return []

    def jump(self, offset: int) -> None:
        """Go on at `offset`, because what lies before it is not there any more: a line that had begun ends here."""
        first = self.base + self.offset - self._length
        self.skipped = self.skipped.plus(0, offset - self.offset + self._length, first)
        self._clear()
        self.offset = offset
        self._mark = b""

    def cut(self, size_bytes: int) -> None:
        """Take note that the file began anew after `size_bytes`; what was not taken in of them is skipped."""
        if size_bytes > self.offset:
            self.jump(size_bytes)
        self.base += self.offset
        self.offset = 0
        self._mark = b""

    def is_continued_by(self, before: bytes) -> bool:
        """Tell whether a file may be this one, whose bytes before `offset` are `before`; a hole may be anything."""
        return before.endswith(self._mark) or not any(before)

    def told(self) -> None:
        """Take note that an event tells of what was skipped."""
        self.skipped = NOTHING

    def _line(self, data: bytes, begin: int, end: int) -> Line:
        offset = self.base + self.offset + begin - self._length
        if not self._length:
            return Line(data[begin : min(end, begin + LINE_BYTES_MAX)], offset, end - begin)
        size_bytes = self._length + end - begin
        self._head += data[begin : min(end, begin + LINE_BYTES_MAX - len(self._head))]
        line = Line(bytes(self._head), offset, size_bytes)
        self._clear()
        return line

    def _clear(self) -> None:
        self._head.clear()
        self._length = 0


def read_line(line: Line) -> tuple[Severity, str]:
    """Return a line as people read it, and how severe it says it is; the text is empty if there is nothing to read.

    Bytes that are no UTF-8 become U+FFFD; a character that the cut tore is left out. What a terminal would overwrite
    or colour is left out as well.
    """
    data, severity = line.data, Severity.INFO
    prefix = _PREFIX.match(data)
    if prefix:
        data, severity = data[3:], _PRIORITIES[int(prefix.group(1))]
    text = getincrementaldecoder("utf-8")("replace").decode(data, final=line.size_bytes == len(line.data))
    text = _ESCAPES.sub("", text.rstrip("\r"))
    if "\r" in text:
        text = next((part for part in reversed(text.split("\r")) if part.strip()), "")
    return severity, _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text).rstrip()


class Lives:
    """The files of one program, told apart by inode.

    An inode is given away again. But a file's rank only grows, so one whose rank shrank is another file; so is one
    that differs before the offset. (Not told apart: more lives than are kept, in the absence of event_logger, and the
    last one of them with the inode and the beginning of the first.)
    """

    def __init__(self, program: str) -> None:
        """Know none yet."""
        self._program = program
        self.cutters: dict[int, Cutter] = {}

    def restore(self, position: OutputPosition) -> None:
        """Take in what was stored of one."""
        self.cutters[position.inode] = Cutter(position)

    def meet(self, inode: int, rank: int, size: int) -> Cutter:
        """Return the cutter of the file that has `inode` now, named by `rank` and `size` bytes long."""
        cutter = self.cutters.get(inode)
        if cutter is None or rank < cutter.rank:
            cutter = self.forget(inode)
        cutter.rank = rank
        if size < cutter.offset:  # somebody else cut it
            cutter.jump(cutter.offset)
            cutter.cut(cutter.offset)
        return cutter

    def forget(self, inode: int) -> Cutter:
        """Take the file that has `inode` for another one than before; returns its cutter."""
        cutter = self.cutters[inode] = Cutter(OutputPosition(self._program, inode, 0))
        return cutter

    def keep_only(self, inodes: set[int]) -> list[int]:
        """Drop all others; returns those."""
        gone = [inode for inode in self.cutters if inode not in inodes]
        for inode in gone:
            del self.cutters[inode]
        return gone
