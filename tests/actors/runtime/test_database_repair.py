"""A damaged database is set aside whole, salvaged and replaced, by exactly one process, whoever dies on the way."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from actors.runtime import database as policy
from actors.runtime import database_child
from actors.runtime.database import Database, Migration, Schema, reading
from actors.runtime.database_child import Repairs
from actors.runtime.database_guard import REPAIRED_SUFFIX, REPAIRING_SUFFIX, exclusive
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.database_repair import Repair
from actors.runtime.database_report import last_repair
from actors.runtime.journal import Journal
from protocol.errors import LocalError
from tests.actors.conftest import resize

NOTES = Schema(
    "notes",
    (
        Migration(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;"
            "CREATE TABLE plain (key BLOB PRIMARY KEY, n INTEGER NOT NULL) STRICT;"
            "CREATE TABLE keyed (a TEXT NOT NULL, b INTEGER NOT NULL, PRIMARY KEY (a, b)) STRICT, WITHOUT ROWID;"
            "CREATE INDEX notes_by_text ON notes (text)",
            1,
        ),
    ),
)
OTHERS = Schema("others", (Migration("CREATE TABLE others (x INTEGER)", 1), Migration("CREATE TABLE more (x)", 1)))
ROWS = 3000
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "of a host, näher.db")


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    policy.report_damage_to(lambda path, what: told.append((path, what)))
    yield told
    policy.report_damage_to(lambda _path, _what: None)


def nothing(_connection: apsw.Connection) -> None:
    """A transaction that only opens the database."""


def fill(path: str, *, checkpointed: bool = True) -> None:
    for schema in (NOTES, OTHERS):
        database = Database(path, schema)
        database.write(nothing)
        database.close()
    database = Database(path, NOTES)

    def work(connection: apsw.Connection) -> None:
        connection.executemany("INSERT INTO notes (text) VALUES (?)", [(f"note {n} " + "x" * 80,) for n in range(ROWS)])
        connection.executemany("INSERT INTO plain VALUES (?, ?)", [(n.to_bytes(4), n) for n in range(ROWS)])
        connection.executemany("INSERT INTO keyed VALUES (?, ?)", [(f"k{n}", n) for n in range(100)])

    database.write(work)
    if checkpointed:
        database.checkpoint(truncate=True)
    database.close()


def counts(path: str) -> dict[str, int]:
    with reading(path) as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").get
            for name in ("notes", "plain", "keyed", "others")
        }


def trash(path: str, pages: list[int]) -> None:
    """Overwrite whole pages, counted from 1, with noise."""
    noise = random.Random(7)
    with open(path, "r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(noise.randbytes(PAGE))


def repair(path: str, **options: object) -> dict[str, object]:
    return Repair(path, None, lambda: False, lambda *_, **__: None).run("a test", **options)  # type: ignore[arg-type]


def leaf_of(path: str, table: str) -> list[int]:
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        rows = connection.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (table,)).fetchall()
    finally:
        connection.close()
    for suffix in ("-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    return [int(page) for (page,) in rows]


def test_trashed_pages_cost_their_rows_alone_and_the_loss_is_counted(path: str, told: list[tuple[str, str]]) -> None:
    fill(path)
    trash(path, leaf_of(path, "notes")[3:5])
    database = Database(path, NOTES)
    with pytest.raises(DatabaseError) as caught:
        database.write(
            lambda connection: connection.execute("SELECT sum(length(text || id)) FROM notes NOT INDEXED").get
        )
    assert caught.value.problem is Problem.CORRUPT
    assert [item[0] for item in told] == [path]

    result = repair(path)

    assert result["repaired"]
    found = counts(path)
    assert 0 < ROWS - found["notes"] < 200
    assert found["plain"] == ROWS
    assert found["keyed"] == 100
    assert result["lost"] == ROWS - found["notes"]
    assert result == last_repair(path)
    assert not os.path.exists(path + REPAIRING_SUFFIX)
    assert os.path.exists(str(result["set_aside"]))
    with reading(path) as connection:
        versions = connection.execute("SELECT owner, version FROM schema_versions ORDER BY owner").fetchall()
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        assert connection.pragma("application_id") == policy.APPLICATION_ID
    assert versions == [("notes", 1), ("others", 2)]
    assert database.write(
        lambda connection: connection.execute("INSERT INTO notes (text) VALUES ('on') RETURNING id").get
    )
    database.close()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_page_is_trashed_the_rest_is_saved(path: str, seed: int) -> None:
    fill(path)
    pages = os.stat(path).st_size // PAGE
    page = random.Random(seed).randrange(2, pages + 1)
    trash(path, [page])
    result = repair(path)
    if not result["repaired"]:  # a free page
        pytest.skip(f"page {page} of {pages} is not in use")
    with reading(path) as connection:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
    saved = sum(counts(path).values())
    # One page of a tree holds a few dozen rows; its root, or an inner page, leads to all of them.
    assert saved >= ROWS + 100, f"page {page} of {pages}: {result}"
    assert result["lost"] is None or result["lost"] == 2 * ROWS + 100 - saved or result["lost"] == 0


def test_file_and_log_are_set_aside_together_and_the_log_is_saved_too(path: str) -> None:
    fill(path, checkpointed=False)
    assert os.stat(path + "-wal").st_size > 100 * PAGE
    result = repair(path, certain=True)
    assert result["lost"] == 0
    aside = str(result["set_aside"])
    assert os.stat(aside + "-wal").st_size > 100 * PAGE
    assert not os.path.exists(path + "-wal")
    assert counts(path) == {"notes": ROWS, "plain": ROWS, "keyed": 100, "others": 0}


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_log_without_its_file_is_not_deleted_but_saved(path: str, how: str, told: list[tuple[str, str]]) -> None:
    fill(path, checkpointed=False)
    if how == "gone":
        os.unlink(path)
    else:
        os.truncate(path, 0)
    database = Database(path, NOTES)
    with pytest.raises(DatabaseError) as caught:
        database.write(nothing)
    assert caught.value.problem is Problem.CORRUPT
    assert told
    assert repair(path)["lost"] == 0
    assert counts(path)["notes"] == ROWS


@pytest.mark.parametrize("lost", [100, PAGE])
def test_a_lost_header_of_ours_is_damage_and_of_a_stranger_is_not(
    path: str, lost: int, told: list[tuple[str, str]]
) -> None:
    fill(path)
    with open(path, "r+b") as file:
        file.write(b"\x5a" * lost)
    database = Database(path, NOTES)
    with pytest.raises(DatabaseError) as caught:
        database.write(nothing)
    assert caught.value.problem is Problem.CORRUPT
    assert len(told) == 1
    result = repair(path)
    assert result["repaired"]
    if lost == 100:
        assert result["lost"] == 0
        assert counts(path)["notes"] == ROWS
    else:
        assert result["lost"] is None
    database.write(lambda connection: connection.execute("INSERT INTO notes (text) VALUES ('on')"))
    database.close()


def test_what_is_sound_is_left_alone(path: str) -> None:
    fill(path)
    before = os.stat(path).st_ino
    assert repair(path) == {"repaired": False, "reason": "it is sound"}
    assert os.stat(path).st_ino == before


def test_a_writer_lets_go_of_a_file_that_was_replaced_and_its_commit_is_in_the_new_one(path: str) -> None:
    fill(path)
    database = Database(path, NOTES)
    database.write(lambda connection: connection.execute("INSERT INTO notes (text) VALUES ('before')"))
    repair(path, certain=True)
    with pytest.raises(DatabaseError) as caught:
        database.write(lambda connection: connection.execute("INSERT INTO notes (text) VALUES ('refused')"))
    assert caught.value.problem is Problem.REPLACED
    database.write(lambda connection: connection.execute("INSERT INTO notes (text) VALUES ('after')"))
    database.close()
    with reading(path) as connection:
        texts = connection.execute("SELECT text FROM notes ORDER BY id DESC LIMIT 2").fetchall()
    assert texts == [("after",), ("before",)]


def test_nobody_reads_or_writes_while_it_is_replaced(path: str) -> None:
    fill(path)
    lock = exclusive(path)
    assert lock.acquire()
    database = Database(path, NOTES)
    with pytest.raises(DatabaseError) as caught:
        database.write(nothing, patience_s=0.1)
    assert caught.value.problem is Problem.REPAIRING
    with pytest.raises(DatabaseError) as caught:
        counts(path)
    assert caught.value.problem is Problem.REPAIRING
    lock.release()
    database.write(nothing)
    database.close()


STEPS = ("_set_aside", "_salvage", "_put_in_place", "_report", "_sync", "_prune")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_that_dies_at_any_step_is_gone_on_with(
    path: str, step: str, when: str, monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, str]]
) -> None:
    fill(path, checkpointed=False)

    class Killed(BaseException):
        pass

    original = getattr(Repair, step)

    def dying(*arguments: object) -> object:
        if when == "after":
            original(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Repair, step, dying)
        with pytest.raises(Killed):
            repair(path, certain=True)
    database = Database(path, NOTES)
    if os.path.exists(path + REPAIRING_SUFFIX):
        with pytest.raises(DatabaseError) as caught:
            database.write(nothing)
        assert caught.value.problem is Problem.REPAIRING
        assert told
        with pytest.raises(DatabaseError):
            counts(path)
        assert repair(path)["repaired"]
    assert counts(path) == {"notes": ROWS, "plain": ROWS, "keyed": 100, "others": 0}
    database.close()


def test_repairs_by_two_processes_at_once_replace_the_file_once(path: str, tmp_path: Path) -> None:
    fill(path)
    trash(path, leaf_of(path, "notes")[2:3])
    journal = tmp_path / "journal"
    journal.mkdir()
    children = [database_child.Child(path, "repair", ["--journal", str(journal)]) for _ in range(2)]
    results = [child.wait(60) for child in children]
    for child in children:
        child.close()
    assert sorted(result["repaired"] for result in results) == [False, True]
    (entry,) = Journal(str(journal), "database_repair").entries()
    assert (entry["severity"], entry["event_type"]) == ("CRITICAL", "database_repaired")
    assert entry["attributes"]["lost"] == ROWS - counts(path)["notes"] > 0
    assert len([name for name in os.listdir(tmp_path) if ".damaged-" in name]) == 1


def test_who_meets_damage_has_it_repaired_without_waiting(path: str, tmp_path: Path) -> None:
    fill(path)
    trash(path, leaf_of(path, "notes")[2:3])
    policy.report_damage_to(Repairs(str(tmp_path)))
    try:
        database = Database(path, NOTES)
        problems = []
        deadline = time.monotonic() + 60
        while not os.path.exists(path + REPAIRED_SUFFIX) or len(problems) < 2:
            assert time.monotonic() < deadline
            try:
                database.write(lambda c: c.execute("SELECT sum(length(text)) FROM notes NOT INDEXED").get, 0.1)
                break
            except DatabaseError as error:
                problems.append(error.problem)
            time.sleep(0.02)
        assert problems[0] is Problem.CORRUPT
        assert set(problems) <= {Problem.CORRUPT, Problem.REPAIRING, Problem.REPLACED}
        database.close()
    finally:
        policy.report_damage_to(lambda _path, _what: None)


def test_a_repair_ends_with_its_parent_and_is_resumed(path: str) -> None:
    fill(path)
    child = database_child.Child(path, "repair", ["--certain"])
    child.stop()
    with suppress(LocalError):  # it may have been faster
        child.wait(30)
    child.close()
    if os.path.exists(path + REPAIRING_SUFFIX):
        repair(path)
    assert counts(path)["notes"] == ROWS


def test_a_full_disk_leaves_everything_for_the_next_attempt(small_disk: Path) -> None:
    path = str(small_disk / "notes.db")
    database = Database(path, NOTES)
    rows = [(f"{n}" + "x" * 500,) for n in range(100)]
    database.write(lambda c: c.executemany("INSERT INTO notes (text) VALUES (?)", rows))
    database.checkpoint(truncate=True)
    database.close()
    with suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(PAGE))
    os.truncate(small_disk / "ballast", os.stat(small_disk / "ballast").st_size - 20 * PAGE)

    for _ in range(5):  # however often: want of space is no failed attempt
        with pytest.raises(DatabaseError) as caught:
            repair(path, certain=True)
        assert caught.value.problem in (Problem.FULL, Problem.IO)
    resize(small_disk, "8m")
    assert repair(path)["lost"] == 0
    with reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM notes").get == 100


def test_only_the_newest_of_what_was_set_aside_are_kept(path: str, tmp_path: Path) -> None:
    fill(path)
    for _ in range(5):
        repair(path, certain=True)
    assert len([name for name in os.listdir(tmp_path) if ".damaged-" in name]) == 3
    assert counts(path)["notes"] == ROWS


def test_a_frozen_writer_keeps_the_file_until_it_is_killed(path: str) -> None:
    fill(path)
    holder = (
        "import os, signal, sys\n"
        "from actors.runtime.database import Database\n"
        "from tests.actors.runtime.test_database_repair import NOTES\n"
        "def work(connection):\n"
        "    connection.execute(\"INSERT INTO notes (text) VALUES ('never')\")\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "Database(sys.argv[1], NOTES).write(work)\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", holder, path], cwd=root) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert not exclusive(path).acquire()
        process.kill()
    assert repair(path, certain=True)["lost"] == 0
    assert counts(path)["notes"] == ROWS
    assert json.loads(Path(path + REPAIRED_SUFFIX).read_text())["rows"] >= ROWS


@pytest.mark.parametrize("seed", range(24))
def test_a_third_of_all_pages_gone_is_salvaged_in_little_time(path: str, seed: int) -> None:
    fill(path)
    rng = random.Random(seed)
    with open(path, "r+b") as file:
        for page in range(2, os.stat(path).st_size // PAGE + 1):
            if page % 3 == seed % 3:
                file.seek((page - 1) * PAGE + rng.choice([0, 8, 100]))
                file.write(rng.randbytes(rng.choice([3, 100, 2000])))
    began = time.monotonic()
    result = repair(path, certain=True)
    assert time.monotonic() - began < 20
    assert result["complete"] in (True, False)
    with reading(path) as connection:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
    assert sum(counts(path).values()) == sum(
        table["rows"] for name, table in result["tables"].items() if name in ("notes", "plain", "keyed", "others")
    )  # type: ignore[attr-defined]
