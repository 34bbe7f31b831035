"""The database policy and the real stores on a disk that fails: every I/O in turn, a full disk, power cuts, flipped
bits.

What must hold: nothing acknowledged under FULL is missing, no transaction is there by half, the file is sound, and once
the disk works again so does everything else.
"""

import itertools
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from actors.checkpointer.core import Format, Save
from actors.checkpointer.payloads import PayloadFiles
from actors.checkpointer.store import CheckpointStore
from actors.checkpointer.tables import SCHEMA as CHECKPOINTS
from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA as EVENTS
from actors.event_logger.store import EventStore
from actors.runtime import database as policy
from actors.runtime.database import Database, Migration, Schema, Synchronous, reading
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.database_repair import Repair
from protocol.errors import ReliabilityError
from protocol.severity import Severity
from tests.actors.runtime.faulty_vfs import Faults, cut_power, installed

SEEDS = 6
STEPS = 8
NOTES = Schema("notes", (Migration("CREATE TABLE notes (id INTEGER PRIMARY KEY, step INTEGER, text TEXT) STRICT", 1),))
LATER = Schema(
    "notes",
    (
        *NOTES.migrations,
        Migration("CREATE TABLE more (x INTEGER) STRICT; INSERT INTO more VALUES (1); CREATE TABLE last (x)", 1),
    ),
)


class Notes:
    """The policy alone: a transaction of three rows."""

    schema = NOTES

    def __init__(self, path: str, synchronous: Synchronous = Synchronous.FULL) -> None:
        self.database = Database(path, NOTES, synchronous)

    def step(self, number: int) -> None:
        rows = [(number, f"{number} " + "x" * 3000)] * 3
        self.database.write(lambda c: c.executemany("INSERT INTO notes (step, text) VALUES (?, ?)", rows), 0.2)

    @staticmethod
    def steps(connection: apsw.Connection) -> dict[int, int]:
        return dict(connection.execute("SELECT step, count(*) FROM notes GROUP BY step"))

    rows = 3


class Events:
    """event_logger's store, three events at once."""

    schema = EVENTS

    def __init__(self, path: str) -> None:
        self.database = Database(path, EVENTS, Synchronous.FULL)
        self.store = EventStore(self.database, lambda: 1_800_000_000_000)

    def step(self, number: int) -> None:
        events = [
            Event(
                bytes([number, part] * 8),
                1_800_000_000_000,
                Severity.INFO,
                "c",
                "t",
                str(number),
                '{"x":"' + "y" * 3000 + '"}',
            )
            for part in range(3)
        ]
        stored = self.store.append(events, 0.2)
        assert all(item.seq is not None for item in stored)

    @staticmethod
    def steps(connection: apsw.Connection) -> dict[int, int]:
        rows = connection.execute(
            "SELECT CAST(message AS INTEGER), count(*) FROM events WHERE component = 'c' GROUP BY 1"
        )
        return dict(rows)

    rows = 3


class Checkpoints:
    """checkpointer's store, one state of three names at once."""

    schema = CHECKPOINTS

    def __init__(self, path: str) -> None:
        self.database = Database(path, CHECKPOINTS, Synchronous.FULL)
        files = PayloadFiles(os.path.dirname(path))
        self.store = CheckpointStore(
            self.database, files, inline_bytes_max=100_000, names_max=10, wall_ms=lambda: 1_800_000_000_000
        )
        self.opened = False

    def step(self, number: int) -> None:
        if not self.opened:
            self.store.open()
            self.opened = True
        saves = [
            Save(bytes([number, part] * 8), f"n{part}", None, number, Format.BYTES, bytes([number, part]) * 1500)
            for part in range(3)
        ]
        for outcome in self.store.save(saves):
            if isinstance(outcome, ReliabilityError):
                raise outcome

    @staticmethod
    def steps(connection: apsw.Connection) -> dict[int, int]:
        return dict(connection.execute("SELECT timestamp_ms, count(*) FROM checkpoints GROUP BY 1"))

    rows = 3


