"""The database policy on real files, with real processes that hold, freeze and die."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from actors.runtime.database import (
    BACKOFF_S_MAX,
    Database,
    Migration,
    Schema,
    Synchronous,
    backoff_s,
    reading,
)
from actors.runtime.database_problem import DatabaseError, Problem, require_library, write_lock_holder
from protocol.errors import ErrorCode
from tests.actors.conftest import resize

ROOT = Path(__file__).parents[3]
SCHEMA = Schema("tests", (Migration("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT", 1),))
NEXT = Schema(
    "tests",
    (*SCHEMA.migrations, Migration("ALTER TABLE notes ADD COLUMN mark TEXT NOT NULL DEFAULT ''", usable_from=1)),
)

HOLDER = """
import os, signal, sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO notes (text) VALUES ('never committed')")
print("holding", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "notes.db")


@pytest.fixture
def database(path: str) -> Iterator[Database]:
    database = Database(path, SCHEMA)
    yield database
    database.close()


def wal_bytes(path: str) -> int:
    return os.stat(f"{path}-wal").st_size


def nothing(_connection: apsw.Connection) -> None:
    """A transaction that only opens the database."""


def add(text: str) -> Callable[[apsw.Connection], int]:
    def work(connection: apsw.Connection) -> int:
        return connection.execute("INSERT INTO notes (text) VALUES (?) RETURNING id", (text,)).get

    return work


def notes(path: str) -> list[str]:
    with reading(path) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY id")]


