"""`relctl ensure`: starts what should run and does not, once, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from actors.runtime import paths
from app.reliability._cli import ensure as module
from app.reliability._cli.offline import BoardReading
from app.reliability._cli.session import Session
from tests.app.cli_fakes import Relctl
from tests.chaos.system import ROOT, System, running, wait_until

STARTED = "It did not run; started it: 0 processes ready, launcher pid None.\n"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of launchers that were started."""
    found: list[list[str]] = []

    def start(_session: Session, words: list[str]) -> BoardReading:
        found.append(words)
        return BoardReading([], 0.0, stopping=False)

    monkeypatch.setattr("app.reliability._cli.up.start_detached", start)
    return found


def test_where_all_is_well_it_says_nothing(relctl: Relctl, starts: list[list[str]]) -> None:
    relctl.place_all()
    done = relctl("ensure")
    assert (done.code, done.out, done.err, starts) == (0, "", "", [])
    assert relctl("--json", "ensure").json == {"state": "running", "started": False, "message": ""}
    relctl.place(3, "event_logger", "quarantined", pid=0)
    assert relctl("ensure").out == ""  # the launcher's business


def test_where_nothing_ever_ran_it_starts_it(relctl: Relctl, starts: list[list[str]]) -> None:
    done = relctl("ensure", "--config", "own.toml", "--portable", "--", "sleep", "--help")
    assert (done.code, done.out) == (0, STARTED)
    (words,) = starts
    assert words[-4:] == ["--portable", "--", "sleep", "--help"]
    assert words[words.index("--config") + 1] == os.path.abspath("own.toml")


def test_what_was_stopped_on_purpose_stays_stopped(relctl: Relctl, starts: list[list[str]]) -> None:
    marker = relctl.data_dir / paths.STOP_MARKER_FILE
    marker.write_text("{}")
    done = relctl("ensure")  # after a reboot: there is no board
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert "stopped on purpose" in done.out
    relctl.place(0, "launcher", pid=0)
    assert "stopped on purpose" in relctl("ensure").out
    marker.unlink()
    relctl.board.stopping = True
    assert "stopped on purpose" in relctl("ensure").out
    assert relctl("--json", "ensure").json["state"] == "stopped"
    relctl.board.stopping = False
    assert relctl("ensure").out == STARTED
    assert len(starts) == 1


def test_survivors_are_given_their_time_and_relied_upon_no_longer(relctl: Relctl, starts: list[list[str]]) -> None:
    relctl.place_all()
    relctl.place(0, "launcher", pid=0)

    def restore(now: float) -> None:
        for slot in range(1, 5):
            relctl.board.slots[slot].beat(int(now * 1000))
        if now > 1003.0:
            relctl.place(0, "launcher")

    relctl.ports.on_sleep = restore
    done = relctl("ensure")
    assert (done.code, starts) == (0, [])
    assert done.out == "The launcher was missing; the others have brought it back.\n"

    relctl.place(0, "launcher", pid=0)
    relctl.ports.on_sleep = lambda now: (
        [relctl.board.slots[slot].beat(int(now * 1000)) for slot in range(1, 5)] and None
    )
    assert "the others did not bring it back; started it" in relctl("ensure").out
    assert len(starts) == 1


def test_a_launcher_that_died_too_often_is_left_to_its_budget(relctl: Relctl, starts: list[list[str]]) -> None:
    relctl.place_all()
    relctl.place(0, "launcher", pid=0, retry_at_ms=int((relctl.ports.now + 600) * 1000))
    refused = relctl("ensure")
    assert (refused.code, starts) == (1, [])
    assert "tried again in 10 min" in refused.err


def test_a_launcher_that_moves_again_while_it_is_watched_is_left_alone(
    relctl: Relctl, starts: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_kill", lambda *_: pytest.fail("it lives"))
    relctl.place_all()
    relctl.ports.now += 60.0  # nobody has moved for a minute: the machine woke up just now, say
    relctl.ports.on_sleep = lambda now: relctl.board.slots[0].beat(int(now * 1000)) if now > 1063.0 else None
    done = relctl("ensure")
    assert (done.code, done.out, starts) == (0, "", [])
    assert 1063.0 <= relctl.ports.now < 1065.0


def test_a_launcher_that_stands_still_with_everybody_else_is_replaced(
    relctl: Relctl, starts: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(module, "_kill", lambda _session, launcher: killed.append(launcher.pid))
    relctl.place_all()
    relctl.ports.now += 60.0
    done = relctl("ensure")
    assert done.out.startswith(f"The launcher (pid {os.getpid()}) stood still, and so did everybody else; started it")
    assert killed == [os.getpid()]
    assert len(starts) == 1
    assert relctl.ports.now >= 1065.0


def _ensure(system: System) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "app.reliability.cli", "--data-dir", str(system.data_dir), "--json", "ensure"]
    return subprocess.Popen(command, cwd=ROOT, env=system.environment, stdout=subprocess.PIPE, text=True)


def test_several_at_once_start_one_system() -> None:
    with running(start=False) as system:
        checks = [_ensure(system) for _ in range(4)]
        reports = [json.loads(check.communicate(timeout=60)[0]) for check in checks]
        assert [check.returncode for check in checks] == [0] * 4
        assert sum(report["started"] for report in reports) == 1
        pid = system.pid("launcher")
        assert {report["pid"] for report in reports if report["started"]} == {pid}
        began = time.monotonic()
        assert system.relctl("ensure").stdout == ""
        assert time.monotonic() - began < 1.0  # 90 ms where nobody else computes
        assert system.pid("launcher") == pid
        system.stop()
        stopped = system.relctl("ensure")
        assert (stopped.returncode, stopped.stdout.count("\n")) == (0, 1)
        assert not system.processes()


def test_a_frozen_launcher_without_a_survivor_is_replaced() -> None:
    with running(config="hang_timeout_s = 1.0\nrestart_max = 10000\n") as system:
        launcher = system.pid("launcher")
        everybody = [identity.pid for identity in system.identities().values()]
        for pid in (launcher, *everybody):
            os.kill(pid, signal.SIGSTOP)
        for pid in everybody:
            if pid != launcher:
                os.kill(pid, signal.SIGKILL)
        time_frozen = time.monotonic()
        wait_until(lambda: time.monotonic() - time_frozen > 1.2, 5.0, "it has been silent for its hang timeout")
        done = system.relctl("ensure")
        assert done.returncode == 0, done.stderr
        assert f"The launcher (pid {launcher}) stood still" in done.stdout
        system.wait_whole(10.0)
        assert system.pid("launcher") != launcher
        system.stop()
