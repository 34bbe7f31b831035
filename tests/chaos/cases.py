"""What is done to the system, and what must hold afterwards.

A case kills or freezes a set of processes at once, on a whole system. Then

- every victim is replaced by a new process that is ready and answers, within the case's bound;
- nobody else is: no other pid changes;
- every bystander goes on answering `ping` within a second, but while the broker itself is a victim: then within a
  second after its bound.
"""

import itertools
import os
import random
import signal
import time
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.system import PROCESSES, SERVICES, Pinger, System, gone, wait_until

PING_GAP_MAX_S = 1.0
KILL_BOUND_S = 2.0
"""With at least one process alive the whole system is whole again within this."""


class Harm(StrEnum):
    """What is done to a process."""

    KILL = "kill -9"
    FREEZE = "SIGSTOP"


SIGNALS = {Harm.KILL: signal.SIGKILL, Harm.FREEZE: signal.SIGSTOP}


@dataclass(frozen=True)
class Case:
    """One harm for each of some processes."""

    harms: tuple[tuple[str, Harm], ...]

    @property
    def victims(self) -> list[str]:
        """Who is harmed."""
        return [name for name, _ in self.harms]

    def __str__(self) -> str:
        by_harm = {harm: [name for name, given in self.harms if given is harm] for harm in Harm}
        return "; ".join(f"{harm} {' + '.join(names)}" for harm, names in by_harm.items() if names)

    def bound_s(self, hang_timeout_s: float) -> float:
        """Time by which the whole system is whole again.

        A frozen one: hang timeout + 1 s, twice that if the watchdog is harmed as well; only killed ones: 2 s.
        """
        if all(harm is Harm.KILL for _, harm in self.harms):
            return KILL_BOUND_S
        once = hang_timeout_s + 1.0
        return 2 * once if "watchdog" in self.victims and len(self.harms) > 1 else once


def of(harm: Harm, *names: str) -> Case:
    """The case that does `harm` to each of `names`."""
    return Case(tuple((name, harm) for name in names))


def singles() -> list[Case]:
    """Every process, killed and frozen."""
    return [of(harm, name) for harm in Harm for name in PROCESSES]


def pairs() -> list[Case]:
    """Every pair, in every combination of harms."""
    found = []
    for first, second in itertools.combinations(PROCESSES, 2):
        for one, other in itertools.product(Harm, repeat=2):
            found.append(Case(((first, one), (second, other))))
    return found


def survivors() -> list[Case]:
    """Kill -9 of every subset of three or more that leaves one process alive."""
    sizes = range(3, len(PROCESSES))
    return [of(Harm.KILL, *names) for size in sizes for names in itertools.combinations(PROCESSES, size)]


def all_cases() -> list[Case]:
    """The whole matrix."""
    return singles() + pairs() + survivors()


def sample(seed: int, count: int) -> list[Case]:
    """`count` cases beyond the singles, chosen by `seed`."""
    return random.Random(seed).sample(pairs() + survivors(), count)


@dataclass(frozen=True)
class Outcome:
    """What a case took: until whole again, and the longest silence of a bystander."""

    recovery_s: float
    gap_s: float


def run(system: System, case: Case, hang_timeout_s: float) -> Outcome:
    """Do `case` to a whole system and check what must hold.

    Raises:
        AssertionError: it does not.
    """
    before = system.identities()
    assert set(before) == set(PROCESSES)
    bound_s = case.bound_s(hang_timeout_s)
    bystanders = tuple(name for name in SERVICES if name not in case.victims)
    with Pinger(system, bystanders) as pinger:
        start = time.monotonic()
        for name, harm in case.harms:
            os.kill(before[name].pid, SIGNALS[harm])
        for name in case.victims:
            left = bound_s - (time.monotonic() - start)
            wait_until(
                lambda name=name: _replaced(system, name, before[name].pid),
                left,
                f"{name} replaced and answering, after {case}",
            )
        recovery_s = time.monotonic() - start
        allowed_s = PING_GAP_MAX_S + (bound_s if "broker" in case.victims else 0.0)
        gaps = {name: pinger.gap_s(name) for name in bystanders}
    after = system.identities()
    for name in PROCESSES:
        if name in case.victims:
            assert gone(before[name]), f"the old {name} (pid {before[name].pid}) still runs after {case}"
        else:
            assert after.get(name) == before[name], f"{name} was replaced although it was well, after {case}"
    for name, gap_s in gaps.items():
        assert gap_s <= allowed_s, f"{name} was silent for {gap_s:.2f} s during {case}"
    return Outcome(recovery_s, max(gaps.values(), default=0.0))


def _replaced(system: System, name: str, old_pid: int) -> bool:
    if not system.ready(name):
        return False
    identity = system.identity(name)
    return identity is not None and identity.pid != old_pid and system.answers(name, 0.2)