@contextmanager
def frozen_holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """A process that was stopped by a signal inside a write transaction."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.52.0", "3.52.1"])
def test_a_library_that_can_corrupt_is_refused(version: str) -> None:
    with pytest.raises(DatabaseError, match=f"SQLite {version}; 3.51.3 or newer") as caught:
        require_library("x.db", version)
    assert caught.value.problem is Problem.LIBRARY


@pytest.mark.parametrize("version", ["3.51.3", "3.53.0", "3.54.1", "4.0.0"])
def test_a_repaired_library_is_accepted(version: str) -> None:
    require_library("x.db", version)


@pytest.mark.parametrize(("synchronous", "level"), [(Synchronous.NORMAL, 1), (Synchronous.FULL, 2)])
def test_the_pragmas_are_in_force(path: str, synchronous: Synchronous, level: int) -> None:
    names = ("journal_mode", "synchronous", "cache_size", "temp_store", "wal_autocheckpoint")
    database = Database(path, SCHEMA, synchronous)
    found = database.write(lambda connection: [connection.pragma(name) for name in names])
    busy_timeout = database.write(lambda connection: connection.pragma("busy_timeout"))
    database.close()
    assert found == ["wal", level, 10000, 2, 0]
    assert 4900 <= busy_timeout <= 5000


def test_a_missing_database_is_made_and_what_is_committed_is_there(database: Database, path: str) -> None:
    assert database.write(add("first")) == 1
    assert notes(path) == ["first"]


def test_a_transaction_that_fails_leaves_nothing(database: Database, path: str) -> None:
    def work(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes (text) VALUES ('half')")
        raise LookupError

    with pytest.raises(LookupError):
        database.write(work)
    database.write(add("whole"))
    assert notes(path) == ["whole"]


def test_a_busy_transaction_is_rolled_back_and_redone_whole(path: str) -> None:
    pauses: list[float] = []
    database = Database(path, SCHEMA, sleep=pauses.append)
    failures = iter([apsw.BusyError("busy"), apsw.BusyError("busy snapshot")])

    def work(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes (text) VALUES ('once')")
        for failure in failures:
            raise failure

    database.write(work)
    database.close()
    assert notes(path) == ["once"]
    assert len(pauses) == 2


def test_the_patience_is_one_for_all_attempts(path: str) -> None:
    now = itertools.count()
    pauses: list[float] = []
    database = Database(path, SCHEMA, clock=lambda: next(now) / 10, sleep=pauses.append)

    def work(connection: apsw.Connection) -> None:
        raise apsw.BusyError("busy")

    with pytest.raises(DatabaseError) as caught:
        database.write(work, patience_s=2.0)
    database.close()
    assert caught.value.problem is Problem.LOCKED
    assert next(now) / 10 < 3.0
    assert all(0 < pause <= BACKOFF_S_MAX for pause in pauses)


def test_backoff_grows_to_its_bound_and_is_spread() -> None:
    assert backoff_s(0, 0.5) < backoff_s(3, 0.5) < backoff_s(50, 0.5) <= BACKOFF_S_MAX
    assert backoff_s(3, 0.0) < backoff_s(3, 0.9)


def test_a_frozen_holder_costs_writers_one_clear_error_and_readers_nothing(database: Database, path: str) -> None:
    database.write(add("before"))
    with frozen_holder(path) as holder:
        assert write_lock_holder(path) in (holder.pid, None if sys.platform != "linux" else holder.pid)
        began = time.monotonic()
        with pytest.raises(DatabaseError) as caught:
            database.write(add("during"), patience_s=0.4)
        assert 0.35 <= time.monotonic() - began < 2.0
        assert caught.value.code == ErrorCode.LOCKED
        if sys.platform == "linux":
            assert f"pid {holder.pid}" in caught.value.message
        assert notes(path) == ["before"]
        assert database.checkpoint() is not None
        assert database.checkpoint(truncate=True) is None

        holder.send_signal(signal.SIGKILL)
        database.write(add("after"))
    assert notes(path) == ["before", "after"]


def test_a_new_file_under_a_frozen_holder_is_refused_within_the_patience(database: Database, path: str) -> None:
    database.write(add("before"))
    other = Database(path, Schema("others", (Migration("CREATE TABLE others (id INTEGER)", 1),)))
    with frozen_holder(path):
        with pytest.raises(DatabaseError) as caught:
            other.write(add("x"), patience_s=0.2)
        assert caught.value.problem is Problem.LOCKED
    assert other.write(add("later")) > 1
    other.close()


def test_a_transaction_cannot_hold_the_lock_longer_than_its_bound(path: str) -> None:
    now = itertools.count()
    database = Database(path, SCHEMA, clock=lambda: float(next(now)))
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(DatabaseError) as caught:
        database.write(lambda connection: connection.execute(endless).get, patience_s=1e9)
    assert caught.value.problem is Problem.TOO_SLOW
    database.write(add("still usable"), patience_s=1e9)
    with pytest.raises(DatabaseError) as caught, reading(path, clock=lambda: float(next(now))) as connection:
        connection.execute(endless).get  # noqa: B018
    assert caught.value.problem is Problem.TOO_SLOW
    database.close()


def test_only_checkpoints_asked_for_happen(database: Database, path: str) -> None:
    for number in range(50):
        database.write(add("x" * 4000 + str(number)))
    pages = database.wal_pages
    assert pages >= 50
    database.close()
    assert wal_bytes(path) >= pages * 4096, "closing must not checkpoint"
    database.write(add("reopened"))
    state = database.checkpoint()
    assert state is not None
    assert state.checkpointed_pages == state.pages > pages
    assert database.checkpoint(truncate=True) is not None
    assert wal_bytes(path) == 0
    assert len(notes(path)) == 51


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database " * 1000)


def someone_elses(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
    connection.close()


def damaged_page(path: Path) -> None:
    database = Database(str(path), SCHEMA)
    database.write(add("x"))
    database.checkpoint(truncate=True)
    database.close()
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * 3996
    path.write_bytes(data)


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (garbage, Problem.FOREIGN),
        (someone_elses, Problem.FOREIGN),
        (damaged_page, Problem.CORRUPT),
        (directory, Problem.CANNOT_OPEN),
    ],
)
def test_a_file_that_is_no_database_of_ours_is_one_clear_error(
    path: str, make: Callable[[Path], None], problem: Problem
) -> None:
    make(Path(path))
    before = Path(path).read_bytes() if Path(path).is_file() else None
    database = Database(path, SCHEMA)
    with pytest.raises(DatabaseError, match=r"notes\.db") as caught:
        database.write(add("x"))
    assert caught.value.problem is problem
    with pytest.raises(DatabaseError, match=r"notes\.db"):
        notes(path)
    assert before is None or Path(path).read_bytes() == before, "what is not ours is not touched"


def test_reading_a_missing_database_makes_none(path: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        notes(path)
    assert caught.value.problem is Problem.CANNOT_OPEN
    assert not Path(path).exists()


def test_a_file_removed_while_in_use_is_noticed_and_made_anew(database: Database, path: str) -> None:
    database.write(add("lost"))
    Path(path).unlink()
    with pytest.raises(DatabaseError) as caught:
        database.write(add("refused"))
    assert caught.value.problem is Problem.REPLACED
    with pytest.raises(DatabaseError, match="its write-ahead log is there") as caught:
        database.write(add("would have SQLite delete the log"))
    assert caught.value.problem is Problem.CORRUPT
    Path(f"{path}-wal").unlink()
    database.write(add("anew"))
    assert notes(path) == ["anew"]


def test_tables_migrate_forward_and_the_previous_release_still_works(path: str) -> None:
    old, new = Database(path, SCHEMA), Database(path, NEXT)
    old.write(add("old"))
    new.write(lambda connection: connection.execute("UPDATE notes SET mark = 'seen'"))
    old.close()
    again = Database(path, SCHEMA)
    again.write(add("old again"))
    assert notes(path) == ["old", "old again"]
    for database in (again, new):
        database.close()


def test_a_schema_that_is_too_new_is_refused_untouched(path: str) -> None:
    future = Schema("tests", (*NEXT.migrations, Migration("ALTER TABLE notes RENAME TO remarks", usable_from=3)))
    for schema in (SCHEMA, future):
        database = Database(path, schema)
        database.write(nothing)
        database.close()
    with pytest.raises(DatabaseError, match="tests schema 3, this program knows 2") as caught:
        Database(path, NEXT).write(nothing)
    assert caught.value.problem is Problem.NEWER


def test_a_migration_that_fails_leaves_the_version_before(path: str) -> None:
    bad = Schema("tests", (*SCHEMA.migrations, Migration("CREATE TABLE half (x); CREATE TABLE notes (x)", 1)))
    database = Database(path, SCHEMA)
    database.write(add("kept"))
    with pytest.raises(DatabaseError):
        Database(path, bad).write(nothing)
    assert not database.write(lambda connection: connection.table_exists("main", "half"))
    assert notes(path) == ["kept"]
    database.close()


def test_several_openers_of_a_new_file_agree(path: str) -> None:
    schemas = [Schema(f"owner{n}", (Migration(f"CREATE TABLE t{n} (x)", 1),)) for n in range(3)] * 2
    barrier = threading.Barrier(len(schemas))
    failures: list[BaseException] = []

    def open_one(schema: Schema) -> None:
        database = Database(path, schema)
        barrier.wait()
        try:
            database.write(nothing)
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=open_one, args=(schema,)) for schema in schemas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    with reading(path) as connection:
        owners = connection.execute("SELECT owner, version FROM schema_versions ORDER BY owner").fetchall()
    assert owners == [("owner0", 1), ("owner1", 1), ("owner2", 1)]


def test_a_full_disk_loses_nothing_that_was_committed_and_writing_goes_on_when_there_is_space(small_disk: Path) -> None:
    path = str(small_disk / "notes.db")
    database = Database(path, SCHEMA)
    committed = 0

    def fill() -> None:
        nonlocal committed
        for _ in range(1000):
            database.write(add("x" * 8000))
            committed += 1

    with pytest.raises(DatabaseError) as caught:
        fill()
    assert caught.value.problem in (Problem.FULL, Problem.IO)
    assert committed > 10
    assert len(notes(path)) == committed
    resize(small_disk, "8m")
    database.write(add("space again"))
    assert len(notes(path)) == committed + 1
    database.close()
