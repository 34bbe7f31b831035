"""Who acts in the simulated machine: the real cores, each with a shell that acts on `World` instead of a system."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from actors.runtime.config import SupervisionConfig
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import ProcessKind, ProcessRecord, ProcessState, Verdict, WatchdogRecord
from actors.runtime.process import STOP_STAGES_MAX
from actors.runtime.succession_core import Effect as SuccessionEffect
from actors.runtime.succession_core import Scene, Seen, Succession
from actors.runtime.verdict import HangDetector, Observation, Stage
from actors.watchdog.core import Condemn, KillAgain, Subject, Watch
from supervisor import model
from supervisor.budget import Budget
from supervisor.core import Supervisor
from supervisor.memory import encode, latest
from supervisor.model import ChildSpec, Exit, Phase, Remembered, State
from supervisor.slots import found_in, how_it_ended, record_of, record_of_launcher, says_ready
from supervisor.takeover import OverBudgetError, launcher_as_child
from tests.sim.world import (
    HANG_S,
    LAUNCHER,
    NAMES,
    PERIOD_S,
    RESTART_MAX,
    SLOTS,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    TICK_S,
    Board,
    Left,
    Process,
    World,
)

SUPERVISION = SupervisionConfig(hang_timeout_s=HANG_S, tick_s=TICK_S)
BUDGET = Budget(RESTART_MAX, PERIOD_S)
STOP_RANKS = {"health_monitor": 0, "event_logger": 1, "watchdog": 2, "broker": 3}
SPECS = [ChildSpec(name, BUDGET, START_TIMEOUT_S, STOP_TIMEOUT_S, STOP_RANKS[name]) for name in NAMES]
OWN_SPEC = ChildSpec(LAUNCHER, BUDGET, START_TIMEOUT_S, STOP_TIMEOUT_S, 0)


def observe(world: World, board: Board, name: str) -> Observation | None:
    """What `actors.runtime.examine.observe` sees."""
    record, own = board.launcher.get(name), board.own.get(name)
    if record is None:
        return None
    process = world.find(ProcessIdentity(record.pid, record.start_time, world.boot_id)) if record.pid else None
    registered = own is not None and (own.incarnation, own.pid) == (record.incarnation, record.pid)
    return Observation(
        key=SLOTS[name],
        incarnation=record.incarnation,
        pid=record.pid,
        running=process is not None,
        registered=registered,
        ready=own is not None and own.state in (ProcessState.READY, ProcessState.STOPPING),
        tick=process.ticks if process else 0,
        lease_until_s=0.0,
        lease_holds_loop=False,
        hang_timeout_s=record.hang_timeout_ms / 1000,
        start_timeout_s=record.start_timeout_ms / 1000,
    )


class Survivor:
    """Every process of ours but the launcher: shows itself on the board, leaves if replaced, restores the launcher."""

    def __init__(self, world: World, process: Process, board: Board) -> None:
        self.world = world
        self.process = process
        self.board = board
        is_watchdog = process.name == "watchdog"
        process.tick_s = TICK_S / 2 if is_watchdog else SUPERVISION.survivor_tick_s(told_of_exits=world.told_of_exits)
        self._succession = Succession(is_watchdog=is_watchdog)
        self._detector = HangDetector(process.tick_s)
        self._watched = (LAUNCHER,) if is_watchdog else (LAUNCHER, "watchdog")
        self._attempt: Process | None = None
        self._shown: ProcessState | None = None
        self._stopping_since = world.now

    def wakes(self) -> bool:
        """It has something to show, or the launcher's pidfd speaks, or it has reason to look again."""
        if self._shown is not self.process.state:
            return True
        launcher = self.board.launcher.get(LAUNCHER)
        identity = launcher and ProcessIdentity(launcher.pid, launcher.start_time, self.world.boot_id)
        exited = identity is not None and not self.world.is_running(identity)
        return (self.world.told_of_exits and exited) or self.world.now >= self._succession.wake_at

    def turn(self) -> None:
        """One turn of the loop."""
        process = self.process
        if self._replaced() or self._abandoned_in_stop():
            process.wanted_gone = True
            raise Left(failed=False)
        if self._shown is not process.state:
            self._shown = process.state
            own = ProcessRecord(
                process.identity.pid, process.identity.start_time, process.incarnation, str(process.state)
            )
            self.board.own[process.name] = own
        self._guard()

    def _replaced(self) -> bool:
        record = self.board.launcher.get(self.process.name)
        if self.board is not self.world.board:
            return True
        if record is None:
            return False
        own = self.process.incarnation
        return record.incarnation > own or (
            record.incarnation == own and record.pid not in (0, self.process.identity.pid)
        )

    def _abandoned_in_stop(self) -> bool:
        if not self.board.stopping:
            self._stopping_since = self.world.now
            return False
        record = self.board.launcher.get(LAUNCHER)
        identity = record and ProcessIdentity(record.pid, record.start_time, self.world.boot_id)
        gone = identity is None or not self.world.is_running(identity)
        return gone or self.world.now - self._stopping_since > STOP_TIMEOUT_S * STOP_STAGES_MAX

    def _guard(self) -> None:
        world, board = self.world, self.board
        seen = {name: observe(world, board, name) for name in self._watched}
        self._detector.tick(world.now, [item for item in seen.values() if item is not None])
        launcher = board.launcher.get(LAUNCHER)
        how = {name: self._see(item, name) for name, item in seen.items()}
        scene = Scene(
            launcher=how[LAUNCHER],
            watchdog=how.get("watchdog", Seen.WELL),
            stopping=board.stopping or world.marker_tmpfs,
            retry_at_s=launcher.retry_at_ms / 1000 if launcher else 0.0,
            attempt_ended=self._attempt is not None and not self._attempt.alive,
        )
        effect = self._succession.step(world.now, scene)
        if effect is SuccessionEffect.ASK_LOCK:
            taken = world.succession_holder in (None, self.process)
            if taken:
                world.succession_holder = self.process
            effect = self._succession.lock_answered(world.now, taken=taken)
        if effect is SuccessionEffect.LAUNCH:
            for name in self._watched:
                if how[name] is Seen.SILENT:
                    record = board.launcher[name]
                    identity = ProcessIdentity(record.pid, record.start_time, world.boot_id)
                    world.signal(identity, 9, f"succession by {self.process.name}: {name} is silent")
            self._attempt = start_launcher(world, successor=True)
        elif effect is not None:
            if effect is SuccessionEffect.ABANDON and self._attempt is not None and self._attempt.alive:
                self._attempt.wanted_gone = True
                world.signal(self._attempt.identity, 9, f"abandoned by {self.process.name}")
            self._attempt = None
            if world.succession_holder is self.process:
                world.succession_holder = None

    def _see(self, item: Observation | None, name: str) -> Seen:
        if item is None:
            return Seen.WELL if name == LAUNCHER else Seen.GONE
        if not item.running:
            return Seen.GONE
        return Seen.SILENT if self._detector.stage_of(item) is Stage.HUNG else Seen.WELL


