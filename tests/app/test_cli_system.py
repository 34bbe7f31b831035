"""relctl against the real system: the shapes that scripts rely on, and errors that tell one trouble from another."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.chaos.system import PROCESSES, ROOT, System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60)]
OFFLINE_S_MAX = 2.0
"""One second, and the start of a Python on a busy machine."""


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """One system for all tests here; each leaves it whole."""
    with running() as system:
        yield system
        system.stop()


def ask(system: System, *arguments: str, code: int = 0) -> Any:
    result = system.relctl("--json", *arguments)
    assert result.returncode == code, result.stdout + result.stderr
    return json.loads(result.stdout)


def error_of(system: System, *arguments: str) -> tuple[int, str]:
    result = system.relctl("--json", *arguments)
    error = json.loads(result.stderr)["error"]
    assert error["message"]
    assert error["hint"]
    return result.returncode, error["code"]


@contextmanager
def frozen(system: System, name: str) -> Iterator[None]:
    """`name` stands still, for less than its hang timeout."""
    system.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        system.signal(name, signal.SIGCONT)
        wait_until(lambda: system.answers(name), 30, f"{name} answers again")


def test_ps(system: System) -> None:
    processes = ask(system, "ps")["processes"]
    assert [process["name"] for process in processes] == list(PROCESSES)
    kinds = [process["kind"] for process in processes]
    assert kinds == ["launcher", "broker", "watchdog", *["actor"] * (len(PROCESSES) - 3)]
    for process in processes:
        assert process["pid"] == system.pid(process["name"])
        assert process["state"] == "ready"
        assert process["incarnation"] >= 1
        assert 0 <= process["progress_age_s"] < 5 < process["pss_bytes"]
        assert process["restarts_left"] > 0


def test_health(system: System) -> None:
    wait_until(lambda: system.relctl("health").returncode == 0, 30, "all is well", interval_s=0.2)
    report = ask(system, "health")
    assert report["status"] == "ok"
    assert "offline" not in report
    assert {"disk", "memory", "database", *PROCESSES} <= {check["name"] for check in report["checks"]}
    assert all({"name", "status", "message", "value", "unit", "age_s"} <= check.keys() for check in report["checks"])
    assert [check["name"] for check in ask(system, "health", "disk")["checks"]] == ["disk"]


def test_an_event_from_its_emission_to_the_log(system: System) -> None:
    emitted = ask(system, "emit", "WARN", "shop", "low", "running out of tea", "--detail", "left=2")
    assert emitted["spooled"] is False
    (event,) = [json.loads(line) for line in system.relctl("--json", "search", "OUT OF TEA").stdout.splitlines()]
    assert event["seq"] == emitted["seq"]
    assert event["id"] == emitted["id"]
    assert (event["severity_text"], event["severity_number"]) == ("WARN", 13)
    assert event["attributes"] == {"left": "2"}
    assert event["timestamp"].endswith("Z")
    lines = system.relctl("logs", "shop", "-p", "WARN", "-n", "1").stdout
    assert "WARN      shop  low: running out of tea" in lines


def test_restart_stop_start_and_what_is_told_of_it(system: System) -> None:
    before = ask(system, "restart-status", "health_monitor")["processes"][0]
    pid = system.pid("health_monitor")
    restarted = ask(system, "restart", "health_monitor")
    assert restarted["state"] == "ready"
    assert restarted["pid"] == system.pid("health_monitor") != pid
    assert ask(system, "stop", "health_monitor")["state"] == "stopped"
    assert error_of(system, "--timeout", "1", "restart", "moon")[0] == 2
    assert ask(system, "start", "health_monitor")["state"] == "ready"

    def told() -> bool:
        history = ask(system, "restart-status", "health_monitor")["processes"][0]["history"]
        return len(history) > len(before["history"]) and history[0]["recovery_ms"] is not None

    wait_until(told, 30, "the restart in restart-status", interval_s=0.2)
    after = ask(system, "restart-status", "health_monitor")["processes"][0]
    assert after["restarts_in_period"] == before["restarts_in_period"], "a restart by hand costs nothing"
    assert {"timestamp", "reason", "exit_code", "signal", "recovery_ms"} <= after["history"][0].keys()


def test_emit_keeps_the_event_whoever_is_hung_or_missing(system: System) -> None:
    ids = []

    def emit() -> None:
        emitted = ask(system, "emit", "INFO", "shop", "kept", "x")
        assert (emitted["seq"], emitted["spooled"]) == (None, True)
        ids.append(emitted["id"])

    with frozen(system, "broker"):
        emit()
    with frozen(system, "event_logger"):
        emit()
    ask(system, "stop", "event_logger")
    emit()
    ask(system, "start", "event_logger")
    ask(system, "stop", "broker")
    emit()
    assert ask(system, "restart", "broker")["state"] == "ready", "the launcher is asked directly"

    def shown() -> list[str]:
        return [event["id"] for event in map(json.loads, system.relctl("--json", "logs", "shop").stdout.splitlines())]

    wait_until(lambda: set(ids) <= set(shown()), 30, "what was spooled in the log", interval_s=0.2)
    assert [shown().count(event_id) for event_id in ids] == [1] * 4


@pytest.mark.parametrize("victim", ["broker", "event_logger"])
def test_files_answer_within_a_second_for_what_hangs(system: System, victim: str) -> None:
    ask(system, "emit", "INFO", "shop", "low", "still on file")
    with frozen(system, victim):
        for command in (("search", "on file"), ("logs", "-n", "1"), ("restart-status",)):
            start = time.monotonic()
            result = system.relctl("--json", *command)
            assert time.monotonic() - start < OFFLINE_S_MAX
            assert result.returncode == 0, result.stderr
            assert json.loads(result.stdout.splitlines()[-1])["offline"] is True
            if victim == "event_logger":
                break  # one is enough: it is the same way


def test_follow_goes_on_when_the_broker_is_replaced_and_ends_with_130(system: System) -> None:
    command = [sys.executable, "-m", "app.reliability.cli", "--data-dir", str(system.data_dir)]
    command += ["--json", "logs", "follower", "-f", "-n", "1"]

    def emit(message: str) -> None:
        system.client.call(
            "event_logger", "emit", severity="INFO", component="follower", event_type="t", message=message
        )

    emit("one")
    follower = subprocess.Popen(command, env=system.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["message"] == "one"
        emit("two")
        assert json.loads(follower.stdout.readline())["message"] == "two"
        system.signal("broker", signal.SIGKILL)
        emit("three")
        assert json.loads(follower.stdout.readline())["message"] == "three"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(5) == 130
    finally:
        follower.kill()
        follower.communicate()


def test_up_in_the_foreground_becomes_the_launcher() -> None:
    with running(start=False) as system:
        config = str(system.data_dir / "reliability.toml")
        command = [sys.executable, "-m", "app.reliability.cli", "--data-dir", str(system.data_dir), "up"]
        system.launcher = subprocess.Popen(
            [*command, "--config", config], env=system.environment, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        system.wait_whole(20)
        assert system.pid("launcher") == system.launcher.pid
        system.launcher.send_signal(signal.SIGINT)
        assert system.launcher.wait(20) == 0


def test_a_start_during_a_stop_waits_for_its_end() -> None:
    with running() as system:
        assert system.launcher is not None
        system.launcher.send_signal(signal.SIGTERM)
        wait_until(lambda: system.board.stopping, 30, "the stop has begun", interval_s=0.001)
        started = ask(system, "up", "--detach", "--config", str(system.data_dir / "reliability.toml"))
        assert started["already_running"] is False
        assert system.launcher.wait(5) == 0
        assert {process["state"] for process in ask(system, "ps")["processes"]} == {"ready"}
        system.stop()


def test_a_start_that_fails_says_why() -> None:
    with running(start=False, config="restart_maximum = 3\n") as system:
        config = str(system.data_dir / "reliability.toml")
        result = system.relctl("--json", "up", "--detach", "--config", config)
        assert result.returncode == 2
        error = json.loads(result.stderr)["error"]
        assert error["code"] == "configuration"
        assert "unknown key 'restart_maximum' in [supervision]" in error["message"]
        assert "launcher.log" in error["hint"]
        assert error_of(system, "restart", "broker") == (10, "not_running")
        assert ask(system, "emit", "INFO", "shop", "low", "x")["spooled"] is True
