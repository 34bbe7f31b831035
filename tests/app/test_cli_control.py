"""restart, stop, start and restart-status: asked of the launcher, watched on the board, told as a story."""

import json
import os
from typing import Any

import pytest

from actors.event_logger.records import parse_journal_entry
from actors.event_logger.store import SCHEMA, DrainBatch, EventStore
from actors.runtime.database import Database
from actors.runtime.journal import Journal, new_entry
from actors.runtime.paths import DATABASE_FILE, JOURNAL_DIR
from protocol.errors import ErrorCode, LocalError, RemoteError
from tests.app.cli_fakes import Relctl

BROKER = 1


def launcher(relctl: Relctl, *states: dict[str, Any]) -> list[tuple[str, str]]:
    """Have a launcher take requests; the broker goes through `states` meanwhile. Returns what it was asked."""
    asked: list[tuple[str, str]] = []
    coming = iter(states)

    def answer(op: str, name: str) -> dict[str, Any]:
        asked.append((op, name))
        return {"name": name, "state": "stopping"}

    def step(_now: float) -> None:
        fields = next(coming, None)
        if fields is not None:
            relctl.place(BROKER, "broker", **fields)

    relctl.ports.launcher = answer
    relctl.ports.on_sleep = step
    return asked


def test_restart_waits_for_the_next_life_to_be_ready(relctl: Relctl) -> None:
    relctl.place_all()
    asked = launcher(
        relctl,
        {"state": "stopping"},
        {"state": "starting", "incarnation": 2},
        {"state": "ready", "incarnation": 2, "reason": "requested"},
    )
    result = relctl("--json", "restart", "broker")
    assert asked == [("restart", "broker")]
    assert result.code == 0
    assert result.json == {
        "name": "broker", "state": "ready", "pid": os.getpid(), "incarnation": 2, "took_s": pytest.approx(0.06),
    }  # fmt: skip


def test_restart_lifts_a_quarantine(relctl: Relctl) -> None:
    relctl.place(BROKER, "broker", "quarantined", pid=0, incarnation=4)
    launcher(relctl, {"state": "quarantined", "pid": 0, "incarnation": 4}, {"state": "ready", "incarnation": 5})
    result = relctl("restart", "broker")
    assert result.code == 0
    assert result.out.startswith("broker restarted in 40 ms: ready, pid ")


def test_restart_that_ends_in_quarantine_says_why(relctl: Relctl) -> None:
    relctl.place_all()
    launcher(relctl, {"state": "quarantined", "pid": 0, "incarnation": 2, "reason": "exited with code 3"})
    result = relctl("--json", "restart", "broker")
    assert result.code == 1
    assert result.error["message"] == "broker failed again and is quarantined: exited with code 3"
    assert result.out == ""


def test_stop_and_start(relctl: Relctl) -> None:
    relctl.place_all()
    launcher(relctl, {"state": "stopping"}, {"state": "stopped", "pid": 0})
    assert relctl("--json", "stop", "broker").json["state"] == "stopped"
    launcher(relctl, {"state": "starting", "incarnation": 2}, {"state": "ready", "incarnation": 2})
    assert relctl("--json", "start", "broker").json["state"] == "ready"
    launcher(relctl)
    assert relctl("start", "broker").out.startswith("broker was ready already, pid ")


@pytest.mark.parametrize("command", ["restart", "stop", "start"])
def test_the_launcher_is_not_one_of_its_own_processes(relctl: Relctl, command: str) -> None:
    result = relctl(command, "launcher")
    assert result.code == 2
    assert "relctl down" in result.err


def test_what_does_not_come_about_in_time_is_said(relctl: Relctl) -> None:
    relctl.place_all()
    launcher(relctl, {"state": "starting", "incarnation": 2})
    result = relctl("--json", "--timeout", "3", "restart", "broker")
    assert result.code == 1
    assert result.error["code"] == "deadline_passed"
    assert result.error["message"].startswith("broker is starting, not ready, after 3.0 s")


def test_the_launchers_refusal_is_passed_on(relctl: Relctl) -> None:
    relctl.place_all()

    def refuse(_op: str, **_arguments: Any) -> dict[str, Any]:
        raise RemoteError(ErrorCode.SERVICE_UNKNOWN, "there is no process 'moon'")

    relctl.ports.launcher = refuse
    result = relctl("--json", "restart", "moon")
    assert result.code == 1
    assert result.error["code"] == "service_unknown"


