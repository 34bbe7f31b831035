"""Survivors bring the launcher back: real processes, a launcher that does nothing but rule."""

import os
import pathlib
import select
import signal
import sys
import time
from dataclasses import replace

import psutil
import pytest

from actors.runtime import succession_core
from actors.runtime.filelock import FileLock
from actors.runtime.guardian import LAUNCHER_FILE, Guardian, successor_command
from actors.runtime.identity import ProcessIdentity, identity_of
from actors.runtime.journal import Journal
from actors.runtime.liveness import LAUNCHER_SLOT, WATCHDOG_SLOT, ProcessState
from actors.runtime.paths import JOURNAL_DIR, STOP_MARKER_FILE, SUCCESSION_LOCK_FILE
from actors.runtime.process import ProcessRuntime, run_process
from actors.runtime.signalling import HAS_PIDFD
from tests.actors.runtime import fake_launcher
from tests.actors.runtime.processes import House, record, wait_until

ROOT = pathlib.Path(__file__).parents[3]
TICK_S = 0.05
FIRST_SURVIVOR = 3
QUIET_S = 1.5
"""Long enough for a survivor that wanted to act to have done so (it waits 0.75 s at most)."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")


class Scene:
    """A launcher, a watchdog and survivors; each but the launcher loops over its guardian's step."""

    def __init__(self, home: House, config: pathlib.Path) -> None:
        self.home = home
        self.tick_s = TICK_S
        self.config = config
        config.write_text(f"[supervision]\ntick_s = {TICK_S}\n")
        self.board = home.board

    def launcher(self) -> ProcessIdentity:
        identity = self.home.fork(lambda: fake_launcher.main(self.home.runtime_dir))
        wait_until(lambda: (found := self.board.slots[LAUNCHER_SLOT].launcher.read()) and found.pid == identity.pid)
        return identity

    def survivor(self, slot: int, role: str = "") -> ProcessIdentity:
        """Start a process in `slot` that guards the others; `role` is the fake successor's."""
        command = [sys.executable, "-P", "-m", "tests.actors.runtime.fake_launcher", self.home.runtime_dir]

        def body(runtime: ProcessRuntime) -> int:
            guardian = Guardian(runtime, [*command, role] if role else command)
            runtime.set_state(ProcessState.READY)
            while not runtime.stop_requested:
                runtime.beat()
                guardian.step(time.monotonic())
                self.wait(runtime, guardian)
            return 0

        arguments = replace(self.home.arguments(f"process{slot}", slot), config_path=str(self.config))
        identity = self.home.fork(lambda: run_process(arguments, body))
        self.board.slots[slot].launcher.write(record(f"process{slot}", identity))
        wait_until(lambda: (own := self.board.slots[slot].process.read()) and own.state == ProcessState.READY)
        return identity

    def wait(self, runtime: ProcessRuntime, guardian: Guardian) -> None:
        """Wait as every loop does, for `self.tick_s`."""
        told_by = [] if guardian.descriptor is None else [guardian.descriptor]
        wait_s = max(0.0, min(self.tick_s, guardian.wake_at - time.monotonic()))
        select.select([runtime.wakeup_fd, *told_by], [], [], wait_s)

    def spawned(self) -> list[int]:
        """Pids of all launchers so far."""
        path = pathlib.Path(self.home.runtime_dir, fake_launcher.SPAWNED_FILE)
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def ruled_by_successor(self, old: ProcessIdentity) -> bool:
        ruler = self.board.slots[LAUNCHER_SLOT].current_identity()
        return ruler is not None and ruler != old and ruler.is_running()

    def quiet(self) -> bool:
        """Whether no launcher is started for a while."""
        before, until = len(self.spawned()), time.monotonic() + QUIET_S
        wait_until(lambda: time.monotonic() > until or len(self.spawned()) > before)
        return len(self.spawned()) == before

    def kill(self, *identities: ProcessIdentity) -> None:
        for identity in identities:
            os.kill(identity.pid, signal.SIGKILL)
        for identity in identities:
            self.home.exit_code(identity)


