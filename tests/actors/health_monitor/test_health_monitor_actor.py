"""health_monitor on a loop of its own: checks that hang, fail and recover, and what follows."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.health_monitor.actor import HealthMonitor
from actors.health_monitor.checks import Check, machine_checks
from actors.health_monitor.config import HealthConfig
from actors.health_monitor.core import CheckSpec, Observation, Status
from actors.health_monitor.queries import read_history
from actors.runtime.database_problem import DatabaseError
from actors.runtime.identity import own_identity
from actors.runtime.liveness import Board, LauncherRecord, ProcessRecord
from protocol.severity import Severity
from tests.actors.harness import Harness


class Scene:
    """A monitor with checks of the test's own, a board, and a database."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "reliability.db")
        self.board = Board.create(str(directory / "board"))
        self.harnesses: list[Harness] = []

    def start(self, checks: list[tuple[CheckSpec, Check]], **config: float) -> Harness:
        settings = HealthConfig(**{"process_interval_s": 0.1, **config})  # type: ignore[arg-type]
        actor = HealthMonitor(self.path, self.board, settings, checks, lambda: time.time_ns() // 1_000_000)
        self.harnesses.append(Harness(actor))
        return self.harnesses[-1]

    def put(self, name: str, state: str, slot: int = 1) -> None:
        """Have the launcher say that this very process runs as `name` in `state`."""
        me = own_identity()
        now_ms = time.monotonic_ns() // 1_000_000
        where = self.board.slots[slot]
        where.process.write(ProcessRecord(me.pid, me.start_time, 1, "ready"))
        where.beat(now_ms)
        pid = 0 if state == "quarantined" else me.pid
        where.launcher.write(
            LauncherRecord(name, "actor", pid, me.start_time, 1, state, now_ms, now_ms, 3, 0, 0, 5000, 15000, "crashed")
        )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    for harness in scene.harnesses:
        harness.stop()
    scene.board.close()


def status_of(harness: Harness, name: str) -> str:
    report = harness.call("health")
    return next((str(check["status"]) for check in report["checks"] if check["name"] == name), "absent")


def recorded(scene: Scene, name: str) -> list[str]:
    try:
        return [row["status"] for row in reversed(read_history(scene.path, name)["history"])]
    except DatabaseError:  # not made yet
        return []


def spec(name: str, **options: float) -> CheckSpec:
    return CheckSpec(name, **{"interval_s": 0.05, "timeout_s": 0.3, **options})  # type: ignore[arg-type]


def test_this_machine_is_judged_whole(scene: Scene) -> None:
    scene.put("broker", "ready")
    monitor = scene.start(machine_checks(str(scene.directory), scene.path, HealthConfig()))
    names = ["disk", "memory", "database", "broker"]
    monitor.until(lambda: all(status_of(monitor, name) not in ("absent", "unknown") for name in names))
    report = monitor.call("health")
    assert [check["name"] for check in report["checks"]] == names
    assert all(set(check) == {"name", "status", "message", "value", "unit", "age_s"} for check in report["checks"])
    assert report["checks"][2]["status"] == report["checks"][3]["status"] == "ok"
    topic, value = monitor.published[0]
    assert topic == "state.health"
    assert value["status"] == report["status"], "nothing is told before the first results"


def test_the_first_answer_waits_for_the_first_results_but_not_for_one_that_hangs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def slow() -> Observation:
        time.sleep(0.1)
        return Observation("seen")

    def hang() -> Observation:
        release.wait(60)
        return Observation("back")

    monitor = scene.start([(spec("slow"), slow)])
    assert monitor.call("health")["checks"][0]["message"] == "seen"
    monkeypatch.setattr("actors.health_monitor.actor.FIRST_RESULTS_S", 0.2)
    monitor = scene.start([(spec("slow"), slow), (spec("stuck", timeout_s=60.0), hang)])
    assert [check["status"] for check in monitor.call("health")["checks"]] == ["ok", "unknown"]
    release.set()


def test_a_check_that_hangs_is_a_finding_and_holds_up_nobody(scene: Scene) -> None:
    release = threading.Event()
    runs = 0

    def hang() -> Observation:
        release.wait(60)
        return Observation("back")

    def count() -> Observation:
        nonlocal runs
        runs += 1
        return Observation(str(runs))

    monitor = scene.start([(spec("stuck"), hang), (spec("other"), count)])
    monitor.until(lambda: status_of(monitor, "stuck") == "critical")
    before = runs
    monitor.until(lambda: runs > before + 3)
    assert monitor.longest_turn_s < 0.3
    assert monitor.call("health")["degraded"] == ["stuck"]
    assert (Severity.CRITICAL, "health_changed") in [(level, kind) for level, kind, _ in monitor.logged]
    release.set()
    monitor.until(lambda: status_of(monitor, "stuck") == "ok")


def test_a_check_that_blocks_on_a_pipe_nobody_writes_is_found(scene: Scene) -> None:
    pipe = scene.directory / "pipe"
    os.mkfifo(pipe)

    def read() -> Observation:
        return Observation(pipe.read_text())

    monitor = scene.start([(spec("plugin"), read)])
    monitor.until(lambda: status_of(monitor, "plugin") == "critical")
    pipe.write_text("done")
    monitor.until(lambda: status_of(monitor, "plugin") == "ok")


def test_a_check_that_fails_is_unknown_and_runs_again(scene: Scene) -> None:
    failures: list[Exception] = [OSError("no such thing"), ValueError("senseless")]

    def fail() -> Observation:
        if failures:
            raise failures.pop()
        return Observation("fine")

    monitor = scene.start([(spec("odd"), fail)])
    monitor.until(lambda: status_of(monitor, "odd") == "ok")
    assert any("the check failed: ValueError: senseless" in message for _, _, message in monitor.logged)


def test_processes_come_from_the_board(scene: Scene) -> None:
    scene.put("broker", "ready")
    scene.put("updater", "quarantined", slot=5)
    scene.put("memory", "ready", slot=6)
    monitor = scene.start([(spec("memory"), lambda: Observation("plenty"))])
    monitor.until(lambda: status_of(monitor, "broker") == "ok")
    report = monitor.call("health")
    assert (report["status"], report["degraded"]) == ("critical", ["updater"])
    assert [check["name"] for check in report["checks"]] == ["memory", "broker", "updater", "process memory"]
    assert "quarantined after 3 restarts: crashed" in report["checks"][2]["message"]
    scene.put("updater", "ready", slot=5)
    assert monitor.call("health")["status"] == "ok", "the answer is of now, not of the last look"
    assert monitor.logged == [], "launcher and watchdog log it themselves"
    monitor.until(lambda: len(recorded(scene, "updater")) == 2)
    assert recorded(scene, "updater") == ["critical", "ok"]


def test_changes_and_samples_are_in_the_history(scene: Scene) -> None:
    statuses = iter([Status.OK, Status.WARNING])

    def check() -> Observation:
        return Observation("so so", 7.0, "s", next(statuses, Status.CRITICAL))

    monitor = scene.start([(spec("it"), check)], history_interval_s=1.0)

    monitor.until(lambda: len(recorded(scene, "it")) >= 4)
    assert recorded(scene, "it")[:4] == ["ok", "warning", "critical", "critical"]
    answer = monitor.actor.operations()[1].handler(monitor.ask("health").request)  # type: ignore[arg-type]
    assert answer["history"][0]["value"] == 7.0


def test_history_waits_for_a_database_and_is_bounded_meanwhile(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.health_monitor.actor.WRITE_RETRY_S", 0.1)
    monkeypatch.setattr("actors.health_monitor.actor.ROWS_WAITING_MAX", 5)
    spoiled = Path(scene.path)
    spoiled.write_bytes(b"no database" * 1000)
    statuses = [Status.OK, Status.WARNING]

    def check() -> Observation:
        statuses.reverse()
        return Observation("flips", status=statuses[0])

    monitor = scene.start([(spec("it", interval_s=0.01), check)])
    monitor.until(lambda: monitor.actor.status()["history"]["dropped"] > 3)
    assert monitor.actor.status()["history"]["waiting"] <= 5
    spoiled.unlink()
    monitor.until(lambda: monitor.actor.status()["history"]["waiting"] == 0)
    assert read_history(scene.path)["history"]


def test_a_stop_does_not_wait_for_a_check_that_hangs(scene: Scene) -> None:
    release = threading.Event()

    def hang() -> Observation:
        release.wait(60)
        return Observation("back")

    monitor = scene.start([(spec("stuck"), hang)])
    monitor.until(lambda: status_of(monitor, "stuck") == "critical")
    began = time.monotonic()
    monitor.stop()
    assert time.monotonic() - began < 2
    release.set()
