"""Who may touch a database file while it is being replaced: a lock beside it that every transaction of ours shares.

SQLite's own locks live in the very file that is damaged, so they cannot keep anybody out of it. `PATH-guard` can: a
transaction, and the opening of a connection, hold it shared; who sets the file aside and puts another in its place
holds it alone (`actors.runtime.database_repair`). A process that dies or is killed gives it back. The guard is empty
until a database of ours was opened beside it: from then on a file that SQLite does not take for a database was one of
ours, and is damaged.

On Windows an open file cannot be renamed at all, so nothing is shared there: the marker of a repair alone keeps openers
out.
"""

import errno
import os
import sys
from typing import Final

from actors.runtime.filelock import FileLock

GUARD_SUFFIX: Final = "-guard"
REPAIRING_SUFFIX: Final = "-repairing"
"""Beside the database while it is being replaced: what was set aside, and as what."""
REPAIRED_SUFFIX: Final = "-repaired"
"""Beside the database after that: what was saved, and what was lost."""
WAL_SUFFIX: Final = "-wal"
SHM_SUFFIX: Final = "-shm"
_SIGNATURE: Final = b"RELC\n"

if sys.platform == "win32":

    def _try_share(_descriptor: int) -> bool:
        return True

    def _unshare(_descriptor: int) -> None:
        return

else:
    import fcntl

    def _try_share(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unshare(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class Guard:
    """One connection's share in the guard of the database at `path`. For one thread at a time."""

    def __init__(self, path: str, *, make: bool = True) -> None:
        """Open the guard's file, or do without: a directory that is read-only keeps repairs out as well.

        Args:
            path: the database.
            make: whether to make a guard that does not exist.

        Raises:
            OSError: it can be neither opened nor done without.
        """
        self._descriptor: int | None = None
        flags = os.O_RDWR | (os.O_CREAT if make else 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(path + GUARD_SUFFIX, flags, 0o600)
        except PermissionError:
            return
        except OSError as error:
            if make and not is_read_only(error):
                raise

    def try_share(self) -> bool:
        """Take a share without waiting; False while the file is being replaced."""
        return self._descriptor is None or _try_share(self._descriptor)

    def unshare(self) -> None:
        """Give the share back."""
        if self._descriptor is not None:
            _unshare(self._descriptor)

    @property
    def signed(self) -> bool:
        """Whether the database beside it was opened as one of ours before."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_size > 0

    def sign(self) -> None:
        """Note that the database beside it is one of ours."""
        if self._descriptor is not None and not self.signed:
            try:
                os.write(self._descriptor, _SIGNATURE)
            except OSError:  # a full disk: the next one to open it does so
                return

    def close(self) -> None:
        """Give back whatever is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def exclusive(path: str) -> FileLock:
    """Return the lock that keeps every transaction of ours out of the database at `path`."""
    return FileLock(path + GUARD_SUFFIX)


def is_read_only(error: OSError) -> bool:
    """Tell whether a file could not be made because nothing may be written there."""
    return error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}


def file_identity(path: str) -> tuple[int, int] | None:
    """Return what tells the file at `path` from every other; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def lost_its_file(path: str) -> bool:
    """Tell whether a write-ahead log is there and its database is not: SQLite would delete the log."""
    try:
        return os.stat(path + WAL_SUFFIX).st_size > 0 and not (os.path.exists(path) and os.stat(path).st_size > 0)
    except FileNotFoundError:
        return False
