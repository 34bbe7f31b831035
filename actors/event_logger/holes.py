"""Giving back the disk that the oldest part of a file takes, while somebody appends to it and never notices."""

import os
import sys
from functools import lru_cache
from typing import Any, Final

from actors.runtime.read_at import read_at
from protocol.limits import KIB, MIB

BLOCK_BYTES: Final = 4 * KIB
_COPY_BYTES: Final = MIB
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02


def punch(descriptor: int, length: int) -> bool:
    """Make the first `length` bytes a hole, which reads as zeros and takes no disk; False where that is impossible.

    The file keeps its size and every offset its meaning.

    Raises:
        OSError: the disk failed.
    """
    fallocate = _fallocate()
    if fallocate is None:
        return False
    import ctypes  # noqa: PLC0415 - see `_fallocate`
    import errno  # noqa: PLC0415

    while fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 0, length) != 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def truncate(path: str, kept: str, length: int) -> int:
    """Make the file at `path` begin anew, its last `length` bytes copied to `kept`; returns how long it was.

    What its writer, who must append, writes between the copy and the cut is lost: the price where no hole can be made.

    Raises:
        OSError: nothing was cut.
    """
    temporary = f"{kept}.tmp"
    with open(path, "rb+", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position, copied = max(0, size - length), 0
        with open(temporary, "wb", buffering=0, opener=_open_private) as copy:
            while copied < 2 * length:  # a writer that is faster than this copy does not hold it up for ever
                part = read_at(file.fileno(), _COPY_BYTES, position)
                if not part:
                    break
                position += len(part)
                copied += copy.write(part)
        os.replace(temporary, kept)
        size = os.fstat(file.fileno()).st_size
        os.ftruncate(file.fileno(), 0)
    return size


@lru_cache(maxsize=1)
def _fallocate() -> Any:
    """Return the C library's function: loaded when the first output has grown too large, which few ever do."""
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - a megabyte of memory

    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        try:
            function = ctypes.CDLL(None, use_errno=True).fallocate
        except (OSError, AttributeError):
            return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