Workload = type[Notes] | type[Events] | type[Checkpoints]
workloads = pytest.mark.parametrize("workload", [Notes, Events, Checkpoints])


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Directories on a disk that syncs in no time."""
    parent = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path
    base = parent / f"faults-{os.getpid()}-{random.randrange(10**9)}"
    base.mkdir()
    numbers = iter(range(10**6))

    def make() -> Path:
        folder = base / str(next(numbers))
        folder.mkdir()
        return folder

    yield make
    shutil.rmtree(base)


def present(path: str, workload: Workload) -> set[int]:
    """Return the steps that are in a database, each whole, after SQLite has found it sound."""
    with reading(path) as connection:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        steps = workload.steps(connection)
    assert set(steps.values()) <= {workload.rows}, f"half a transaction: {steps}"
    return set(steps)


def open_again(path: str, workload: Workload) -> None:
    database = Database(path, workload.schema, Synchronous.FULL)
    database.write(lambda c: c.execute("SELECT 1").get)
    database.close()


ERRORS: dict[str, Callable[[], Exception]] = {
    "write": lambda: apsw.exception_for(apsw.SQLITE_IOERR_WRITE),
    "full": lambda: apsw.FullError("disk full"),
}


@workloads
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", ERRORS)
def test_whichever_operation_fails_nothing_acknowledged_is_lost(
    workload: Workload, persistent: bool, kind: str, made: Callable[[], Path]
) -> None:
    number = 0
    while True:
        number += 1
        path = str(made() / "reliability.db")
        faults = Faults(fail_at=number, persistent=persistent, error=ERRORS[kind])
        acknowledged = set()
        problems = set()
        with installed(faults):
            work = workload(path)
            for step in range(STEPS):
                try:
                    work.step(step)
                    acknowledged.add(step)
                except DatabaseError as error:
                    problems.add(error.problem)
                if step == STEPS // 2:
                    with suppress(DatabaseError):
                        work.database.checkpoint(truncate=True)
            hits = faults.hits
            faults.fail_at = 0  # the disk works again
            work.step(STEPS)
            acknowledged.add(STEPS)
            work.database.close()
        assert acknowledged <= present(path, workload), f"operation {number} failed"
        assert problems <= {Problem.IO, Problem.FULL, Problem.CANNOT_OPEN}, f"operation {number} failed"
        if not hits:
            assert number > 20, "it is a disk with a history"
            assert acknowledged == set(range(STEPS + 1))
            return


@workloads
def test_after_a_power_cut_everything_acknowledged_is_there_and_nothing_by_half(
    workload: Workload, made: Callable[[], Path]
) -> None:
    faults = Faults(recording=True)
    acknowledged_at: list[tuple[int, int]] = []
    with installed(faults):
        path = str(made() / "reliability.db")
        work = workload(path)
        for step in range(STEPS):
            work.step(step)
            acknowledged_at.append((len(faults.log), step))
            if step == STEPS // 2:
                work.database.checkpoint(truncate=True)
        work.database.close()
    cuts = _cuts(faults)
    assert len(cuts) > STEPS
    for cut in cuts:
        for seed in range(SEEDS):
            target = made() / f"cut {cut} seed {seed}"
            cut_power(faults.log[:cut], target, random.Random(seed * 1_000_003 + cut))
            crashed = str(target / "reliability.db")
            open_again(crashed, workload)
            expected = {step for at, step in acknowledged_at if at <= cut}
            assert expected <= present(crashed, workload), f"cut {cut}, seed {seed}"
            shutil.rmtree(target)


def test_under_normal_a_power_cut_takes_the_newest_transactions_but_never_half_a_one(made: Callable[[], Path]) -> None:
    """What FULL is for; and a sign that these tests would see it if it failed."""
    faults = Faults(recording=True)
    with installed(faults):
        path = str(made() / "reliability.db")
        work = Notes(path, Synchronous.NORMAL)
        for step in range(STEPS):
            work.step(step)
            if step == 0:
                work.database.checkpoint()
        work.database.close()
    found = []
    for seed in range(4 * SEEDS):
        target = made() / "cut"
        cut_power(faults.log, target, random.Random(seed))
        crashed = str(target / "reliability.db")
        open_again(crashed, Notes)
        steps = present(crashed, Notes)
        assert steps == set(range(len(steps))), f"seed {seed}"
        found.append(len(steps))
        shutil.rmtree(target)
    assert min(found) < STEPS
    assert min(found) >= 1, "what was checkpointed was synced"


def _cuts(faults: Faults) -> list[int]:
    """Right before and after each sync, and in the middle of what lies between."""
    syncs = [place for place, operation in enumerate(faults.log) if operation.kind == "sync"]
    between = [(one + other) // 2 for one, other in itertools.pairwise(syncs)]
    return sorted({*syncs, *(place + 1 for place in syncs), *between, len(faults.log)})


def test_a_migration_that_a_power_cut_meets_is_there_whole_or_not_at_all(made: Callable[[], Path]) -> None:
    faults = Faults(recording=True)
    with installed(faults):
        path = str(made() / "reliability.db")
        work = Notes(path)
        work.step(0)
        work.database.close()
        before = len(faults.log)
        database = Database(path, LATER, Synchronous.FULL)
        database.write(lambda c: c.execute("SELECT 1").get)
        database.close()
    for cut in range(before, len(faults.log) + 1):
        for seed in range(SEEDS):
            target = made() / "cut"
            cut_power(faults.log[:cut], target, random.Random(seed * 1_000_003 + cut))
            crashed = str(target / "reliability.db")
            open_again(crashed, Notes)
            assert present(crashed, Notes) == {0}
            with reading(crashed) as connection:
                (version,) = connection.execute("SELECT version FROM schema_versions WHERE owner = 'notes'").fetchone()
                tables = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name IN ('more', 'last')").get
            assert tables == {1: 0, 2: 2}[version], f"cut {cut}, seed {seed}"
            again = Database(crashed, LATER, Synchronous.FULL)
            assert again.write(lambda c: c.execute("SELECT count(*) FROM more").get) == 1
            again.close()
            shutil.rmtree(target)


def test_a_power_cut_during_the_recovery_from_a_power_cut(made: Callable[[], Path]) -> None:
    faults = Faults(recording=True)
    with installed(faults):
        path = str(made() / "reliability.db")
        work = Notes(path)
        for step in range(STEPS):
            work.step(step)
        work.database.close()
    for seed in range(4 * SEEDS):
        first = made() / "first"
        rng = random.Random(seed)
        cut_power(faults.log, first, rng)
        again = Faults(recording=True)
        with installed(again):
            database = Database(str(first / "reliability.db"), NOTES, Synchronous.FULL)
            database.write(lambda c: c.execute("SELECT 1").get)
            database.checkpoint(truncate=True)
            database.close()
        for cut in range(len(again.log) + 1):
            second = made() / "second"
            cut_power(faults.log + again.log[:cut], second, rng)
            crashed = str(second / "reliability.db")
            open_again(crashed, Notes)
            assert present(crashed, Notes) == set(range(STEPS)), f"seed {seed}, cut {cut}"
            shutil.rmtree(second)


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", ERRORS)
def test_whichever_operation_of_a_repair_fails_the_next_repair_saves_all(
    persistent: bool, kind: str, made: Callable[[], Path]
) -> None:
    def repair(path: str) -> object:
        return Repair(path, None, lambda: False, lambda *_, **__: None).run("a test", certain=True)

    number = 0
    while True:
        number += 1
        path = str(made() / "reliability.db")
        work = Notes(path)
        for step in range(STEPS):
            work.step(step)
        work.database.close()
        faults = Faults(fail_at=number, persistent=persistent, error=ERRORS[kind])
        with installed(faults):
            with suppress(DatabaseError):
                repair(path)
            hits = faults.hits
        if os.path.exists(path + "-repairing"):
            repair(path)
        assert present(path, Notes) == set(range(STEPS)), f"operation {number} failed"
        if not hits:
            assert number > 3
            return


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_the_log_takes_whole_transactions_from_the_end_and_never_half_a_one(
    seed: int, made: Callable[[], Path]
) -> None:
    path = str(made() / "reliability.db")
    work = Notes(path)
    for step in range(STEPS):
        work.step(step)
    work.database.close()
    rng = random.Random(seed)
    with open(path + "-wal", "r+b") as log:
        place = rng.randrange(32, os.stat(path + "-wal").st_size)
        log.seek(place)
        (byte,) = log.read(1)
        log.seek(place)
        log.write(bytes([byte ^ 1 << rng.randrange(8)]))
    os.unlink(path + "-shm")  # as after a power cut; with it SQLite would not look at the checksums again
    open_again(path, Notes)
    with reading(path) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'notes'").get:
            return
    steps = present(path, Notes)
    assert steps == set(range(len(steps))), "the owner's sequence and its head outside show what is missing"


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_in_the_file_is_met_or_does_no_harm_and_never_ends_the_process(
    seed: int, made: Callable[[], Path]
) -> None:
    path = str(made() / "reliability.db")
    work = Notes(path)
    for step in range(STEPS):
        work.step(step)
    work.database.checkpoint(truncate=True)
    work.database.close()
    rng = random.Random(seed)
    place = rng.randrange(100) if seed % 3 == 0 else rng.randrange(os.stat(path).st_size)
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
    told: list[str] = []
    problem = None
    policy.report_damage_to(lambda path, _what: told.append(path))
    try:
        work = Notes(path)
        work.step(STEPS)
        work.database.close()
        with reading(path) as connection:
            connection.execute("SELECT sum(length(text)) FROM notes").get  # noqa: B018
    except DatabaseError as error:
        problem = error.problem
    finally:
        policy.report_damage_to(lambda _path, _what: None)
    assert problem in {None, Problem.CORRUPT, Problem.READ_ONLY}, place
    if told:
        Repair(path, None, lambda: False, lambda *_, **__: None).run("a test", certain=True)
        work = Notes(path)
        work.step(STEPS + 1)
        work.database.close()
        assert STEPS + 1 in present(path, Notes)


LIMITED = """
import resource, sys
from tests.actors.runtime.test_database_faults import Events
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
work = Events(sys.argv[1])
done, failed = [], ""
for step in range(100):
    try:
        work.step(step)
        done.append(step)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
work.step(100)
print(len(done), failed)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit for files here")
def test_a_file_that_may_not_grow_is_one_clear_error_and_writing_goes_on_when_it_may(made: Callable[[], Path]) -> None:
    path = str(made() / "reliability.db")
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, path], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    count, _, failed = found.partition(" ")
    assert 0 < int(count) < 100
    assert failed.startswith("DatabaseError: reliability.db cannot")
    assert present(path, Events) == {*range(int(count)), 100}
