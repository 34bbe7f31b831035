"""The actor and its files: written behind the commits, whole at a stop, verified and mended on request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig
from actors.event_logger.queries import verify_log
from actors.event_logger.upkeep import LOOK_INTERVAL_S, Retention
from actors.runtime.liveness import Board
from protocol.severity import Severity
from tests.actors.harness import Harness

EVENT = {"severity": "INFO", "component": "shop", "event_type": "order_paid"}


@pytest.fixture
def logger(tmp_path: Path) -> Harness:
    return make(tmp_path)


def make(tmp_path: Path) -> Harness:
    (tmp_path / "journal").mkdir(exist_ok=True)
    board = Board.create(str(tmp_path / "board"))
    path, journal = str(tmp_path / "reliability.db"), str(tmp_path / "journal")
    return Harness(EventLogger(path, journal, board, EventLoggerConfig(), lambda: 1_790_000_000_000))


def lines(tmp_path: Path) -> list[str]:
    (path,) = (tmp_path / "events").glob("events-*.jsonl")
    return path.read_text().splitlines()


def test_files_follow_the_commits(logger: Harness, tmp_path: Path) -> None:
    logger.call("emit_many", events=[EVENT | {"message": str(number)} for number in range(100)])
    logger.until(lambda: logger.actor.status()["events"]["filed_seq"] == 100)
    assert len(lines(tmp_path)) == 100
    logger.stop()


def test_a_stop_leaves_files_and_head_that_are_whole(logger: Harness, tmp_path: Path) -> None:
    asked = [logger.ask("emit", **EVENT, message=str(number)) for number in range(300)]
    logger.stop()
    assert all(item.error is None for item in asked)
    assert len(lines(tmp_path)) == 300
    assert verify_log(str(tmp_path))["findings"] == []
    assert '"seq": 300,' in (tmp_path / "events" / "head.json").read_text()


def test_verify_mends_a_file_and_leaves_a_trace(logger: Harness, tmp_path: Path) -> None:
    logger.call("emit_many", events=[EVENT | {"message": str(number)} for number in range(100)])
    logger.until(lambda: logger.actor.status()["events"]["filed_seq"] == 100)
    assert logger.call("verify")["findings"] == []
    (path,) = (tmp_path / "events").glob("events-*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"message":"50"', b'"message":"51"'))
    found = logger.call("verify", repair=False)
    assert [(item["kind"], item["seq"]) for item in found["findings"]] == [("changed", 51)]
    assert path.read_bytes() != whole
    logger.call("verify")
    logger.until(lambda: path.exists() and path.read_bytes() == whole)
    assert logger.call("verify")["findings"] == []
    kinds = [kind for _, kind, _ in logger.logged]
    assert "event_log_not_intact" in kinds
    assert kinds[-1] == "event_log_verified"
    logger.stop()


def test_a_successor_goes_on_with_files_of_a_killed_one(logger: Harness, tmp_path: Path) -> None:
    logger.call("emit", **EVENT, message="filed")
    logger.until(lambda: logger.actor.status()["events"]["filed_seq"] == 1)
    logger.call("emit", **EVENT, message="perhaps not filed")
    successor = make(tmp_path)  # the first one is as good as dead: it never turns again
    successor.call("emit", **EVENT, message="after", id="ee" * 16)
    successor.stop()
    assert verify_log(str(tmp_path))["findings"] == []
    assert len(lines(tmp_path)) == 3


class Shelf:
    """A store of which two days have expired; the first takes two slices."""

    def __init__(self) -> None:
        self.slices = ["2026-01-01", "2026-01-01", "2026-01-02"]

    def look_for_expired(self, _run_s: int, days_kept: int, _patience_s: float) -> list[str]:
        return sorted(set(self.slices)) if days_kept == 90 else []

    def retire(self, day: str, _patience_s: float) -> bool:
        assert self.slices.pop(0) == day
        return day in self.slices


def test_each_day_that_is_removed_is_told_of_once() -> None:
    told: list[tuple[Any, ...]] = []

    def submit(_what: str, on_done: Callable[[Any], None], function: Callable[..., Any], *arguments: Any) -> None:
        on_done(function(*arguments))

    shelf: Any = Shelf()
    retention = Retention(shelf, 90, submit, lambda *event, **attributes: told.append((*event[:2], attributes)))
    for turn in range(5):
        retention.tick(turn * LOOK_INTERVAL_S + 1.0)
    assert told == [
        (Severity.INFO, "events_retired", {"day": day, "days_kept": 90}) for day in ("2026-01-01", "2026-01-02")
    ]
