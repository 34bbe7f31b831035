"""A machine on a fake clock: processes, their board, a tmpfs and a disk, and the laws that must hold on it.

Only the physics are made up here. What decides - the supervision core, the budget and its file, what is found on the
board, verdicts, succession - is the real code, run by the players in `players.py`.
"""

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, ProcessRecord, ProcessState, WatchdogRecord
from supervisor.memory import Moment
from supervisor.port import ExitStatus

NAMES = ("broker", "watchdog", "event_logger", "health_monitor")
LAUNCHER = "launcher"
SLOTS = {name: number for number, name in enumerate((LAUNCHER, *NAMES))}

RESTART_MAX = 3
PERIOD_S = 60.0
HANG_S = 3.0
START_TIMEOUT_S = 4.0
STOP_TIMEOUT_S = 2.0
TICK_S = 0.5
STEP_S = 0.1
CLOCK_ERROR_S = 0.01
"""Rounding of what is written down, and of the steps of time."""


class Violation(AssertionError):
    """A law was broken."""


class Left(Exception):
    """A player's process ends now, by itself or by a bomb."""

    def __init__(self, *, failed: bool) -> None:
        super().__init__(failed)
        self.failed = failed


class Brain(Protocol):
    """What runs in a process."""

    def wakes(self) -> bool:
        """Whether there is something to do before the next tick."""

    def turn(self) -> None:
        """One turn of its loop; raises `Left` to end the process."""


@dataclass(eq=False)
class Process:
    """One process. Times are the world's."""

    name: str
    identity: ProcessIdentity
    incarnation: int
    start_s: float
    ready_at: float = 0.0
    dies_at: float = math.inf
    leaves_in_s: float = 0.1
    brain: Brain | None = None
    tick_s: float = TICK_S
    alive: bool = True
    frozen: bool = False
    frozen_until: float = -math.inf
    frozen_at: float = 0.0
    asked_at: float = math.inf
    wanted_gone: bool = False
    kill_at: float = math.inf
    unkillable_until: float = -math.inf
    state: ProcessState = ProcessState.STARTING
    ticks: int = 0
    next_tick: float = 0.0
    status: ExitStatus = field(default_factory=ExitStatus)
    failed: bool = False

    @property
    def leaves_at(self) -> float:
        """When it has drained after it was asked to leave."""
        return self.asked_at + self.leaves_in_s


@dataclass
class Board:
    """What is on the liveness board."""

    epoch: int = 0
    stopping: bool = False
    launcher: dict[str, LauncherRecord] = field(default_factory=dict)
    own: dict[str, ProcessRecord] = field(default_factory=dict)
    watchdog: dict[str, WatchdogRecord] = field(default_factory=dict)


