"""The last checkpoint is taken in time, once in a silence, and whatever the host's callback does."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.reliability import _last_checkpoint
from app.reliability._last_checkpoint import LastCheckpoint
from protocol.errors import ErrorCode, LocalError
from tests.chaos.system import wait_until


class FakeWatchdog:
    name = "mine"

    def __init__(self) -> None:
        self.beat_at = 1.0
        self.silence_left_s = 60.0


class FakeRecovery:
    name = "mine"

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.problem: Exception | None = None

    def keep_apart(self, *, state: Any = "handed over", timeout: float = 0.0) -> bool:
        if self.problem is not None:
            raise self.problem
        self.kept.append(state)
        return True


class FakeEvents:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def log(self, level: str, component: str, event_type: str, message: str, details: Any) -> str:
        self.said.append((level, message))
        return ""


class Listening:
    """One that listens to nobody: there is no system in its directory."""

    def __init__(self, place: Path, callback: Callable[[], Any] | None) -> None:
        self.watchdog, self.recovery, self.events = FakeWatchdog(), FakeRecovery(), FakeEvents()
        parts: Any = (self.watchdog, str(place), self.recovery, self.events, lambda: callback)
        self.listener = LastCheckpoint(*parts)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_last_checkpoint, "_LOOK_S", 0.02)


def test_a_silence_is_seen_without_a_word_from_anybody_and_once(tmp_path: Path) -> None:
    listening = Listening(tmp_path, lambda: "state")
    try:
        listening.watchdog.silence_left_s = 0.9
        wait_until(lambda: listening.recovery.kept == ["state"], 20, "it is kept")
        wait_until(lambda: bool(listening.events.said), 20, "and told of")
        assert listening.events.said[0][0] == "NOTICE"
        time.sleep(0.2)
        assert listening.recovery.kept == ["state"], "once"
        listening.watchdog.beat_at = 2.0  # it moved, and is silent anew
        wait_until(lambda: listening.recovery.kept == ["state", "state"], 20, "again")
    finally:
        listening.listener.close()


def test_nothing_is_taken_from_one_that_moves(tmp_path: Path) -> None:
    listening = Listening(tmp_path, lambda: "state")
    time.sleep(0.3)
    listening.listener.close()
    assert listening.recovery.kept == []


def raising() -> None:
    raise KeyError("the host's own")


@pytest.mark.parametrize("kind", ["waits for a lock", "fails", "is none"])
def test_a_callback_that_does_not_answer_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    lock = threading.Lock()
    lock.acquire()
    callback = {"waits for a lock": lock.acquire, "fails": raising, "is none": None}[kind]
    listening = Listening(tmp_path, callback)
    try:
        listening.watchdog.silence_left_s = 0.5
        wait_until(lambda: listening.recovery.kept == ["handed over"], 20, "what was handed over is kept")
    finally:
        lock.release()
        listening.listener.close()


def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    listening = Listening(tmp_path, lambda: "state")
    listening.recovery.problem = LocalError(ErrorCode.REFUSED, "somebody else has this name", "")
    try:
        listening.watchdog.silence_left_s = 0.5
        wait_until(lambda: bool(listening.events.said), 20, "it is told")
        assert listening.events.said[0][0] == "WARN"
        assert "somebody else has this name" in listening.events.said[0][1]
    finally:
        listening.listener.close()
