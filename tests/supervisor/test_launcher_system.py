"""The real launcher over real processes that do nothing: budgets, adoption, stops, and what it leaves alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from actors.runtime import paths
from actors.runtime.identity import start_time_of
from actors.runtime.liveness import LAUNCHER_SLOT
from protocol.errors import RemoteError
from tests.supervisor.launcher_harness import CONFIG, NAMES, DummySystem, dummy_system, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["posix", pytest.param("portable", marks=pytest.mark.portable)])
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DummySystem]:
    if request.param == "posix" and sys.platform != "linux":
        pytest.skip("pidfds and fork")
    with dummy_system(tmp_path, portable=request.param == "portable") as system:
        yield system


@pytest.fixture
def posix(tmp_path: Path) -> Iterator[DummySystem]:
    """For what does not depend on the ports."""
    with dummy_system(tmp_path, portable=sys.platform != "linux") as system:
        yield system


# --- start, failures, budget ------------------------------------------------------------------------------------------


def test_it_starts_everything_and_says_so_in_one_line(system: DummySystem) -> None:
    launcher = system.start_whole()
    wait_until(lambda: "all 3 processes ready in" in system.said(), "the line")
    assert len(system.said().splitlines()) == 1
    status = system.call("status")
    assert status["pid"] == launcher.pid
    assert [process["state"] for process in status["processes"]] == ["ready", "ready"]
    system.stop()


def test_a_killed_process_is_replaced_and_charged_and_nobody_else_is(system: DummySystem) -> None:
    launcher = system.start_whole()
    other = system.pid("two")
    system.kill_and_await("one")
    assert (system.record("one").restarts_in_period, system.record("one").restarts_left) == (1, 2)
    assert system.record("two").restarts_in_period == 0
    assert system.pid("two") == other
    assert system.pid("launcher") == launcher.pid
    [entry] = system.journal("restart")
    assert (entry["name"], entry["incarnation"], entry["signal"], entry["exit_code"]) == ("one", 1, 9, None)
    assert (entry["charged"], entry["manual"], entry["reason"]) == (True, False, "killed by signal 9 (SIGKILL)")
    wait_until(lambda: system.journal("recovery", restart_id=entry["id"]), "the recovery told")
    [recovery] = system.journal("recovery", restart_id=entry["id"])
    assert recovery["recovery_ms"] >= 0
    system.stop()


def test_the_fourth_failure_quarantines_over_launchers_until_a_person_restarts_it(system: DummySystem) -> None:
    system.start_whole()
    for _ in range(3):
        system.kill_and_await("one")
    system.kill("one")
    wait_until(lambda: system.state("one") == "quarantined", "quarantined")
    assert system.record("one").restarts_left == 0
    assert system.record("one").retry_at_ms > time.monotonic() * 1000 + 3_000_000
    assert len(system.journal("event", event_type="process_quarantined", severity="CRITICAL")) == 1
    system.kill_launcher()
    successor = system.start("--successor")
    wait_until(lambda: (system.pid("launcher"), system.state("launcher")) == (successor.pid, "ready"), "a successor")
    assert system.own_slot_epoch() == 2
    assert system.state("one") == "quarantined"
    assert system.call("restart", name="one")["state"] == "starting"
    wait_until(lambda: system.state("one") == "ready", "lifted")
    system.stop()


def test_a_quarantine_outlives_everybody(posix: DummySystem) -> None:
    posix.start_whole()
    for _ in range(3):
        posix.kill_and_await("one")
    posix.kill("one")
    wait_until(lambda: posix.state("one") == "quarantined", "quarantined")
    posix.stop()
    posix.start()
    wait_until(lambda: posix.state("two") == "ready", "the other one")
    assert posix.state("one") == "quarantined"
    posix.stop()


def test_a_quarantined_process_is_tried_again_when_the_oldest_restart_ages_out(tmp_path: Path) -> None:
    config = CONFIG + "restart_max = 1\nrestart_period_s = 2.0\n"
    with dummy_system(tmp_path, config=config) as system:
        system.start_whole()
        second = system.kill_and_await("one")
        system.kill("one")
        wait_until(lambda: system.state("one") == "quarantined", "quarantined")
        wait_until(lambda: system.state("one") == "ready" and system.pid("one") not in (0, second), "tried again", 5.0)
        system.stop()


def test_one_that_never_becomes_ready_is_killed_and_backs_off(posix: DummySystem) -> None:
    posix.behave("one", "never ready")
    posix.start()
    wait_until(lambda: posix.journal("restart"), "a failure")
    [entry] = posix.journal("restart")
    assert entry["reason"] == "did not become ready within 3 s"
    posix.behave("one", "")
    wait_until(lambda: posix.state("one") == "ready", "ready")
    posix.stop()


def test_one_that_crashes_at_once_is_quarantined_with_backoff(posix: DummySystem) -> None:
    posix.behave("one", "crash")
    posix.start()
    wait_until(lambda: posix.state("one") == "quarantined", "quarantined")
    times = [entry["mono_ms"] for entry in posix.journal("restart", name="one")]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(gaps) == 3
    assert all(gap >= expected for gap, expected in zip(gaps, (500, 1000, 2000), strict=True)), gaps
    posix.stop()


def test_a_frozen_process_is_killed_by_the_launcher_where_there_is_no_watchdog(system: DummySystem) -> None:
    system.start_whole()
    old = system.pid("one")
    os.kill(old, signal.SIGSTOP)
    wait_until(lambda: system.state("one") == "ready" and system.pid("one") not in (0, old), "replaced")
    [entry] = system.journal("restart")
    assert entry["reason"] == "hung: frozen (stopped by a signal)"
    assert entry["charged"] is True
    evidence = json.loads((system.runtime_dir / paths.EVIDENCE_DIR / entry["evidence"]).read_text())
    assert (evidence["name"], evidence["pid"], evidence["looks"][-1]["state"]) == ("one", old, "T")
    system.stop()


def test_the_stacks_of_a_crash_are_kept_with_the_restart(posix: DummySystem) -> None:
    posix.start_whole()
    os.kill(posix.pid("one"), signal.SIGSEGV)
    wait_until(lambda: posix.journal("restart"), "a failure")
    [entry] = posix.journal("restart")
    assert entry["reason"] == "killed by signal 11 (SIGSEGV)"
    evidence = json.loads((posix.runtime_dir / paths.EVIDENCE_DIR / entry["evidence"]).read_text())
    assert "dummy_actor.py" in evidence["stacks"]
    wait_until(lambda: posix.state("one") == "ready", "restarted")
    posix.stop()


def test_a_configuration_that_was_spoilt_meanwhile_keeps_nobody_from_being_restarted(posix: DummySystem) -> None:
    posix.start_whole()
    (posix.data_dir / paths.CONFIG_FILE).write_text("[supervision\nnonsense")
    posix.kill_and_await("one")
    posix.kill_launcher()
    posix.start_whole("--successor", "--config", str(posix.runtime_dir / paths.CONFIG_FILE))
    posix.stop()


# --- the launcher's own death -----------------------------------------------------------------------------------------


def test_a_successor_adopts_whoever_runs(system: DummySystem) -> None:
    system.start_whole()
    before = {name: system.pid(name) for name in NAMES}
    system.kill_launcher()
    successor = system.start_whole("--successor")
    assert {name: system.pid(name) for name in NAMES} == before
    record = system.record("launcher")
    assert (record.pid, record.incarnation, record.restarts_in_period) == (successor.pid, 2, 1)
    [entry] = system.journal("restart")
    assert (entry["name"], entry["incarnation"], entry["charged"]) == ("launcher", 1, True)
    assert (entry["exit_code"], entry["signal"]) == (None, None)
    assert system.journal("recovery", restart_id=entry["id"])
    system.kill_and_await("one")
    [entry] = system.journal("restart", name="one")
    assert (entry["exit_code"], entry["signal"], entry["charged"]) == (None, None, True)
    assert system.pid("two") == before["two"]
    system.stop()


def test_what_died_without_a_launcher_is_charged_and_started(system: DummySystem) -> None:
    system.start_whole()
    other = system.pid("two")
    system.kill_launcher()
    old = system.kill("one")
    system.start_whole("--successor")
    assert system.pid("one") != old
    assert system.pid("two") == other
    assert system.record("one").restarts_in_period == 1
    system.stop()


def test_a_launcher_is_not_restarted_beyond_its_own_budget(posix: DummySystem) -> None:
    posix.start_whole()
    for _ in range(3):
        posix.kill_launcher()
        posix.start_whole("--successor")
    record = posix.record("launcher")
    assert (record.restarts_left, record.state) == (0, "ready")
    assert record.retry_at_ms > time.monotonic() * 1000 + 3_000_000, "survivors are told to wait"
    before = {name: posix.pid(name) for name in NAMES}
    posix.kill_launcher()
    assert posix.start("--successor").wait(10) == 1
    assert {name: posix.pid(name) for name in NAMES} == before
    posix.start_whole()  # a person may always
    assert {name: posix.pid(name) for name in NAMES} == before
    posix.stop()


def test_a_launcher_that_was_replaced_leaves_without_touching_anything(posix: DummySystem) -> None:
    launcher = posix.start_whole()
    before = {name: posix.pid(name) for name in NAMES}
    launcher.send_signal(signal.SIGSTOP)
    with posix.board() as board:
        board.epoch += 1
    launcher.send_signal(signal.SIGCONT)
    assert launcher.wait(10) == 0
    assert {name: posix.pid(name) for name in NAMES} == before
    assert (posix.runtime_dir / paths.CONTROL_SOCKET).exists()
    posix.start_whole()
    assert {name: posix.pid(name) for name in NAMES} == before
    posix.stop()


def test_an_innocent_process_that_has_the_pid_of_ours_is_never_touched(system: DummySystem) -> None:
    system.start_whole()
    system.kill_launcher()
    system.kill("one")
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        start_time = start_time_of(innocent.pid)
        assert start_time is not None
        with system.board() as board:
            found = board.find("one")
            assert found is not None
            slot, record = found
            slot.launcher.write(replace(record, pid=innocent.pid, start_time=start_time - 1))
            own = slot.process.read()
            assert own is not None
            slot.process.write(replace(own, pid=innocent.pid, start_time=start_time - 1))
        system.start_whole("--successor")
        assert system.pid("one") not in (0, innocent.pid)
        system.call("restart", name="one")
        wait_until(lambda: system.state("one") == "ready", "restarted")
        system.stop()
        assert innocent.poll() is None, "the innocent process lives"
    finally:
        innocent.kill()
        innocent.wait()


# --- instances and debris ---------------------------------------------------------------------------------------------


def test_a_second_launcher_exits_11_with_one_line_and_a_successor_says_nothing(system: DummySystem) -> None:
    system.start_whole()
    before = system.said()
    assert system.start().wait(10) == 11
    [line] = system.said()[len(before) :].splitlines()
    assert line.startswith("launcher: another launcher (pid ")
    assert str(system.data_dir) in line
    before = system.said()
    assert system.start("--successor").wait(10) == 11
    assert system.said() == before
    system.launchers = system.launchers[:1]
    system.stop()


def test_a_start_over_whatever_the_dead_left(system: DummySystem) -> None:
    system.start_whole()
    system.kill_launcher()
    for name in NAMES:
        system.kill(name)
    wait_until(lambda: start_time_of(system.pid("one")) is None, "dead")
    (system.runtime_dir / paths.BOARD_FILE).write_bytes(b"damaged")
    (system.runtime_dir / paths.RUN_FILE).write_text("{")
    (system.data_dir / paths.RESTARTS_FILE).write_text("[1,")
    (system.runtime_dir / paths.TOKEN_FILE).write_bytes(b"short")
    system.start_whole()
    assert system.record("one").restarts_in_period == 0
    system.stop()


def test_all_dead_is_a_clean_start_and_not_charged(posix: DummySystem) -> None:
    posix.start_whole()
    posix.kill_launcher()
    for name in NAMES:
        posix.kill(name)
    wait_until(lambda: all(start_time_of(posix.pid(name)) is None for name in NAMES), "dead")
    posix.start_whole()
    assert [posix.record(name).restarts_in_period for name in ("launcher", *NAMES)] == [0, 0, 0]
    assert posix.record("one").incarnation == 2
    posix.stop()


def test_everything_begins_anew_when_the_runtime_directory_is_removed(system: DummySystem) -> None:
    launcher = system.start_whole()
    before = {name: system.pid(name) for name in NAMES}
    shutil.rmtree(system.runtime_dir)
    wait_until(lambda: system.is_whole(launcher.pid), "whole again, under the same launcher")
    assert all(start_time_of(pid) is None for pid in before.values())
    assert [system.record(name).restarts_in_period for name in ("launcher", *NAMES)] == [0, 0, 0]
    assert system.call("ping")["pid"] == launcher.pid
    system.kill_and_await("one")
    system.stop()


def test_what_this_release_does_not_know_is_ended(posix: DummySystem) -> None:
    posix.start_whole()
    stranger = posix.pid("two")
    posix.kill_launcher()
    with posix.board() as board:
        found = board.find("two")
        assert found is not None
        found[0].launcher.write(replace(found[1], name="of_an_older_release"))
    posix.start_whole("--successor")
    assert start_time_of(stranger) is None
    assert posix.record("two").incarnation == 2
    posix.stop()


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_restart_by_hand_is_recorded_and_not_charged(system: DummySystem) -> None:
    system.start_whole()
    old = system.pid("one")
    assert system.call("restart", name="one", user="anna") == {"name": "one", "state": "stopping"}
    wait_until(lambda: system.state("one") == "ready" and system.pid("one") not in (0, old), "restarted")
    assert system.record("one").restarts_in_period == 0
    [entry] = system.journal("restart")
    assert entry["manual"] is True
    assert entry["reason"].startswith("restart requested by anna")
    system.stop()


def test_what_is_stopped_by_hand_stays_so_under_the_next_launcher_until_it_is_started(system: DummySystem) -> None:
    system.start_whole()
    system.call("stop", name="one")
    wait_until(lambda: system.state("one") == "stopped", "stopped")
    system.kill_launcher()
    successor = system.start("--successor")
    wait_until(lambda: (system.pid("launcher"), system.state("launcher")) == (successor.pid, "ready"), "a successor")
    assert (system.state("one"), system.pid("one")) == ("stopped", 0)
    system.call("start", name="one")
    wait_until(lambda: system.state("one") == "ready", "started")
    system.stop()


def test_requests_that_make_no_sense_are_refused(posix: DummySystem) -> None:
    posix.start_whole()
    for op, name, code in (("restart", "nobody", "usage"), ("fly", "one", "unknown_operation")):
        with pytest.raises(RemoteError) as caught:
            posix.call(op, name=name)
        assert caught.value.code == code
    posix.stop()


# --- the stop ---------------------------------------------------------------------------------------------------------


def test_a_stop_leaves_its_marker_its_history_and_nothing_else(system: DummySystem) -> None:
    launcher = system.start_whole()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(10) == 0
    marker = json.loads((system.data_dir / paths.STOP_MARKER_FILE).read_text())
    assert marker["by"] == "SIGTERM"
    assert sorted(item.name for item in system.runtime_dir.iterdir()) == ["evidence", "journal"]
    stopped = [entry["attributes"].get("process") for entry in system.journal("event", event_type="process_stopped")]
    assert stopped == ["two", "one"], "in the order of the ranks"
    assert system.start("--successor").wait(10) == 0, "a successor obeys the stop"
    assert system.journal("restart") == []


def test_a_successor_after_a_stop_starts_nothing(posix: DummySystem) -> None:
    posix.start_whole()
    posix.stop()
    (posix.runtime_dir / paths.STOP_MARKER_FILE).write_text("{}")
    assert posix.start("--successor").wait(10) == 0
    assert not (posix.runtime_dir / paths.BOARD_FILE).exists()
    posix.start_whole()
    assert not (posix.data_dir / paths.STOP_MARKER_FILE).exists()
    posix.stop()


def test_down_answers_once_the_stop_is_durable(system: DummySystem) -> None:
    launcher = system.start_whole()
    assert system.call("down", user="anna") == {"stopping": True, "durable": True}
    assert "anna" in json.loads((system.data_dir / paths.STOP_MARKER_FILE).read_text())["by"]
    assert launcher.wait(10) == 0


def test_who_does_not_leave_is_killed_and_the_stop_goes_on(system: DummySystem) -> None:
    system.behave("two", "stubborn")
    launcher = system.start_whole()
    started = time.monotonic()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(10) == 0
    assert time.monotonic() - started >= 1.0
    assert [entry["attributes"]["process"] for entry in system.journal("event", event_type="process_killed")] == ["two"]


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    config = CONFIG.replace("stop_timeout_s = 1.0", "stop_timeout_s = 60.0")
    with dummy_system(tmp_path, config=config) as system:
        system.behave("two", "stubborn")
        launcher = system.start_whole()
        launcher.send_signal(signal.SIGINT)
        wait_until(lambda: system.state("two") == "stopping", "the stop has begun")
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(10) == 0


def test_a_start_after_a_stop_that_its_launcher_did_not_survive(posix: DummySystem) -> None:
    posix.behave("two", "stubborn")
    posix.start_whole()
    posix.call("down")
    posix.kill_launcher()
    assert posix.start("--successor").wait(10) == 0
    posix.behave("two", "")
    posix.start_whole()
    assert [posix.record(name).restarts_in_period for name in NAMES] == [0, 0]
    assert posix.board().stopping is False
    posix.stop()


def test_the_launcher_shows_itself_like_everybody(posix: DummySystem) -> None:
    launcher = posix.start_whole()
    with posix.board() as board:
        slot = board.slots[LAUNCHER_SLOT]
        own, first = slot.process.read(), slot.read_beat().tick
        assert own is not None
        assert (own.pid, own.state, own.incarnation) == (launcher.pid, "ready", board.epoch)
        wait_until(lambda: slot.read_beat().tick > first + 3, "it beats")
    posix.stop()
