"""What can be wrong with a database, in terms that a caller can act on."""

import errno
import os
import sys
from enum import StrEnum
from typing import Final

import apsw

from protocol.errors import ErrorCode, LocalError

LIBRARY_VERSION_MIN: Final = (3, 51, 3)
"""Up to 3.51.2 a race of commit and checkpoint between connections can corrupt a WAL database."""
LIBRARY_VERSIONS_WITHDRAWN: Final = frozenset({(3, 52)})
"""Later than the minimum, yet without that repair."""

_WAL_WRITE_LOCK_BYTE: Final = 120
"""Offset of the write lock in the -shm file (https://www.sqlite.org/walformat.html#locks)."""
_PENDING_BYTE: Final = 0x40000000
_SHARED_LAST_BYTE: Final = _PENDING_BYTE + 511
"""The locks in the file itself: pending, reserved, and the range that readers share (os.h of SQLite)."""


class Problem(StrEnum):
    """What is wrong with a database, as far as the caller can act on it."""

    LOCKED = "locked"
    FULL = "full"
    IO = "io"
    CORRUPT = "corrupt"
    REPAIRING = "repairing"
    FOREIGN = "foreign"
    NOT_A_DATABASE = "not_a_database"
    NEWER = "newer"
    READ_ONLY = "read_only"
    MISSING = "missing"
    CANNOT_OPEN = "cannot_open"
    REPLACED = "replaced"
    TOO_SLOW = "too_slow"
    STOPPED = "stopped"
    LIBRARY = "library"
    OTHER = "other"


PASSING: Final = frozenset({Problem.REPAIRING, Problem.REPLACED})
"""What a repair looks like to who uses the database meanwhile: soon over, and the repair tells of itself."""

_ANSWERS: Final[dict[Problem, tuple[ErrorCode, str, str]]] = {
    Problem.LOCKED: (
        ErrorCode.LOCKED,
        "is locked by another process",
        "If the holder is frozen, the watchdog frees the lock within its hang timeout; try again.",
    ),
    Problem.FULL: (
        ErrorCode.FAILED,
        "cannot grow: the disk is full",
        "Free space on the disk; writing goes on by itself.",
    ),
    Problem.IO: (ErrorCode.FAILED, "cannot be read or written", "Look at the disk and the system's log."),
    Problem.CORRUPT: (
        ErrorCode.INTEGRITY,
        "is damaged",
        "It is set aside and what can be read is saved, within seconds; `relctl health` tells what was lost.",
    ),
    Problem.REPAIRING: (
        ErrorCode.BUSY,
        "is being repaired",
        "What can be read is being saved into a new file; try again in a moment.",
    ),
    Problem.FOREIGN: (
        ErrorCode.INTEGRITY,
        "is not a database of this system",
        "Choose another data directory, or move the file away.",
    ),
    Problem.NOT_A_DATABASE: (
        ErrorCode.INTEGRITY,
        "is not an SQLite database, or is encrypted",
        "Check the path; an encrypted database can be opened by its own program only.",
    ),
    Problem.MISSING: (ErrorCode.FAILED, "does not exist", "Check the path."),
    Problem.STOPPED: (ErrorCode.DRAINING, "was left as it is: the work on it was stopped", ""),
    Problem.NEWER: (ErrorCode.FAILED, "was written by a newer release", "Update this program."),
    Problem.READ_ONLY: (ErrorCode.FAILED, "is read-only", "Check the owner and mode of the file and its directory."),
    Problem.CANNOT_OPEN: (ErrorCode.FAILED, "cannot be opened", "Check that its directory exists and belongs to you."),
    Problem.REPLACED: (
        ErrorCode.FAILED,
        "was removed or replaced while in use",
        "The next request opens the file that is there now.",
    ),
    Problem.TOO_SLOW: (ErrorCode.FAILED, "took too long", "Ask for less at once, or look at the disk."),
    Problem.LIBRARY: (ErrorCode.CONFIGURATION, "is not safe with this SQLite", "Install a newer apsw."),
    Problem.OTHER: (ErrorCode.FAILED, "refused a statement", ""),
}

