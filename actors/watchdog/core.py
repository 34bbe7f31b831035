"""What the watchdog decides: whom to look at, whom to ask for stacks, whom to condemn. Pure.

`actors.runtime.verdict` counts; this adds the looks at the process itself. For one peer, as its silence goes on:

===================== ================================================================================================
stage of the count    what is done
===================== ================================================================================================
OK, moving            a suspicion that the board tells of is withdrawn
SUSPECT               looked at from the next tick on; told on the board, with a cause as soon as the looks show one
ASK                   warned, if it is a program; asked for its stacks, unless it is stopped or would die of that
HUNG, but it wants a  put off by one window, a bounded number of times: killing it would help nobody
processor, gets none
HUNG otherwise        condemned, once: evidence, verdict, event, SIGKILL
HUNG and still there  the signal is repeated every `KILL_AGAIN_TICKS`
===================== ================================================================================================

What the board says of a condemned peer stays: the launcher reads there why that life ended. One whose start takes too
long is told of only when it is condemned. During a deliberate stop nobody is judged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from actors.runtime.verdict import (
    Cause,
    Doubt,
    HangDetector,
    Judgement,
    Look,
    Observation,
    Stage,
    Standing,
    name_cause,
)

KILL_AGAIN_TICKS: Final = 4
_STOPPED: Final = frozenset({Cause.FROZEN, Cause.TRACED})


@dataclass(frozen=True, slots=True)
class Subject:
    """One peer at one tick: what the board says, and a look at it where one was asked for."""

    observation: Observation
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Say on the board that a peer is suspected, or (with `suspect` False) no longer."""

    key: int
    incarnation: int
    suspect: bool
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell a peer that would not be killed at once that its time is running out."""

    key: int


@dataclass(frozen=True, slots=True)
class AskStacks:
    """Have a peer write the stacks of its threads; they are collected when it is condemned."""

    key: int


@dataclass(frozen=True, slots=True)
class Condemn:
    """Keep the evidence, say so, and kill.

    Attributes:
        judgement: how long it has been silent.
        cause: why.
        looks: at the process, the first and the last of its silence.
    """

    judgement: Judgement
    cause: Cause
    looks: tuple[Look, ...]


@dataclass(frozen=True, slots=True)
class KillAgain:
    """It was condemned and is still there."""

    key: int


@dataclass(frozen=True, slots=True)
class PutOff:
    """It is left alone for one more window."""

    key: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Doubted:
    """Deadlines were put off because the observer doubts itself or the machine."""

    doubt: Doubt
    gap_s: float


Effect = Tell | Warn | AskStacks | Condemn | KillAgain | PutOff | Doubted


@dataclass(frozen=True, slots=True)
class Finding:
    """How a peer stands, for whoever asks."""

    standing: Standing
    stage: Stage
    cause: str
    silent_s: float


@dataclass(slots=True)
class _Case:
    """What is known against one incarnation."""

    judgement: Judgement
    first: Look | None = None
    last: Look | None = None
    told: str | None = None  # the cause last told on the board; None if it is not suspected there
    condemned_ticks: int = -1  # since it was condemned; below 0 if it is not
    known: str = ""  # the cause as far as it can be told by now

    def looks(self) -> tuple[Look, ...]:
        """Return the first look of this silence and the last, without repeating one."""
        found = [self.first, self.last] if self.first is not self.last else [self.first]
        return tuple(look for look in found if look is not None)


class Watch:
    """Judges all peers, tick by tick."""

    def __init__(self, interval_s: float, ask_s: float = 0.0, *, gentle: bool = False) -> None:
        """`interval_s` is the time between two ticks, `ask_s` is `HangDetector`'s.

        `gentle`: whoever is about to be condemned is warned, and is not killed at once: if it moves after all, the
        verdict is withdrawn.
        """
        self._new_detector = partial(HangDetector, interval_s, ask_s)
        self._gentle = gentle
        self._detector = self._new_detector()
        self._cases: dict[int, _Case] = {}

    @property
    def suspects(self) -> frozenset[int]:
        """The peers to be looked at before the next tick."""
        return frozenset(key for key, case in self._cases.items() if case.judgement.stage >= Stage.SUSPECT)

    @property
    def findings(self) -> dict[int, Finding]:
        """How every peer stands, by slot."""
        return {
            key: Finding(case.judgement.standing, case.judgement.stage, case.known, case.judgement.silent_s)
            for key, case in self._cases.items()
        }

    def step(self, now: float, subjects: Iterable[Subject], *, stopping: bool) -> list[Effect]:
        """Judge all peers at monotonic time `now`; returns what to do, in order."""
        if stopping:
            self.forget()
            return []
        seen = {subject.observation.key: subject for subject in subjects}
        result = self._detector.tick(now, [subject.observation for subject in seen.values()])
        if not result.judgements:
            return []
        effects: list[Effect] = [Doubted(result.doubt, result.gap_s)] if result.doubt else []
        cases, self._cases = self._cases, {}
        for judgement in result.judgements:
            case = cases.get(judgement.key)
            if case is None or case.judgement.incarnation != judgement.incarnation:
                case = _Case(judgement)
            case.judgement = judgement
            self._cases[judgement.key] = case
            effects += self._judge(case, seen[judgement.key], result.doubt)
        return effects

    def forget(self) -> None:
        """Hold nothing against anybody."""
        self._detector = self._new_detector()
        self._cases.clear()

    def _judge(self, case: _Case, subject: Subject, doubt: Doubt | None) -> list[Effect]:
        """Apply the module's table to one peer."""
        judgement = case.judgement
        if judgement.silent_ticks == 0:
            case.first = case.last = None
            if case.condemned_ticks >= 0 and self._gentle:
                case.condemned_ticks, case.told = -1, case.known
        elif subject.look is not None:
            case.first = case.first or subject.look
            case.last = subject.look
        cause = name_cause(judgement.standing, case.first, case.last)
        case.known = _known(case, cause, doubt)
        if judgement.stage is Stage.HUNG:
            return self._hung(case, cause)
        effects = _told(case)
        if judgement.stage is Stage.ASK and judgement.changed and self._gentle:
            effects.append(Warn(judgement.key))
        if judgement.stage is Stage.ASK and judgement.changed and _can_answer(subject, cause):
            effects.append(AskStacks(judgement.key))
        return effects

    def _hung(self, case: _Case, cause: Cause) -> list[Effect]:
        judgement = case.judgement
        if case.condemned_ticks >= 0:
            case.condemned_ticks += 1
            return [KillAgain(judgement.key)] if case.condemned_ticks % KILL_AGAIN_TICKS == 0 else []
        if cause is Cause.STARVED and self._detector.extend(judgement.key):
            return [PutOff(judgement.key, cause)]
        case.condemned_ticks = 0
        return [Condemn(judgement, cause, case.looks())]


