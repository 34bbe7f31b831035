"""down: by the launcher, and without it; every process ends by its identity, and nobody is brought back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import paths
from actors.runtime.filelock import FileLock
from actors.runtime.identity import identity_of
from app.reliability._cli import down
from protocol.errors import ErrorCode, LocalError
from tests.app.cli_fakes import Relctl

NAMES = ("launcher", "broker", "watchdog", "event_logger", "health_monitor")
CHILD = """
import os, signal, sys, time
def leave(*_):
    open(sys.argv[2], "w").write(str(os.path.exists(sys.argv[3])))
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "stubborn" else leave)
print("up", flush=True)
while True: time.sleep(60)
"""


class Zoo:
    """Real processes on the board, none of them ours."""

    def __init__(self, relctl: Relctl, notes: Path) -> None:
        self.relctl = relctl
        self.notes = notes
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, number: int, name: str, manner: str = "polite") -> subprocess.Popen[str]:
        marker = str(self.relctl.data_dir / paths.STOP_MARKER_FILE)
        command = [sys.executable, "-c", CHILD, manner, str(self.notes / name), marker]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        identity = identity_of(process.pid)
        assert identity is not None
        self.relctl.place(number, name, pid=identity.pid, start_time=identity.start_time)
        self.processes[name] = process
        return process

    def start_all(self) -> None:
        for number, name in enumerate(NAMES):
            self.start(number, name)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


@pytest.fixture
def zoo(relctl: Relctl, tmp_path: Path) -> Iterator[Zoo]:
    """Processes to be ended, in real time."""
    relctl.ports.monotonic = time.monotonic
    relctl.ports.sleep = time.sleep
    zoo = Zoo(relctl, tmp_path)
    yield zoo
    zoo.end()


def test_down_asks_the_launcher_and_waits_until_all_are_gone(relctl: Relctl, zoo: Zoo) -> None:
    zoo.start_all()
    asked = []

    def stop(op: str, **_arguments: Any) -> dict[str, Any]:
        asked.append(op)
        for process in reversed(zoo.processes.values()):
            process.terminate()
        return {}

    relctl.ports.launcher = stop
    result = relctl("--json", "down")
    assert result.code == 0, result.err
    assert asked == ["down"]
    assert sorted(result.json["stopped"]) == sorted(NAMES)
    assert result.json["forced"] is None
    assert not any(identity_of(process.pid) for process in zoo.processes.values())


@pytest.mark.parametrize("code", [ErrorCode.NOT_RUNNING, ErrorCode.DEADLINE_PASSED])
def test_without_a_launcher_each_process_is_ended_after_the_stop_is_marked(
    relctl: Relctl, zoo: Zoo, code: ErrorCode
) -> None:
    zoo.start_all()

    def fail(*_arguments: Any, **_more: Any) -> dict[str, Any]:
        raise LocalError(code, "no launcher")

    relctl.ports.launcher = fail
    result = relctl("--json", "down")
    assert result.code == 0, result.err
    assert result.json["forced"] == "no launcher"
    assert relctl.board.stopping
    marker = json.loads((relctl.data_dir / paths.STOP_MARKER_FILE).read_text())
    assert "relctl down" in marker["by"]
    assert (relctl.runtime_dir / paths.STOP_MARKER_FILE).exists()
    polite = [name for name in NAMES if name != "launcher"]
    assert [(zoo.notes / name).read_text() for name in polite] == ["True"] * 4, "marked durably before the first signal"
    assert not (zoo.notes / "launcher").exists(), "a launcher that cannot be asked gets no chance to interfere"
    journal = (relctl.runtime_dir / paths.JOURNAL_DIR / "relctl.jsonl").read_text()
    assert "stop_forced" in journal


def test_the_stubborn_and_the_frozen_are_killed(relctl: Relctl, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "TERMINATE_S", 0.3)
    zoo.start(1, "broker", "stubborn")
    frozen = zoo.start(2, "watchdog")
    os.kill(frozen.pid, signal.SIGSTOP)
    result = relctl("down")
    assert result.code == 0, result.err
    assert result.out.startswith("Stopped 2 processes in ")
    assert "ending each process" in result.err
    assert zoo.processes["broker"].wait(5) == -signal.SIGKILL
    assert frozen.wait(5) == -signal.SIGKILL


def test_a_pid_that_somebody_else_has_now_is_left_alone(relctl: Relctl, zoo: Zoo) -> None:
    innocent = zoo.start(1, "broker")
    zoo.start(2, "watchdog")
    relctl.place(1, "broker", pid=innocent.pid, start_time=1)
    assert relctl("down").code == 0
    assert identity_of(innocent.pid) is not None
    assert zoo.processes["watchdog"].wait(5) == 0


def test_a_launcher_that_does_not_get_done_is_helped(relctl: Relctl, zoo: Zoo) -> None:
    zoo.start_all()
    relctl.ports.launcher = lambda *_arguments, **_more: {}
    result = relctl("--json", "--timeout", "1", "down")
    assert result.code == 0, result.err
    assert result.json["forced"] == "the launcher did not get done"


def test_down_with_nothing_running_is_done(relctl: Relctl) -> None:
    assert relctl("down").out == "Nothing is running.\n"
    assert not (relctl.data_dir / paths.STOP_MARKER_FILE).exists()
    assert relctl("--json", "down").json == {"stopped": [], "took_s": 0.0, "forced": None}


def test_a_launcher_without_a_board_is_not_taken_for_nothing(relctl: Relctl) -> None:
    with FileLock(str(relctl.data_dir / paths.INSTANCE_LOCK_FILE)) as lock:
        assert lock.acquire()
        result = relctl("--json", "down")
        assert result.code == 11
        assert "liveness board cannot be read" in result.error["message"]
