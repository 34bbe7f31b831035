"""Reading the output of programs, and keeping its files small. For a thread that waits for nobody else's disk.

A program writes straight to its own file and nobody stands in between: it is never held up, and what it wrote is there
whoever of ours is dead. Here its files are read from behind. What is held of a file is one slice of `SLICE_BYTES`.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from actors.event_logger.core import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, PublishBudget
from actors.event_logger.holes import BLOCK_BYTES, punch, truncate
from actors.event_logger.outputs_core import (
    BURST_S,
    MARK_BYTES,
    SKIPPED_REPORT_S,
    UNFINISHED_S,
    Cutter,
    Line,
    Lives,
    OutputPosition,
    Skipped,
    read_line,
)
from actors.event_logger.records import EVENT_ID_BYTES, Event
from actors.runtime.programs import OUTPUT_DIR, OUTPUT_FILE, OUTPUTS_KEPT, ProgramSpec, is_program_name
from actors.runtime.read_at import data_from, read_at
from protocol.limits import MIB
from protocol.severity import Severity

SLICE_BYTES: Final = MIB
SLICES_MAX: Final = 8
"""Of one program in one go, before the next one has its turn."""
READ_S_MAX: Final = 0.1
"""No further program is begun past this."""
DIRECTORIES_MAX: Final = 1000
LIFE_BYTES_MAX: Final = 1 << 40
"""A file that is longer is begun anew, hole or not: file systems have a longest file."""
GROWING_BYTES: Final = 8 * MIB
"""What a file may grow by between two looks without being looked at more often."""
BACKLOG_BYTES: Final = 64 * MIB
"""What a file may take beyond its cap for the sake of what is not read yet."""
KEPT_SUFFIX: Final = ".0"
"""Of the copy that a file which had to begin anew leaves."""
OUTPUT: Final = "output"
"""Type of the events that are lines."""
_CAP_BYTES: Final = ProgramSpec("default", (), "").output_bytes_max
_INODE_MASK: Final = 0x7FFF_FFFF_FFFF_FFFF
"""An integer of SQLite has a sign."""
_OPEN: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(slots=True)
class Taken:
    """What was read, and is to be committed: all of it or nothing.

    Attributes:
        events: in the order of their lines.
        positions: how far each file that gave any was read.
        gone: files that are no more: program and inode.
        more: whether there is more to be read at once.
        growing: whether some output grows so fast that it should be looked at again soon.
        failed: why some output could not be read; empty if all could.
        size_bytes: of the events.
    """

    events: list[Event] = field(default_factory=list)
    positions: list[OutputPosition] = field(default_factory=list)
    gone: list[tuple[str, int]] = field(default_factory=list)
    more: bool = False
    growing: bool = False
    failed: str = ""
    size_bytes: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.events or self.positions or self.gone)

    @property
    def room(self) -> int:
        """How many events may still be added."""
        return BATCH_EVENTS_MAX - len(self.events) if self.size_bytes < BATCH_BYTES_MAX else 0

    def add(self, event: Event) -> None:
        """Add one event."""
        self.events.append(event)
        self.size_bytes += event.size_bytes


@dataclass(slots=True)
class _File:
    """One file as found: its name, and what `stat` says."""

    path: str
    rank: int
    inode: int
    size: int
    allocated: int


class _Program:
    """The output of one program."""

    def __init__(self, name: str, per_second_max: float) -> None:
        self.name = name
        self.lives = Lives(name)
        self.budget = PublishBudget(per_second_max, max(1, int(per_second_max * BURST_S)))
        self.descriptors: dict[int, int] = {}
        self.grew_at: float | None = None
        self.skipping_since: float | None = None
        self.changed: set[int] = set()
        self.recognized: set[int] = set()

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


class OutputReader:
    """Reads what all programs have written since; one thread at a time."""

    def __init__(
        self,
        data_dir: str,
        per_second_max: float,
        wall_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read below `data_dir`: at most `per_second_max` lines a second of each program."""
        self._directory = os.path.join(data_dir, OUTPUT_DIR)
        self._per_second_max = per_second_max
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self._programs: dict[str, _Program] = {}
        self._turn = 0

    @property
    def has_any(self) -> bool:
        """Whether any program ever wrote here."""
        return os.path.isdir(self._directory)

    def restore(self, positions: Iterable[OutputPosition]) -> None:
        """Go on from stored positions, and from nothing else."""
        self.close()
        for position in positions:
            self._program(position.program).lives.restore(position)

    def close(self) -> None:
        """Forget everything that is not stored."""
        for program in self._programs.values():
            program.close()
        self._programs.clear()

    def read(self, caps: Mapping[str, int], *, last: bool = False) -> Taken:
        """Return what was written since, as much as one commit takes, and cut what is longer than its cap.

        Args:
            caps: bytes that are kept of each life, by program; others have the default.
            last: whether lines without an end are taken as they are, because nobody will look again.
        """
        taken = Taken()
        names = self._names()
        end = self._monotonic() + READ_S_MAX
        for place in range(len(names)):
            if not taken.room or self._monotonic() >= end:
                self._turn += place
                taken.more = True
                break
            name = names[(self._turn + place) % len(names)]
            cap = caps.get(name, _CAP_BYTES)
            try:
                self._read_program(self._program(name), cap, taken, last=last)
            except OSError as error:
                taken.failed = f"{name} cannot be read: {error.strerror or error}"
        self._drop_programs(set(names), taken)
        return taken

    def trim(self, caps: Mapping[str, int]) -> None:
        """Cut what is longer than its cap and read nothing, while what was read cannot be committed.

        Raises:
            OSError: the disk failed.
        """
        for name in self._names():
            program = self._program(name)
            for file in self._files(name):
                if self._meet(program, file) is not None:
                    self._keep_small(program, file, caps.get(name, _CAP_BYTES))

    # --- one program ---

    def _read_program(self, program: _Program, cap: int, taken: Taken, *, last: bool) -> None:
        now = self._monotonic()
        files = self._files(program.name)
        slices = SLICES_MAX
        skipped_before = _skipped_lines(program)
        for file in files:
            cutter = self._meet(program, file)
            if cutter is None:  # it was renamed just now
                taken.more = True
                break
            if file.size > cutter.offset:
                program.grew_at = now
                taken.growing |= file.size - cutter.offset > GROWING_BYTES
                slices = self._read_file(program, file, cutter, taken, slices, now)
                if file.size > cutter.offset:
                    taken.more = True
                    break
            over = file.rank > 0 or last or (program.grew_at is not None and now - program.grew_at >= UNFINISHED_S)
            if cutter.unfinished and over:
                lines = cutter.finish(program.budget.take(1, now))
                self._tell(program, file.inode, lines, taken)
            if file.rank > 0 and file.inode in program.descriptors:
                os.close(program.descriptors.pop(file.inode))
        for file in files:
            self._keep_small(program, file, cap)
        self._report_skipped(program, taken, now, ended=last or _skipped_lines(program) == skipped_before)
        inodes = {file.inode for file in files}
        for inode in program.lives.keep_only(inodes):
            if inode in program.descriptors:
                os.close(program.descriptors.pop(inode))
            program.changed.discard(inode)
            program.recognized.discard(inode)
            taken.gone.append((program.name, inode))
        if taken.events or last:
            cutters = program.lives.cutters
            taken.positions += [cutters[inode].position for inode in program.changed if inode in cutters]
            program.changed.clear()

    def _read_file(self, program: _Program, file: _File, cutter: Cutter, taken: Taken, slices: int, now: float) -> int:
        """Read up to the size that was found; returns how many slices may still be read."""
        descriptor = program.descriptors[file.inode]
        while slices > 0 and cutter.offset < file.size and taken.room:
            begin = data_from(descriptor, cutter.offset)
            if begin > cutter.offset:
                cutter.jump(min(begin, file.size))
                program.changed.add(file.inode)
                continue
            data = read_at(descriptor, min(SLICE_BYTES, file.size - cutter.offset), cutter.offset)
            if not data:
                break
            count, room = data.count(b"\n"), taken.room
            allowed = program.budget.take(min(count, room), now)
            if allowed == room < count:  # not skipped, but the next commit's
                data = _first_lines(data, room)
            self._tell(program, file.inode, cutter.feed(data, allowed), taken)
            slices -= 1
        return slices

    def _tell(self, program: _Program, inode: int, lines: list[Line], taken: Taken) -> None:
        program.changed.add(inode)
        if not lines:
            return
        now_ms = self._wall_ms()
        ids = os.urandom(EVENT_ID_BYTES * len(lines))
        for place, line in enumerate(lines):
            severity, text = read_line(line)
            if text:
                attributes = f'{{"bytes":{line.size_bytes},"offset":{line.offset}}}' if _is_cut(line) else "{}"
                event_id = ids[place * EVENT_ID_BYTES : (place + 1) * EVENT_ID_BYTES]
                taken.add(Event(event_id, now_ms, severity, program.name, OUTPUT, text, attributes))

    def _report_skipped(self, program: _Program, taken: Taken, now: float, *, ended: bool) -> None:
        """Tell of what was skipped: when no more is, or a while after the last time."""
        skipped = [item for item in program.lives.cutters.items() if item[1].skipped.size_bytes]
        if not skipped:
            program.skipping_since = None
            return
        if program.skipping_since is None:
            program.skipping_since = now
        if not ended and now - program.skipping_since < SKIPPED_REPORT_S:
            return
        program.skipping_since = now
        for inode, cutter in skipped:
            taken.add(_skipped_event(program.name, cutter.skipped, self._per_second_max, self._wall_ms()))
            cutter.told()
            program.changed.add(inode)

    # --- files ---

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                names = [entry.name for entry in entries if is_program_name(entry.name)]
        except FileNotFoundError:
            return []
        return sorted(names)[:DIRECTORIES_MAX]

    def _files(self, name: str) -> list[_File]:
        """Return a program's files, the oldest life's first."""
        files: dict[int, _File] = {}
        # From the youngest on, against the direction in which they are renamed: so none is missed.
        for rank in range(OUTPUTS_KEPT + 1):
            path = os.path.join(self._directory, name, OUTPUT_FILE + (f".{rank}" if rank else ""))
            try:
                status = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            inode = status.st_ino & _INODE_MASK
            allocated = getattr(status, "st_blocks", -1) * 512
            file = _File(path, rank, inode, status.st_size, status.st_size if allocated < 0 else allocated)
            files[inode] = file
        return sorted(files.values(), key=lambda file: -file.rank)

    def _meet(self, program: _Program, file: _File) -> Cutter | None:
        """Return the cutter of a file, which is opened if there is something to read; None if it is another by now."""
        known = program.lives.cutters.get(file.inode)
        opened = file.inode in program.descriptors
        if known is None or known.rank != file.rank:
            program.changed.add(file.inode)
        unread = known is None or file.rank < known.rank or file.size != known.offset
        if not opened and (unread or file.rank == 0 or file.inode not in program.recognized):
            try:
                descriptor = os.open(file.path, os.O_RDONLY | _OPEN)
            except FileNotFoundError:
                return None
            if os.fstat(descriptor).st_ino & _INODE_MASK != file.inode:
                os.close(descriptor)
                return None
            # While it is open nobody else gets its inode. Until now somebody could.
            program.descriptors[file.inode] = descriptor
            program.recognized.add(file.inode)
            if known is not None and 0 < known.offset <= file.size:
                start = max(0, known.offset - MARK_BYTES)
                if not known.is_continued_by(read_at(descriptor, known.offset - start, start)):
                    program.lives.forget(file.inode)
        return program.lives.meet(file.inode, file.rank, file.size)

    def _keep_small(self, program: _Program, file: _File, cap: int) -> None:
        """Give back the disk that the oldest part of a file takes, once that is worth it.

        What is not read yet is spared, as long as it is not more than `BACKLOG_BYTES`.
        """
        cutter = program.lives.cutters.get(file.inode)
        spared = file.size if cutter is None or file.allocated > cap + BACKLOG_BYTES else cutter.offset
        step = max(BLOCK_BYTES, min(8 * MIB, cap // 8))
        if file.allocated <= cap + step and file.size <= LIFE_BYTES_MAX:
            return
        descriptor = os.open(file.path, os.O_RDWR | _OPEN)
        try:
            status = os.fstat(descriptor)
            if status.st_ino & _INODE_MASK != file.inode:
                return
            length = min(status.st_size - cap, spared) // BLOCK_BYTES * BLOCK_BYTES
            if status.st_size <= LIFE_BYTES_MAX and (length <= 0 or punch(descriptor, length)):
                return
            if spared < file.size:  # cut, it would lose what is not read yet
                return
        finally:
            os.close(descriptor)
        size = truncate(file.path, file.path + KEPT_SUFFIX, cap // 2)
        if cutter is not None:
            cutter.cut(size)
            program.changed.add(file.inode)

    def _program(self, name: str) -> _Program:
        program = self._programs.get(name)
        if program is None:
            program = self._programs[name] = _Program(name, self._per_second_max)
        return program

    def _drop_programs(self, present: set[str], taken: Taken) -> None:
        for name in [name for name in self._programs if name not in present]:
            program = self._programs.pop(name)
            program.close()
            taken.gone += [(name, inode) for inode in program.lives.cutters]


def _first_lines(data: bytes, count: int) -> bytes:
    end = 0
    for _ in range(count):
        end = data.index(b"\n", end) + 1
    return data[:end]


def _is_cut(line: Line) -> bool:
    return line.size_bytes > len(line.data)


def _skipped_lines(program: _Program) -> int:
    return sum(cutter.skipped.lines for cutter in program.lives.cutters.values())


def _skipped_event(name: str, skipped: Skipped, per_second_max: float, now_ms: int) -> Event:
    begin = f"from byte {skipped.offset} on"
    if skipped.lines:
        where = f"{skipped.lines} lines ({skipped.size_bytes} bytes) are in its file alone, {begin}"
        message = f"{name} wrote more than {per_second_max:g} lines a second: {where}"
    else:
        message = f"{skipped.size_bytes} bytes of {name}'s output were gone before they were read, {begin}"
    attributes = f'{{"bytes":{skipped.size_bytes},"from_offset":{skipped.offset},"lines":{skipped.lines}}}'
    return Event(
        os.urandom(EVENT_ID_BYTES), now_ms, Severity.NOTICE, name, "output_skipped", message, attributes=attributes
    )
