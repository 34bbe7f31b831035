"""`python -P -m actors.runtime.database_tool PATH OPERATION`: one operation on one SQLite file, as a process.

It works on any SQLite file, ours or a host's. It speaks JSON lines on its standard output: any number of
``{"progress": {"phase", ...}}``, then ``{"result": {...}}`` or ``{"error": {"code", "problem", "message", "hint"}}``.

No writer waits for it longer than ``--lock-s`` (2 s unless told otherwise). Most of what it does takes no lock for
longer than moments; VACUUM holds the write lock from beginning to end, so at that bound it is interrupted, and where
SQLite cannot be interrupted (it copies the finished pages back) the process ends itself, which rolls back as any crash
does.

SIGTERM, SIGINT and, with ``--attached``, the end of the standard input make it roll back and leave.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import apsw

from actors.runtime.database_guard import WAL_SUFFIX, Guard
from actors.runtime.database_problem import DatabaseError, Problem, describe_holder, require_library, translate
from actors.runtime.database_stats import read_stats
from protocol.errors import EXIT_FAILED, EXIT_OK, ErrorCode, ReliabilityError

LOCK_S_DEFAULT: Final = 2.0
"""How long writers may have to wait: less than the busy_timeout of 5 s that the mission sets."""
BUILD_SHARE: Final = 0.45
"""Part of that in which VACUUM has to have built its copy; putting the pages back takes somewhat longer than that."""
WAIT_S: Final = 1.0
"""How long the tool itself waits for others' locks."""
PATIENCE_S: Final = 3.0
"""How long it tries again."""
VACUUM_PERCENT_MIN: Final = 10.0
VACUUM_BYTES_MIN: Final = 1024 * 1024
"""Free pages from which on VACUUM pays: a tenth of the file, and a MiB."""
SPACE_FACTOR: Final = 2
"""VACUUM needs the size of its result twice: once for the copy that it builds, once in the log."""
SPACE_KEPT_BYTES: Final = 64 * 1024 * 1024
"""Free space that VACUUM leaves alone."""
INTEGRITY_MESSAGES_MAX: Final = 20
ROWS_BUDGET_S: Final = 2.0
PROGRESS_INTERVAL_S: Final = 0.2
_PROGRESS_STEPS: Final = 10_000
_HEADER: Final = b"SQLite format 3\0"
PER_CONNECTION: Final = {"synchronous": "NORMAL", "cache_size": 10000, "temp_store": "MEMORY", "busy_timeout": 5000}
"""The mission's PRAGMAs that no file remembers: every connection sets them for itself."""


class Stop:
    """Whether to stop, and how the file's own work is stopped."""

    def __init__(self) -> None:
        """Nothing is to be stopped yet."""
        self.wanted = False
        self.connection: apsw.Connection | None = None

    def request(self, *_signal: Any) -> None:
        """Stop as soon as SQLite lets go."""
        self.wanted = True
        connection = self.connection
        if connection is not None:
            try:
                connection.interrupt()
            except apsw.ConnectionClosedError:
                return

    def watch_standard_input(self) -> None:
        """Stop when whoever started this process closes the pipe, or dies."""

        def watch() -> None:
            while os.read(0, 4096):
                pass
            self.request()

        threading.Thread(target=watch, name="parent", daemon=True).start()