class World:
    """The machine. `step` moves it on by `STEP_S`."""

    def __init__(self, rng: random.Random, *, told_of_exits: bool) -> None:
        self.rng = rng
        self.told_of_exits = told_of_exits
        self.t = 0.0
        self.boot = 1
        self.booted_at = -100.0
        self.slept_s = 0.0
        self.wall_offset_s = 1e9
        self.paused_until = -math.inf
        self.processes: list[Process] = []
        self._free_pids: list[int] = []
        self.board: Board | None = None
        self.tmpfs: bytes | None = None
        self.disk: bytes | None = None
        self.disk_due: list[float] = []
        self.disk_stalled_until = -math.inf
        self.marker_tmpfs = False
        self.marker_disk = False
        self.lock_holder: Process | None = None
        self.succession_holder: Process | None = None
        self.stopped = False
        self.bomb: int | None = None
        self.trouble = Trouble()
        self.ledger = Ledger(self)
        self.wall_jumped = False
        self.log: deque[str] = deque(maxlen=150)
        self._pids = 100

    # --- clocks and names -----------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The monotonic clock of this boot; nobody reads it while the machine is suspended."""
        return self.t - self.booted_at - self.slept_s

    @property
    def now_ms(self) -> int:
        """The same in whole milliseconds."""
        return int(self.now * 1000)

    @property
    def boot_id(self) -> str:
        """The boot."""
        return f"boot-{self.boot}"

    def moment(self) -> Moment:
        """The three clocks."""
        return Moment(self.now, self.t + self.wall_offset_s, self.boot_id)

    def say(self, text: str) -> None:
        """Note what happened, for whoever has to understand a failure."""
        self.log.append(f"{self.t:8.2f} {text}")

    def living(self, name: str) -> list[Process]:
        """The live processes called `name`."""
        return [process for process in self.processes if process.name == name]

    def find(self, identity: ProcessIdentity) -> Process | None:
        """The live process that is `identity`."""
        pid = identity.pid
        for process in self.processes:
            if process.identity.pid == pid:
                return process if process.identity == identity else None
        return None

    def is_running(self, identity: ProcessIdentity) -> bool:
        """Whether exactly that process exists."""
        return self.find(identity) is not None

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, name: str, incarnation: int) -> Process:
        """Start a process as a launcher does."""
        if self._free_pids and self.rng.random() < 0.5:
            pid = self._free_pids.pop(self.rng.randrange(len(self._free_pids)))
        else:
            self._pids += 1
            pid = self._pids
        identity = ProcessIdentity(pid, int(self.t * 100), self.boot_id)
        process = Process(name, identity, incarnation, self.trouble.start_s(self, name))
        process.ready_at = self.t + process.start_s
        process.dies_at = self.trouble.dies_at(self, process)
        process.leaves_in_s = self.trouble.leaves_in_s(self)
        process.next_tick = self.t + self.rng.random() * TICK_S
        self.processes.append(process)
        self.say(f"start {name} {incarnation} (pid {pid}), ready in {process.ready_at - self.t:.2f} s")
        return process

    def end(self, process: Process, status: ExitStatus, *, failed: bool) -> None:
        """A process ends."""
        process.alive = False
        process.failed = failed
        process.status = status
        self.processes.remove(process)
        if process.identity.start_time < int(self.t * 100):
            self._free_pids.append(process.identity.pid)  # the next process may have it
        if self.lock_holder is process:
            self.lock_holder = None
        if self.succession_holder is process:
            self.succession_holder = None
        self.say(f"end   {process.name} {process.incarnation}: {'failed' if failed else 'left'} {status}")

    def signal(self, identity: ProcessIdentity, number: int, why: str) -> None:
        """Signal exactly that process, as a pidfd does."""
        process = self.find(identity)
        if process is None:
            return
        self.say(f"signal {number} to {process.name} {process.incarnation}: {why}")
        if number == 15:
            process.asked_at = min(process.asked_at, self.t)
            return
        self.ledger.check_kill(process, why)
        process.kill_at = min(process.kill_at, max(self.t, process.unkillable_until))

    def freeze(self, process: Process) -> None:
        """SIGSTOP."""
        if not process.frozen:
            process.frozen, process.frozen_at = True, self.t
            self.say(f"freeze {process.name} {process.incarnation}")

    def thaw(self, process: Process) -> None:
        """SIGCONT: it goes on where it was."""
        if process.frozen:
            process.frozen, process.frozen_until = False, max(self.t, self.paused_until)
            if process.state is ProcessState.STARTING:
                process.start_s += self.t - process.frozen_at
            self._shift(process, self.t - process.frozen_at)
            self.say(f"thaw {process.name} {process.incarnation}")

    def pause(self, duration_s: float, *, suspend: bool) -> None:
        """Nobody runs for a while; the monotonic clock stands still meanwhile if the machine is suspended."""
        self.paused_until = self.t + duration_s
        self.say(f"{'suspend' if suspend else 'pause'} for {duration_s:.1f} s")
        for process in self.processes:
            self._shift(process, duration_s)
            process.frozen_until += duration_s  # it has had no chance to move since
            if process.frozen:
                process.frozen_at += duration_s
        if suspend:
            self.slept_s += duration_s
            self.ledger.exact = False  # by the monotonic clock charges age more slowly now than in true time

    def set_wall_clock(self, by_s: float) -> None:
        """Somebody sets the wall clock."""
        self.say(f"wall clock set by {by_s:+g} s")
        self.wall_offset_s += by_s
        self.wall_jumped = True
        if self.tmpfs is None:  # no launcher of this boot has read yet what the wall clock has dated
            self.ledger.rebooted(remembered=False)

    def reboot(self) -> None:
        """Power off and on: processes and tmpfs are gone, the disk has what it had."""
        self.say("reboot")
        for process in list(self.processes):
            self.end(process, ExitStatus(), failed=False)
        self.ledger.rebooted(remembered=self.disk == self.tmpfs and not self.wall_jumped)
        self.wall_jumped = False
        self.boot += 1
        self.booted_at, self.slept_s = self.t - 5.0, 0.0
        self.board = self.tmpfs = None
        self.marker_tmpfs = False
        self.disk_due.clear()
        self.paused_until = -math.inf

    def _shift(self, process: Process, by_s: float) -> None:
        process.ready_at += by_s
        process.dies_at += by_s
        process.asked_at += by_s
        process.next_tick = max(process.next_tick, self.t)

    # --- time -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Move on."""
        self.t += STEP_S
        if self.disk_due and self.t >= max(self.disk_due[0], self.disk_stalled_until):
            self.disk_due.clear()
            self.disk = self.tmpfs
        if self.t < self.paused_until:
            return
        order = self.processes.copy()
        self.rng.shuffle(order)
        for process in order:
            if process.alive:
                self._live(process)
        self.ledger.check()

    def _live(self, process: Process) -> None:
        if self.t >= process.kill_at:
            self.end(process, ExitStatus(signal=9), failed=not process.wanted_gone)
        elif process.frozen:
            return
        elif self.t >= process.dies_at:
            self.end(process, ExitStatus(exit_code=1), failed=process.asked_at == math.inf)
        elif self.t >= process.leaves_at:
            self.end(process, ExitStatus(exit_code=0), failed=False)
        else:
            self._run(process)

    def _run(self, process: Process) -> None:
        if process.state is ProcessState.STARTING and self.t >= process.ready_at:
            process.state = ProcessState.READY
        if process.asked_at < math.inf:
            process.state = ProcessState.STOPPING
        due = self.t >= process.next_tick
        if process.brain is None or not (due or process.brain.wakes()):
            return
        if due:
            process.next_tick = self.t + process.tick_s * (0.9 + 0.1 * self.rng.random())
            process.ticks += 1
        try:
            process.brain.turn()
        except Left as left:
            if process.alive:
                self.end(process, ExitStatus(exit_code=1 if left.failed else 0), failed=left.failed)


