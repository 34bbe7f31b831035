"""An exclusive lock on a file that the system releases when its holder dies."""

import os
import sys
from types import TracebackType
from typing import Final, Self

_LOCKED_BYTE: Final = 1 << 40

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def lock_now(descriptor: int) -> bool:
        """Lock an open file without waiting; False if somebody else has it."""
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)  # locks are mandatory here: others still read
        return _try_lock(descriptor)

    def unlock(descriptor: int) -> None:
        """Give back what `lock_now` took."""
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock_now(descriptor: int) -> bool:
        """Lock an open file without waiting; False if somebody else has it."""
        return _try_lock(descriptor)

    def unlock(descriptor: int) -> None:
        """Give back what `lock_now` took, for every process that shares the descriptor."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class FileLock:
    """One lock, held from `acquire` to `release` or to the death of the process.

    A forked child shares the lock: it calls `close_inherited` first thing.
    """

    def __init__(self, path: str) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the lock without waiting; False if somebody else has it."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        if not _try_lock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back."""
        self.close_inherited()

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptor. The lock stays with the parent, whose descriptor is still open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Return the lock; whether it was acquired is the caller's business."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()
