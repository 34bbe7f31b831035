"""The policy under which every database of ours is opened, written and read.

- One `Database` is one read-write connection, for one thread at a time, never for a message loop.
- Every write is one whole transaction under BEGIN IMMEDIATE, retried whole while somebody else holds the write lock:
  opening, SQLite's own waiting and our backoff all under the one patience that the caller gives.
- A transaction holds the write lock for `TRANSACTION_S_MAX` at most, which is less than anybody's patience.
- SQLite never checkpoints by itself, not at close either: one process does, by `Database.checkpoint`.
- Reads go over READONLY connections (`reading`), which leave -wal and -shm where they are.
- Each owner migrates its own tables forward; see `Schema`.
- Every transaction holds a share in the guard beside the file (`database_guard`), so that a damaged one can be replaced
  while nobody writes to it; who meets damage says so to `report_damage_to`'s function.

A process must never open, hash or copy the database, -wal or -shm by other means while it has a connection: closing any
descriptor of the file drops SQLite's locks (https://www.sqlite.org/howtocorrupt.html, 2.2). `os.stat` is harmless.
"""

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import apsw

from actors.runtime.database_guard import REPAIRING_SUFFIX, Guard, file_identity, lost_its_file
from actors.runtime.database_problem import (
    DatabaseError,
    Problem,
    describe_holder,
    from_os_error,
    require_library,
    translate,
)

Result = TypeVar("Result")

APPLICATION_ID: Final = 0x52454C43
"""`PRAGMA application_id` of our databases ("RELC"): a file with tables and without it is somebody else's."""

BUSY_TIMEOUT_MS: Final = 5000
PATIENCE_S: Final = 5.0
"""Overall deadline of a write, unless the caller has less time."""
TRANSACTION_S_MAX: Final = 2.0
READ_S_MAX: Final = 3.0
"""A read pins the WAL: checkpoints cannot pass it."""
DISK_LEASE_S: Final = 300.0
"""Lease of a worker thread that uses a database: disks were seen to stall for two minutes, and no kill helps then."""
BACKOFF_S_MIN: Final = 0.002
BACKOFF_S_MAX: Final = 0.25
PAGE_BYTES: Final = 4096
CACHE_PAGES: Final = 10000
WAL_BYTES_KEPT_MAX: Final = 16 * 1024 * 1024
"""Size to which the WAL file is cut when it restarts."""
_PROGRESS_STEPS: Final = 20_000
"""Steps of SQLite's virtual machine between two looks at the clock: a few milliseconds."""


_GUARD_LOOK_S: Final = 0.01
"""Between two looks whether a file that is being replaced is there again."""


def _nobody(_path: str, _what: str) -> None:
    """Leave damage as it is."""


_damage_reported_to: Callable[[str, str], None] = _nobody


def report_damage_to(function: Callable[[str, str], None]) -> None:
    """Have `function` told of each damaged database that this process meets: its path, and what is wrong with it.

    Once per process, where it is wired. It is called on the thread that met the damage, and must not raise.
    """
    global _damage_reported_to  # noqa: PLW0603 - as SQLite's own configuration: one per process
    _damage_reported_to = function


def report_damage(path: str, what: str) -> None:
    """Tell of damage that was found by other means."""
    _damage_reported_to(path, what)


class Synchronous(StrEnum):
    """`PRAGMA synchronous`: NORMAL survives every death of processes, FULL a power cut as well."""

    NORMAL = "NORMAL"
    FULL = "FULL"


_TRUNCATE_BUSY_TIMEOUT_MS: Final = 100


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of an owner's tables.

    Attributes:
        statements: SQL that leads from the version before to this one.
        usable_from: lowest schema version whose program can still work with the result; the previous release must.
    """

    statements: str
    usable_from: int


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one owner; its version is the number of migrations.

    Attributes:
        owner: the actor that owns them, its key in `schema_versions`.
        migrations: from an empty database on, oldest first; a released one never changes.
    """

    owner: str
    migrations: tuple[Migration, ...]


@dataclass(frozen=True, slots=True)
class WalState:
    """The WAL after a checkpoint: pages in it, and how many of them the database file has as well."""

    pages: int
    checkpointed_pages: int


