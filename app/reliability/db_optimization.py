"""Look after any SQLite file of a host application's, without opening it in the host's process.

    optimizer = DatabaseOptimizer("assistant.db")
    optimizer.optimize_for_reliability()
    optimizer.vacuum_database()
    optimizer.analyze_database()
    optimizer.get_database_stats()

Each method runs a child process and waits for it: two SQLite libraries in one process, the host's own and ours, would
corrupt the file that both have open. It needs no running system. The application may go on reading and writing
meanwhile: no writer of its waits longer than `lock_s` (2 s unless told otherwise), which is less than the busy_timeout
of 5 s that every connection of the application should set. From a coroutine: ``await asyncio.to_thread(...)``.

Results are plain dictionaries, errors those of `protocol.errors` with the codes ``failed`` (missing, read-only, full
disk), ``integrity`` (no database, encrypted, damaged), ``locked`` (by whom) and ``deadline_passed``.
"""

import os
import sys
from typing import Any, Final

from actors.runtime.database_child import run
from protocol.errors import ErrorCode, LocalError

__all__ = ["DatabaseOptimizer"]

LOCK_S_DEFAULT: Final = 2.0
LOCK_S_MIN: Final = 0.05
LOCK_S_MAX: Final = 60.0
TIMEOUT_S_DEFAULT: Final = 300.0
STATS_TIMEOUT_S: Final = 30.0
SAFE_LIBRARY: Final = (3, 51, 3)
"""An SQLite before it can corrupt a write-ahead log when several processes use the file."""


class DatabaseOptimizer:
    """One SQLite file, by its path. Safe for threads; holds nothing open."""

    def __init__(
        self, db_path: str | os.PathLike[str], *, lock_s: float = LOCK_S_DEFAULT, timeout_s: float = TIMEOUT_S_DEFAULT
    ) -> None:
        """Name the file; nothing is opened, and it need not exist yet.

        Args:
            db_path: the file, ``:memory:`` excepted.
            lock_s: how long the application's writers may have to wait for this.
            timeout_s: what one call may take in all; then the child is ended, which rolls back.

        Raises:
            LocalError: `usage`, a bound is out of its range.
        """
        if not LOCK_S_MIN <= lock_s <= LOCK_S_MAX or timeout_s <= 0:
            message = f"lock_s is between {LOCK_S_MIN:g} and {LOCK_S_MAX:g} s, timeout_s positive"
            raise LocalError(ErrorCode.USAGE, message, "")
        self.path = os.path.abspath(os.fspath(db_path))
        self._lock_s = lock_s
        self._timeout_s = timeout_s

    def optimize_for_reliability(self) -> dict[str, Any]:
        """Set what the file remembers (write-ahead log), and have its tables analysed.

        Returns:
            ``{"journal_mode", "journal_mode_before", "changed", "persistent", "per_connection", "statements",
            "warnings"}``. No file remembers ``per_connection``: execute ``statements`` on every connection that the
            application opens.

        Raises:
            LocalError: nothing was changed.
        """
        result = self._run("optimize")
        result["warnings"] += host_warnings()
        return result

    def vacuum_database(self, *, only_if_it_pays: bool = False) -> dict[str, Any]:
        """Rebuild the file without its free pages.

        VACUUM holds the write lock from beginning to end. If that would last longer than `lock_s` it is interrupted,
        everything is as before, and the result says so: ``{"vacuumed": False, "reason": "too_long"}`` (a process that
        has to be ended in the very moment of its commit may have done it after all: whole, or not at all).

        Args:
            only_if_it_pays: do nothing unless a tenth of the file (and a MiB) would be freed and there is space for it.

        Returns:
            ``{"vacuumed", "reason", "bytes_before", "free_bytes_before", "lock_s_max", "lock_held_s"}``, and once it is
            done ``bytes_after`` and ``checkpoint``; reasons are ``too_long``, ``does_not_pay`` and ``no_space``.

        Raises:
            LocalError: nothing was changed; `failed` as well if there is no space (and `only_if_it_pays` is off).
        """
        return self._run("vacuum", *(["--when-it-pays"] if only_if_it_pays else []))

    def analyze_database(self) -> dict[str, Any]:
        """Gather the statistics by which SQLite plans its queries: ``{"tables", "given_up"}``, by name.

        Raises:
            LocalError: nothing, or some tables only, were analysed.
        """
        return self._run("analyze")

    def get_database_stats(self) -> dict[str, Any]:
        """Return sizes in bytes, page counts, pragmas in force and tables with their rows (None: not counted in time).

        Raises:
            LocalError: the file cannot be read.
        """
        return self._run("stats", timeout_s=min(STATS_TIMEOUT_S, self._timeout_s))

    def check_integrity(self, *, full: bool = False) -> dict[str, Any]:
        """Have SQLite check the file: ``{"ok", "messages", "check"}``. Writers do not wait.

        Args:
            full: whether indexes are compared with their tables too, which takes much longer.

        Raises:
            LocalError: the file cannot be read at all.
        """
        return self._run("integrity", *(["--full"] if full else []))

    def _run(self, operation: str, *options: str, timeout_s: float | None = None) -> dict[str, Any]:
        options = ("--lock-s", f"{self._lock_s:g}", *options)
        return run(self.path, operation, options, timeout_s=timeout_s or self._timeout_s)


def host_warnings() -> list[str]:
    """Tell whether the host's own SQLite, if this process has loaded one, is too old for a shared write-ahead log."""
    version = getattr(sys.modules.get("sqlite3"), "sqlite_version_info", None)
    if version is None or tuple(version) >= SAFE_LIBRARY:
        return []
    found, needed = ".".join(map(str, version)), ".".join(map(str, SAFE_LIBRARY))
    return [
        f"this application's SQLite is {found}: before {needed} several processes on one write-ahead log can corrupt it"
    ]
