"""One state per process from what three writers say of it."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from actors.runtime.board_view import CRITICAL, OK, WARNING, ProcessView, check_of, snapshot
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, ProcessKind, ProcessRecord, ProcessState, Verdict, WatchdogRecord
from tests.actors.runtime.processes import House, record

SLOT = 4

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")


def sleep_forever() -> int:
    threading.Event().wait()
    return 0


@pytest.fixture(name="running")
def _running(home: House) -> ProcessIdentity:
    """A process on the board that says it is ready, ten seconds old, its last beat two seconds ago."""
    identity = home.fork(sleep_forever)
    now_ms = time.monotonic_ns() // 1_000_000
    slot = home.board.slots[SLOT]
    slot.launcher.write(record("worker", identity, incarnation=3, started_ms=now_ms - 10_000, hang_timeout_ms=5000))
    slot.process.write(ProcessRecord(identity.pid, identity.start_time, 3, ProcessState.READY))
    slot.beat(now_ms - 2000)
    return identity


def view(home: House) -> ProcessView:
    (found,) = snapshot(home.board, time.monotonic_ns() // 1_000_000)
    return found


def edit(home: House, **changes: object) -> None:
    slot = home.board.slots[SLOT]
    written = slot.launcher.read()
    assert isinstance(written, LauncherRecord)
    slot.launcher.write(replace(written, **changes))  # type: ignore[arg-type]


def test_a_running_process(home: House, running: ProcessIdentity) -> None:
    seen = view(home)
    assert (seen.name, seen.kind, seen.pid, seen.state) == ("worker", ProcessKind.ACTOR, running.pid, "ready")
    assert (seen.incarnation, seen.restarts_in_period, seen.restarts_left) == (3, 0, 3)
    assert seen.uptime_s == pytest.approx(10.0, abs=1.0)
    assert seen.progress_age_s == pytest.approx(2.0, abs=1.0)
    assert seen.retry_in_s is None
    assert check_of(seen) == (OK, "running")
    edit(home, restarts_in_period=2)
    assert check_of(view(home)) == (OK, "running; restarts of late: 2")


def test_what_a_predecessor_in_the_slot_said_does_not_count(home: House, running: ProcessIdentity) -> None:
    edit(home, incarnation=4)
    seen = view(home)
    assert (seen.state, seen.progress_age_s) == ("starting", None)
    assert check_of(seen) == (WARNING, "starting")


def test_a_hung_one(home: House, running: ProcessIdentity) -> None:
    slot = home.board.slots[SLOT]
    slot.watchdog.write(WatchdogRecord(2, Verdict.HUNG, "blocked", 0))
    assert view(home).state == "ready"
    slot.watchdog.write(WatchdogRecord(3, Verdict.HUNG, "stuck in a loop", 0, "worker-3.json"))
    seen = view(home)
    assert (seen.state, seen.cause, seen.evidence) == ("hung", "stuck in a loop", "worker-3.json")
    assert check_of(seen) == (CRITICAL, "hung: stuck in a loop")


def test_silence_that_nobody_judges_is_told(home: House, running: ProcessIdentity) -> None:
    edit(home, hang_timeout_ms=1000)
    status, message = check_of(view(home))
    assert (status, message.startswith("no progress for ")) == (WARNING, True)
    home.board.slots[SLOT].process.write(
        ProcessRecord(running.pid, running.start_time, 3, ProcessState.READY, "vacuum", 1, True)
    )
    assert view(home).lease_what == "vacuum"
    assert check_of(view(home))[0] == OK


def test_one_that_is_being_stopped(home: House, running: ProcessIdentity) -> None:
    edit(home, state=ProcessState.STOPPING)
    assert check_of(view(home)) == (WARNING, "stopping")


def test_one_that_is_gone_before_its_launcher_noticed(home: House, running: ProcessIdentity) -> None:
    os.kill(running.pid, signal.SIGKILL)
    home.exit_code(running)
    home.board.slots[SLOT].watchdog.write(WatchdogRecord(3, Verdict.HUNG, "blocked", 0))
    seen = view(home)
    assert (seen.pid, seen.state, seen.uptime_s, seen.progress_age_s, seen.cause) == (0, "backoff", None, None, "")
    home.board.stopping = True
    assert view(home).state == "stopped"


@pytest.mark.parametrize(
    ("state", "status", "message"),
    [
        (ProcessState.BACKOFF, WARNING, "down: exited with code 1; tried again in 30 s"),
        (ProcessState.QUARANTINED, CRITICAL, "quarantined after 3 restarts: exited with code 1; tried again in 30 s"),
        (ProcessState.STOPPED, WARNING, "stopped on purpose"),
    ],
)
def test_one_that_does_not_run(home: House, state: ProcessState, status: str, message: str) -> None:
    now_ms = time.monotonic_ns() // 1_000_000
    home.board.slots[SLOT].launcher.write(
        replace(
            record("worker", None, state=state, reason="exited with code 1", retry_at_ms=now_ms + 30_000),
            restarts_in_period=3,
        )
    )
    (seen,) = snapshot(home.board, now_ms)
    assert (seen.pid, seen.state, seen.retry_in_s) == (0, state, 30.0)
    assert check_of(seen) == (status, message)


def test_an_empty_board_has_nobody(home: House) -> None:
    assert snapshot(home.board, 0) == []


def test_a_program_that_does_not_beat_is_not_blamed_for_that(home: House, running: ProcessIdentity) -> None:
    edit(home, kind=ProcessKind.PROGRAM, hang_timeout_ms=500)
    assert check_of(view(home))[0] == WARNING
    slot = home.board.slots[SLOT]
    for judged_by in ("state", "probe"):
        slot.process.write(ProcessRecord(running.pid, running.start_time, 3, ProcessState.READY, judged_by=judged_by))
        assert view(home).progress_age_s is None
        assert check_of(view(home)) == (OK, "running")
    slot.watchdog.write(WatchdogRecord(3, Verdict.HUNG, "frozen (stopped by a signal)", 0))
    assert check_of(view(home)) == (CRITICAL, "hung: frozen (stopped by a signal)")


def test_a_program_that_is_down_says_why(home: House) -> None:
    home.board.slots[SLOT].launcher.write(
        record("worker", None, kind=ProcessKind.PROGRAM, state=ProcessState.STOPPED, reason="exited with code 0")
    )
    assert check_of(view(home)) == (WARNING, "stopped: exited with code 0")
    edit(home, reason="")
    assert check_of(view(home)) == (WARNING, "stopped on purpose")
    edit(home, reason="exited with code 3", state=ProcessState.QUARANTINED, restarts_in_period=3)
    assert check_of(view(home)) == (CRITICAL, "quarantined after 3 restarts: exited with code 3")
