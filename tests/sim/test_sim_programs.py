"""Programs in seeded random schedules, with a ledger of its own: policies, budgets, order, additions, launcher deaths.

`SIM_SCHEDULES` says how many schedules are played.
"""

import os
import random
from dataclasses import dataclass, field, replace

from actors.runtime.programs import Restart
from supervisor.budget import Budget
from supervisor.core import Supervisor
from supervisor.model import LIVE, ChildSpec, Effect, Exit, Found, Kill, Phase, Remembered, Spawn, State, Terminate
from supervisor.policy import OWN_PATIENCE_S

SCHEDULES = int(os.environ.get("SIM_SCHEDULES", "100"))
STEP_S = 0.25
STEPS = 400
PERIOD_S = 30.0
RESTART_MAX = 3
OWN = "broker"
EXITS = [
    Exit("code 0", exit_code=0),
    Exit("code 1", exit_code=1),
    Exit("SIGTERM", signal=15),
    Exit("SIGKILL", signal=9),
]
UNKNOWN = Exit("ended while no launcher ran")


@dataclass
class Life:
    """One process, and what its end will mean."""

    incarnation: int
    ready_at: float
    asked: bool = False
    condemned: bool = False
    ended: Exit | None = None


@dataclass
class Machine:
    """Processes and a launcher that dies; the ledger is kept beside it and knows nothing of the core's state."""

    rng: random.Random
    now: float = 0.0
    specs: dict[str, ChildSpec] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    paid: dict[str, list[float]] = field(default_factory=dict)
    stays_down: set[str] = field(default_factory=set)
    free: set[str] = field(default_factory=set)
    been_ready: set[str] = field(default_factory=set)
    started_once: set[str] = field(default_factory=set)
    began_at: float = 0.0

    def begin(self) -> None:
        """Start afresh with an own process and up to four programs, each after some of those before it."""
        budget = Budget(RESTART_MAX, PERIOD_S)
        self.specs = {OWN: ChildSpec(OWN, budget, 5.0, 2.0, 0)}
        for number in range(self.rng.randrange(1, 5)):
            self._invent(f"p{number}")
        self.free = set(self.specs)
        self.core = Supervisor.of(list(self.specs.values()), {}, 1.5)
        self.do(self.core.begin({}, self.now))

    def _invent(self, name: str) -> ChildSpec:
        others = [other for other in self.specs if other != OWN]
        after = tuple(self.rng.sample(others, self.rng.randrange(min(2, len(others)) + 1)))
        started = self.rng.random() < 0.5
        budget, restart = Budget(RESTART_MAX, PERIOD_S), self.rng.choice(list(Restart))
        spec = ChildSpec(name, budget, 5.0, 2.0, -1, restart, after, True, started, True)
        self.specs[name] = spec
        return spec

    def do(self, effects: list[Effect]) -> None:
        """Carry effects out."""
        for effect in effects:
            match effect:
                case Spawn(name, incarnation):
                    self._spawn(name, incarnation)
                case Terminate(name):
                    self.lives[name].asked = True
                case Kill(name):
                    if self.lives[name].ended is None:
                        self.lives[name].ended = EXITS[3]

    def _spawn(self, name: str, incarnation: int) -> None:
        spec = self.specs[name]
        assert name not in self.lives, f"{name} started while it lives"
        assert incarnation > self.highest.get(name, 0), f"{name}: life {incarnation} again"
        assert self.core.phase is Phase.RUNNING
        self.highest[name] = incarnation
        if name not in self.free:
            assert name not in self.stays_down, f"{name} came back against its policy"
            paid = [then for then in self.paid.get(name, []) if then + PERIOD_S > self.now + 1e-9]
            assert len(paid) < RESTART_MAX, f"{name}: restart beyond its budget, after {paid} at {self.now}"
            self.paid[name] = [*paid, self.now]
        elif name not in self.started_once:
            awaited = [other for other in spec.after if other in self.specs and other not in self.been_ready]
            assert not awaited, f"{name} started before {awaited}"
            own_up = OWN in self.been_ready or self.now - self.began_at >= OWN_PATIENCE_S
            assert name == OWN or own_up, f"{name} started before our own"
        self.free.discard(name)
        self.stays_down.discard(name)
        self.started_once.add(name)
        self.lives[name] = Life(incarnation, self.now + self.rng.choice([0.0, 0.5, 1.0, 9.0]))

    def step(self) -> None:
        """Something happens, or nothing; then the launcher has a turn."""
        self.now += STEP_S
        self._live()
        self._interfere()
        self._turn()

    def _live(self) -> None:
        for name, life in self.lives.items():
            if life.ended is not None:
                continue
            if (life.asked and self.rng.random() < 0.4) or self.rng.random() < (0.01 if name == OWN else 0.06):
                life.ended = self.rng.choice(EXITS)

    def _turn(self) -> None:
        for name, life in list(self.lives.items()):
            if life.ended is not None:
                self._bury(name, life, life.ended)
        for name, life in self.lives.items():
            if self.now >= life.ready_at and self.core.children[name].state is State.STARTING:
                self.been_ready.add(name)
                self.do(self.core.became_ready(name, life.incarnation, self.now))
        self.do(self.core.turn(self.now))
        for name, child in self.core.children.items():
            assert (child.state in LIVE) == (name in self.lives), f"{name} is {child.state}"

    def _bury(self, name: str, life: Life, exit_: Exit) -> None:
        del self.lives[name]
        child, restart = self.core.children[name], self.specs[name].restart
        failed = child.ending is not None and child.ending.failed
        by_hand = child.ending is not None and not child.ending.failed
        clean = (exit_.exit_code == 0 or exit_.signal in (1, 2, 13, 15)) and not failed
        if not child.wanted or (
            not by_hand and (restart is Restart.NEVER or (restart is Restart.ON_FAILURE and clean))
        ):
            self.stays_down.add(name)
        elif by_hand:
            self.free.add(name)
        self.do(self.core.exited(name, life.incarnation, exit_, self.now))

    def _interfere(self) -> None:
        name = self.rng.choice(list(self.specs))
        match self.rng.randrange(60):
            case 0 | 1:
                op = self.rng.choice(["start", "stop", "restart"])
                if op != "stop" and name not in self.lives:
                    self.free.add(name)
                    self.started_once.add(name)  # a person's word needs nobody's readiness
                if op == "stop" and name not in self.lives:
                    self.stays_down.add(name)
                    self.free.discard(name)
                self.do(self.core.command(op, name, "me", self.now))
            case 2 | 3 if name in self.lives and name != OWN:
                self.do(self.core.judged_hung(name, self.lives[name].incarnation, "frozen", "", self.now))
            case 4 if len(self.specs) < 8:
                self._add()
            case 5 if name != OWN and name not in self.lives:
                self.do(self.core.remove(name, self.now))
                del self.specs[name]
            case 6:
                self._launcher_dies()
            case _:
                pass

    def _add(self) -> None:
        name = next(f"p{number}" for number in range(99) if f"p{number}" not in self.specs)
        spec = self._invent(name)
        self.free.add(name)
        self.started_once.discard(name)
        self.been_ready.discard(name)
        self.stays_down.discard(name)
        self.paid.pop(name, None)
        self.do(self.core.add(spec, Remembered(self.highest.get(name, 0)), self.now))

    def _launcher_dies(self) -> None:
        found = {}
        for name, child in self.core.children.items():
            life = self.lives.get(name)
            if life is not None and life.ended is None and self.rng.random() < 0.1:
                life.ended = EXITS[0]
            alive = life is not None and life.ended is None
            found[name] = Found(
                child.state, child.incarnation, alive, life is not None, since=child.since,
                started_at=child.started_at, retry_at=child.due_at or 0.0, reason=child.reason, exit=UNKNOWN,
            )  # fmt: skip
        for name, life in list(self.lives.items()):
            if life.ended is not None:
                del self.lives[name]
                self._settle_unseen(name)
        remembered = self.core.remembered()
        self.core = Supervisor.of(list(self.specs.values()), remembered, 1.5)
        self.began_at = self.now
        self.been_ready = {name for name, item in found.items() if item.state is State.READY}
        effects = self.core.begin({name: replace(item) for name, item in found.items()}, self.now)
        self.do(effects)

    def _settle_unseen(self, name: str) -> None:
        """A life has ended that nobody saw the end of: by hand, or counted as failed unless it never comes back."""
        child = self.core.children[name]
        if not child.wanted or self.specs[name].restart is Restart.NEVER:
            self.stays_down.add(name)
        if child.state is State.STOPPING:
            self.free.add(name)  # whether that was for a failure nobody knows any more

    def stop(self) -> None:
        """The system is stopped, and everybody leaves."""
        self.do(self.core.stop("me", self.now))
        self.do(self.core.stop_marked(self.now))
        for _ in range(200):
            if self.core.phase is Phase.GONE:
                break
            self.now += STEP_S
            self._live()
            self._turn()
        assert self.core.phase is Phase.GONE
        assert not self.lives


def test_programs_do_what_their_users_expect() -> None:
    for seed in range(SCHEDULES):
        machine = Machine(random.Random(seed))
        try:
            machine.begin()
            for _ in range(STEPS):
                machine.step()
            machine.stop()
        except (AssertionError, KeyError, RuntimeError) as error:
            error.add_note(f"seed {seed} at {machine.now}")
            raise