def test_a_launcher_that_is_being_replaced_is_asked_again(relctl: Relctl) -> None:
    relctl.place_all()
    tries = 0

    def answer(_op: str, name: str) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise LocalError(ErrorCode.NOT_RUNNING, "nobody listens")
        relctl.place(BROKER, "broker", incarnation=2)
        return {"name": name, "state": "ready"}

    relctl.ports.launcher = answer
    assert relctl("restart", "broker").code == 0
    assert tries == 3


def test_without_anybody_running_there_is_nothing_to_restart(relctl: Relctl) -> None:
    for number, name in enumerate(("launcher", "broker")):
        relctl.place(number, name, pid=0)
    result = relctl("--json", "restart", "broker")
    assert result.code == 10
    assert result.error["code"] == "not_running"
    assert relctl.ports.now == 1000.0, "it did not wait"


HISTORY = [
    {
        "timestamp": "2026-11-23T12:00:00.000Z", "reason": "hung: frozen (stopped by a signal)", "exit_code": None,
        "signal": 9, "recovery_ms": 5230, "incarnation": 2, "charged": True, "manual": False,
        "evidence": "broker-2.txt",
    },
    {
        "timestamp": "2026-11-23T11:00:00.000Z", "reason": "requested by ada", "exit_code": 0, "signal": None,
        "recovery_ms": None, "incarnation": 1, "charged": False, "manual": True, "evidence": "",
    },
]  # fmt: skip


def status(**fields: Any) -> dict[str, Any]:
    process = {"name": "broker", "restarts_in_period": 1, "restarts_left": 2, "quarantined": False, "history": HISTORY}
    return {"processes": [process | fields]}


def test_restart_status_of_all_is_a_table(relctl: Relctl) -> None:
    relctl.client.answers["event_logger", "restart_status"] = status()
    header, broker = relctl("restart-status").out.splitlines()
    assert header.split() == ["NAME", "RESTARTS", "LAST", "BACK", "AFTER", "REASON"]
    assert broker.startswith("broker  1 of 3")
    assert broker.endswith("5.2 s  hung: frozen (stopped by a signal)")
    assert relctl("--json", "restart-status").json == status()


def test_restart_status_of_one_tells_the_story(relctl: Relctl) -> None:
    relctl.place(BROKER, "broker", "quarantined", pid=0, retry_at_ms=1_000_000 + 600_000)
    relctl.client.answers["event_logger", "restart_status"] = status()
    text = relctl("restart-status", "broker").out
    assert text.startswith("broker is quarantined; 1 of 3 restarts of the period are used.\n")
    assert "It is tried again in 10 min; `relctl restart broker`" in text
    assert "hung: frozen (stopped by a signal)\n" in text
    assert "ready again after 5.2 s, signal 9, life 2\n" in text
    assert str(relctl.runtime_dir / "evidence" / "broker-2.txt") in text
    assert "\n                     exit code 0, life 1, by hand, not charged\n" in text


def test_restart_status_of_an_unknown_name(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.client.answers["event_logger", "restart_status"] = {"processes": []}
    result = relctl("--json", "restart-status", "moon")
    assert result.code == 1
    assert result.error["code"] == "service_unknown"
    assert "broker" in result.error["hint"]


def test_offline_restart_status_knows_the_database_the_board_and_the_journal(relctl: Relctl) -> None:
    relctl.place(BROKER, "broker", "quarantined", pid=0, restarts_in_period=3, restarts_left=0)
    life = {"name": "broker", "exit_code": None, "signal": 9, "charged": True, "manual": False, "evidence": ""}
    first = new_entry("restart", incarnation=1, reason="killed by signal 9 (SIGKILL)", **life)
    second = new_entry("restart", incarnation=2, reason="did not become ready", **life)
    recovery = new_entry("recovery", restart_id=second["id"], recovery_ms=80)
    journal = Journal(str(relctl.runtime_dir / JOURNAL_DIR), "launcher")
    for entry in (first, second, recovery, new_entry("event", event_type="other")):
        journal.append(entry)
    store = EventStore(Database(str(relctl.data_dir / DATABASE_FILE), SCHEMA))
    store.drain(DrainBatch([parse_journal_entry(first)], [], []), 1.0)
    store.database.close()

    result = relctl("--json", "restart-status", "broker")
    assert result.code == 0
    assert result.json["offline"] is True
    (process,) = result.json["processes"]
    assert process["quarantined"] is True
    told = [(entry["incarnation"], entry["reason"], entry["recovery_ms"]) for entry in process["history"]]
    assert told == [(2, "did not become ready", 80), (1, "killed by signal 9 (SIGKILL)", None)]
    assert json.loads(json.dumps(process["history"][0])).keys() == process["history"][1].keys()
    assert "Offline view" in relctl("restart-status", "broker").out