class Watchdog(Survivor):
    """Judges everybody as well."""

    def __init__(self, world: World, process: Process, board: Board) -> None:
        super().__init__(world, process, board)
        self._watch = Watch(process.tick_s)

    def turn(self) -> None:
        """One turn of the loop."""
        super().turn()
        world, board = self.world, self.board
        names = {SLOTS[name]: name for name in (LAUNCHER, *NAMES) if name != self.process.name}
        seen = [observe(world, board, name) for name in names.values()]
        subjects = [Subject(item) for item in seen if item is not None]
        for effect in self._watch.step(world.now, subjects, stopping=board.stopping):
            if isinstance(effect, Condemn):
                name = names[effect.judgement.key]
                board.watchdog[name] = WatchdogRecord(
                    effect.judgement.incarnation, Verdict.HUNG, str(effect.cause), world.now_ms
                )
                self._kill(name, f"hangs: {effect.cause}")
            elif isinstance(effect, KillAgain):
                self._kill(names[effect.key], "still there")

    def _kill(self, name: str, why: str) -> None:
        record = self.board.launcher[name]
        identity = ProcessIdentity(record.pid, record.start_time, self.world.boot_id)
        self.world.signal(identity, 9, f"the watchdog: {why}")


@dataclass
class Handle:
    """What the launcher holds of a process: a pidfd, so it knows exactly whom."""

    process: Process
    adopted: bool
    incarnation: int


