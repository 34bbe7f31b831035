"""The budget: three restarts an hour, then quarantine, that nothing but time or a person lifts."""

import json
import os
import signal

import pytest

from tests.chaos.system import PROCESSES, System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


def kill_until_quarantined(system: System, name: str) -> None:
    for _ in range(3):
        pid = system.pid(name)
        system.signal(name, signal.SIGKILL)
        wait_until(lambda pid=pid: system.replaced(name, pid), 30, f"{name} back")
    system.signal(name, signal.SIGKILL)
    wait_until(lambda: system.state(name) == "quarantined", 30, f"{name} quarantined")


def quarantined(system: System, name: str) -> bool:
    status = json.loads(system.relctl("--json", "restart-status", name).stdout)
    return bool(status["processes"][0]["quarantined"])


@pytest.mark.parametrize("portable", [False, pytest.param(True, marks=pytest.mark.portable)], ids=["posix", "portable"])
def test_the_fourth_failure_quarantines_until_a_person_restarts_it(portable: bool) -> None:
    with running(portable=portable, config="hang_timeout_s = 2\n") as system:
        kill_until_quarantined(system, "health_monitor")

        health = system.relctl("--json", "health")
        assert health.returncode == 2, health.stdout + health.stderr
        check = next(item for item in json.loads(health.stdout)["checks"] if "health_monitor" in item["name"])
        assert check["status"] == "critical"
        assert "quarantined" in check["message"]

        status = json.loads(system.relctl("--json", "restart-status", "health_monitor").stdout)["processes"][0]
        assert status["quarantined"]
        assert status["restarts_left"] == 0
        assert [entry["signal"] for entry in status["history"]].count(9) >= 3

        def logged() -> bool:
            lines = system.relctl("--json", "logs", "launcher", "-n", "200").stdout.splitlines()
            return any("quarantine" in json.loads(line)["event_type"] for line in lines)

        wait_until(logged, 30, "the quarantine in the event log", interval_s=0.2)

        launcher = system.pid("launcher")
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", launcher), 30, "a new launcher")
        assert system.state("health_monitor") == "quarantined"
        assert quarantined(system, "health_monitor")

        restarted = system.relctl("--json", "restart", "health_monitor")
        assert restarted.returncode == 0, restarted.stderr
        wait_until(lambda: system.ready("health_monitor"), 30, "health_monitor lifted out of quarantine")
        assert not quarantined(system, "health_monitor")
        system.wait_whole(5)
        system.stop()


def test_quarantine_survives_the_end_of_every_process() -> None:
    with running(config="hang_timeout_s = 2\n") as system:
        kill_until_quarantined(system, "health_monitor")
        for pid in system.processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not system.processes(), 30, "all dead")
        assert quarantined(system, "health_monitor"), "an offline view must say so too"
        assert system.relctl("health").returncode == 2


def test_a_quarantined_process_is_tried_again_when_the_oldest_restart_ages_out() -> None:
    with running(config="restart_max = 1\nrestart_period_s = 4\nhang_timeout_s = 2\n") as system:
        first = system.pid("health_monitor")
        system.signal("health_monitor", signal.SIGKILL)
        wait_until(lambda: system.replaced("health_monitor", first), 30, "back")
        second = system.pid("health_monitor")
        system.signal("health_monitor", signal.SIGKILL)
        wait_until(lambda: system.state("health_monitor") == "quarantined", 30, "quarantined")
        wait_until(lambda: system.replaced("health_monitor", second), 30, "tried again")
        system.stop()


def test_only_the_broker_is_charged_when_the_broker_dies() -> None:
    with running(config="hang_timeout_s = 2\n") as system:
        pid = system.pid("broker")
        system.signal("broker", signal.SIGKILL)
        wait_until(lambda: system.replaced("broker", pid), 30, "broker back")
        system.wait_whole(5)
        used = {record.name: record.restarts_in_period for _, record in system.board.occupied()}
        assert used == dict.fromkeys(PROCESSES, 0) | {"broker": 1}
        system.stop()