_PROBLEMS: Final[tuple[tuple[type[apsw.Error], Problem], ...]] = (
    (apsw.BusyError, Problem.LOCKED),
    (apsw.LockedError, Problem.LOCKED),
    (apsw.FullError, Problem.FULL),
    (apsw.CorruptError, Problem.CORRUPT),
    (apsw.NotADBError, Problem.FOREIGN),
    (apsw.ReadOnlyError, Problem.READ_ONLY),
    (apsw.PermissionsError, Problem.READ_ONLY),
    (apsw.CantOpenError, Problem.CANNOT_OPEN),
    (apsw.IOError, Problem.IO),
    (apsw.InterruptError, Problem.TOO_SLOW),
)


class DatabaseError(LocalError):
    """A database could not be used; whatever was being written is rolled back.

    Attributes:
        problem: which kind of trouble it is.
    """

    def __init__(self, problem: Problem, path: str, detail: str = "") -> None:
        """Say what is wrong with the database at `path`."""
        code, sentence, hint = _ANSWERS[problem]
        super().__init__(code, f"{os.path.basename(path)} {sentence}{f' ({detail})' if detail else ''}", hint)
        self.problem = problem


def from_os_error(error: OSError, path: str) -> DatabaseError:
    """Return the system's error with a file beside the database at `path` in our terms."""
    problem = {
        errno.ENOSPC: Problem.FULL,
        errno.EDQUOT: Problem.FULL,
        errno.EROFS: Problem.READ_ONLY,
        errno.EACCES: Problem.READ_ONLY,
        errno.EPERM: Problem.READ_ONLY,
        errno.ENOENT: Problem.CANNOT_OPEN,
        errno.ENOTDIR: Problem.CANNOT_OPEN,
    }.get(error.errno or 0, Problem.IO)
    return DatabaseError(problem, path, error.strerror or str(error))


def require_library(path: str, version: str | None = None) -> None:
    """Refuse a SQLite that can corrupt what it opens; `path` is for the message.

    Raises:
        DatabaseError: with the version found.
    """
    version = version or apsw.sqlite_lib_version()
    numbers = tuple(int(part) for part in version.split("."))
    if numbers < LIBRARY_VERSION_MIN or numbers[:2] in LIBRARY_VERSIONS_WITHDRAWN:
        needed = ".".join(map(str, LIBRARY_VERSION_MIN))
        raise DatabaseError(Problem.LIBRARY, path, f"SQLite {version}; {needed} or newer is needed")


def translate(error: apsw.Error, path: str) -> DatabaseError:
    """Return SQLite's error in our terms."""
    problem = next((problem for kind, problem in _PROBLEMS if isinstance(error, kind)), Problem.OTHER)
    detail = (
        describe_holder(path) if problem is Problem.LOCKED else f"SQLite {getattr(error, 'extendedresult', 0)}: {error}"
    )
    return DatabaseError(problem, path, detail)


def write_lock_holder(path: str) -> int | None:
    """Return the pid of the process that keeps writers out of the database at `path`; None where that is unknown.

    That is who holds the write lock of the write-ahead log; of a database without one, who writes it, else who reads
    it.
    """
    if sys.platform != "linux":
        return None
    try:
        inodes = {str(os.stat(path).st_ino): False}
        if os.path.exists(f"{path}-shm"):
            inodes[str(os.stat(f"{path}-shm").st_ino)] = True
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    writer = reader = None
    for line in lines:
        # 1: POSIX  ADVISORY  WRITE 11656 fe:00:1441796 120 120; a waiter's line has -> before POSIX
        parts = line.replace("-> ", "").split()
        is_log = inodes.get(parts[5].rpartition(":")[2])
        if is_log is None or parts[1] != "POSIX":
            continue
        first = int(parts[6])
        if is_log:
            if first == _WAL_WRITE_LOCK_BYTE and parts[3] == "WRITE":
                return int(parts[4])
        elif _PENDING_BYTE <= first <= _SHARED_LAST_BYTE and len(inodes) == 1:
            if parts[3] == "WRITE":
                writer = int(parts[4])
            else:
                reader = int(parts[4])
    return writer or reader


def describe_holder(path: str) -> str:
    """Return who holds the write lock, for a message; empty if that is unknown."""
    pid = write_lock_holder(path)
    return f"pid {pid}" if pid else ""