@pytest.fixture(name="scene")
def _scene(home: House, tmp_path: pathlib.Path) -> Scene:
    return Scene(home, tmp_path / "reliability.toml")


def test_it_leaves_a_launcher_alone_that_works(scene: Scene) -> None:
    scene.launcher()
    scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    assert scene.quiet()


def test_the_last_one_alive_brings_the_launcher_back(scene: Scene) -> None:
    launcher = scene.launcher()
    watchdog = scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    others = [scene.survivor(slot) for slot in (4, 5)]
    scene.kill(launcher, watchdog, *others)
    wait_until(lambda: scene.ruled_by_successor(launcher))
    assert scene.quiet()
    assert len(scene.spawned()) == 2


def test_a_successor_is_nobodys_child(scene: Scene) -> None:
    """Or it would be killed together with a survivor that hangs, as one of its descendants."""
    launcher = scene.launcher()
    survivor = scene.survivor(FIRST_SURVIVOR)
    scene.kill(launcher)
    wait_until(lambda: scene.ruled_by_successor(launcher))
    children = psutil.Process(survivor.pid).children(recursive=True)
    assert children == []
    assert os.getsid(scene.spawned()[1]) not in {os.getsid(survivor.pid), os.getsid(0)}


def test_of_many_survivors_one_acts(scene: Scene) -> None:
    launcher = scene.launcher()
    for slot in (WATCHDOG_SLOT, 3, 4, 5, 6):
        scene.survivor(slot)
    scene.kill(launcher)
    wait_until(lambda: scene.ruled_by_successor(launcher))
    assert scene.quiet()
    assert len(scene.spawned()) == 2


def test_a_successor_is_brought_back_as_well(scene: Scene) -> None:
    launcher = scene.launcher()
    scene.survivor(FIRST_SURVIVOR)
    scene.kill(launcher)
    wait_until(lambda: scene.ruled_by_successor(launcher))
    second = scene.board.slots[LAUNCHER_SLOT].current_identity()
    assert second is not None
    os.kill(second.pid, signal.SIGKILL)
    wait_until(lambda: scene.ruled_by_successor(second))


def test_a_launcher_that_hangs_alone_is_the_watchdogs_business(scene: Scene) -> None:
    launcher = scene.launcher()
    scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    os.kill(launcher.pid, signal.SIGSTOP)
    assert scene.quiet()
    assert launcher.is_running()


def test_a_watchdog_that_hangs_alone_is_the_launchers_business(scene: Scene) -> None:
    scene.launcher()
    watchdog = scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    os.kill(watchdog.pid, signal.SIGSTOP)
    assert scene.quiet()
    assert watchdog.is_running()


def test_when_both_hang_both_are_killed_and_a_launcher_started(scene: Scene) -> None:
    launcher, watchdog = scene.launcher(), scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    scene.survivor(4)
    for identity in (launcher, watchdog):
        os.kill(identity.pid, signal.SIGSTOP)
    assert scene.home.exit_code(launcher) == -signal.SIGKILL
    assert scene.home.exit_code(watchdog) == -signal.SIGKILL
    wait_until(lambda: scene.ruled_by_successor(launcher))
    assert len(scene.spawned()) == 2


def test_a_launcher_hangs_and_the_watchdog_is_gone(scene: Scene) -> None:
    launcher, watchdog = scene.launcher(), scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    scene.kill(watchdog)
    os.kill(launcher.pid, signal.SIGSTOP)
    assert scene.home.exit_code(launcher) == -signal.SIGKILL
    wait_until(lambda: scene.ruled_by_successor(launcher))


@pytest.mark.parametrize("mark", ["board", "runtime_dir", "data_dir"])
def test_a_deliberate_stop_is_obeyed(scene: Scene, mark: str) -> None:
    launcher = scene.launcher()
    if mark == "board":
        scene.board.stopping = True
    else:
        pathlib.Path(getattr(scene.home, mark), STOP_MARKER_FILE).write_text("{}")
    scene.survivor(FIRST_SURVIVOR)
    scene.kill(launcher)
    assert scene.quiet()


