"""Maintenance of reliability.db: when it is due, one at a time, rolled back on a stop, and remembered."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.maintenance import Maintenance
from actors.runtime import database as policy
from actors.runtime.actor import Actor
from actors.runtime.database import Database
from actors.runtime.database_maintenance import (
    DAY_MS,
    FIRST_AFTER_MS,
    PATIENCE_MS,
    RECORD_FILE,
    Kind,
    Record,
    first_record,
    read_record,
    summary,
)
from protocol.errors import ErrorCode
from tests.actors.harness import Harness
from tests.actors.runtime.test_database_repair import NOTES, fill, leaf_of, trash

NOW_MS = 1_800_000_000_000


class Alone(Actor):
    """Nothing but maintenance."""

    def __init__(self, path: str, wall_ms: int = NOW_MS) -> None:
        self.part = Maintenance(path, lambda: wall_ms)
        self.operations = self.part.operations  # type: ignore[method-assign]
        self.on_start = self.part.start  # type: ignore[method-assign]

    def on_tick(self, context: Any, now: float) -> None:
        self.part.tick(now, 0)

    def on_drain(self, context: Any) -> bool:
        self.part.stop()
        return self.part.idle


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "reliability.db")
    fill(path)
    return path


@pytest.fixture
def told() -> Iterator[list[str]]:
    told: list[str] = []
    policy.report_damage_to(lambda path, _what: told.append(path))
    yield told
    policy.report_damage_to(lambda _path, _what: None)


def finish(harness: Harness) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (status := harness.call("maintenance_status"))["running"]:
        assert time.monotonic() < deadline
        harness.turn()
    return status


def test_a_new_installation_is_left_in_peace_for_an_hour_and_wholly_maintained_after_a_week() -> None:
    record = first_record(NOW_MS)
    assert record.due(NOW_MS, quiet=True) is None
    assert record.due(NOW_MS + FIRST_AFTER_MS, quiet=True) is Kind.LIGHT
    assert record.due(NOW_MS + 7 * DAY_MS, quiet=True) is Kind.WHOLE


def test_what_is_due_waits_for_a_quiet_moment_but_not_for_ever() -> None:
    record = Record(NOW_MS - DAY_MS, NOW_MS)
    assert record.due(NOW_MS, quiet=False) is None
    assert record.due(NOW_MS, quiet=True) is Kind.LIGHT
    assert record.due(NOW_MS + PATIENCE_MS, quiet=False) is Kind.LIGHT


def test_a_clock_that_was_set_back_does_not_put_it_off_for_longer_than_an_interval() -> None:
    record = Record(NOW_MS + 365 * DAY_MS, NOW_MS + 365 * DAY_MS)
    assert record.due(NOW_MS, quiet=True) is None
    assert record.done(Kind.LIGHT, NOW_MS, {}).due(NOW_MS + DAY_MS, quiet=True) is Kind.LIGHT


def test_asked_for_it_is_done_told_and_remembered(path: str, tmp_path: Path) -> None:
    database = Database(path, NOTES)
    database.write(lambda c: c.execute("DELETE FROM notes WHERE id % 10"))
    database.write(lambda c: c.execute("DELETE FROM plain"))
    before = os.stat(path).st_size
    harness = Harness(Alone(path))
    assert harness.call("maintenance", by="anna") == {"run": 1}
    refused = harness.ask("maintenance")
    assert refused.error is not None
    assert refused.error.code == ErrorCode.BUSY
    last = finish(harness)["last"]
    assert last["ok"], last
    assert [step["step"] for step in last["steps"]] == ["integrity", "analyze", "vacuum", "checkpoint"]
    assert (last["kind"], last["by"]) == ("whole", "anna")
    if last["steps"][2]["result"]["vacuumed"]:
        assert os.stat(path).st_size < before
    assert read_record(str(tmp_path)) == Record(NOW_MS, NOW_MS, last)
    ((_, event_type, message),) = harness.logged
    assert event_type == "maintenance_finished"
    assert "asked for by anna" in message
    assert summary(last) in message
    assert {topic for topic, _ in harness.published} == {"state.maintenance"}
    assert harness.published[-1][1] == {"run": 1, "running": False, "progress": {}, "ok": True}
    database.write(lambda c: c.execute("INSERT INTO notes (text) VALUES ('and on')"))
    database.close()
    harness.stop()


def test_what_is_due_is_done_by_itself_once_and_the_next_life_knows(path: str, tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps({"light_at_ms": NOW_MS - 2 * DAY_MS, "whole_at_ms": NOW_MS}))
    alone = Alone(path)
    harness = Harness(alone)
    alone.part._written_at -= 3600  # it has been quiet for an hour
    harness.until(lambda: bool(harness.logged))
    assert "asked for by schedule" in harness.logged[0][2]
    harness.stop()
    successor = Alone(path)
    harness = Harness(successor)
    successor.part._written_at -= 3600
    for _ in range(5):
        harness.turn()
    assert successor.part.idle
    assert harness.logged == []
    assert read_record(str(tmp_path)) is not None
    harness.stop()


@pytest.mark.parametrize("content", ["", "{", '{"light_at_ms": "x"}', "[]"])
def test_a_record_that_cannot_be_read_is_begun_anew(path: str, tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_FILE).write_text(content)
    harness = Harness(Alone(path))
    harness.until(lambda: read_record(str(tmp_path)) == first_record(NOW_MS))
    harness.stop()


def test_a_stop_ends_it_at_once(path: str) -> None:
    harness = Harness(Alone(path))
    harness.call("maintenance")
    began = time.monotonic()
    harness.stop()
    assert time.monotonic() - began < 5


def test_damage_ends_it_and_is_reported_to_be_repaired(path: str, told: list[str]) -> None:
    trash(path, leaf_of(path, "notes")[2:6])
    harness = Harness(Alone(path))
    harness.call("maintenance")
    last = finish(harness)["last"]
    assert not last["ok"]
    assert [step["step"] for step in last["steps"]] == ["integrity"]
    assert told == [path]
    harness.stop()


def test_an_unknown_kind_is_refused(path: str) -> None:
    harness = Harness(Alone(path))
    asked = harness.ask("maintenance", kind="gentle")
    assert asked.error is not None
    assert asked.error.code == ErrorCode.BAD_REQUEST
    harness.stop()
