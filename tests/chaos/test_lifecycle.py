"""Start, stop, second instances, debris of the dead, thawed ghosts, and what is left behind: nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.runtime import paths
from tests.chaos.conftest import CONFIG, HANG_TIMEOUT_S
from tests.chaos.system import PROCESSES, ROOT, gone, is_stopped, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]
MODES = pytest.mark.parametrize(
    "portable", [False, pytest.param(True, marks=pytest.mark.portable)], ids=["posix", "portable"]
)


def launch(system_data: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launcher.py"), "--data-dir", str(system_data), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


@MODES
def test_a_second_launcher_exits_11_with_one_clear_line(portable: bool) -> None:
    with running(portable=portable, config=CONFIG) as system:
        second = launch(system.data_dir, system.environment, *(["--portable"] if portable else []))
        assert second.returncode == 11
        lines = (second.stdout + second.stderr).strip().splitlines()
        assert len(lines) == 1
        assert str(system.data_dir) in lines[0]
        system.wait_whole(5)
        system.stop()


@MODES
@pytest.mark.parametrize("how", ["relctl down", "SIGTERM", "SIGINT"])
def test_nothing_is_left_after_a_stop(portable: bool, how: str) -> None:
    with running(portable=portable, config=CONFIG) as system:
        assert system.launcher is not None
        runtime = system.runtime_dir
        if how == "relctl down":
            system.stop()
        else:
            system.launcher.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
        assert system.launcher.wait(20) == 0
        wait_until(lambda: not system.processes(), 30, "no process left")
        sockets = [item.name for item in runtime.rglob("*") if item.is_socket()] if runtime.exists() else []
        assert sockets == []
        assert all(item.stat().st_size == 0 for item in system.data_dir.glob("*.db-wal")), "the WAL is checkpointed"
        marker = json.loads((system.data_dir / paths.STOP_MARKER_FILE).read_text())
        assert marker
        offline = system.relctl("--json", "health")
        assert offline.returncode in (2, 3)
        system.start()
        system.stop()


@MODES
def test_a_start_over_whatever_the_dead_left(portable: bool) -> None:
    with running(portable=portable, config=CONFIG) as system:
        old = system.identities()
        for pid in system.processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not system.processes(), 30, "all dead")
        time.sleep(1.5)  # nobody is alive who could bring anything back
        assert not system.processes()
        system.start()
        assert all(system.pid(name) != identity.pid for name, identity in old.items())
        system.stop()


def test_a_start_over_damaged_debris() -> None:
    with running(config=CONFIG) as system:
        runtime = system.runtime_dir
        for pid in system.processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not system.processes(), 30, "all dead")
        (runtime / paths.BOARD_FILE).write_bytes(b"damaged")
        (runtime / paths.RUN_FILE).write_text("{")
        (system.data_dir / paths.RUN_FILE).write_text("")
        (system.data_dir / paths.RESTARTS_FILE).write_text("[1,")
        (runtime / paths.TOKEN_FILE).write_bytes(b"short")
        system.start()
        system.stop()


@MODES
def test_stopped_stays_stopped_and_up_starts_it_again(portable: bool) -> None:
    with running(portable=portable, config=CONFIG) as system:
        system.stop()
        time.sleep(2)  # a survivor that ignored the marker would have acted by now
        assert not system.processes()
        config = ["--config", str(system.data_dir / paths.CONFIG_FILE)]
        up = system.relctl("up", "--detach", *config, *(["--portable"] if portable else []))
        assert up.returncode == 0, up.stdout + up.stderr
        system.wait_whole(5)
        again = system.relctl("up", "--detach", *config, *(["--portable"] if portable else []))
        assert again.returncode == 0, again.stdout + again.stderr
        system.stop()


@MODES
def test_down_works_after_a_survivor_replaced_the_launcher(portable: bool) -> None:
    with running(portable=portable, config=CONFIG) as system:
        first = system.pid("launcher")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", first), 30, "a new launcher")
        system.stop()


def test_down_works_when_launcher_and_watchdog_are_frozen() -> None:
    with running(config=CONFIG) as system:
        for name in ("launcher", "watchdog"):
            system.signal(name, signal.SIGSTOP)
        system.stop()


@MODES
def test_frozen_launcher_and_watchdog_leave_when_thawed_after_they_were_replaced(portable: bool) -> None:
    with running(portable=portable, config=CONFIG) as system:
        old = {name: identity for name, identity in system.identities().items() if name in ("launcher", "watchdog")}
        for identity in old.values():
            os.kill(identity.pid, signal.SIGSTOP)
        wait_until(lambda: all(is_stopped(identity.pid) for identity in old.values()), 30, "both frozen")
        wait_until(
            lambda: all(system.ready(name) and system.identity(name) != old[name] for name in old),
            2 * (HANG_TIMEOUT_S + 1),
            "both replaced",
        )
        for identity in old.values():
            if not gone(identity):
                os.kill(identity.pid, signal.SIGCONT)
        wait_until(lambda: all(gone(identity) for identity in old.values()), 30, "the thawed ones left")
        system.wait_whole(5)
        after = system.identities()
        time.sleep(2)  # a ghost that had left a mark would have caused a restart by now
        assert system.identities() == after
        system.stop()


@MODES
def test_ps_and_health_answer_within_a_second_while_the_broker_is_frozen(portable: bool) -> None:
    with running(portable=portable, config=CONFIG.replace("2.0", "6.0")) as system:
        system.signal("broker", signal.SIGSTOP)
        for command in ("ps", "health"):
            start = time.monotonic()
            result = system.relctl("--json", command)
            took_s = time.monotonic() - start
            report = json.loads(result.stdout)
            assert report["offline"] is True
            assert took_s < 2.0, f"{command} took {took_s:.2f} s"  # one second, and the start of a Python
        assert gone(system.identities()["broker"]) is False
        system.stop()


def test_evidence_of_a_hang_is_kept_with_the_restart() -> None:
    with running(config=CONFIG) as system:
        pid = system.pid("health_monitor")
        system.signal("health_monitor", signal.SIGSTOP)
        wait_until(lambda: system.replaced("health_monitor", pid), 30, "replaced")

        def told() -> bool:
            status = json.loads(system.relctl("--json", "restart-status", "health_monitor").stdout)
            return any("frozen" in entry["reason"] for entry in status["processes"][0]["history"])

        wait_until(told, 30, "the cause in restart-status", interval_s=0.2)
        story = system.relctl("restart-status", "health_monitor").stdout
        assert "frozen" in story
        system.stop()


def test_every_process_shows_its_role(tmp_path: Path) -> None:
    with running(config=CONFIG) as system:
        for name in PROCESSES:
            title = Path(f"/proc/{system.pid(name)}/cmdline").read_bytes().rstrip(b"\0").decode()
            assert title == f"relctl: {name}"
        system.stop()