def test_nobody_who_is_told_of_exits_waits_for_a_tick(scene: Scene) -> None:
    """And launcher and watchdog are brought back by whoever is left, though it saw the launcher end before."""
    if not HAS_PIDFD:
        pytest.skip("without pidfds nobody is told of an exit")
    scene.tick_s = 60.0
    launcher, watchdog = scene.launcher(), scene.survivor(WATCHDOG_SLOT)
    scene.survivor(FIRST_SURVIVOR)
    os.kill(watchdog.pid, signal.SIGSTOP)  # so that it leaves the matter to the other
    scene.kill(launcher)
    began = time.monotonic()
    scene.kill(watchdog)
    wait_until(lambda: scene.ruled_by_successor(launcher))
    assert time.monotonic() - began < 10.0
    assert len(scene.spawned()) == 2


def test_the_launchers_own_budget_is_kept(scene: Scene) -> None:
    launcher = scene.launcher()
    scene.survivor(FIRST_SURVIVOR)
    slot = scene.board.slots[LAUNCHER_SLOT]
    written = slot.launcher.read()
    assert written is not None
    retry_at = time.monotonic() + 2.0
    slot.launcher.write(replace(written, retry_at_ms=int(retry_at * 1000)))
    scene.kill(launcher)
    wait_until(lambda: scene.ruled_by_successor(launcher))
    assert time.monotonic() >= retry_at


def test_a_process_that_was_replaced_touches_nothing(scene: Scene) -> None:
    launcher = scene.launcher()
    scene.survivor(FIRST_SURVIVOR)
    scene.board.slots[FIRST_SURVIVOR].launcher.write(record("process3", None, incarnation=2))
    scene.kill(launcher)
    assert scene.quiet()


def test_a_survivor_that_dies_while_acting_is_followed_by_another(scene: Scene) -> None:
    launcher = scene.launcher()
    lock_path = os.path.join(scene.home.runtime_dir, SUCCESSION_LOCK_FILE)

    def hold() -> int:
        lock = FileLock(lock_path)
        wait_until(lock.acquire)  # the probe has it now and then
        signal.pause()
        return 0

    holder = scene.home.fork(hold)
    probe = FileLock(lock_path)

    def held() -> bool:
        free = probe.acquire()
        probe.release()
        return not free

    wait_until(held)
    scene.survivor(FIRST_SURVIVOR)
    scene.kill(launcher)
    assert scene.quiet()
    scene.kill(holder)
    wait_until(lambda: scene.ruled_by_successor(launcher))


def test_a_successor_that_leaves_is_tried_again_after_a_pause(scene: Scene) -> None:
    launcher = scene.launcher()
    scene.survivor(FIRST_SURVIVOR, "11")
    scene.kill(launcher)
    wait_until(lambda: len(scene.spawned()) == 3)
    entries = list(Journal(os.path.join(scene.home.runtime_dir, JOURNAL_DIR), "process3").entries())
    assert [entry["event_type"] for entry in entries][:2] == ["succession", "succession_failed"]
    assert "has left" in entries[1]["message"]


def test_a_successor_that_never_rules_is_killed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession_core, "ATTEMPT_S_MIN", 0.5)
    launcher = scene.launcher()
    scene.survivor(FIRST_SURVIVOR, "mute")
    scene.kill(launcher)
    wait_until(lambda: len(scene.spawned()) == 2)
    mute = identity_of(scene.spawned()[1])
    assert mute is not None
    wait_until(lambda: not mute.is_running())
    wait_until(lambda: len(scene.spawned()) == 3)


def test_the_command_starts_the_launcher_of_this_very_source(home: House) -> None:
    arguments = replace(home.arguments("worker", 3), config_path="/etc/x.toml", portable=True)
    assert successor_command(arguments) == [
        *(sys.executable, "-P", LAUNCHER_FILE, "--successor", "--data-dir", home.data_dir),
        *("--config", "/etc/x.toml", "--portable"),
    ]
    assert str(ROOT / "launcher.py") == LAUNCHER_FILE
