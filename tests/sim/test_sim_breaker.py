"""The circuit breaker under seeded schedules of failing components, lost callers, restarts and hands.

SIM_SCHEDULES=N runs more of them, SIM_SEED=S one of them.
"""

import math
import os
import random
from collections import deque
from dataclasses import dataclass

from app.reliability._breaker_core import Breaker, BreakerConfig, Permit, State

SCHEDULES = int(os.environ.get("SIM_SCHEDULES", "2000"))
FIRST_SEED = 1
TROUBLE_S = 4000.0
CONFIG = BreakerConfig()
OPENINGS_PER_HOUR_MAX = 30
CALM_S = CONFIG.open_s_max * (1.0 + CONFIG.jitter_share) + CONFIG.probe_s_max + 10.0
"""The longest wait, a probe that was lost at its end, another short one: by then a healthy component is called."""


class Violation(AssertionError):
    """A law is broken."""


@dataclass(eq=False)
class Call:
    permit: Permit
    began: float
    ends: float
    ok: bool
    given_up: bool


class Schedule:
    """One component, its callers and its breaker."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.t = self.rng.uniform(0.0, 1e6)
        self.breaker = Breaker(CONFIG, self.rng.random, self.t)
        self.calls: list[Call] = []
        self.lost: list[tuple[Permit, float]] = []
        self.openings: deque[float] = deque()
        self.failing = 0.0
        self.state = State.CLOSED
        self.log: list[str] = []

    def run(self) -> None:
        end = self.t + TROUBLE_S
        calls_per_s = self.rng.choice((0.02, 0.2, 2.0))
        while self.t < end:
            self.t += self.rng.expovariate(calls_per_s)
            self.finish_calls()
            self.disturb()
            self.call(healthy=False)
        self.calm()

    def disturb(self) -> None:
        roll = self.rng.random()
        if roll < 0.02:
            self.failing = self.rng.choice((0.0, 0.0, 0.3, 0.6, 1.0))
        elif roll < 0.025:
            self.breaker.isolate(self.t)
        elif roll < 0.035:
            self.breaker.release(self.t)
        elif roll < 0.045:
            self.restart()
        self.look(f"disturbed {roll:.3f}")

    def restart(self) -> None:
        """The process dies, and with it whoever was calling."""
        saved, isolated = self.breaker.saved(self.t), self.breaker.state is State.ISOLATED
        away_s = self.rng.choice((0.0, 0.1, 30.0, 5000.0))
        self.calls.clear()
        self.lost.clear()
        self.t += away_s
        self.breaker = Breaker.restored(CONFIG, self.rng.random, saved, away_s=away_s, now=self.t)
        if isolated is not (self.breaker.state is State.ISOLATED):
            raise Violation("a restart changed an isolation")

    def call(self, *, healthy: bool) -> bool:
        permit = self.breaker.allow(self.t)
        self.look("asked")
        if permit is None:
            return False
        if self.state in (State.OPEN, State.ISOLATED):
            raise Violation(f"a call was let through while {self.state}")
        if permit.probe and self.probes_under_way():
            raise Violation("two probes at once")
        ok = healthy or self.rng.random() >= self.failing
        takes_s = 0.5 if healthy else self.rng.choice((0.01, 1.0, 5.0, 20.0, 45.0, 90.0))
        if not healthy and self.rng.random() < 0.02:
            self.lost.append((permit, self.t))  # no outcome, ever
        else:
            given_up = not healthy and self.rng.random() < 0.05
            self.calls.append(Call(permit, self.t, self.t + takes_s, ok, given_up))
        return True

    def probes_under_way(self) -> bool:
        """Probes that nobody has taken for lost yet."""
        begun = [call.began for call in self.calls if call.permit.probe]
        begun += [began for permit, began in self.lost if permit.probe]
        return any(self.t < began + CONFIG.probe_s_max for began in begun)

    def finish_calls(self) -> None:
        for call in sorted((call for call in self.calls if call.ends <= self.t), key=lambda call: call.ends):
            self.calls.remove(call)
            if call.given_up:
                self.breaker.give_up(call.permit, self.t)
            else:
                self.breaker.report(call.permit, ok=call.ok, took_s=call.ends - call.began, now=self.t)
            self.look(f"ended ok={call.ok}")

    def look(self, what: str) -> None:
        state = self.breaker.state
        if state is self.state:
            return
        self.log.append(f"{self.t:.2f} {self.state} -> {state}: {what}")
        self.state = state
        if state is State.ISOLATED:
            self.forget_probes()
        if state is State.OPEN:
            self.openings.append(self.t)
            while self.openings[0] <= self.t - 3600.0:
                self.openings.popleft()
            if len(self.openings) > OPENINGS_PER_HOUR_MAX:
                raise Violation(f"{len(self.openings)} openings within an hour")

    def forget_probes(self) -> None:
        """A hand has ended what was probed: once released, the component is probed anew, and at once."""
        self.lost.clear()
        for call in self.calls:
            call.permit = Permit(call.permit.period, probe=False)

    def calm(self) -> None:
        """The component is well and somebody calls every second: soon it is closed, and stays so."""
        self.failing = 0.0
        self.breaker.release(self.t)
        self.look("released")
        for call in self.calls:
            call.ok = True
        end, closed_since = self.t + CALM_S + CONFIG.open_s_max * 1.1, math.inf
        while self.t < end:
            self.t += 1.0
            self.finish_calls()
            self.call(healthy=True)
            closed_since = min(closed_since, self.t) if self.state is State.CLOSED else math.inf
        if self.state is not State.CLOSED:
            raise Violation(f"still {self.state} after {end - self.t:g} s with a healthy component")


def test_schedules() -> None:
    only = os.environ.get("SIM_SEED")
    seeds = [int(only)] if only else range(FIRST_SEED, FIRST_SEED + SCHEDULES)
    seen: set[State] = set()
    for seed in seeds:
        schedule = Schedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"SIM_SEED={seed}\n" + "\n".join(schedule.log))
            raise
        seen |= {schedule.state} | {State(line.split(" -> ")[1].split(":")[0]) for line in schedule.log}
    if not only:
        assert seen == set(State), "the schedules reach every state"