class Tool:
    """The operations on the file at `path`."""

    def __init__(self, path: str, lock_s: float, stop: Stop, say: Callable[..., None]) -> None:
        """Set it up; `say(phase, **details)` tells how far it is."""
        self._path = path
        self._lock_s = lock_s
        self._stop = stop
        self._say = say
        self._interrupt_at = float("inf")
        self._said_at = 0.0

    # --- operations ---

    def stats(self) -> dict[str, Any]:
        """Sizes, pages, pragmas, tables."""
        connection = self._open(apsw.SQLITE_OPEN_READONLY)
        return read_stats(connection, self._path, ROWS_BUDGET_S)

    def integrity(self, *, full: bool) -> dict[str, Any]:
        """quick_check, or the whole integrity_check; both raise on what is too damaged for them."""
        connection = self._open(apsw.SQLITE_OPEN_READONLY)
        self._say("integrity")
        pragma = "integrity_check" if full else "quick_check"
        messages: list[str] = []
        try:
            for (message,) in connection.execute(f"PRAGMA {pragma}({INTEGRITY_MESSAGES_MAX})"):
                messages += [] if message == "ok" else [str(message)]
        except (apsw.CorruptError, apsw.NotADBError) as error:
            messages.append(str(error))
        return {"ok": not messages, "messages": messages, "check": pragma}

    def optimize(self) -> dict[str, Any]:
        """Set what a file remembers, and tell what each connection has to set for itself."""
        connection = self._open(apsw.SQLITE_OPEN_READWRITE)
        before = connection.pragma("journal_mode")
        warnings = []
        journal_mode = before
        if before != "wal":
            self._say("journal_mode")
            journal_mode = connection.pragma("journal_mode", "WAL")
            if journal_mode != "wal":
                warnings.append(f"this file system has no write-ahead log; journal_mode stays {journal_mode}")
        for name, value in PER_CONNECTION.items():
            connection.pragma(name, value)
        in_force = {name: connection.pragma(name) for name in PER_CONNECTION}
        optimized = self._analyze(connection, "PRAGMA optimize(0x10002)")
        return {
            "journal_mode": journal_mode,
            "journal_mode_before": before,
            "changed": journal_mode != before,
            "persistent": {"journal_mode": journal_mode},
            "per_connection": dict(PER_CONNECTION),
            "statements": [f"PRAGMA {name}={value}" for name, value in PER_CONNECTION.items()],
            "in_force_here": in_force,
            "analyzed": optimized,
            "warnings": warnings,
        }

    def analyze(self) -> dict[str, Any]:
        """Have SQLite look at what is in the tables, so that it plans well. Writers wait for one table at a time."""
        connection = self._open(apsw.SQLITE_OPEN_READWRITE)
        # Rows looked at per index: enough to plan by, and no table holds the write lock for long.
        connection.pragma("analysis_limit", 1000)
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type = 'index' AND tbl_name NOT LIKE 'sqlite\\_%'"
                " ESCAPE '\\' ORDER BY tbl_name"
            )
        ]
        done: list[str] = []
        left: list[str] = []
        for number, name in enumerate(tables):
            self._say("analyze", table=name, done=number, total=len(tables))
            quoted = name.replace('"', '""')
            (done if self._analyze(connection, f'ANALYZE "{quoted}"') else left).append(name)
        connection.execute("PRAGMA optimize")
        return {"tables": done, "given_up": left}

    def vacuum(self, *, when_it_pays: bool) -> dict[str, Any]:
        """Rebuild the file without its free pages."""
        connection = self._open(apsw.SQLITE_OPEN_READWRITE)
        page_size, pages = connection.pragma("page_size"), connection.pragma("page_count")
        free_bytes = connection.pragma("freelist_count") * page_size
        before = _size(self._path)
        facts = {"bytes_before": before, "free_bytes_before": free_bytes, "lock_s_max": self._lock_s}
        if when_it_pays and (
            free_bytes < VACUUM_BYTES_MIN or 100 * free_bytes < VACUUM_PERCENT_MIN * page_size * pages
        ):
            return _not_vacuumed("does_not_pay", facts)
        needed = SPACE_FACTOR * (page_size * pages - free_bytes) + SPACE_KEPT_BYTES
        space = shutil.disk_usage(os.path.dirname(self._path)).free
        if space < needed:
            if when_it_pays:
                return _not_vacuumed("no_space", facts | {"needed_bytes": needed, "available_bytes": space})
            raise DatabaseError(Problem.FULL, self._path, f"VACUUM needs {needed} bytes, {space} are free")
        # The copy that is built lies where there is room, not in memory.
        connection.pragma("temp_store", "FILE")
        began = time.monotonic()
        self._say("vacuum", bytes=before)
        if not self._vacuum_in_time(connection, facts):
            return _not_vacuumed("too_long", facts | {"lock_held_s": round(time.monotonic() - began, 3)})
        held_s = time.monotonic() - began
        self._say("checkpoint")
        checkpoint = self._checkpoint(connection)
        return facts | {
            "vacuumed": True,
            "reason": "",
            "lock_held_s": round(held_s, 3),
            "bytes_after": _size(self._path),
            "pages_after": connection.pragma("page_count"),
            "checkpoint": checkpoint,
        }

    def checkpoint(self) -> dict[str, Any]:
        """Move the write-ahead log into the file, and empty it unless somebody reads from it."""
        connection = self._open(apsw.SQLITE_OPEN_READWRITE)
        if connection.pragma("journal_mode") != "wal":
            return {"wal": False, "truncated": False, "wal_bytes": 0, "pages": 0, "checkpointed_pages": 0}
        return {"wal": True} | self._checkpoint(connection)

    def repair(self, reason: str, journal_dir: str | None, *, certain: bool) -> dict[str, Any]:
        """Set a damaged database of ours aside and save what can be read."""
        from actors.runtime.database_repair import Repair  # noqa: PLC0415 - only here

        require_library(self._path)
        return Repair(self._path, journal_dir, lambda: self._stop.wanted, self._say).run(reason, certain=certain)

    # --- parts ---

    def patiently(self, operation: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run an operation, and again from its beginning while others are in its way, for `PATIENCE_S` at most.

        SQLite's own waiting is not enough: in a rollback journal's mode it gives up at once where two would wait for
        each other.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return operation()
            except apsw.BusyError:
                if time.monotonic() > until or self._stop.wanted:
                    raise
            if self._stop.connection is not None:
                self._stop.connection.close(True)
            time.sleep(random.uniform(0.01, 0.1))

    def _analyze(self, connection: apsw.Connection, statement: str) -> bool:
        """Run a statement that takes the write lock; False if it was interrupted at the bound."""
        self._interrupt_at = time.monotonic() + self._lock_s
        try:
            connection.execute(statement)
        except apsw.InterruptError:
            if self._stop.wanted:
                raise
            return False
        finally:
            self._interrupt_at = float("inf")
        return True

    def _vacuum_in_time(self, connection: apsw.Connection, facts: dict[str, Any]) -> bool:
        """Run VACUUM; False if it was interrupted. Where SQLite cannot be interrupted, end the process at the bound."""
        began = time.monotonic()
        over = threading.Event()

        def end_at_bound() -> None:
            if not over.wait(self._lock_s):
                held_s = round(time.monotonic() - began, 3)
                write_line({"result": _not_vacuumed("too_long", facts | {"lock_held_s": held_s})})
                os._exit(EXIT_OK)  # a crash, to SQLite: whoever comes next rolls back

        self._interrupt_at = began + self._lock_s * BUILD_SHARE
        watch = threading.Thread(target=end_at_bound, name="bound", daemon=True)
        watch.start()
        try:
            connection.execute("VACUUM")
        except apsw.InterruptError:
            if self._stop.wanted:
                raise
            return False
        finally:
            over.set()
            watch.join()
            self._interrupt_at = float("inf")
        return True

    def _checkpoint(self, connection: apsw.Connection) -> dict[str, Any]:
        """Most of it without a lock, so that what is left to do under the lock is little."""
        if connection.pragma("journal_mode") != "wal":
            return {}
        pages, checkpointed = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        connection.set_busy_timeout(100)
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            truncated = True
        except (apsw.BusyError, apsw.LockedError):
            truncated = False
        return {
            "truncated": truncated,
            "wal_bytes": _size(self._path + WAL_SUFFIX),
            "pages": pages,
            "checkpointed_pages": checkpointed,
        }

    def _open(self, flags: int) -> apsw.Connection:
        """Open the file, which has to be a database, and look at its schema."""
        require_library(self._path)
        _look_at_header(self._path)
        if flags & apsw.SQLITE_OPEN_READWRITE:
            # Of ours: it is not replaced while this process changes it. Held until the process ends.
            self._guard = Guard(self._path, make=False)
            if not self._guard.try_share():
                raise DatabaseError(Problem.REPAIRING, self._path)
        connection = apsw.Connection(self._path, flags=flags)
        self._stop.connection = connection
        connection.set_busy_timeout(int(min(WAIT_S, self._lock_s) * 1000))
        # Who has the application's log open decides when to checkpoint it: not a process that comes by.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.wal_autocheckpoint(0)
        connection.set_progress_handler(self._has_to_stop, _PROGRESS_STEPS)
        connection.execute("SELECT count(*) FROM sqlite_schema").get  # noqa: B018 - the first read tells what it is
        return connection

    def _has_to_stop(self) -> bool:
        now = time.monotonic()
        if now - self._said_at > PROGRESS_INTERVAL_S:
            self._said_at = now
        return self._stop.wanted or now > self._interrupt_at


def main(argv: list[str]) -> int:
    """Run one operation, and return the exit code."""
    options = _parser().parse_args(argv)
    path = os.path.abspath(options.path)
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.request)
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.attached else stop.request)
    if options.attached:
        stop.watch_standard_input()
    os.umask(0o077)
    os.environ["SQLITE_TMPDIR"] = os.path.dirname(path)  # where free space is looked at
    tool = Tool(
        path, options.lock_s, stop, lambda phase, **details: write_line({"progress": {"phase": phase} | details})
    )
    operations: dict[str, Callable[[], dict[str, Any]]] = {
        "stats": tool.stats,
        "integrity": lambda: tool.integrity(full=options.full),
        "optimize": tool.optimize,
        "analyze": tool.analyze,
        "vacuum": lambda: tool.vacuum(when_it_pays=options.when_it_pays),
        "checkpoint": tool.checkpoint,
        "repair": lambda: tool.repair(options.reason, options.journal, certain=options.certain),
    }
    try:
        result = tool.patiently(operations[options.operation])
    except ReliabilityError as error:
        return _fail(error)
    except apsw.Error as error:
        return _fail(_in_our_terms(error, path, stop))
    write_line({"result": result})
    return EXIT_OK