@dataclass
class Trouble:
    """What goes wrong with starts and stops for the time being."""

    crash_loop: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    stubborn_share: float = 0.0
    no_room_share: float = 0.0

    def start_s(self, world: World, name: str) -> float:
        """How long a start takes."""
        if name in self.slow and world.rng.random() < 0.7:
            return world.rng.choice([2.0, 3.5, 100.0])
        return world.rng.uniform(0.02, 0.4)

    def dies_at(self, world: World, process: Process) -> float:
        """When it will end by itself: before it is ready, or soon after."""
        if process.name in self.crash_loop:
            return world.t + world.rng.uniform(0.02, 1.5)
        return math.inf

    def leaves_in_s(self, world: World) -> float:
        """How long it takes to leave once asked."""
        return 1000.0 if world.rng.random() < self.stubborn_share else world.rng.uniform(0.02, 0.6)


class Ledger:
    """Counts what happens, by itself and in true time, and says what must not have happened."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.charged: dict[str, list[float]] = {name: [] for name in (LAUNCHER, *NAMES)}
        self.attempts: dict[str, list[float]] = {name: [] for name in (LAUNCHER, *NAMES)}
        self.last: dict[str, Process] = {}
        self.kills = 0
        self.free_starts: set[str] = set()
        self.stopped_by_hand: set[str] = set()
        self.exact = True

    def begin_afresh(self) -> None:
        """A person starts the system: everything starts for nothing, and nothing is stopped any more."""
        self.free_starts = set(NAMES)
        self.exact &= (
            not self.last
        )  # a start that was paid and never made, by the launcher before, may be counted still
        self.stopped_by_hand.clear()

    def spawned(self, process: Process) -> None:
        """A launcher has started `process`, or tried to."""
        world, name = self._world, process.name
        before = self.last.get(name)
        others = [other for other in world.living(name) if other is not process]
        if others:
            raise Violation(f"{name} {process.incarnation} started while {others[0].incarnation} lives")
        if before is not None and process.incarnation <= before.incarnation:
            raise Violation(f"{name}: incarnation {process.incarnation} after {before.incarnation}")
        if name in self.stopped_by_hand:
            raise Violation(f"{name} was started although a person had stopped it")
        self.last[name] = process
        if name in self.free_starts:
            self.free_starts.discard(name)
        elif before is None or before.failed:
            self.charge(name, process)
        elif not before.wanted_gone:
            raise Violation(f"{name} was restarted although life {before.incarnation} had not failed")

    def charge(self, name: str, process: Process | None = None) -> None:
        """A restart of `name` has to be paid for; one that there was no room for counts only if its launcher lived."""
        now = self._world.t
        recent = self.recent(name)
        self.attempts[name].append(now)
        if process is not None and not process.alive:
            return
        if len(recent) >= RESTART_MAX:
            raise Violation(f"{name}: restart {len(recent) + 1} within {PERIOD_S:g} s, after {recent}")
        self.charged[name] = [*recent, now]

    def recent(self, name: str) -> list[float]:
        """The paid restarts of the last period."""
        now = self._world.t
        return [then for then in self.charged[name] if then + PERIOD_S - CLOCK_ERROR_S > now]

    def quarantined(self, name: str) -> None:
        """A launcher has put `name` into quarantine."""
        attempts = [then for then in self.attempts[name] if then + PERIOD_S > self._world.t]
        if self.exact and len(attempts) < RESTART_MAX:
            raise Violation(f"{name} was quarantined after {attempts} at {self._world.t}")

    def rebooted(self, *, remembered: bool) -> None:
        """What had not reached the disk cannot be remembered, nor what a clock has dated that was set."""
        if not remembered:
            self.exact &= not self.last  # something may have been remembered all the same
            self.charged = {name: [] for name in self.charged}
            self.last.clear()

    def check_kill(self, process: Process, why: str) -> None:
        """Nobody is killed who runs well."""
        world = self._world
        overdue = process.state is ProcessState.STARTING and process.start_s > START_TIMEOUT_S / 2
        silent = process.frozen or world.t - process.frozen_until < 2 * max(TICK_S, process.tick_s)
        leaving = process.asked_at < math.inf
        if not (overdue or silent or leaving or process.kill_at < math.inf or process.wanted_gone):
            raise Violation(f"{process.name} {process.incarnation} was killed although it ran well: {why}")

    def check(self) -> None:
        """What must hold at every moment."""
        world = self._world
        if world.stopped and any(process.name != LAUNCHER for process in world.processes):
            raise Violation(f"after a stop: {[process.name for process in world.processes]}")
        for name in NAMES:
            if len(world.living(name)) > 1:
                raise Violation(f"two processes are {name}")


def unfrozen(world: World) -> Iterator[Process]:
    """The processes that could act."""
    return (process for process in world.processes if not process.frozen)
