"""Following the output of a program through its lives, from its files alone."""

import os
from collections.abc import Iterator
from typing import Final

from actors.runtime.programs import OUTPUTS_KEPT
from actors.runtime.read_at import data_from, read_at

SLICE_BYTES: Final = 1 << 20
_BACK_BYTES: Final = 64 * 1024


class Follower:
    """Reads a program's output as it grows: the file at its path, and after a restart the ones that came since.

    Attributes:
        lives: how many further lives were begun since it started.
    """

    def __init__(self, path: str) -> None:
        """Follow the output whose present file is at `path`; it need not exist yet."""
        self.lives = 0
        self._path = path
        self._descriptor = -1
        self._offset = 0

    def last_lines(self, count: int, *, this_life: bool = False) -> list[bytes]:
        """Return the last `count` lines, going back to former lives if need be; what comes next is read from there."""
        found: list[bytes] = []
        self._open(self._path)
        if self._descriptor >= 0:
            self._offset = os.fstat(self._descriptor).st_size
            found = _tail(self._descriptor, self._offset, count)
        for rank in range(1, OUTPUTS_KEPT + 1):
            if len(found) >= count or this_life:
                break
            try:
                descriptor = os.open(f"{self._path}.{rank}", os.O_RDONLY)
            except OSError:
                break
            try:
                earlier = _tail(descriptor, os.fstat(descriptor).st_size, count - len(found))
            finally:
                os.close(descriptor)
            if earlier and not earlier[-1].endswith(b"\n"):
                earlier[-1] += b"\n"
            found = earlier + found
        return found

    def read(self) -> Iterator[bytes]:
        """Yield what has come since, through as many lives as there were."""
        while True:
            if self._descriptor < 0 and not self._open(self._path):
                return
            yield from self._rest()
            following = self._next_life()
            if following is None:
                return
            yield from self._rest()  # what came between the look and the end of that life
            if not self._turn_to(*following):
                return

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, path: str) -> bool:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            return False
        self._offset = 0
        return True

    def _rest(self) -> Iterator[bytes]:
        while True:
            size = os.fstat(self._descriptor).st_size
            if size < self._offset:  # it was cut, and begins anew
                self._offset = 0
            offset = data_from(self._descriptor, self._offset)
            data = read_at(self._descriptor, SLICE_BYTES, offset)
            if not data:
                return
            self._offset = offset + len(data)
            yield data

    def _turn_to(self, path: str, inode: int) -> bool:
        """Go on with the next life; False if it was renamed meanwhile, and has to be looked for again."""
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            return False
        if os.fstat(descriptor).st_ino != inode:
            os.close(descriptor)
            return False
        self.close()
        self._descriptor, self._offset = descriptor, 0
        self.lives += 1
        return True

    def _next_life(self) -> tuple[str, int] | None:
        """Return file and inode of the life after the one that is being read; None if that is the present one."""
        own = os.fstat(self._descriptor)
        younger: tuple[str, int] | None = None
        for rank in range(OUTPUTS_KEPT + 1):
            path = self._path if rank == 0 else f"{self._path}.{rank}"
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            if (status.st_ino, status.st_dev) == (own.st_ino, own.st_dev):
                return younger
            younger = path, status.st_ino
        return younger  # it is so old that it is not kept any more: go on with the oldest that is


def _tail(descriptor: int, size: int, count: int) -> list[bytes]:
    """Return the last `count` lines of a file, with their ends."""
    data, begin = b"", size
    if count <= 0:
        return []
    while begin > 0 and data[:-1].count(b"\n") < count:
        length = min(_BACK_BYTES, begin)
        part = read_at(descriptor, length, begin - length)
        begin -= length
        if not any(part):  # the disk of what is older was given back
            break
        data = part.lstrip(b"\0") + data if part[:1] == b"\0" else part + data
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
    return lines[-count:]
