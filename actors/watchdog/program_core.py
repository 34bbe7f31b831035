"""How programs are judged: by what shows that they move, and only while their launcher does. Pure.

A program writes nothing on the board: the launcher hands on its beats. What counts as progress, at one look:

========= ======================================= =========================================================
judged by while it is stopped (state T, t)        otherwise
========= ======================================= =========================================================
beats     a new beat                              a new beat
probe     nothing                                 a new answer; a kernel accepts connections for the stopped
state     nothing, from the second look on        that it is there
========= ======================================= =========================================================

So nobody is found before its timeout is over: it moved after the look before the one that first shows it stopped.

A launcher that hears a program no more - it has begun with a new socket, and the program is connected to the old one -
says so on the board, and the program is judged by its probe or its state until it is heard again.

Beats wait in a socket while the launcher stands still, so such ticks do not count (`ProgramWatch`):

=========================================== =================================================
the launcher                                this tick, for all programs
=========================================== =================================================
has moved within `LAUNCHER_TICKS_MAX` ticks counts
has not                                     does not: their time stands still
moves again after that                      does not: it has first to take in what waits for it
is another one than at the last tick        begins everything anew
=========================================== =================================================

All else is `actors.watchdog.core`'s: a suspended machine, a starved one, and all falling silent together hang nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from actors.runtime.programs import Probe
from actors.watchdog.core import Effect, Finding, Subject, Watch

LAUNCHER_TICKS_MAX: Final = 3
"""The launcher's loop turns at least every second tick of the watchdog."""
ASK_S: Final = 1.0
"""A program that is about to be judged hung is told of so long before: time for a last checkpoint."""
STOPPED: Final = frozenset("Tt")
PROBES_PER_HANG_TIMEOUT: Final = 4
"""A probe comes at least so often in a hang timeout, whatever interval is configured."""
STARTING_INTERVAL_S: Final = 0.25
"""Between probes of a program that is not ready yet."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What one program shows at one look.

    Attributes:
        life: its incarnation.
        judged_by: "beats", "probe" or "state".
        beats: how often it has beaten.
        answers: how often a probe of it has succeeded.
        state: `Look.state`; empty if it cannot be seen.
    """

    life: int
    judged_by: str
    beats: int
    answers: int
    state: str


class Progress:
    """Counts every program's progress, as the module's first table says."""

    def __init__(self) -> None:
        """Know nobody yet."""
        self._last: dict[int, Shown] = {}
        self._counts: dict[int, int] = {}

    def step(self, key: int, shown: Shown) -> int:
        """Return a count that differs from that of the last look if the program in slot `key` has moved since."""
        last = self._last.get(key)
        self._last[key] = shown
        if last is None or last.life != shown.life or last.judged_by != shown.judged_by or _moved(last, shown):
            self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key]

    def retain(self, keys: Iterable[int]) -> None:
        """Forget all but those in the slots `keys`."""
        for key in set(self._last).difference(keys):
            del self._last[key], self._counts[key]


def _moved(last: Shown, now: Shown) -> bool:
    match now.judged_by:
        case "beats":
            return now.beats != last.beats
        case "probe":
            return now.answers != last.answers and now.state not in STOPPED
        case _:
            return last.state not in STOPPED or now.state not in STOPPED


class ProgramWatch:
    """Judges all programs, tick by tick, as the module's second table says."""

    def __init__(self, interval_s: float) -> None:
        """`interval_s` is the time between two ticks."""
        self._watch = Watch(interval_s, ASK_S, gentle=True)
        self._paused_s = 0.0
        self._last_at: float | None = None
        self._launcher: tuple[int, int] | None = None
        self._still_ticks = 0

    @property
    def suspects(self) -> frozenset[int]:
        """The programs to be looked at before the next tick."""
        return self._watch.suspects

    @property
    def findings(self) -> dict[int, Finding]:
        """How every program stands, by slot."""
        return self._watch.findings

    def rest(self) -> None:
        """Nobody is there to be judged until the next step: that this comes late means nothing then."""
        if self._last_at is not None:
            self._watch.forget()
            self._last_at = self._launcher = None
            self._still_ticks = 0

    def step(
        self, now: float, launcher: tuple[int, int], subjects: Iterable[Subject], *, stopping: bool
    ) -> list[Effect]:
        """Judge all programs at monotonic time `now`; `launcher` is its incarnation and its count of turns."""
        before, self._launcher = self._launcher, launcher
        since_s, self._last_at = now - (self._last_at if self._last_at is not None else now), now
        if before is None or before[0] != launcher[0]:
            self._watch.forget()
            self._still_ticks = 0
        was_still = self._still_ticks > LAUNCHER_TICKS_MAX
        self._still_ticks = 0 if before != launcher else self._still_ticks + 1
        if was_still or self._still_ticks > LAUNCHER_TICKS_MAX:
            self._paused_s += since_s
            return []
        return self._watch.step(now - self._paused_s, subjects, stopping=stopping)


def probe_pace(probe: Probe, hang_timeout_s: float, *, ready: bool) -> tuple[float, float]:
    """Return the time between two probes of a program, and the time that one may take."""
    interval_s = min(probe.interval_s, hang_timeout_s / PROBES_PER_HANG_TIMEOUT)
    if not ready:
        interval_s = min(interval_s, STARTING_INTERVAL_S)
    return interval_s, min(probe.timeout_s, hang_timeout_s)


@dataclass(slots=True)
class _Asked:
    life: int
    due_at: float
    answers: int = 0
    failures: int = 0
    problem: str = ""


@dataclass(slots=True)
class ProbeBook:
    """When whom to probe next, and who has answered. At most one probe of a life is under way."""

    _asked: dict[int, _Asked] = field(default_factory=dict)

    def is_due(self, key: int, life: int, now: float) -> bool:
        """Tell whether the life `life` in slot `key` is to be probed now; a new life always is."""
        asked = self._asked.get(key)
        if asked is None or asked.life != life:
            asked = self._asked[key] = _Asked(life, now)
        return now >= asked.due_at

    def begun(self, key: int, now: float, interval_s: float) -> None:
        """Take in that a probe has begun."""
        self._asked[key].due_at = now + interval_s

    def ended(self, key: int, life: int, problem: str) -> bool:
        """Take in how a probe ended, with a problem or well (empty); tell whether it is the life's first success."""
        asked = self._asked.get(key)
        if asked is None or asked.life != life:
            return False
        asked.problem = problem
        if problem:
            asked.failures += 1
            return False
        asked.answers += 1
        return asked.answers == 1

    def answers(self, key: int, life: int) -> int:
        """Return how often the life has answered."""
        asked = self._asked.get(key)
        return asked.answers if asked is not None and asked.life == life else 0

    def tell(self, key: int) -> dict[str, object]:
        """Return what is known of the probes of the program in slot `key`, for evidence; nothing if it has none."""
        asked = self._asked.get(key)
        if asked is None:
            return {}
        return {"answers": asked.answers, "failures": asked.failures, "last_problem": asked.problem}

    def retain(self, keys: Iterable[int]) -> None:
        """Forget all but those in the slots `keys`."""
        for key in set(self._asked).difference(keys):
            del self._asked[key]