class Database:
    """One read-write connection under the policy. Not for a message loop, and for one thread at a time.

    Attributes:
        path: the database file.
        wal_pages: pages in the WAL as of this connection's last commit or checkpoint.
    """

    def __init__(
        self,
        path: str,
        schema: Schema,
        synchronous: Synchronous = Synchronous.NORMAL,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Describe the connection; its first use opens it."""
        self.path = path
        self.wal_pages = 0
        self._schema = schema
        self._synchronous = synchronous
        self._clock = clock
        self._sleep = sleep
        self._connection: apsw.Connection | None = None
        self._guard: Guard | None = None
        self._file: tuple[int, int] | None = None
        self._interrupt_at = math.inf

    def write(self, work: Callable[[apsw.Connection], Result], patience_s: float = PATIENCE_S) -> Result:
        """Run `work` as one transaction and return its result once that is committed.

        `work` may run several times and must have no effect but on the database.

        Raises:
            DatabaseError: nothing was written; only after `Problem.IO` it may be there nevertheless, whole (the disk
                may have kept what it said that it could not).
        """
        deadline = self._clock() + patience_s
        attempt = 0
        while True:
            try:
                return self._transact(work, deadline)
            except (apsw.BusyError, apsw.LockedError):
                remaining_s = deadline - self._clock()
                if remaining_s <= 0:
                    raise DatabaseError(Problem.LOCKED, self.path, describe_holder(self.path)) from None
                self._sleep(min(backoff_s(attempt, random.random()), remaining_s))
                attempt += 1
            except (apsw.Error, DatabaseError) as error:
                raise self._failed(error) from None

    def checkpoint(self, *, truncate: bool = False) -> WalState | None:
        """Move committed pages from the WAL into the database file, and return how far that went.

        It waits for nobody; with `truncate` it waits shortly for readers, and leaves an empty WAL file. None means that
        somebody was in the way.

        Raises:
            DatabaseError: it failed; the WAL keeps what it has.
        """
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        deadline = self._clock() + PATIENCE_S
        try:
            with self._sharing(deadline) as guard:
                connection = self._ready_connection(deadline, guard)
                connection.set_busy_timeout(_TRUNCATE_BUSY_TIMEOUT_MS)
                pages, checkpointed = connection.wal_checkpoint(mode=mode)
        except (apsw.BusyError, apsw.LockedError):
            return None
        except (apsw.Error, DatabaseError) as error:
            raise self._failed(error) from None
        self.wal_pages = pages
        return WalState(pages, checkpointed)

    def release_memory(self) -> None:
        """Give the page cache back to the system."""
        if self._connection is not None:
            self._connection.execute("PRAGMA shrink_memory")

    def close(self) -> None:
        """Close the connection, without a checkpoint; the next write opens it again."""
        connection, self._connection, self._file = self._connection, None, None
        guard, self._guard = self._guard, None
        if connection is not None:
            connection.close(True)
        if guard is not None:
            guard.close()

    def _failed(self, error: apsw.Error | DatabaseError) -> DatabaseError:
        """Close what cannot be used any more, have damage seen to, and return the error in our terms."""
        found = error if isinstance(error, DatabaseError) else translate(error, self.path)
        if found.problem is Problem.FOREIGN and isinstance(error, apsw.NotADBError) and self._is_ours():
            found = DatabaseError(Problem.CORRUPT, self.path, "its header is gone")
        if found.problem not in {Problem.FULL, Problem.TOO_SLOW}:
            self.close()
        if found.problem is Problem.CORRUPT:
            _damage_reported_to(self.path, found.message)
        return found

    def _is_ours(self) -> bool:
        return self._guard is not None and self._guard.signed

    @contextmanager
    def _sharing(self, deadline: float) -> Iterator[Guard]:
        """Keep the file from being replaced, for one transaction."""
        try:
            if self._guard is None:
                self._guard = Guard(self.path)
            guard = self._guard
            while not guard.try_share():
                if self._clock() >= deadline:
                    raise DatabaseError(Problem.REPAIRING, self.path)
                self._sleep(_GUARD_LOOK_S)
        except OSError as error:
            raise from_os_error(error, self.path) from None
        try:
            yield guard
        finally:
            guard.unshare()

    def _transact(self, work: Callable[[apsw.Connection], Result], deadline: float) -> Result:
        with self._sharing(deadline) as guard:
            return self._transact_shared(work, self._ready_connection(deadline, guard))

    def _transact_shared(self, work: Callable[[apsw.Connection], Result], connection: apsw.Connection) -> Result:
        connection.execute("BEGIN IMMEDIATE")
        self._interrupt_at = self._clock() + TRANSACTION_S_MAX
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            self._interrupt_at = math.inf
            _roll_back(connection)
            raise
        self._interrupt_at = math.inf
        return result

    def _ready_connection(self, deadline: float, guard: Guard) -> apsw.Connection:
        if self._connection is None:
            self._open(deadline, guard)
        elif file_identity(self.path) != self._file:
            raise DatabaseError(Problem.REPLACED, self.path)
        if self._connection is None:
            raise RuntimeError("an opened database has no connection")
        self._connection.set_busy_timeout(self._busy_timeout_ms(deadline))
        return self._connection

    def _open(self, deadline: float, guard: Guard) -> None:
        require_library(self.path)
        if os.path.exists(self.path + REPAIRING_SUFFIX):
            interrupted = DatabaseError(Problem.REPAIRING, self.path, "a repair was interrupted")
            _damage_reported_to(self.path, interrupted.message)
            raise interrupted
        if guard.signed and lost_its_file(self.path):
            raise DatabaseError(Problem.CORRUPT, self.path, "its write-ahead log is there, its file is gone or empty")
        connection = apsw.Connection(self.path)
        try:
            connection.set_busy_timeout(self._busy_timeout_ms(deadline))
            _refuse_foreign(connection, self.path, ours=guard.signed)
            _configure(connection)
            if connection.pragma("journal_mode", "WAL") != "wal":
                raise DatabaseError(Problem.OTHER, self.path, "no WAL on this file system")
            connection.pragma("synchronous", self._synchronous.value)
            connection.pragma("journal_size_limit", WAL_BYTES_KEPT_MAX)
            # A hook in place of SQLite's own one: that one would checkpoint from whichever process commits.
            connection.set_wal_hook(self._on_commit)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            _migrate(connection, self._schema, self.path)
            connection.set_progress_handler(self._is_overdue, _PROGRESS_STEPS)
        except BaseException:
            connection.close(True)
            raise
        self._connection = connection
        self._file = file_identity(self.path)
        guard.sign()

    def _busy_timeout_ms(self, deadline: float) -> int:
        return max(1, min(BUSY_TIMEOUT_MS, int((deadline - self._clock()) * 1000)))

    def _is_overdue(self) -> bool:
        return self._clock() > self._interrupt_at

    def _on_commit(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK


@contextmanager
def reading(
    path: str, limit_s: float = READ_S_MAX, clock: Callable[[], float] = time.monotonic
) -> Iterator[apsw.Connection]:
    """Yield a READONLY connection inside one read transaction, so that all its queries see the same state.

    Raises:
        DatabaseError: the file cannot be read, is not ours, or the queries took longer than `limit_s`.
    """
    require_library(path)
    interrupt_at = clock() + limit_s
    guard = _share_to_read(path)
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        guard.close()
        raise translate(error, path) from None
    try:
        connection.set_busy_timeout(max(1, min(BUSY_TIMEOUT_MS, int(limit_s * 1000))))
        _configure(connection)
        connection.set_progress_handler(lambda: clock() > interrupt_at, _PROGRESS_STEPS)
        connection.execute("BEGIN")
        _refuse_foreign(connection, path)
        guard.close()  # it has its files open: a reader that is frozen now keeps no repair waiting
        yield connection
    except apsw.Error as error:
        raise translate(error, path) from None
    finally:
        guard.close()
        connection.close(True)


def _share_to_read(path: str) -> Guard:
    """Keep the file from being replaced between its opening and the first read.

    Raises:
        DatabaseError: it is being replaced.
    """
    guard = Guard(path, make=False)
    if not guard.try_share() or os.path.exists(path + REPAIRING_SUFFIX):
        guard.close()
        raise DatabaseError(Problem.REPAIRING, path)
    return guard


def backoff_s(attempt: int, draw: float) -> float:
    """Return the pause after failed attempt number `attempt` (from 0); `draw` in [0, 1) spreads contenders apart."""
    return min(BACKOFF_S_MIN * 2.0 ** min(attempt, 16), BACKOFF_S_MAX) * (0.5 + draw / 2)


def _configure(connection: apsw.Connection) -> None:
    connection.pragma("cache_size", CACHE_PAGES)
    connection.pragma("temp_store", "MEMORY")


def _refuse_foreign(connection: apsw.Connection, path: str, *, ours: bool = False) -> None:
    # In this order: another process that sets up the file commits its first table and the id together.
    has_tables = connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").get
    if has_tables and connection.pragma("application_id") != APPLICATION_ID:
        if (
            ours
            and connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'schema_versions')").get
        ):
            raise DatabaseError(Problem.CORRUPT, path, "its application_id has changed")
        raise DatabaseError(Problem.FOREIGN, path)


def _migrate(connection: apsw.Connection, schema: Schema, path: str) -> None:
    """Bring the owner's tables to its version, all steps in one transaction."""
    if _current_version(connection, schema, path) >= len(schema.migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Several processes open a new file at once: only what is seen under the write lock counts.
        version = _current_version(connection, schema, path)
        if version == 0:
            connection.pragma("application_id", APPLICATION_ID)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_versions"
                " (owner TEXT PRIMARY KEY, version INTEGER NOT NULL, usable_from INTEGER NOT NULL) STRICT"
            )
        for migration in schema.migrations[version:]:
            connection.execute(migration.statements)
        if version < len(schema.migrations):
            connection.execute(
                "INSERT OR REPLACE INTO schema_versions (owner, version, usable_from) VALUES (?, ?, ?)",
                (schema.owner, len(schema.migrations), schema.migrations[-1].usable_from),
            )
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _current_version(connection: apsw.Connection, schema: Schema, path: str) -> int:
    # Not table_exists(): that one answers from a cached schema, which another process may have outdated.
    if not connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'schema_versions')").get:
        return 0
    row = connection.execute(
        "SELECT version, usable_from FROM schema_versions WHERE owner = ?", (schema.owner,)
    ).fetchone()
    if row is None:
        return 0
    version, usable_from = row
    if usable_from > len(schema.migrations):
        raise DatabaseError(
            Problem.NEWER, path, f"{schema.owner} schema {version}, this program knows {len(schema.migrations)}"
        )
    return int(version)


def _roll_back(connection: apsw.Connection) -> None:
    """End the transaction, if SQLite has not already done so (a full disk ends some by itself)."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