@dataclass(eq=False)
class Launcher:
    """The launcher's shell, on the simulated machine."""

    world: World
    process: Process
    successor: bool
    core: Supervisor = field(init=False)
    handles: dict[str, Handle] = field(default_factory=dict)
    board: Board | None = None
    began: bool = False
    _effects: deque[model.Effect] = field(default_factory=deque)
    _marked_at: float | None = None
    _quarantined: set[str] = field(default_factory=set)
    _counted: bool = False
    _stillborn_free: set[str] = field(default_factory=set)

    def wakes(self) -> bool:
        """Something happened, or is due."""
        if not self.began:
            return self.world.t >= self.process.ready_at
        deadline = self.core.next_deadline()
        return (
            (deadline is not None and self.world.now >= deadline)
            or any(not handle.process.alive for handle in self.handles.values())
            or bool(self._newly_ready())
            or (self._marked_at is not None and self.world.t >= self._marked_at)
        )

    def turn(self) -> None:
        """One turn of the loop."""
        world = self.world
        if not self.began:
            if world.t >= self.process.ready_at:
                self._begin()
            return
        if self.board is not world.board or self.board is None or self.board.epoch != self.own.incarnation:
            world.say("the launcher finds itself replaced")
            raise Left(failed=False)
        for name, handle in list(self.handles.items()):
            if not handle.process.alive:
                del self.handles[name]
                status = None if handle.adopted else handle.process.status
                exit_ = how_it_ended(self.board.watchdog.get(name), handle.incarnation, status)
                self.do(self.core.exited(name, handle.incarnation, exit_, world.now))
        for name, incarnation in self._newly_ready():
            self.do(self.core.became_ready(name, incarnation, world.now))
        names = {SLOTS[name]: name for name in self.core.judges()}
        seen = [observe(world, self.board, name) for name in names.values()]
        for judgement in self._detector.tick(world.now, [item for item in seen if item is not None]).judgements:
            if judgement.stage is Stage.HUNG and judgement.changed:
                name = names[judgement.key]
                self.do(self.core.judged_hung(name, judgement.incarnation, "frozen", "", world.now))
        if self._marked_at is not None and world.t >= self._marked_at:
            self._marked_at, world.marker_disk = None, True
            self.do(self.core.stop_marked(world.now))
        self.do(self.core.turn(world.now))
        self._show()

    def command(self, op: str, name: str) -> None:
        """A person commands."""
        if self.began and self.core.phase is Phase.RUNNING:
            self.world.say(f"command {op} {name}")
            ledger = self.world.ledger
            if op != "stop":
                ledger.stopped_by_hand.discard(name)
                if name not in self.handles or (op == "restart" and not self.handles[name].process.alive):
                    ledger.free_starts.add(name)
            self.do(self.core.command(op, name, "me", self.world.now))
            if op == "stop":
                ledger.stopped_by_hand.add(name)  # only now: before, it was not promised

    def stop(self, *, forced: bool = False) -> None:
        """A person stops the system."""
        if self.began:
            self.world.say("stop" + (" by force" if forced else ""))
            self.do(self.core.stop("me", self.world.now))
            if forced:
                self.do(self.core.force(self.world.now))

    # --- taking over, as `ground` and `takeover` do ---------------------------------------------------------------

    def _begin(self) -> None:
        world = self.world
        if world.lock_holder is not None:
            raise Left(failed=False)
        if self.successor and (world.marker_tmpfs or (world.board is not None and world.board.stopping)):
            raise Left(failed=False)
        world.lock_holder = self.process
        if not self.successor:
            world.marker_tmpfs = world.marker_disk = world.stopped = False
        old = world.board
        adopting = old is not None and (self.successor or self._anybody(old))
        copies = [copy for copy in (world.tmpfs, world.disk) if copy is not None]
        self._revision, remembered = latest(copies, world.moment(), PERIOD_S)
        epoch = old.epoch if old is not None and adopting else 0
        try:
            self.own = launcher_as_child(
                OWN_SPEC, remembered.get(LAUNCHER, Remembered()), epoch, successor=self.successor, now=world.now
            )
        except OverBudgetError:
            raise Left(failed=False) from None
        self.board = old if old is not None and adopting else Board()
        world.board = self.board
        stop_interrupted, self.board.stopping = self.board.stopping, False
        self.board.epoch = self.own.incarnation
        if not adopting:
            remembered = {name: replace(past, wanted=True) for name, past in remembered.items()}
        self.core = Supervisor.of(SPECS, remembered, TICK_S * 3)
        self._detector = HangDetector(TICK_S)
        world.say(f"launcher {self.own.incarnation} begins, {'adopting' if adopting else 'afresh'}")
        found = {}
        for name, record in self.board.launcher.items():
            if name != LAUNCHER:
                own, verdict = self.board.own.get(name), self.board.watchdog.get(name)
                found[name], identity = found_in(record, own, verdict, world.boot_id, world.is_running)
                if stop_interrupted:
                    found[name] = replace(found[name], leaving=True)
                process = world.find(identity) if identity is not None else None
                if process is not None:
                    self.handles[name] = Handle(process, True, found[name].incarnation)
        self.began = True
        self.process.incarnation = self.own.incarnation
        self._quarantined = {name for name, past in remembered.items() if past.quarantined}
        self._quarantined |= {name for name, process in found.items() if process.state is State.QUARANTINED}
        self._show_own()
        self.do([model.Persist()])
        if not adopting:
            world.ledger.begin_afresh()
        elif stop_interrupted:
            world.ledger.free_starts = set(NAMES)  # who ended in a stop has not failed
        self.do(self.core.begin(found, world.now))
        world.ledger.free_starts.clear()
        self.own.state = State.READY
        self._show()

    def _anybody(self, board: Board) -> bool:
        records = [*board.launcher.items(), *board.own.items()]
        return any(
            self.world.is_running(ProcessIdentity(record.pid, record.start_time, self.world.boot_id))
            for name, record in records
            if name != LAUNCHER and record.pid
        )

    # --- effects, as `shell` and `fleet` carry them out -----------------------------------------------------------

    def do(self, effects: Iterable[model.Effect]) -> None:
        """Carry out effects in their order; a bomb may end the launcher before or amid any of them."""
        idle = not self._effects
        self._effects.extend(effects)
        while idle and self._effects:
            self._explode()
            self._do_one(self._effects[0])
            self._effects.popleft()
        if not self._effects:
            self._stillborn_free.clear()

    def _explode(self) -> None:
        if self.world.bomb is not None:
            self.world.bomb -= 1
            if self.world.bomb < 0:
                self.world.bomb = None
                self.world.say(f"the launcher dies before {self._effects[0]}")
                self.world.ledger.free_starts |= (
                    self._stillborn_free
                )  # it knew that there was no room; nobody else does
                raise Left(failed=True)

    def _do_one(self, effect: model.Effect) -> None:
        world = self.world
        match effect:
            case model.Persist():
                self._revision += 1
                past = self.core.remembered() | {LAUNCHER: Remembered(self.own.incarnation, self.own.charges)}
                world.tmpfs = encode(self._revision, past, world.moment())
                if self.successor and not self._counted:
                    self._counted = True
                    world.ledger.charge(LAUNCHER)
                world.disk_due.append(world.t + world.rng.uniform(0.01, 0.3))
            case model.Spawn(name, incarnation):
                self._spawn(name, incarnation)
            case model.Terminate(name) if name in self.handles:
                self.handles[name].process.wanted_gone = True
                self._show_child(name)
                world.signal(self.handles[name].process.identity, 15, f"the launcher ends {name}")
            case model.Kill(name) if name in self.handles:
                if self.core.phase is not Phase.RUNNING:
                    self.handles[name].process.wanted_gone = True
                self._show_child(name)
                world.signal(self.handles[name].process.identity, 9, f"the launcher kills {name}")
            case model.MarkStop():
                assert self.board is not None
                self.board.stopping = world.marker_tmpfs = True
                self._marked_at = world.t + world.rng.choice([0.02, 0.3, 50.0])
            case model.Leave():
                world.say("the launcher leaves")
                world.stopped, world.board = effect.exit_code == 0, None
                raise Left(failed=False)

    def _spawn(self, name: str, incarnation: int) -> None:
        world = self.world
        assert self.board is not None
        self._show_child(name)
        self._explode()
        if world.rng.random() < world.trouble.no_room_share:
            before = world.ledger.last.get(name)
            if name in world.ledger.free_starts or (before is not None and not before.failed):
                self._stillborn_free.add(name)
            world.say(f"no room to start {name} {incarnation}")
            world.ledger.spawned(self._stillborn(name, incarnation))
            self.do(self.core.exited(name, incarnation, Exit("could not be started"), world.now))
            return
        if world.bomb == 0:  # it dies before it has opened the gate: so the child leaves
            world.bomb = None
            world.say(f"{name} {incarnation} ends at the gate")
            raise Left(failed=True)
        process = world.start(name, incarnation)
        world.ledger.spawned(process)
        process.brain = (Watchdog if name == "watchdog" else Survivor)(world, process, self.board)
        self.handles[name] = Handle(process, False, incarnation)
        self._show_child(name)

    def _stillborn(self, name: str, incarnation: int) -> Process:
        identity = ProcessIdentity(0, 0, self.world.boot_id)
        return Process(name, identity, incarnation, 0.0, alive=False, failed=True)

    def _newly_ready(self) -> list[tuple[str, int]]:
        board = self.board
        return [
            (name, child.incarnation)
            for name, child in self.core.children.items()
            if child.state is State.STARTING and board is not None and says_ready(board.own.get(name), child)
        ]

    def _show(self) -> None:
        self._show_own()
        for name in self.core.children:
            self._show_child(name)

    def _show_own(self) -> None:
        world, own, identity = self.world, self.own, self.process.identity
        assert self.board is not None
        state = ProcessState(own.state)
        self.board.own[LAUNCHER] = ProcessRecord(identity.pid, identity.start_time, own.incarnation, state)
        self.board.launcher[LAUNCHER] = record_of_launcher(own, identity, HANG_S, world.now)

    def _show_child(self, name: str) -> None:
        world, child, handle = self.world, self.core.children[name], self.handles.get(name)
        assert self.board is not None
        kind = ProcessKind.WATCHDOG if name == "watchdog" else ProcessKind.ACTOR
        identity = handle.process.identity if handle else None
        self.board.launcher[name] = record_of(child, kind, identity, HANG_S, world.now)
        if child.state is not State.QUARANTINED:
            self._quarantined.discard(name)
        elif name not in self._quarantined:
            self._quarantined.add(name)
            world.ledger.quarantined(name)


def start_launcher(world: World, *, successor: bool) -> Process:
    """Start a launcher: a survivor does, or a person."""
    process = world.start(LAUNCHER, 0)
    process.ready_at = world.t + world.rng.uniform(0.1, 0.6)
    process.dies_at = float("inf")
    process.brain = Launcher(world, process, successor)
    return process


def ruling(world: World) -> Launcher | None:
    """The launcher that rules now."""
    brain: Any = world.lock_holder.brain if world.lock_holder is not None else None
    return brain if isinstance(brain, Launcher) and brain.began else None


def whole(world: World) -> list[str]:
    """What is missing from a whole system; nothing if a ruling launcher holds everything wanted ready."""
    launcher = ruling(world)
    if launcher is None:
        return [f"no launcher (budget {world.ledger.recent(LAUNCHER)})"]
    missing = []
    for name, child in launcher.core.children.items():
        process = next(iter(world.living(name)), None)
        well = process is not None and not process.frozen and child.state is State.READY
        if child.wanted and not well:
            missing.append(f"{name} is {child.state}")
        if not child.wanted and process is not None:
            missing.append(f"{name} runs although it was stopped")
    if launcher.process.frozen:
        missing.append("the launcher is frozen")
    return missing
