"""The watchdog on real processes: frozen, running in circles, asleep, overdue - and innocent."""

import json
import os
import pathlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity
from actors.runtime.journal import Journal
from actors.runtime.liveness import LAUNCHER_SLOT, WATCHDOG_SLOT, ProcessState, Verdict
from actors.runtime.operations import Request
from actors.runtime.paths import CONTROL_SOCKET, EVIDENCE_DIR, JOURNAL_DIR, RUN_FILE, RunInfo
from actors.runtime.process import ProcessRuntime
from actors.runtime.verdict import Cause
from actors.watchdog import effects
from actors.watchdog.actor import Watchdog
from protocol.errors import ErrorCode, ReliabilityError
from tests.actors.runtime.processes import House, house, record

TICK_S = 0.1
HANG_TIMEOUT_MS = 500
SLOT = 3

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")


class Ward:
    """A house whose watchdog is this test process."""

    def __init__(self, home: House, config: pathlib.Path, *, portable: bool) -> None:
        config.write_text(f"[supervision]\ntick_s = {TICK_S}\n[watchdog]\nevidence_files_max = 3\n")
        arguments = ProcessArguments(
            "watchdog", WATCHDOG_SLOT, 1, home.data_dir, home.runtime_dir, str(config), portable
        )
        self.home = home
        self.journal = Journal(os.path.join(home.runtime_dir, JOURNAL_DIR), "watchdog")
        self.runtime = ProcessRuntime(arguments, self.journal)
        self.watchdog = Watchdog(self.runtime)
        self.operations = {item.name: item for item in self.watchdog.operations()}

    def close(self) -> None:
        self.runtime.close()
        self.runtime.board.close()

    def tick(self) -> None:
        self.watchdog.on_tick(None, time.monotonic())  # type: ignore[arg-type]
        select.select([], [], [], self.watchdog.tick_s)

    def tick_until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            self.tick()

    def tick_for(self, duration_s: float) -> None:
        until = time.monotonic() + duration_s
        self.tick_until(lambda: time.monotonic() > until, duration_s + 5)

    def start(self, body: Callable[[ProcessRuntime], int], slot: int = SLOT, **fields: Any) -> ProcessIdentity:
        return self.home.start(f"worker{slot}", slot, body, hang_timeout_ms=HANG_TIMEOUT_MS, **fields)

    def ready(self, slot: int = SLOT) -> bool:
        own = self.home.board.slots[slot].process.read()
        return own is not None and own.state == ProcessState.READY

    def death_of(self, identity: ProcessIdentity) -> dict[str, Any]:
        """Watch until the process has been killed; return the evidence that the board names."""
        self.tick_until(lambda: not identity.is_running())
        assert self.home.exit_code(identity) == -signal.SIGKILL
        written = self.home.board.slots[SLOT].watchdog.read()
        assert written is not None
        assert written.verdict == Verdict.HUNG
        document = json.loads(pathlib.Path(self.home.runtime_dir, EVIDENCE_DIR, written.evidence).read_text())
        assert document["cause"] == written.cause
        assert (document["name"], document["pid"], document["incarnation"]) == ("worker3", identity.pid, 1)
        return document  # type: ignore[no-any-return]

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        request = Request(b"12345678", op, arguments, (), time.monotonic() + 5.0, lambda *_: None)
        return self.operations[op].handler(request)  # type: ignore[no-any-return]

    def events(self) -> list[dict[str, Any]]:
        return list(self.journal.entries())


@pytest.fixture(name="ward", params=[False, True], ids=["posix", "portable"])
def _ward(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Ward]:
    with house(tmp_path) as home:
        ward = Ward(home, tmp_path / "reliability.toml", portable=request.param)
        yield ward
        ward.close()


def beating(runtime: ProcessRuntime) -> int:
    runtime.set_state(ProcessState.READY)
    while not runtime.stop_requested:
        runtime.beat()
        select.select([runtime.wakeup_fd], [], [], 0.02)
    return 0


def running_in_circles(runtime: ProcessRuntime) -> int:
    runtime.set_state(ProcessState.READY)
    runtime.slot.set_activity("request spin")
    runtime.beat()
    while True:
        pass


