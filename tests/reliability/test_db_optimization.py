"""The database optimizer on files of a host's: while it writes, in every journal mode, and on what is no database."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.reliability.db_optimization import DatabaseOptimizer
from protocol.errors import ErrorCode, LocalError

ROWS = 20_000
MISSION = {"synchronous": "NORMAL", "cache_size": 10000, "temp_store": "MEMORY", "busy_timeout": 5000}


@pytest.fixture(params=["WAL", "DELETE"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, mode: str) -> str:
    """A host's database, by the host's own library, with many free pages; its path is no simple one."""
    folder = tmp_path / "Größe & 'quoted' dir"
    folder.mkdir()
    path = str(folder / "assistant #1?.db")
    make(path, mode)
    return path


def make(path: str, mode: str, rows: int = ROWS) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE chats (id INTEGER PRIMARY KEY, text TEXT)")
        connection.execute('CREATE TABLE "odd ""name" (x)')
        connection.execute("CREATE INDEX chats_by_text ON chats (text)")
        connection.executemany("INSERT INTO chats (text) VALUES (?)", ((f"{n} " + "x" * 100,) for n in range(rows)))
        connection.commit()
        connection.execute("DELETE FROM chats WHERE id % 4")
        connection.commit()


@contextmanager
def writing(path: str) -> Iterator[list[float]]:
    """A host that writes all the time; yields how long each commit took."""
    took: list[float] = []
    over = threading.Event()
    failed: list[Exception] = []

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as connection:
            while not over.is_set():
                began = time.monotonic()
                try:
                    connection.execute("INSERT INTO chats (text) VALUES ('during')")
                except sqlite3.Error as error:
                    failed.append(error)
                took.append(time.monotonic() - began)
                over.wait(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()
    assert failed == []


def count(path: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (rows,) = connection.execute("SELECT count(*) FROM chats").fetchone()
        return int(rows)


def test_optimizing_sets_what_the_file_remembers_and_tells_the_rest(path: str, mode: str) -> None:
    result = DatabaseOptimizer(path).optimize_for_reliability()
    assert result["journal_mode"] == "wal"
    assert result["journal_mode_before"] == mode.lower()
    assert result["changed"] is (mode == "DELETE")
    assert result["per_connection"] == MISSION
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        for statement in result["statements"]:
            connection.execute(statement)
        assert connection.execute("PRAGMA cache_size").fetchone() == (10000,)
    if sqlite3.sqlite_version_info < (3, 51, 3):
        assert any(sqlite3.sqlite_version in warning for warning in result["warnings"])
    assert count(path) == ROWS // 4


def test_vacuum_gives_the_space_back(path: str) -> None:
    before = os.stat(path).st_size
    result = DatabaseOptimizer(path, lock_s=20).vacuum_database()
    assert result["vacuumed"], result
    assert result["bytes_after"] == os.stat(path).st_size < before / 2
    assert result["free_bytes_before"] > 0
    assert count(path) == ROWS // 4
    again = DatabaseOptimizer(path).vacuum_database(only_if_it_pays=True)
    assert (again["vacuumed"], again["reason"]) == (False, "does_not_pay")


def test_analyze_gathers_statistics(path: str) -> None:
    assert DatabaseOptimizer(path).get_database_stats()["analyzed"] is False
    assert DatabaseOptimizer(path).analyze_database() == {"tables": ["chats"], "given_up": []}
    assert DatabaseOptimizer(path).get_database_stats()["analyzed"] is True


def test_stats_tell_sizes_pages_pragmas_and_rows(path: str, mode: str) -> None:
    stats = DatabaseOptimizer(path).get_database_stats()
    assert stats["bytes"] == os.stat(path).st_size
    assert stats["page_count"] * stats["page_size"] >= stats["bytes"] > 0
    assert stats["free_pages"] > 0
    assert stats["pragmas"]["journal_mode"] == mode.lower()
    assert {table["name"]: table["rows"] for table in stats["tables"]} == {"chats": ROWS // 4, 'odd "name': 0}


def test_integrity_finds_nothing_wrong(path: str) -> None:
    assert DatabaseOptimizer(path).check_integrity(full=True) == {
        "ok": True,
        "messages": [],
        "check": "integrity_check",
    }


def test_a_host_that_writes_meanwhile_loses_nothing_and_waits_no_longer_than_the_bound(path: str) -> None:
    optimizer = DatabaseOptimizer(path, lock_s=1.0)
    optimizer.optimize_for_reliability()
    with writing(path) as took:
        optimizer.vacuum_database()
        optimizer.analyze_database()
        optimizer.get_database_stats()
        optimizer.check_integrity()
    assert max(took) < 1.0 + 1.0  # the bound, and a busy machine
    assert count(path) == ROWS // 4 + len(took)


def test_a_vacuum_past_its_bound_is_rolled_back_and_says_so(tmp_path: Path, mode: str) -> None:
    path = str(tmp_path / "large.db")
    make(path, mode, 200_000)
    before = os.stat(path).st_size
    with writing(path) as took:
        result = DatabaseOptimizer(path, lock_s=0.05).vacuum_database()
    assert (result["vacuumed"], result["reason"], result["lock_s_max"]) == (False, "too_long", 0.05)
    assert max(took) < 1.0
    size = os.stat(path).st_size
    assert size >= before or size < before / 2, "as before, or done after all: never half of it"
    assert count(path) == 50_000 + len(took)


def test_a_vacuum_that_cannot_be_interrupted_any_more_ends_itself_at_its_bound(tmp_path: Path) -> None:
    path = str(tmp_path / "large.db")
    make(path, "WAL", 200_000)
    reasons = set()
    for bound_s in (0.1, 0.15, 0.2, 0.3, 0.4):  # at different places, the copying back among them
        result = DatabaseOptimizer(path, lock_s=bound_s).vacuum_database()
        reasons.add(result["reason"])
        assert result["lock_held_s"] < bound_s + 0.5
        assert count(path) == 50_000
    assert reasons <= {"", "too_long"}


def test_a_writer_that_holds_the_lock_is_named(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO chats (text) VALUES ('held')")
        began = time.monotonic()
        with pytest.raises(LocalError) as caught:
            DatabaseOptimizer(path).vacuum_database()
        assert time.monotonic() - began < 10
        assert caught.value.code == ErrorCode.LOCKED
        if sys.platform == "linux":
            assert f"pid {os.getpid()}" in caught.value.message
        connection.execute("COMMIT")
    assert count(path) == ROWS // 4 + 1


def test_a_child_that_takes_too_long_is_ended_and_nothing_has_changed(path: str) -> None:
    with pytest.raises(LocalError) as caught:
        DatabaseOptimizer(path, timeout_s=0.01).vacuum_database()
    assert caught.value.code == ErrorCode.DEADLINE_PASSED
    assert count(path) == ROWS // 4


def test_the_hosts_process_opens_no_sqlite_of_ours() -> None:
    code = (
        "import sys; from app.reliability.db_optimization import DatabaseOptimizer;"
        "DatabaseOptimizer(sys.argv[1]).get_database_stats();"
        "print([name for name in ('apsw', 'zmq', 'sqlite3') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    missing = subprocess.run(
        [sys.executable, "-c", code, "/nowhere"], cwd=root, capture_output=True, text=True, check=False
    )
    assert "LocalError" in missing.stderr
    here = root / "actors" / "runtime" / "database.py"
    found = subprocess.run(
        [sys.executable, "-c", code.replace("DatabaseOptimizer(sys.argv[1]).get_database_stats()", "0"), str(here)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, ErrorCode.FAILED, "does not exist"),
        (b"not a database at all " * 500, ErrorCode.INTEGRITY, "not an SQLite database, or is encrypted"),
        (os.urandom(8192), ErrorCode.INTEGRITY, "not an SQLite database, or is encrypted"),
        (b"SQLite format 3\0" + os.urandom(8176), ErrorCode.INTEGRITY, "SQLite database, or is encrypted"),
    ],
)
def test_what_is_no_database_is_one_clear_error_and_stays_as_it_is(
    tmp_path: Path, content: bytes | None, code: ErrorCode, words: str
) -> None:
    path = tmp_path / "thing.db"
    if content is not None:
        path.write_bytes(content)
    optimizer = DatabaseOptimizer(path)
    for method in (
        optimizer.optimize_for_reliability,
        optimizer.vacuum_database,
        optimizer.analyze_database,
        optimizer.get_database_stats,
    ):
        with pytest.raises(LocalError) as caught:
            method()
        assert caught.value.code == code
        assert words in caught.value.message
    assert (path.read_bytes() if path.exists() else None) == content
    assert [entry.name for entry in tmp_path.iterdir()] == (["thing.db"] if content is not None else [])


def test_damage_is_found_and_nothing_is_made_worse(path: str) -> None:
    DatabaseOptimizer(path, lock_s=20).vacuum_database()
    DatabaseOptimizer(path).optimize_for_reliability()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        for page in range(10, 40):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    before = Path(path).read_bytes()
    checked = DatabaseOptimizer(path).check_integrity()
    assert checked["ok"] is False
    assert checked["messages"]
    with pytest.raises(LocalError) as caught:
        DatabaseOptimizer(path, lock_s=20).vacuum_database()
    assert caught.value.code == ErrorCode.INTEGRITY
    assert Path(path).read_bytes() == before


def test_a_read_only_database_is_told_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir()
    if root := hasattr(os, "geteuid") and os.geteuid() == 0:  # who may write whatever the mode says
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        path = folder / "fixed.db"
        make(str(path), "DELETE", 100)
        path.chmod(0o400)
        if root:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for method in ("optimize_for_reliability", "vacuum_database", "analyze_database"):
            with pytest.raises(LocalError, match="read-only"):
                getattr(DatabaseOptimizer(path), method)()
        assert DatabaseOptimizer(path).get_database_stats()["tables"][0]["rows"] == 25
    finally:
        if root:
            subprocess.run(["umount", "--lazy", folder], check=True)


def test_an_empty_file_is_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    path.touch()
    assert DatabaseOptimizer(path).get_database_stats()["tables"] == []
    assert DatabaseOptimizer(path).optimize_for_reliability()["journal_mode"] == "wal"


@pytest.mark.parametrize("lock_s", [0.0, -1.0, 1e9])
def test_bounds_are_checked(tmp_path: Path, lock_s: float) -> None:
    with pytest.raises(LocalError, match="lock_s"):
        DatabaseOptimizer(tmp_path / "x.db", lock_s=lock_s)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        path = str(disk / "full.db")
        make(path, "DELETE", 8000)
        with pytest.raises(LocalError, match=r"disk is full \(VACUUM needs \d+ bytes, \d+ are free\)"):
            DatabaseOptimizer(path).vacuum_database()
        result = DatabaseOptimizer(path).vacuum_database(only_if_it_pays=True)
        assert (result["vacuumed"], result["reason"]) == (False, "no_space")
        assert result["needed_bytes"] > result["available_bytes"]
        assert count(path) == 2000
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_child_leaves_with_its_parent_and_rolls_back(tmp_path: Path) -> None:
    path = str(tmp_path / "orphan.db")
    make(path, "WAL", 60_000)
    code = (
        "import sys; from actors.runtime.database_child import Child\n"
        "child = Child(sys.argv[1], 'vacuum', ['--lock-s', '60'])\n"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=root, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
    assert count(path) == 15_000
