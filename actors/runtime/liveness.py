"""The liveness board: who runs, in which state, and whether each one's own loop still moves.

A small memory-mapped file in the runtime directory (tmpfs), one slot per process in three areas with one writer each:
the process itself, the launcher, the watchdog. Writing costs about a microsecond and cannot block; anybody may read
without asking. Counters are single 64-bit stores through ``memoryview.cast('Q')``, which do not tear. A record is
written to the spare one of two buffers and then made current by one such store, so a writer that is killed halfway
leaves the previous record standing, and a reader that was overtaken reads again.

=============== ========================================================================================================
area            layout (offsets within the 4096-byte slot; all integers native 64-bit unless said otherwise)
=============== ========================================================================================================
process    0    tick, progress, tick_ms, record index; 64: activity (96 bytes of text); 192 and 832: two record buffers
launcher   1536 record index; 1600 and 2200: two record buffers
watchdog   2816 record index; 2880 and 3480: two record buffers
=============== ========================================================================================================

A record buffer is CRC-32 and length (32-bit each), then a msgpack array in the field order of its dataclass.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import msgpack

from actors.runtime.identity import ProcessIdentity, boot_id

SLOTS: Final = 64
SLOT_BYTES: Final = 4096
HEADER_BYTES: Final = 4096
BOARD_BYTES: Final = HEADER_BYTES + SLOTS * SLOT_BYTES
MAGIC: Final = b"RELCTLB1"

LAUNCHER_SLOT: Final = 0
BROKER_SLOT: Final = 1
WATCHDOG_SLOT: Final = 2
FIRST_ACTOR_SLOT: Final = 3
FIRST_PROGRAM_SLOT: Final = 16
"""From here to the last slot: the user's programs."""

_EPOCH, _STOPPING = 2, 3
_BOOT_ID_OFFSET, _BOOT_ID_BYTES = 64, 40
_ACTIVITY_OFFSET, _ACTIVITY_BYTES = 64, 96
_LAUNCHER_INDEX = 1536
_READ_ATTEMPTS: Final = 64


class ProcessState(StrEnum):
    """What a process says of itself, or the launcher of it; `HUNG` is the watchdog's word."""

    STARTING = "starting"
    READY = "ready"
    HUNG = "hung"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"


class ProcessKind(StrEnum):
    """What a slot holds."""

    LAUNCHER = "launcher"
    BROKER = "broker"
    WATCHDOG = "watchdog"
    ACTOR = "actor"
    PROGRAM = "program"