def asleep_for_good(runtime: ProcessRuntime) -> int:
    runtime.set_state(ProcessState.READY)
    threading.Event().wait()
    return 0


def never_ready(runtime: ProcessRuntime) -> int:
    while True:
        runtime.beat()
        select.select([], [], [], 0.02)


def overdue(runtime: ProcessRuntime) -> int:
    runtime.begin_lease("vacuum", 0.2)
    return beating(runtime)


def test_a_frozen_process_is_killed_in_time(ward: Ward) -> None:
    identity = ward.start(beating)
    ward.tick_until(ward.ready)
    ward.tick_for(0.2)
    os.kill(identity.pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    document = ward.death_of(identity)
    assert time.monotonic() - stopped_at < HANG_TIMEOUT_MS / 1000 + 0.5
    assert document["cause"] == Cause.FROZEN
    assert document["stacks"] == ""
    assert document["looks"][-1]["state"] == "T"


def test_a_busy_loop_is_found_with_its_place(ward: Ward) -> None:
    document = ward.death_of(ward.start(running_in_circles))
    assert document["cause"] == Cause.STUCK_IN_LOOP
    assert "in running_in_circles" in document["stacks"]
    assert document["activity"] == "request spin"
    assert document["looks"][1]["cpu_s"] > document["looks"][0]["cpu_s"]


def test_a_sleeper_is_found_with_its_place(ward: Ward) -> None:
    document = ward.death_of(ward.start(asleep_for_good))
    assert document["cause"] == Cause.BLOCKED
    assert "in asleep_for_good" in document["stacks"]


def test_work_past_its_lease_is_named(ward: Ward) -> None:
    document = ward.death_of(ward.start(overdue))
    assert document["cause"] == Cause.LEASE_OVERRUN
    assert document["lease"]["what"] == "vacuum"
    assert document["lease"]["left_s"] < 0


def test_one_that_does_not_become_ready(ward: Ward) -> None:
    identity = ward.start(never_ready)
    slot = ward.home.board.slots[SLOT]
    written = slot.launcher.read()
    assert written is not None
    slot.launcher.write(replace(written, start_timeout_ms=500))
    assert ward.death_of(identity)["cause"] == Cause.DID_NOT_START


def test_it_is_told_before_it_is_killed(ward: Ward) -> None:
    ward.death_of(ward.start(asleep_for_good))
    (event,) = [entry for entry in ward.events() if entry["event_type"] == "process_hung"]
    assert event["message"] == "worker3 hangs: blocked"
    assert event["attributes"]["evidence"] == "worker3-1.json"


def test_those_that_work_are_left_alone(ward: Ward) -> None:
    identities = [ward.start(beating, slot) for slot in (3, 4, 5)]
    ward.tick_for(3 * HANG_TIMEOUT_MS / 1000)
    assert all(identity.is_running() for identity in identities)
    assert ward.events() == []


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(ward: Ward) -> None:
    innocent = ward.home.fork(lambda: int(not threading.Event().wait()))
    stale = replace(innocent, start_time=innocent.start_time - 1)
    ward.home.board.slots[SLOT].launcher.write(record("worker3", stale, hang_timeout_ms=HANG_TIMEOUT_MS))
    ward.tick_for(3 * HANG_TIMEOUT_MS / 1000)
    assert innocent.is_running()


def test_nobody_is_judged_in_a_deliberate_stop(ward: Ward) -> None:
    identity = ward.start(asleep_for_good)
    ward.home.board.stopping = True
    ward.tick_for(3 * HANG_TIMEOUT_MS / 1000)
    assert identity.is_running()


def test_itself_it_does_not_judge(ward: Ward) -> None:
    own = ward.home.fork(lambda: int(not threading.Event().wait()))
    ward.home.board.slots[WATCHDOG_SLOT].launcher.write(record("watchdog", own, hang_timeout_ms=HANG_TIMEOUT_MS))
    ward.tick_for(3 * HANG_TIMEOUT_MS / 1000)
    assert own.is_running()


def test_evidence_is_bounded(ward: Ward) -> None:
    for incarnation in range(1, 6):
        identity = ward.start(asleep_for_good, incarnation=incarnation)
        ward.tick_until(lambda identity=identity: not identity.is_running())
        ward.home.exit_code(identity)
    kept = sorted(os.listdir(os.path.join(ward.home.runtime_dir, EVIDENCE_DIR)))
    assert kept == ["worker3-3.json", "worker3-4.json", "worker3-5.json"]
    assert ward.ask("evidence", name="worker3")["evidence"]["incarnation"] == 5
    assert ward.ask("evidence", name="worker3-4.json")["evidence"]["incarnation"] == 4
    for absent in ("worker3-1.json", "worker", "../board", "../../x.json"):
        with pytest.raises(ReliabilityError, match="no evidence"):
            ward.ask("evidence", name=absent)


def test_a_disk_full_of_evidence_saves_nobody(ward: Ward) -> None:
    identity = ward.start(asleep_for_good)
    os.rmdir(os.path.join(ward.home.runtime_dir, EVIDENCE_DIR))
    ward.tick_until(lambda: not identity.is_running())
    assert [entry["event_type"] for entry in ward.events()] == ["evidence_lost", "process_hung"]


def test_it_answers_for_its_verdicts(ward: Ward) -> None:
    well, sleeper = ward.start(beating), ward.start(asleep_for_good, 4)
    ward.home.board.slots[5].launcher.write(record("worker5", None, state=ProcessState.BACKOFF))
    ward.tick_until(lambda: ward.ask("verdicts")["processes"][1]["standing"] == "missing")
    assert not sleeper.is_running()
    first, second, third = ward.ask("verdicts")["processes"]
    assert (first["name"], first["pid"], first["verdict"], first["cause"]) == ("worker3", well.pid, "ok", "")
    assert (first["standing"], first["stage"], first["since_s"]) == ("ticking", "ok", None)
    assert (second["verdict"], second["cause"], second["evidence"]) == ("hung", "blocked", "worker4-1.json")
    assert second["standing"] == "missing"
    assert (third["pid"], third["verdict"], third["standing"]) == (None, "ok", "missing")
    status = {"judged": 2, "suspects": 0, "killed": 1, "programs_judged": 0, "programs_condemned": 0}
    assert ward.watchdog.status() == status


def test_a_hung_launcher_is_killed(ward: Ward) -> None:
    """What follows from its end is the guardian's affair."""
    launcher = ward.start(beating, LAUNCHER_SLOT)
    ward.tick_for(0.2)
    os.kill(launcher.pid, signal.SIGSTOP)
    ward.tick_until(lambda: not launcher.is_running())
    assert ward.home.exit_code(launcher) == -signal.SIGKILL


def test_requests_for_the_launcher_are_handed_on(ward: Ward) -> None:
    control = os.path.join(ward.home.runtime_dir, CONTROL_SOCKET)
    with pytest.raises(ReliabilityError) as caught:
        ward.ask("down")
    assert caught.value.code == ErrorCode.NOT_RUNNING
    run = RunInfo("", "", "", control, ward.home.runtime_dir, 1)
    pathlib.Path(ward.home.runtime_dir, RUN_FILE).write_text(run.to_json())
    asked: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(control)
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(json.loads(connection.recv(4096)))
                connection.sendall(b'{"ok":{"name":"broker","state":"starting"}}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        result = ward.ask("restart", name="broker", user="ada")
        thread.join()
    assert result == {"name": "broker", "state": "starting"}
    assert asked == [{"op": "restart", "user": "ada", "name": "broker"}]
    assert all(ward.operations[op].blocking for op in ("restart", "start", "stop", "down"))


def test_a_suspend_and_a_set_clock_are_noted(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    mono_s, boot_s, wall_s = effects._clocks()
    monkeypatch.setattr(effects, "_clocks", lambda: (mono_s, boot_s + 3600.0, wall_s + 3590.0))
    ward.tick()
    ward.tick()
    told = [entry for entry in ward.events() if entry["event_type"] in {"machine_suspended", "clock_jumped"}]
    assert [(entry["event_type"], entry["attributes"], entry["message"]) for entry in told] == [
        ("machine_suspended", {"for_s": 3600.0}, "the machine was suspended for 3600.0 s"),
        ("clock_jumped", {"by_s": -10.0}, "the wall clock was set by -10.0 s"),
    ]