def write_line(value: dict[str, Any]) -> None:
    """Write one JSON value as one line, at once; whoever started this process may be gone."""
    try:
        os.write(1, json.dumps(value, separators=(",", ":")).encode() + b"\n")
    except OSError:
        return


def _in_our_terms(error: apsw.Error, path: str, stop: Stop) -> DatabaseError:
    if isinstance(error, apsw.InterruptError) and stop.wanted:
        return DatabaseError(Problem.STOPPED, path)
    if isinstance(error, apsw.NotADBError):
        return DatabaseError(Problem.NOT_A_DATABASE, path)
    if isinstance(error, apsw.CorruptError):
        found = DatabaseError(Problem.CORRUPT, path, str(error))
        found.hint = "Restore it from a backup; keep file and -wal together."
        return found
    if isinstance(error, apsw.BusyError):
        return DatabaseError(Problem.LOCKED, path, describe_holder(path))
    return translate(error, path)


def _fail(error: ReliabilityError) -> int:
    problem = error.problem if isinstance(error, DatabaseError) else ""
    hint = error.hint if problem != Problem.LOCKED else "Try again when the holder has finished its transaction."
    described = {"code": error.code, "problem": problem, "message": error.message, "hint": hint}
    write_line({"error": described})
    return error.exit_code or EXIT_FAILED


