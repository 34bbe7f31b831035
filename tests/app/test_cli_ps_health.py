"""ps and health: what the board shows, what health_monitor says, and which of them speaks."""

from pathlib import Path
from typing import Any

import pytest

from actors.runtime.liveness import Verdict, WatchdogRecord
from protocol.errors import ErrorCode, LocalError, RemoteError
from tests.app.cli_fakes import Relctl

CHECKS = [
    {"name": "disk", "status": "ok", "message": "20.0 GB free", "value": 20e9, "unit": "bytes", "age_s": 1.0},
    {"name": "memory", "status": "warning", "message": "pressure", "value": 22.5, "unit": "%", "age_s": 70.0},
    {"name": "broker", "status": "ok", "message": "running", "value": None, "unit": "", "age_s": 0.1},
]
KEYS = (
    "name", "kind", "pid", "state", "incarnation", "uptime_s", "restarts_in_period", "restarts_left", "progress_age_s",
    "pss_bytes",
)  # fmt: skip


def report(*changes: dict[str, Any], status: str) -> dict[str, Any]:
    checks = [check | change for check, change in zip(CHECKS, changes, strict=False)] + CHECKS[len(changes) :]
    return {"status": status, "checks": checks, "degraded": []}


def by_name(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in document[key]}


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 1), ("critical", 2), ("unknown", 3), ("new", 3)])
def test_health_exits_by_the_convention_of_monitoring_plugins(relctl: Relctl, status: str, code: int) -> None:
    relctl.client.answers["health_monitor", "health"] = report(status=status)
    result = relctl("--json", "health")
    assert result.code == code
    assert result.json == report(status=status)


def test_health_for_people_has_a_headline_and_a_line_per_check(relctl: Relctl) -> None:
    relctl.client.answers["health_monitor", "health"] = report(status="warning")
    head, disk, memory, broker = relctl("health").out.splitlines()
    assert head == "WARNING - memory: pressure | 'disk'=20000000000.0B 'memory'=22.5%"
    assert disk == "  ✓ disk    20.0 GB free"
    assert memory == "  ! memory  pressure (1 min 10 s ago)"
    assert broker == "  ✓ broker  running"


def test_health_of_one_name(relctl: Relctl) -> None:
    relctl.client.answers["health_monitor", "health"] = report(status="warning")
    result = relctl("--json", "health", "disk")
    assert result.code == 0
    assert [check["name"] for check in result.json["checks"]] == ["disk"]
    unknown = relctl("--json", "health", "moon")
    assert unknown.code == 3
    assert unknown.error["hint"] == "Checks: disk, memory, broker."


def test_offline_health_without_a_board_is_unknown(relctl: Relctl) -> None:
    result = relctl("--json", "health")
    assert result.code == 3
    assert result.json["status"] == "unknown"
    assert result.json["offline"] is True
    assert relctl("health").out.startswith("UNKNOWN - system: nothing runs on ")


@pytest.mark.parametrize(
    "code", [ErrorCode.BROKER_DOWN, ErrorCode.BROKER_HUNG, ErrorCode.SERVICE_MISSING, ErrorCode.BUSY]
)
def test_offline_health_comes_from_the_board_and_warns(relctl: Relctl, code: ErrorCode) -> None:
    relctl.place_all()
    relctl.client.answers["health_monitor", "health"] = LocalError(code, "nobody answers")
    result = relctl("--json", "health")
    assert result.code == 1
    assert result.json["offline"] is True
    assert result.json["age_s"] == 0
    checks = by_name(result.json, "checks")
    assert checks["broker"]["status"] == "ok"
    assert "nobody answers" in checks["system"]["message"]
    assert "Offline view from the liveness board, 0 ms old: nobody answers" in relctl("health").out


def test_offline_health_with_a_quarantined_process_is_critical(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.place(4, "health_monitor", "quarantined", pid=0, restarts_in_period=3, restarts_left=0, reason="killed")
    result = relctl("--json", "health")
    assert result.code == 2
    assert "quarantined" in by_name(result.json, "checks")["health_monitor"]["message"]


def test_offline_health_names_a_hung_process(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.board.slots[1].watchdog.write(WatchdogRecord(1, Verdict.HUNG, "frozen (stopped by a signal)", 0))
    result = relctl("health")
    assert result.code == 2
    assert "broker: hung: frozen" in result.out.splitlines()[0]


def test_offline_health_of_the_dead_and_of_the_stopped(relctl: Relctl) -> None:
    for number, name in enumerate(("launcher", "broker")):
        relctl.place(number, name, pid=0)
    dead = relctl("--json", "health")
    assert dead.code == 2
    relctl.board.stopping = True
    stopped = relctl("--json", "health")
    assert stopped.code == 3
    assert by_name(stopped.json, "checks")["system"]["message"] == "stopped on purpose"


def test_an_error_of_health_monitor_itself_is_unknown(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.client.answers["health_monitor", "health"] = RemoteError(ErrorCode.FAILED, "a defect")
    assert relctl("health").code == 3


@pytest.mark.parametrize(("moving", "tries"), [(True, 2), (False, 1)])
def test_a_question_is_asked_longer_only_of_those_that_move(relctl: Relctl, moving: bool, tries: int) -> None:
    relctl.place_all()
    timeouts: list[float] = []

    def answer(timeout: float) -> dict[str, Any]:
        timeouts.append(timeout)
        relctl.ports.now += timeout
        for number in (1, 4) if moving else (4,):
            relctl.board.slots[number].beat(int(relctl.ports.now * 1000))
        raise LocalError(ErrorCode.DEADLINE_PASSED, "late")

    relctl.ports.now += 1
    relctl.client.answers["health_monitor", "health"] = answer
    result = relctl("health")
    assert result.code == 1
    assert ("broker stands still" in result.out) is not moving
    assert timeouts == [0.6, 4.4][:tries]


def test_ps_shows_every_process_of_the_board(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.place(3, "event_logger", "backoff", pid=0, restarts_in_period=2, restarts_left=1)
    relctl.client.answers["broker", "ping"] = {}
    result = relctl("--json", "ps")
    assert result.code == 0
    assert "offline" not in result.json
    processes = by_name(result.json, "processes")
    assert list(processes) == ["launcher", "broker", "watchdog", "event_logger", "health_monitor"]
    assert all(tuple(process) == KEYS for process in processes.values())
    assert processes["broker"]["uptime_s"] == 90.0
    assert processes["broker"]["state"] == "ready"
    assert processes["event_logger"]["pid"] is None
    assert processes["event_logger"]["pss_bytes"] is None
    if Path("/proc/self/smaps_rollup").exists():
        assert processes["broker"]["pss_bytes"] > 1024 * 1024


def test_ps_as_a_table(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.place(3, "event_logger", "backoff", pid=0, restarts_in_period=2, restarts_left=1)
    relctl.client.answers["broker", "ping"] = {}
    lines = relctl("ps").out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "PID", "UPTIME", "RESTARTS", "PROGRESS", "MEMORY"]
    assert lines[2].startswith("broker          ready    ")
    assert "1 min 30 s" in lines[2]
    assert lines[4].split() == ["event_logger", "backoff", "-", "-", "2", "of", "3", "-", "-"]
    assert all(len(line) <= 100 for line in lines)


def test_ps_is_labelled_offline_while_the_broker_does_not_answer(relctl: Relctl) -> None:
    relctl.place_all()
    result = relctl("--json", "ps")
    assert result.code == 0
    assert result.json["offline"] is True
    assert result.json["age_s"] == 0
    assert relctl("ps").out.startswith("Offline view from the liveness board")
