"""SQLite's own log becomes events: each once, bounded, without what a caller hears anyway."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw

from actors.runtime.database_log import KINDS_MAX, REPEAT_INTERVAL_S, Deduplication, log_to

ROOT = Path(__file__).parents[3]
CRASH = """
import os, sys
from actors.runtime.database import Database
from tests.actors.runtime.test_database_repair import NOTES
Database(sys.argv[1], NOTES).write(lambda c: c.execute("INSERT INTO notes (text) VALUES ('kept')"))
os._exit(1)
"""
RECOVER = """
import sys
from actors.runtime import database_log
from actors.runtime.database import Database
from tests.actors.runtime.test_database_repair import NOTES
database_log.install(lambda *what, **attributes: print(what, attributes))
Database(sys.argv[1], NOTES).write(lambda c: None)
"""


def test_the_same_message_is_reported_once_an_interval_with_its_repeats() -> None:
    deduplication = Deduplication()
    assert deduplication.take(10, "a", 0.0) == 0
    assert [deduplication.take(10, "a", 1.0) for _ in range(5)] == [None] * 5
    assert deduplication.take(10, "b", 1.0) == 0
    assert deduplication.take(10, "a", REPEAT_INTERVAL_S) == 5
    assert deduplication.take(10, "a", REPEAT_INTERVAL_S * 2) == 0


def test_ever_new_messages_are_bounded_and_old_ones_make_room() -> None:
    deduplication = Deduplication()
    taken = [deduplication.take(10, str(number), 0.0) for number in range(1000)]
    assert taken.count(0) == KINDS_MAX
    assert deduplication.take(10, "later", REPEAT_INTERVAL_S) == 0


def test_severities_and_what_is_left_out() -> None:
    told: list[tuple[Any, ...]] = []
    handler = log_to(lambda *what, **attributes: told.append((*what, attributes)), lambda: 0.0)
    for code in (apsw.SQLITE_BUSY, apsw.SQLITE_CONSTRAINT_UNIQUE, apsw.SQLITE_INTERRUPT, apsw.SQLITE_SCHEMA, 1):
        handler(code, "left out")
    handler(apsw.SQLITE_NOTICE_RECOVER_WAL, "recovered 3 frames from WAL file /x-wal")
    handler(apsw.SQLITE_WARNING, "file unlinked while open")
    handler(apsw.SQLITE_IOERR_READ, "x" * 10_000)
    assert [item[:2] for item in told] == [
        ("NOTICE", "database_recovered"),
        ("WARN", "sqlite_warn"),
        ("ERROR", "sqlite_error"),
    ]
    assert told[0][3] == {"sqlite_code": 283}
    assert len(told[2][2]) < 600


def test_a_recovery_after_a_crash_is_told_by_the_process_that_does_it(tmp_path: Path) -> None:
    path = str(tmp_path / "crashed.db")
    subprocess.run([sys.executable, "-c", CRASH, path], cwd=ROOT, check=False)
    found = subprocess.run(
        [sys.executable, "-c", RECOVER, path], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "database_recovered" in found
    assert "frames from WAL file" in found
    assert "283" in found
