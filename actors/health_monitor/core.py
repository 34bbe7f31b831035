"""What health_monitor decides: which check is due, what its result means, when a change is worth telling. Pure.

Rules:

1. A check has one run at a time. A run that takes longer than its timeout is a finding (`hung_status`) as long as it
   lasts, and holds up no other check. Time that this process itself slept is not counted.
2. A measure is graded with hysteresis: past `on` it counts, and it counts until it is back past `off`.
3. A status gets worse only after being so for `raise_after_s`, and better only after `clear_after_s`. A first result
   counts at once.
4. The worst check speaks for all; something known to be bad counts more than something not known.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

LATE_TICK_S: Final = 2.0
"""A tick this late means that this process did not run meanwhile."""


class Status(StrEnum):
    """How something is."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    CRITICAL = "critical"


BADNESS: Final = {Status.OK: 0, Status.UNKNOWN: 1, Status.WARNING: 2, Status.CRITICAL: 3}


def worst(statuses: Iterable[Status]) -> Status:
    """Return the status that speaks for all; unknown for none."""
    return max(statuses, key=BADNESS.__getitem__, default=Status.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A bound with hysteresis.

    Attributes:
        on: past it a value counts.
        off: back past it a value counts no more.
        high_is_bad: which side of the bound is meant.
    """

    on: float
    off: float
    high_is_bad: bool

    def crossed(self, value: float, before: bool) -> bool:
        """Tell whether `value` counts as past the bound; `before` is what it counted as last."""
        bound = self.off if before else self.on
        return value > bound if self.high_is_bad else value < bound


def below(bound: float, hysteresis_percent: float) -> Threshold:
    """Return the threshold of a figure that must not get below `bound`."""
    return Threshold(bound, bound * (1 + hysteresis_percent / 100), high_is_bad=False)


def above(bound: float, hysteresis_percent: float) -> Threshold:
    """Return the threshold of a figure that must not get above `bound`."""
    return Threshold(bound, bound / (1 + hysteresis_percent / 100), high_is_bad=True)


@dataclass(frozen=True, slots=True)
class Grade:
    """What a measure means; a bound that is None is never crossed."""

    warning: Threshold | None = None
    critical: Threshold | None = None

    def of(self, value: float, before: Status) -> Status:
        """Return the status of `value`; `before` is the measure's last one."""
        if self.critical is not None and self.critical.crossed(value, before is Status.CRITICAL):
            return Status.CRITICAL
        if self.warning is not None and self.warning.crossed(value, before in {Status.WARNING, Status.CRITICAL}):
            return Status.WARNING
        return Status.OK


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """One check.

    Attributes:
        name: as shown.
        interval_s: between the beginnings of two runs; it begins at full multiples.
        timeout_s: a run that takes longer hangs.
        grades: what each measure means.
        raise_after_s: how long a worse status must last before it is told.
        clear_after_s: how long a better one must.
        hung_status: what a run that hangs means.
    """

    name: str
    interval_s: float
    timeout_s: float
    grades: Mapping[str, Grade] = field(default_factory=dict)
    raise_after_s: float = 0.0
    clear_after_s: float = 0.0
    hung_status: Status = Status.CRITICAL


@dataclass(frozen=True, slots=True)
class Observation:
    """What one run found.

    Attributes:
        message: for people.
        value: the figure to show, if there is one.
        unit: of `value`.
        status: what the check knows without grades.
        measures: to be graded.
    """

    message: str
    value: float | None = None
    unit: str = ""
    status: Status = Status.OK
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check stands.

    Attributes:
        name: the check.
        status: after hysteresis and delays.
        message: of the last observation.
        value: of the last observation.
        unit: of `value`.
        age_s: since that observation; None if there is none yet.
    """

    name: str
    status: Status
    message: str
    value: float | None
    unit: str
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """A status that is worth telling; `before` is None for a first result."""

    before: Status | None
    finding: Finding


class _Check:
    """One check's state."""

    def __init__(self, spec: CheckSpec, due_at: float) -> None:
        self.spec = spec
        self.due_at = due_at
        self.running_since: float | None = None
        self.observed_at: float | None = None
        self._status: Status | None = None
        self._observation = Observation("not checked yet")
        self._measured: dict[str, Status] = {}
        self._contrary: tuple[bool, float] | None = None

    def hangs(self, now: float) -> bool:
        """Whether the present run takes longer than it may."""
        return self.running_since is not None and now - self.running_since > self.spec.timeout_s

    def observe(self, observation: Observation, now: float) -> Change | None:
        """Take in what a run found."""
        for name, value in observation.measures.items():
            grade = self.spec.grades.get(name, Grade())
            self._measured[name] = grade.of(value, self._measured.get(name, Status.OK))
        self._observation = observation
        self.observed_at = now
        return self._settle(worst((observation.status, *(self._measured[name] for name in observation.measures))), now)

    def observe_hang(self, now: float) -> Change | None:
        """Take in that the present run hangs."""
        since = self.running_since if self.running_since is not None else now
        message = f"the check has not come back for {now - since:.0f} s"
        self._observation = Observation(message, round(now - since, 1), "s")
        self.observed_at = now
        return self._settle(self.spec.hung_status, now)

    def finding(self, now: float) -> Finding:
        """Return how the check stands."""
        seen = self._observation
        age_s = None if self.observed_at is None else max(0.0, now - self.observed_at)
        message = seen.message
        if self._contrary is not None:
            worse, since = self._contrary
            message += f" ({'worse' if worse else 'better'} for {now - since:.0f} s)"
        return Finding(self.spec.name, self._status or Status.UNKNOWN, message, seen.value, seen.unit, age_s)

    def _settle(self, raw: Status, now: float) -> Change | None:
        before = self._status
        if raw is before:
            self._contrary = None
            return None
        if before is not None:
            worse = BADNESS[raw] > BADNESS[before]
            if self._contrary is None or self._contrary[0] is not worse:
                self._contrary = worse, now
            delay_s = self.spec.raise_after_s if worse else self.spec.clear_after_s
            if now - self._contrary[1] < delay_s:
                return None
        self._contrary = None
        self._status = raw
        return Change(before, self.finding(now))


def next_multiple(now: float, interval_s: float) -> float:
    """Return when something is due that recurs: at full multiples, when the loop ticks as well.

    Otherwise what is due a hair after a tick would wait for the next, and each thing would have a wake-up to itself.
    """
    return (now // interval_s + 1) * interval_s


class HealthCore:
    """All checks and what is known of them."""

    def __init__(self, specs: Iterable[CheckSpec], now: float) -> None:
        """Begin with `specs`, all due at once."""
        self._checks = {spec.name: _Check(spec, now) for spec in specs}
        self._ticked_at = now

    def due(self, now: float) -> list[str]:
        """Return the checks to run now; they count as running from here on."""
        names = []
        for name, check in self._checks.items():
            if check.running_since is None and now >= check.due_at:
                check.running_since = now
                check.due_at = next_multiple(now, check.spec.interval_s)
                names.append(name)
        return names

    def finished(self, name: str, observation: Observation, now: float) -> list[Change]:
        """Take in what a run found."""
        check = self._checks[name]
        check.running_since = None
        return _made(check.observe(observation, now))

    def pushed(self, spec: CheckSpec, observation: Observation, now: float) -> list[Change]:
        """Take in what somebody else found about something that is not run as a check here."""
        check = self._checks.get(spec.name)
        if check is None:
            check = self._checks[spec.name] = _Check(spec, due_at=math.inf)
        return _made(check.observe(observation, now))

    def forget(self, name: str) -> None:
        """Drop what there is no more."""
        self._checks.pop(name, None)

    def tick(self, now: float) -> list[Change]:
        """Look for runs that hang."""
        slept_s = now - self._ticked_at
        self._ticked_at = now
        changes = []
        for check in self._checks.values():
            if check.running_since is not None and slept_s > LATE_TICK_S:
                check.running_since += slept_s
            if check.hangs(now):
                changes += _made(check.observe_hang(now))
        return changes

    @property
    def is_complete(self) -> bool:
        """Whether every check has been observed at least once."""
        return all(check.observed_at is not None for check in self._checks.values())

    def findings(self, now: float) -> list[Finding]:
        """Return how every check stands."""
        return [check.finding(now) for check in self._checks.values()]

    def report(self, now: float) -> dict[str, Any]:
        """Return the answer to `health`: ``{"status", "checks": [...], "degraded": [names]}``."""
        findings = self.findings(now)
        return {
            "status": str(worst(finding.status for finding in findings)),
            "checks": [
                {
                    "name": finding.name,
                    "status": str(finding.status),
                    "message": finding.message,
                    "value": finding.value,
                    "unit": finding.unit,
                    "age_s": None if finding.age_s is None else round(finding.age_s, 3),
                }
                for finding in findings
            ],
            "degraded": [finding.name for finding in findings if finding.status is not Status.OK],
        }


def _made(change: Change | None) -> list[Change]:
    return [] if change is None else [change]
