"""A disk that fails on purpose: an apsw VFS that fails the Nth operation, or remembers what a power cut may take away.

Nothing here knows the database policy: it becomes SQLite's default VFS while it is `installed`, so that all code under
test opens its files over it. The shared memory (-shm) is no file of the disk's: it is gone after a power cut anyway.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512
NAME = "relctl-faulty"


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of the disk: "write", "truncate", "sync" or "delete"."""

    kind: str
    file: str
    offset: int = 0
    data: bytes = b""


@dataclass
class Faults:
    """What is to fail, and what has happened.

    Attributes:
        fail_at: number of the operation that fails, from 1; 0 for none.
        persistent: whether all after it fail as well.
        error: makes what is raised.
        counted: operations so far.
        hits: operations that failed.
        log: every change, in its order, if `recording`.
    """

    fail_at: int = 0
    persistent: bool = False
    error: Callable[[], Exception] = lambda: apsw.exception_for(apsw.SQLITE_IOERR_WRITE)
    recording: bool = False
    counted: int = 0
    hits: int = 0
    log: list[Operation] = field(default_factory=list)

    def meet(self) -> None:
        """Count one operation, and fail it if it is its turn."""
        self.counted += 1
        if self.fail_at and (self.counted == self.fail_at or (self.persistent and self.counted > self.fail_at)):
            self.hits += 1
            raise self.error()

    def record(self, operation: Operation) -> None:
        if self.recording:
            self.log.append(operation)


class FaultyVfs(apsw.VFS):
    def __init__(self, faults: Faults, base: str) -> None:
        self._faults = faults
        self._real = base
        super().__init__(NAME, base, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        return FaultyFile(self._faults, self._real, name, flags, os.path.basename(filename or ""))

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - apsw's
        self._faults.meet()
        super().xDelete(filename, syncdir)
        self._faults.record(Operation("delete", os.path.basename(filename)))


class FaultyFile(apsw.VFSFile):
    def __init__(self, faults: Faults, real: str, name: Any, flags: list[int], base: str) -> None:
        self._faults = faults
        self._base = base
        super().__init__(real, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - apsw's
        self._faults.meet()
        super().xWrite(data, offset)
        self._faults.record(Operation("write", self._base, offset, bytes(data)))

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's
        self._faults.meet()
        super().xSync(flags)
        self._faults.record(Operation("sync", self._base))

    def xTruncate(self, size: int) -> None:  # noqa: N802 - apsw's
        self._faults.meet()
        super().xTruncate(size)
        self._faults.record(Operation("truncate", self._base, size))


@contextmanager
def installed(faults: Faults) -> Iterator[Faults]:
    """Have every connection that is opened meanwhile go over the faulty disk."""
    before = apsw.vfs_names()[0]
    vfs = FaultyVfs(faults, before)
    try:
        yield faults
    finally:
        faults.fail_at = 0
        apsw.set_default_vfs(before)
        vfs.unregister()


def cut_power(log: list[Operation], target: Path, rng: random.Random) -> None:
    """Write into `target` what a disk may hold after `log` and a power cut.

    What was synced is there. Of what was not, each change may be there, missing, or (of a write) torn at a sector;
    changes of different files, and of one file, may have reached the disk in any order.
    """
    safe: dict[str, bytearray | None] = {}
    pending: dict[str, list[Operation]] = {}
    with_directory: set[str] = set()
    for operation in log:
        if operation.kind != "sync":
            pending.setdefault(operation.file, []).append(operation)
            if operation.kind == "delete":
                with_directory.discard(operation.file)
            continue
        for change in pending.pop(operation.file, []):
            _apply(safe, change)
        # The first sync of a new journal or log is followed by one of its directory (unixSync): deletions are safe.
        if operation.file.endswith(("-wal", "-journal")) and operation.file not in with_directory:
            with_directory.add(operation.file)
            for name, changes in pending.items():
                places = [place for place, change in enumerate(changes) if change.kind == "delete"]
                if places:
                    safe[name] = None
                    pending[name] = changes[places[-1] + 1 :]
    for changes in pending.values():
        kept = [change for change in changes if rng.random() < 0.5]
        if rng.random() < 0.5:
            rng.shuffle(kept)
        for change in kept:
            _apply(safe, _torn(change, rng) if rng.random() < 0.3 else change)
    target.mkdir()
    for name, content in safe.items():
        if content is not None:
            (target / name).write_bytes(content)


def _torn(change: Operation, rng: random.Random) -> Operation:
    if change.kind != "write" or len(change.data) <= SECTOR:
        return change
    sectors = len(change.data) // SECTOR
    first, last = sorted((rng.randrange(sectors), rng.randrange(1, sectors + 1)))
    if first == last:
        last += 1
    return Operation("write", change.file, change.offset + first * SECTOR, change.data[first * SECTOR : last * SECTOR])


def _apply(files: dict[str, bytearray | None], change: Operation) -> None:
    if change.kind == "delete":
        files[change.file] = None
        return
    content = files.get(change.file)
    if content is None:
        content = files[change.file] = bytearray()
    if change.kind == "truncate":
        del content[change.offset :]
        content.extend(bytes(max(0, change.offset - len(content))))
        return
    end = change.offset + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.offset : end] = change.data