def _known(case: _Case, cause: Cause, doubt: Doubt | None) -> str:
    if case.judgement.standing is Standing.MISSING:
        return str(Cause.EXITED)
    if case.judgement.silent_ticks and doubt is Doubt.OWN_TICK_LATE:
        return str(Cause.MACHINE_SLEPT)
    return str(cause) if case.last is not None else ""


def _told(case: _Case) -> list[Effect]:
    """Keep the board's word on a suspect in step with what is known."""
    judgement = case.judgement
    if case.condemned_ticks >= 0 or judgement.standing in {Standing.MISSING, Standing.STARTING}:
        return []
    if judgement.silent_ticks == 0:
        suspect, case.told = case.told is not None, None
        return [Tell(judgement.key, judgement.incarnation, suspect=False)] if suspect else []
    if judgement.stage is Stage.OK or case.told == case.known:
        return []
    case.told = case.known
    return [Tell(judgement.key, judgement.incarnation, suspect=True, cause=case.told)]


def _can_answer(subject: Subject, cause: Cause) -> bool:
    look = subject.look
    return subject.observation.registered and cause not in _STOPPED and look is not None and look.answers_stacks


SUSPEND_S_MIN: Final = 1.0
"""Of a suspend that is told: the two clocks that differ by it are read one after the other."""
CLOCK_JUMP_S_MIN: Final = 1.0
"""Of a step of the wall clock that is told."""
CLOCK_SLEW_MAX: Final = 0.1
"""How fast a wall clock is brought right gradually, as a part of the time that passes; no more than that is a jump.
ntpd and timesyncd use up to 0.0005, chrony up to 0.083 unless told otherwise."""


@dataclass(frozen=True, slots=True)
class ClockChange:
    """The machine was suspended for `suspended_s`, and the wall clock set by `jumped_s`; 0 for what did not happen."""

    suspended_s: float
    jumped_s: float


class ClockWatch:
    """Notices suspends and jumps of the wall clock, for the audit trail. Nobody is judged by them.

    ================================== ============== ============= ============================
    since the last step                time asleep    wall clock    told
    ================================== ============== ============= ============================
    it ticked late, or not             as monotonic   as boot time  nothing
    NTP slews                          as monotonic   a little off  nothing
    somebody set the clock             as monotonic   off           jumped
    suspended and resumed              more           as boot time  suspended
    suspended, set right at the resume more           off           both
    ================================== ============== ============= ============================

    Where a system has no clock that counts time asleep, a suspend shows as a jump forward of the wall clock.
    """

    def __init__(self, mono_s: float, boot_s: float, wall_s: float) -> None:
        """Begin with the three clocks as they stand: without time asleep, with it, and the wall's."""
        self._mono_s = mono_s
        self._asleep_s = boot_s - mono_s
        self._wall_offset_s = wall_s - boot_s

    def step(self, mono_s: float, boot_s: float, wall_s: float) -> ClockChange | None:
        """Return what changed since the last step; None if nothing did."""
        suspended_s = boot_s - mono_s - self._asleep_s
        jumped_s = wall_s - boot_s - self._wall_offset_s
        slewed_s_max = (mono_s - self._mono_s) * CLOCK_SLEW_MAX
        self._mono_s, self._asleep_s, self._wall_offset_s = mono_s, boot_s - mono_s, wall_s - boot_s
        change = ClockChange(
            suspended_s if suspended_s >= SUSPEND_S_MIN else 0.0,
            jumped_s if abs(jumped_s) >= max(CLOCK_JUMP_S_MIN, slewed_s_max) else 0.0,
        )
        return change if change.suspended_s or change.jumped_s else None
