"""One seeded schedule: a while of trouble, then calm, in which everything has to become whole again."""

import math
import random
from collections.abc import Callable

from tests.sim.players import Launcher, ruling, start_launcher, whole
from tests.sim.world import HANG_S, NAMES, PERIOD_S, START_TIMEOUT_S, Left, Process, Trouble, Violation, World

ACTIVE_S = 40.0
CALM_S = PERIOD_S + 2 * HANG_S + 2 * START_TIMEOUT_S + 30.0
"""Time to become whole again: a quarantine lasts a period at most, then a hang may have to be seen and a start fail."""
STILL_S = 6.0
"""It has to stay whole for so long."""
LOOK_INTERVAL_S = 0.5

KINDS = {
    "kill": 8,
    "kill several": 2,
    "freeze": 4,
    "freeze for a while": 3,
    "freeze two": 2,
    "pause": 3,
    "wall clock": 2,
    "crash loop": 3,
    "slow start": 2,
    "stubborn": 1,
    "no room": 1,
    "unkillable": 1,
    "bomb": 4,
    "disk": 1,
    "command": 4,
    "stop": 1,
    "person starts": 1,
    "reboot": 1,
}


class Schedule:
    """Runs one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._rng = random.Random(seed)
        self.world = World(self._rng, told_of_exits=seed % 2 == 0)
        self._thaws: list[tuple[float, Process]] = []

    def run(self) -> None:
        """Run it all; raises `Violation` with the story if a law is broken."""
        try:
            start_launcher(self.world, successor=False)
            self._trouble()
            self._calm()
        except (AssertionError, RuntimeError, KeyError, ValueError) as error:
            error.add_note(f"SIM_SEED={self.seed}\n" + "\n".join(self.world.log))
            raise

    def _trouble(self) -> None:
        next_harm = self._rng.uniform(0.0, 3.0)
        while self.world.t < ACTIVE_S:
            self.world.step()
            if self.world.t < self.world.paused_until:
                continue
            for item in [item for item in self._thaws if self.world.t >= item[0]]:
                self._thaws.remove(item)
                self.world.thaw(item[1])
            if self.world.t >= next_harm:
                next_harm = self.world.t + self._rng.expovariate(1 / 2.5)
                self._harm()

    def _calm(self) -> None:
        """No more trouble. What is frozen stays so: the others have to deal with it."""
        world = self.world
        world.trouble, world.bomb = Trouble(), None
        world.disk_stalled_until = -math.inf
        for process in world.processes:
            process.dies_at = math.inf
        paused_s = max(0.0, world.paused_until - world.t)
        end = world.t + CALM_S + paused_s + world.slept_s  # while the machine is suspended no charge ages
        whole_since = next_look = world.t
        missing: list[str] = []
        while world.t < end:
            world.step()
            if world.t >= next_look:
                next_look = world.t + LOOK_INTERVAL_S
                missing = whole(world)
                if missing:
                    whole_since = world.t
                    self._help()
                elif world.t - whole_since > STILL_S:
                    return
        raise Violation(f"after {CALM_S:g} s of calm: {missing}")

    def _help(self) -> None:
        """Do what only a person can: start a system of which nobody lives, wake one of which everybody is frozen."""
        world = self.world
        if not world.processes:
            start_launcher(world, successor=False)
        elif all(process.frozen for process in world.processes):
            for process in world.processes:
                world.thaw(process)

    def _harm(self) -> None:
        kind = self._rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        victims = [process for process in self.world.processes if not process.frozen]
        if kind in ("kill", "freeze", "freeze for a while", "unkillable"):
            if victims:
                self._harm_one(kind, self._rng.choice(victims))
        elif kind in ("kill several", "freeze two"):
            self._harm_some(kind, victims)
        elif kind in ("command", "stop"):
            launcher = ruling(self.world)
            if launcher is not None and not launcher.process.frozen:
                self._order(kind, launcher)
        else:
            self._harm_machine(kind)

    def _harm_one(self, kind: str, victim: Process) -> None:
        world, rng = self.world, self._rng
        if kind == "kill":
            world.say(f"kill -9 {victim.name}")
            victim.kill_at = max(world.t, victim.unkillable_until)
        elif kind == "unkillable":
            victim.unkillable_until = world.t + rng.uniform(0.5, 8.0)
        else:
            world.freeze(victim)
            if kind == "freeze for a while":
                self._thaws.append((world.t + rng.uniform(0.1, 2 * HANG_S), victim))

    def _harm_some(self, kind: str, victims: list[Process]) -> None:
        count = self._rng.randint(0, max(0, len(victims) - 1)) if kind == "kill several" else min(2, len(victims))
        for victim in self._rng.sample(victims, count):
            self._harm_one("kill" if kind == "kill several" else "freeze", victim)

    def _harm_machine(self, kind: str) -> None:
        world, rng = self.world, self._rng
        match kind:
            case "pause":
                world.pause(rng.choice([0.3, 1.0, 10.0, 60.0]), suspend=rng.random() < 0.5)
            case "wall clock":
                world.set_wall_clock(rng.choice([-1e8, -7200, -5, 5, 7200, 1e8]))
            case "crash loop":
                world.trouble.crash_loop ^= {rng.choice(NAMES)}
            case "slow start":
                world.trouble.slow ^= {rng.choice(NAMES)}
            case "stubborn":
                world.trouble.stubborn_share = rng.choice([0.0, 0.5])
            case "no room":
                world.trouble.no_room_share = rng.choice([0.0, 0.3])
            case "bomb":
                world.bomb = rng.randint(0, 6)
            case "disk":
                world.disk_stalled_until = world.t + rng.uniform(1, 20)
            case "person starts":
                start_launcher(world, successor=False)
            case "reboot":
                world.reboot()
                self._thaws.clear()
                start_launcher(world, successor=False)

    def _order(self, kind: str, launcher: Launcher) -> None:
        def order() -> None:
            if kind == "stop":
                launcher.stop(forced=self._rng.random() < 0.3)
            else:
                launcher.command(self._rng.choice(["start", "stop", "restart"]), self._rng.choice(NAMES))

        self._on_behalf_of(launcher.process, order)

    def _on_behalf_of(self, process: Process, action: Callable[[], None]) -> None:
        try:
            action()
        except Left as left:
            self.world.end(process, process.status, failed=left.failed)
