"""States that clients hand over as files: see `actors.runtime.handover`. Worker thread only.

Nothing about such a file is believed. It must be a regular file of our own account, without another name, of the size
that was told; it is read once, and what was read is what is judged, digested and described. A client that goes on
writing into it nevertheless is found out then, or at the latest when it is read back.
"""

import _thread
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from actors.runtime.paths import sync_directory
from protocol.errors import ErrorCode, ReliabilityError
from protocol.limits import MIB

WRITTEN_S_MAX: Final = 0.1
"""How long a file is waited for whose client is still writing it; a large one for this much every `_SHARE_BYTES`."""
_SHARE_BYTES: Final = 16 * MIB
_LOOK_S: Final = 0.0003
_OPEN_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a named pipe must not hold us up
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class Refused(ReliabilityError):
    """A state that was handed over is not taken; the client may send the bytes instead."""

    def __init__(self, problem: str) -> None:
        """Say what is wrong with the file."""
        super().__init__(
            ErrorCode.INTEGRITY, f"the state that was handed over {problem}", "Send the state itself, as raw frame."
        )


class _Flushing:
    """A flush on a thread of its own, while the caller digests; to be joined before its descriptor is closed."""

    def __init__(self, descriptor: int, directory: str) -> None:
        """Begin."""
        self._descriptor = descriptor
        self._directory = directory
        self._error: OSError | None = None
        self._done = threading.Lock()
        self._done.acquire()
        try:
            _thread.start_new_thread(self._work, ())
        except RuntimeError:  # no more threads
            self._work()

    def join(self) -> None:
        """Wait for its end."""
        with self._done:
            return

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            OSError: the disk does not take it.
        """
        self.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            os.fsync(self._descriptor)
            sync_directory(self._directory)
        except OSError as error:
            self._error = error
        finally:
            self._done.release()


@dataclass(slots=True)
class Taken:
    """A file that was taken.

    Attributes:
        payload: what was read.
    """

    payload: bytes
    _path: str
    _descriptor: int
    _mark: tuple[int, ...]
    _flushing: "_Flushing"

    def flush(self) -> None:
        """Wait until the file and its name survive a power cut.

        Raises:
            Refused: somebody wrote into it meanwhile.
            OSError: the disk does not take it.
        """
        self._flushing.wait()
        if _mark(os.fstat(self._descriptor)) != self._mark:
            raise Refused("changed while it was taken")
        if not os.path.samestat(os.fstat(self._descriptor), os.stat(self._path, follow_symlinks=False)):
            raise Refused("was exchanged while it was taken")


@contextmanager
def take(path: str, size_bytes: int, sleep: Callable[[float], None]) -> Iterator[Taken]:
    """Yield what is in a file of `size_bytes`; see `Taken.flush`. `sleep` waits for a client that still writes it.

    Raises:
        Refused: there is no such file, or it is not what was told.
    """
    descriptor = flushing = None
    try:
        descriptor = _open_whole(path, size_bytes, sleep)
        found = os.fstat(descriptor)
        flushing = _Flushing(descriptor, os.path.dirname(path))
        yield Taken(_read(descriptor, size_bytes), path, descriptor, _mark(found), flushing)
    except OSError as error:
        raise Refused(f"cannot be taken: {error.strerror}") from None
    finally:
        if flushing is not None:
            flushing.join()
        if descriptor is not None:
            os.close(descriptor)


def _open_whole(path: str, size_bytes: int, sleep: Callable[[float], None]) -> int:
    """Open a file once all of it is there; the wait is bounded by the number of looks."""
    looks = int(WRITTEN_S_MAX * (1 + size_bytes // _SHARE_BYTES) / _LOOK_S)
    for left in range(looks, -1, -1):
        try:
            descriptor = os.open(path, _OPEN_FLAGS)
        except FileNotFoundError:
            if not left:
                raise
        else:
            found = os.fstat(descriptor)
            try:
                _check(found)
                if found.st_size == size_bytes:
                    return descriptor
                if not left or found.st_size > size_bytes:
                    raise Refused(f"has {found.st_size} bytes, not {size_bytes}")
            except Refused:
                os.close(descriptor)
                raise
            os.close(descriptor)
        sleep(_LOOK_S)
    raise RuntimeError("a look without an end")


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Refused("is no regular file")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise Refused("belongs to another account")
    if found.st_nlink != 1:
        raise Refused("has another name as well")


def _read(descriptor: int, size_bytes: int) -> bytes:
    """Return the file's content; it must end where it should. Read, not mapped: a mapped file that shrinks kills."""
    parts, left = [], size_bytes + 1
    while left and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    if left != 1:
        raise Refused("changed while it was taken")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _mark(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_nlink