class Verdict(StrEnum):
    """The watchdog's judgement of one incarnation."""

    OK = "ok"
    SUSPECT = "suspect"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Written by the process itself; by the launcher in its place, if it is a program.

    Attributes:
        pid: its process id.
        start_time: its start time, as in `ProcessIdentity`.
        incarnation: which life of this name it is.
        state: `STARTING`, `READY` or `STOPPING`.
        lease_what: the long work it has declared; empty without one.
        lease_until_ms: monotonic time at which that work counts as stuck.
        lease_holds_loop: True if the message loop itself does the work and so does not tick until then.
        version: release that this process runs.
        judged_by: what shows that it moves: "beats" of its own, a "probe", or its "state" in the system.
        stacks_signal: signal upon which a program writes the stacks of its threads; 0 if it has named none.
    """

    pid: int
    start_time: int
    incarnation: int
    state: str
    lease_what: str = ""
    lease_until_ms: int = 0
    lease_holds_loop: bool = False
    version: str = ""
    judged_by: str = "beats"
    stacks_signal: int = 0


@dataclass(frozen=True, slots=True)
class LauncherRecord:
    """Written by the launcher: what it supervises in this slot.

    Attributes:
        name: process name.
        kind: a `ProcessKind`.
        pid: the present process, 0 if there is none.
        start_time: its start time.
        incarnation: its life number; a process that finds a higher one than its own has been replaced and leaves.
        state: a `ProcessState`.
        since_ms: monotonic time at which the state began.
        started_ms: monotonic time at which the present process was started.
        restarts_in_period: charged restarts within the rolling period.
        restarts_left: restarts that the budget still allows; never below 0.
        retry_at_ms: monotonic time of the next start in `BACKOFF` and `QUARANTINED`, else 0.
        hang_timeout_ms: silence after which it counts as hung.
        start_timeout_ms: time it has to become ready.
        reason: why the last life ended; empty if none did.
    """

    name: str
    kind: str
    pid: int
    start_time: int
    incarnation: int
    state: str
    since_ms: int
    started_ms: int
    restarts_in_period: int
    restarts_left: int
    retry_at_ms: int
    hang_timeout_ms: int
    start_timeout_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WatchdogRecord:
    """Written by the watchdog: its judgement of one incarnation.

    Attributes:
        incarnation: the life that was judged.
        verdict: a `Verdict`.
        cause: why, in the words of `actors.runtime.verdict`; empty while ok.
        since_ms: monotonic time of the verdict.
        evidence: file name in the runtime directory's `evidence` folder; empty if there is none.
    """

    incarnation: int
    verdict: str
    cause: str
    since_ms: int
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Beat:
    """Counters of one process: turns of its loop, work done, and the monotonic time of the last turn."""

    tick: int
    progress: int
    tick_ms: int


Record = TypeVar("Record", ProcessRecord, LauncherRecord, WatchdogRecord)


_SHAPES: Final[dict[type, "tuple[int, attrgetter[Any]]"]] = {
    kind: (len(fields(kind)), attrgetter(*(field.name for field in fields(kind))))
    for kind in (ProcessRecord, LauncherRecord, WatchdogRecord)
}
"""Per record: how many fields it has, and what gets their values. Made once: a board has hundreds of areas."""


class RecordArea(Generic[Record]):
    """Two buffers and an index for one record type; one writer, any number of readers."""

    def __init__(
        self, view: memoryview, index_offset: int, first: int, second: int, end: int, kind: type[Record]
    ) -> None:
        """Lay the area over `view` (a whole slot)."""
        self._view = view
        self._index = view[index_offset : index_offset + 8].cast("Q")
        self._buffers = ((first, second), (second, end))
        self._kind: type[Record] = kind
        self._field_count, self._values = _SHAPES[kind]
        self._last_read: tuple[int, Record] | None = None

    def write(self, record: Record) -> None:
        """Make `record` the current one. Only the area's owner calls this."""
        payload = msgpack.packb(self._values(record))
        generation = self._index[0] + 1
        start, end = self._buffers[generation % 2]
        if start + 8 + len(payload) > end:
            raise ValueError(f"a {self._kind.__name__} of {len(payload)} bytes does not fit its area")
        self._view[start : start + 8 + len(payload)] = struct.pack("=II", zlib.crc32(payload), len(payload)) + payload
        self._index[0] = generation

    def read(self) -> Record | None:
        """Return the current record; None if none was ever written or what stands there is damaged."""
        for _ in range(_READ_ATTEMPTS):
            generation = self._index[0]
            if generation == 0:
                return None
            if self._last_read is not None and self._last_read[0] == generation:
                return self._last_read[1]  # observers ask several times a second, and records seldom change
            start, end = self._buffers[generation % 2]
            data = bytes(self._view[start:end])
            if self._index[0] != generation:
                continue
            checksum, length = struct.unpack_from("=II", data)
            payload = data[8 : 8 + length]
            if len(payload) != length or zlib.crc32(payload) != checksum:
                continue
            values: list[Any] = msgpack.unpackb(payload)
            record: Record = self._kind(*values[: self._field_count])
            self._last_read = generation, record
            return record
        return None


class Slot:
    """One process's place on the board."""

    def __init__(self, board: memoryview, number: int) -> None:
        """Lay the slot's areas over the board."""
        start = HEADER_BYTES + number * SLOT_BYTES
        view = board[start : start + SLOT_BYTES]
        self.number = number
        self._view = view
        self._counters = view[0:24].cast("Q")
        self.process: RecordArea[ProcessRecord] = RecordArea(view, 24, 192, 832, 1472, ProcessRecord)
        self.launcher: RecordArea[LauncherRecord] = RecordArea(view, _LAUNCHER_INDEX, 1600, 2200, 2800, LauncherRecord)
        self.watchdog: RecordArea[WatchdogRecord] = RecordArea(view, 2816, 2880, 3480, 4080, WatchdogRecord)

    def beat(self, now_ms: int) -> None:
        """Count one turn of the process's own loop. Only that loop calls this."""
        counters = self._counters
        counters[2] = now_ms
        counters[0] += 1

    def advance(self, count: int = 1) -> None:
        """Count work done. Only the process's own loop calls this."""
        self._counters[1] += count

    def read_tick(self) -> int:
        """Return how often the process's own loop has turned."""
        return self._counters[0]

    def read_beat(self) -> Beat:
        """Return the process's counters."""
        counters = self._counters
        return Beat(counters[0], counters[1], counters[2])

    def set_activity(self, text: str) -> None:
        """Say what the loop is doing now, for evidence: a reader may catch it halfway, which only garbles the text."""
        data = text.encode("utf-8", "replace")[:_ACTIVITY_BYTES]
        self._view[_ACTIVITY_OFFSET : _ACTIVITY_OFFSET + _ACTIVITY_BYTES] = data.ljust(_ACTIVITY_BYTES, b"\0")

    def read_activity(self) -> str:
        """Return what the loop said it was doing."""
        return (
            bytes(self._view[_ACTIVITY_OFFSET : _ACTIVITY_OFFSET + _ACTIVITY_BYTES])
            .rstrip(b"\0")
            .decode("utf-8", "replace")
        )

    def current_identity(self) -> ProcessIdentity | None:
        """Return the process that the launcher has recorded here, or None if there is none."""
        record = self.launcher.read()
        if record is None or record.pid == 0:
            return None
        return ProcessIdentity(record.pid, record.start_time, boot_id())