def _look_at_header(path: str) -> None:
    """Tell a missing file, and one that is no database, from all else. No connection of this process is open yet."""
    try:
        with open(path, "rb") as file:
            header = file.read(len(_HEADER))
    except FileNotFoundError:
        raise DatabaseError(Problem.MISSING, path) from None
    except IsADirectoryError:
        raise DatabaseError(Problem.NOT_A_DATABASE, path, "a directory") from None
    except PermissionError as error:
        raise DatabaseError(Problem.CANNOT_OPEN, path, str(error.strerror)) from None
    if header and header != _HEADER:
        raise DatabaseError(Problem.NOT_A_DATABASE, path)


def _not_vacuumed(reason: str, facts: dict[str, Any]) -> dict[str, Any]:
    return facts | {"vacuumed": False, "reason": reason}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it as every other error."""
        sys.exit(_fail(ReliabilityError(ErrorCode.USAGE, message, "")))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="database_tool", description="One operation on one SQLite file.")
    parser.add_argument("path")
    parser.add_argument(
        "operation", choices=("optimize", "vacuum", "analyze", "integrity", "stats", "checkpoint", "repair")
    )
    parser.add_argument("--attached", action="store_true", help="leave when the standard input ends")
    parser.add_argument("--lock-s", type=float, default=LOCK_S_DEFAULT, help="how long writers may have to wait")
    parser.add_argument("--when-it-pays", action="store_true", help="vacuum only if it frees enough, and has the space")
    parser.add_argument("--full", action="store_true", help="integrity: integrity_check instead of quick_check")
    parser.add_argument("--reason", default="asked for by hand", help="repair: what was met")
    parser.add_argument("--certain", action="store_true", help="repair: whatever a check finds")
    parser.add_argument("--journal", help="repair: directory of journals for its event")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
