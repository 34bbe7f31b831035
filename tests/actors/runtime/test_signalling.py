"""Signals reach exactly the process that was meant, in both implementations; looks tell what it is doing."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.runtime.examine import Examiner, Observer, examiner, observe
from actors.runtime.identity import boot_id, own_identity
from actors.runtime.liveness import ProcessRecord, ProcessState
from actors.runtime.process import ProcessRuntime
from actors.runtime.signalling import HAS_PIDFD, KILL, SHOW_STACKS, Presence, Signaller, open_pidfd, signaller
from actors.runtime.verdict import Cause, Observation, Standing, name_cause
from tests.actors.runtime.processes import House, record, state_letter, wait_until

SLOT = 3

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")


@pytest.fixture(name="port", params=[False, True], ids=["posix", "portable"])
def _port(request: pytest.FixtureRequest) -> Signaller:
    return signaller(portable=request.param)


@pytest.fixture(name="eyes", params=[False, True], ids=["posix", "portable"])
def _eyes(request: pytest.FixtureRequest) -> Examiner:
    return examiner(portable=request.param)


def sleep_forever() -> int:
    threading.Event().wait()
    return 0


def burn() -> int:
    while True:
        pass


def test_it_kills_the_process_meant(home: House, port: Signaller) -> None:
    identity = home.fork(sleep_forever)
    assert port.send(identity, KILL)
    assert port.wait_gone(identity, 5.0)
    assert home.exit_code(identity) == -KILL
    assert not port.send(identity, KILL)


def test_a_reused_pid_is_not_signalled(home: House, port: Signaller) -> None:
    innocent = home.fork(sleep_forever)
    for stale in (replace(innocent, start_time=innocent.start_time - 1), replace(innocent, boot_id="another boot")):
        assert not port.send(stale, KILL)
        assert port.wait_gone(stale, 0.0)
    assert innocent.is_running()


def test_a_zombie_is_gone(home: House, port: Signaller) -> None:
    identity = home.fork(lambda: 0)
    wait_until(lambda: state_letter(identity.pid) == "Z")
    assert not port.send(identity, KILL)
    assert port.wait_gone(identity, 0.0)
    assert home.exit_code(identity) == 0


def test_waiting_ends_in_time_and_reaps_nobody(home: House, port: Signaller) -> None:
    identity = home.fork(sleep_forever)
    assert not port.wait_gone(identity, 0.05)
    assert port.send(identity, signal.SIGTERM)
    assert port.wait_gone(identity, 5.0)
    assert home.exit_code(identity) == -signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd")
def test_a_pidfd_is_given_for_the_very_process_only(home: House) -> None:
    identity = home.fork(sleep_forever)
    assert open_pidfd(replace(identity, start_time=identity.start_time + 1)) is None
    descriptor = open_pidfd(identity)
    assert descriptor is not None
    os.close(descriptor)
    assert open_pidfd(replace(identity, pid=2**22 - 1)) is None


def cause_of(eyes: Examiner, home: House, function: Callable[[], int], *signals: int) -> Cause:
    identity = home.fork(function)
    for number in signals:
        os.kill(identity.pid, number)
        wait_until(lambda: state_letter(identity.pid) == "T")
    wait_until(lambda: (look := eyes.look(identity)) and (signals or look.state == ("R" if function is burn else "S")))
    first = eyes.look(identity)
    assert first is not None
    wait_until(lambda: time.monotonic() > first.at + 0.6)
    return name_cause(Standing.SILENT, first, eyes.look(identity))


def test_a_stopped_process_is_seen_frozen(home: House, eyes: Examiner) -> None:
    assert cause_of(eyes, home, sleep_forever, signal.SIGSTOP) is Cause.FROZEN


def test_a_busy_loop_is_seen_stuck(home: House, eyes: Examiner) -> None:
    assert cause_of(eyes, home, burn) is Cause.STUCK_IN_LOOP


def test_a_sleeper_is_seen_blocked(home: House, eyes: Examiner) -> None:
    assert cause_of(eyes, home, sleep_forever) is Cause.BLOCKED


def test_there_is_nothing_to_see_of_a_process_that_is_gone(home: House, eyes: Examiner) -> None:
    identity = home.fork(sleep_forever)
    assert eyes.look(replace(identity, start_time=identity.start_time + 1)) is None
    os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: state_letter(identity.pid) == "Z")
    assert eyes.look(identity) is None


@pytest.mark.skipif(SHOW_STACKS is None, reason="no SIGUSR1")
def test_who_would_die_of_the_question_for_stacks_is_told_apart(home: House) -> None:
    eyes = examiner(portable=False)

    def body(runtime: ProcessRuntime) -> int:
        return sleep_forever()

    answering = eyes.look(home.start("worker", SLOT, body))
    assert answering is not None
    assert answering.answers_stacks
    foreign = eyes.look(home.fork(sleep_forever))
    assert foreign is not None
    assert not foreign.answers_stacks


def test_what_the_board_says_becomes_an_observation(home: House) -> None:
    def body(runtime: ProcessRuntime) -> int:
        runtime.set_state(ProcessState.READY)
        runtime.begin_lease("count sheep", 60.0, holds_loop=True)
        return sleep_forever()

    identity = home.start("worker", SLOT, body, incarnation=7)
    slot = home.board.slots[SLOT]
    launcher_record = slot.launcher.read()
    assert launcher_record is not None
    wait_until(lambda: observe(slot, launcher_record, boot_id()).lease_until_s)
    seen = observe(slot, launcher_record, boot_id())
    assert (seen.key, seen.incarnation, seen.pid) == (SLOT, 7, identity.pid)
    assert seen.running
    assert seen.registered
    assert seen.ready
    assert seen.lease_holds_loop
    assert seen.tick == slot.read_beat().tick
    assert (seen.hang_timeout_s, seen.start_timeout_s) == (0.5, 2.0)
    successor = observe(slot, replace(launcher_record, incarnation=8), boot_id())
    assert not successor.registered
    assert not successor.lease_until_s
    assert not observe(slot, replace(launcher_record, start_time=1), boot_id()).running
    assert not observe(slot, record("worker"), boot_id()).running
    assert own_identity().is_running()


@pytest.mark.parametrize("portable", [False, True])
def test_who_observes_again_and_again_sees_every_change(home: House, portable: bool) -> None:
    identity = home.fork(sleep_forever)
    slot, presence = home.board.slots[SLOT], Presence(portable=portable)
    slot.launcher.write(record("worker", identity))
    observer = Observer(boot_id(), presence)

    def seen() -> Observation:
        presence.take_exits()
        written = slot.launcher.read()
        assert written is not None
        observation = observer.observe(slot, written)
        assert observation == observe(slot, written, boot_id())
        return observation

    assert seen() is seen()
    assert not seen().registered
    slot.process.write(ProcessRecord(identity.pid, identity.start_time, 1, ProcessState.STARTING))
    assert seen().registered
    slot.process.write(ProcessRecord(identity.pid, identity.start_time, 1, ProcessState.READY))
    assert seen().ready
    slot.beat(1)
    assert seen().tick == 1
    os.kill(identity.pid, signal.SIGKILL)
    home.exit_code(identity)
    assert not seen().running
    slot.launcher.write(record("worker", None, incarnation=2))
    assert (seen().incarnation, seen().pid, seen().registered) == (2, 0, False)
    presence.close()


@pytest.mark.parametrize("portable", [False, True])
def test_presence_follows_the_process_held_under_a_key(home: House, portable: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    presence = Presence(portable=portable)
    first, second = home.fork(sleep_forever), home.fork(sleep_forever)
    assert presence.is_running(1, first)
    assert presence.is_running(2, second)
    assert not presence.is_running(3, replace(first, start_time=first.start_time + 1))
    os.kill(first.pid, signal.SIGKILL)

    def ended() -> bool:
        presence.take_exits()
        return not presence.is_running(1, first)

    wait_until(ended)
    assert presence.is_running(2, second)
    assert presence.is_running(1, second)
    presence.retain([2])
    assert presence.is_running(2, second)
    presence.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not HAS_PIDFD, reason="without pidfds nobody is told of an exit")
def test_presence_tells_of_an_exit_until_it_is_taken_in(home: House) -> None:
    presence = Presence(portable=False)
    descriptor = presence.fileno()
    assert descriptor is not None

    def told(timeout_s: float) -> bool:
        return bool(select.select([descriptor], [], [], timeout_s)[0])

    first, second = home.fork(sleep_forever), home.fork(sleep_forever)
    assert presence.is_running(1, first)
    assert presence.is_running(2, second)
    assert not told(0.0)
    os.kill(first.pid, signal.SIGKILL)
    assert told(10.0)
    presence.take_exits()
    assert not told(0.0)
    assert not presence.is_running(1, first)
    assert presence.is_running(2, second)
    os.kill(second.pid, signal.SIGKILL)
    assert told(10.0)
    assert presence.fileno() == descriptor
    presence.take_exits()
    assert not presence.is_running(2, second)
    assert not presence.is_running(1, second), "it is not opened when it has ended"
    assert not told(0.0)
    presence.close()


def test_presence_without_pidfds_tells_nobody() -> None:
    assert Presence(portable=True).fileno() is None
