"""`verify` finds what was done to the log, wherever, and finds nothing where nothing was done."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.chain import Head, link, parse_head, seal_head
from actors.event_logger.lines import LineFormat
from actors.event_logger.queries import verify_log
from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA
from actors.runtime.database import Database
from actors.runtime.identity import boot_id
from tests.actors.event_logger.filing import DAY_MS, TODAY, Log

PER_DAY = 20


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Four days of twenty events, the first one retired, nobody at work."""
    log = Log(tmp_path)
    for _ in range(4):
        log.write(PER_DAY)
        log.now_ms += DAY_MS
    log.file()
    log.store.look_for_expired(0, 2, 1)
    assert log.store.look_for_expired(100_000, 3, 1) == [TODAY]
    log.store.retire(TODAY, 1)
    log.store.database.close()
    return log


def kinds(log: Log) -> list[tuple[str, int | None, str]]:
    found = verify_log(os.path.dirname(log.path))
    assert found["complete"]
    assert found["finding_count"] == len(found["findings"])
    return [(item["kind"], item["seq"], item["where"]) for item in found["findings"]]


def sql(log: Log, *statements: str) -> None:
    database = Database(log.path, SCHEMA)
    database.write(lambda connection: [connection.execute(text).fetchall() for text in statements])
    database.close()


def today(log: Log) -> Path:
    return log.directory / "events-2026-09-24.jsonl"


def edit_lines(log: Log, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = today(log).read_bytes().splitlines(keepends=True)
    today(log).write_bytes(b"".join(edit(lines)))


def test_nothing_is_found_where_nothing_was_done(log: Log) -> None:
    found = verify_log(os.path.dirname(log.path))
    assert found["findings"] == []
    assert (found["checked"], found["complete"]) == (3 * PER_DAY, True)


def test_there_may_be_no_time_for_all_of_it(log: Log) -> None:
    assert not verify_log(os.path.dirname(log.path), lambda: True)["complete"]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE events SET message = 'x' WHERE seq = 30", {("changed", 30, "table")}),
        ("UPDATE events SET timestamp_ms = timestamp_ms + 1 WHERE seq = 30", {("changed", 30, "table")}),
        ("UPDATE events SET hash = NULL WHERE seq = 70", {("changed", 70, "table")}),
        ("DELETE FROM events WHERE seq IN (30, 31)", {("removed", 30, "table")}),
        ("DELETE FROM events WHERE seq > 75", {("truncated", 76, "table")}),
        ("DELETE FROM events WHERE seq > 55", {("truncated", 56, "table")}),
        ("DELETE FROM event_days WHERE last_seq IS NULL", set()),
        ("DELETE FROM event_days WHERE first_seq = 41", {("truncated", 41, "table")}),
        ("UPDATE event_days SET count = 19 WHERE first_seq = 41", {("resealed", 41, "table")}),
        ("UPDATE event_days SET retired = 2 WHERE first_seq = 41", set()),
    ],
)
def test_what_was_done_to_the_table_is_found(log: Log, statement: str, expected: set[Any]) -> None:
    sql(log, statement)
    found = set(kinds(log))
    assert expected <= found
    assert found or "retired" in statement or "IS NULL" in statement


def test_two_events_that_changed_places_are_found(log: Log) -> None:
    sql(
        log,
        "UPDATE events SET seq = 1000 WHERE seq = 30",
        "UPDATE events SET seq = 30 WHERE seq = 31",
        "UPDATE events SET seq = 31 WHERE seq = 1000",
    )
    assert {("changed", 30, "table"), ("changed", 31, "table")} <= set(kinds(log))


def reseal(log: Log, first_seq: int, last_seq: int) -> None:
    """Change an event, and mend the chain behind it in table and file, as somebody without the key can."""
    database = Database(log.path, SCHEMA)

    def work(connection: Any) -> None:
        previous = connection.execute("SELECT hash FROM events WHERE seq = ?", (first_seq - 1,)).get
        connection.execute("UPDATE events SET message = 'forged' WHERE seq = ?", (first_seq,))
        select = "SELECT * FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq"
        for seq, *values, _ in connection.execute(select, (first_seq, last_seq)).fetchall():
            previous = link(previous, seq, Event(*values))
            connection.execute("UPDATE events SET hash = ? WHERE seq = ?", (previous, seq))

    database.write(work)
    database.close()


def test_a_resealed_chain_is_found_by_the_head(log: Log) -> None:
    reseal(log, 70, 80)
    rows = [row for row in log.rows() if row[0] > 60]
    today(log).write_bytes(LineFormat().lines(rows))
    assert kinds(log) == [("resealed", 80, "table")]
    forged = seal_head(80, rows[-1][-1], boot_id(), b"k" * 32)
    log.store.files.write_head(forged)
    assert kinds(log) == [("resealed", 80, "head")]