class Slots:
    """The slots of a board, each made when it is first asked for: few of them are ever used, and each costs 2 KiB."""

    def __init__(self, board: memoryview) -> None:
        """Lay slots over the board."""
        self._board = board
        self._made: list[Slot | None] = [None] * SLOTS

    def __getitem__(self, number: int) -> Slot:
        """Return one slot."""
        slot = self._made[number]
        if slot is None:
            slot = self._made[number] = Slot(self._board, number)
        return slot

    def __iter__(self) -> Iterator[Slot]:
        """Yield them all."""
        return (self[number] for number in range(SLOTS))

    def clear(self) -> None:
        """Let go of them all, for good."""
        self._made.clear()


class BoardError(Exception):
    """The file is no liveness board of this version and boot."""


class Board:
    """The mapped board. Open it once per process; a fork keeps the mapping."""

    def __init__(self, path: str, *, writable: bool) -> None:
        """Map the board at `path`.

        Raises:
            FileNotFoundError: there is none.
            BoardError: it is damaged, of another layout, or of another boot.
        """
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0))
        try:
            if os.fstat(descriptor).st_size != BOARD_BYTES:
                raise BoardError(f"{path} is not a liveness board of {BOARD_BYTES} bytes")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map = mmap.mmap(descriptor, BOARD_BYTES, access=access)
        finally:
            os.close(descriptor)
        self.path = path
        self._view = memoryview(self._map)
        self._header = self._view[0:64].cast("Q")
        self._launcher_indices = self._view.cast("Q")[(HEADER_BYTES + _LAUNCHER_INDEX) // 8 :: SLOT_BYTES // 8]
        if bytes(self._view[0:8]) != MAGIC:
            raise BoardError(f"{path} is not a liveness board of this version")
        if self.boot_id != boot_id():
            raise BoardError(f"{path} was written before the last reboot")
        self.slots = Slots(self._view)

    @classmethod
    def create(cls, path: str) -> Self:
        """Make a fresh board at `path`, replacing (not overwriting) any old one, and map it."""
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "wb", opener=_open_private) as file:
            file.write(MAGIC)
            file.seek(_BOOT_ID_OFFSET)
            file.write(boot_id().encode("ascii")[:_BOOT_ID_BYTES])
            file.truncate(BOARD_BYTES)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                # Touching a page that a full tmpfs cannot give is deadly: take all of them now.
                os.posix_fallocate(file.fileno(), 0, BOARD_BYTES)
        os.replace(temporary, path)
        return cls(path, writable=True)

    @property
    def boot_id(self) -> str:
        """The boot in which this board was made."""
        return (
            bytes(self._view[_BOOT_ID_OFFSET : _BOOT_ID_OFFSET + _BOOT_ID_BYTES])
            .rstrip(b"\0")
            .decode("ascii", "replace")
        )

    @property
    def epoch(self) -> int:
        """Incarnation of the launcher that rules now; a launcher that finds another one than its own leaves."""
        return self._header[_EPOCH]

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._header[_EPOCH] = value

    @property
    def stopping(self) -> bool:
        """True once a deliberate stop has begun: nobody restores anything from then on."""
        return self._header[_STOPPING] != 0

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._header[_STOPPING] = int(value)

    def occupied(self) -> list[tuple[Slot, LauncherRecord]]:
        """Return every slot that the launcher has filled, with its record."""
        found = []
        for number, generation in enumerate(self._launcher_indices.tolist()):
            if generation:
                slot = self.slots[number]
                record = slot.launcher.read()
                if record is not None and record.name:  # a program that was forgotten leaves its slot to others
                    found.append((slot, record))
        return found

    def find(self, name: str) -> tuple[Slot, LauncherRecord] | None:
        """Return the slot of the process called `name`, or None."""
        return next(((slot, record) for slot, record in self.occupied() if record.name == name), None)

    def close(self) -> None:
        """Unmap. Slots handed out before must not be used any more; those still alive keep the mapping."""
        self.slots.clear()
        self._header.release()
        self._launcher_indices.release()
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            return

    def __enter__(self) -> Self:
        """Return the board."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the board."""
        self.close()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