def test_a_resealed_chain_is_found_by_a_root(log: Log) -> None:
    reseal(log, 50, 80)
    assert ("resealed", 60, "table") in kinds(log)


def test_a_head_ahead_of_the_table_is_a_loss_after_a_reboot_alone(log: Log) -> None:
    head = parse_head((log.directory / "head.json").read_bytes())
    key = log.store.files.read_key()
    assert key is not None
    log.store.files.write_head(seal_head(83, head.hash, "another boot", key))
    found = kinds(log)
    assert ("lost", 81, "table") in found
    log.store.files.write_head(seal_head(83, head.hash, boot_id(), key))
    assert ("truncated", 81, "table") in kinds(log)


def test_a_loss_that_the_log_owns_up_to_is_no_tampering(log: Log) -> None:
    key = log.store.files.read_key()
    assert key is not None
    log.store.files.write_head(seal_head(83, bytes(32), "another boot", key))
    log.reopen()
    log.write(3)
    log.file()
    log.store.database.close()
    assert kinds(log) == [("lost", 81, "table"), ("lost", 81, "events-2026-09-25.jsonl")] or kinds(log) == [
        ("lost", 81, "table")
    ]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda lines: [*lines[:5], lines[5].replace(b'"event 6"', b'"forged"'), *lines[6:]], [("changed", 66)]),
        (lambda lines: [*lines[:5], b"\0" * 80 + b"\n", *lines[6:]], [("damaged", 66)]),
        (lambda lines: [*lines[:5], *lines[7:]], [("removed", 66)]),
        (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], [("removed", 66), ("reordered", 66)]),
        (lambda lines: lines[:-4], [("truncated", 77)]),
        (lambda lines: lines[3:], [("removed", 61)]),
        (lambda _: [], [("truncated", 61)]),
    ],
)
def test_what_was_done_to_a_file_is_found_and_mended(log: Log, edit: Any, expected: list[Any]) -> None:
    edit_lines(log, edit)
    found = kinds(log)
    assert [item[:2] for item in found[: len(expected)]] == expected
    assert {where for *_, where in found} == {today(log).name}
    assert verify_log(os.path.dirname(log.path))["spoilt_days"] == ["2026-09-24"]
    log.filer.rebuild("2026-09-24")
    log.file()
    assert kinds(log) == []
    assert Path(f"{today(log)}.damaged").exists()


def test_damaged_packed_files_are_found_and_mended(log: Log) -> None:
    path = log.directory / "events-2026-09-22.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.unlink(log.directory / "events-2026-09-23.jsonl.gz")
    found = kinds(log)
    assert {(kind, where) for kind, _, where in found} >= {("missing", "events-2026-09-23.jsonl")}
    assert "events-2026-09-22.jsonl" in {where for *_, where in found}
    spoilt = verify_log(os.path.dirname(log.path))["spoilt_days"]
    assert spoilt == ["2026-09-22", "2026-09-23"]
    for day in spoilt:
        log.filer.rebuild(day)
    log.file()
    assert kinds(log) == []


def test_roots_head_and_key_that_are_gone_or_changed_are_found(log: Log) -> None:
    roots = log.directory / "roots.jsonl"
    lines = roots.read_bytes().splitlines(keepends=True)
    forged = json.loads(lines[1]) | {"count": 19}
    for content, expected in (
        (b"".join([lines[0], json.dumps(forged).encode() + b"\n", lines[2]]), ("resealed", 21, "roots")),
        (b"".join([lines[0], lines[2]]), ("removed", 41, "roots")),
        (b"".join(lines[:2]), ("missing", 41, "roots")),
        (b"".join([lines[0], b"x\n", *lines[1:]]), ("damaged", None, "roots")),
        (b"", ("missing", 21, "roots")),
    ):
        roots.write_bytes(content)
        assert expected in kinds(log)
    roots.write_bytes(b"".join(lines))
    head = (log.directory / "head.json").read_bytes()
    os.unlink(log.directory / "head.json")
    assert kinds(log) == [("missing", None, "head")]
    (log.directory / "head.json").write_bytes(b"{")
    assert kinds(log)[0] == ("damaged", None, "head")
    (log.directory / "head.json").write_bytes(head)
    assert isinstance(parse_head(head), Head)
    os.unlink(log.directory.parent / "keys" / "events.key")
    assert kinds(log) == [("missing", None, "key")]
