"""When a component that fails is left alone, and when it is tried again: a circuit breaker. Pure.

========= ================ ========= ==================================================================================
state     event            next      when, and what follows
========= ================ ========= ==================================================================================
closed    tripped          open      `failures_max` failures in a row, or `failure_share` of at least `calls_min` calls
                                     in `window_s`; a call slower than `slow_s` counts as a failure
open      waited           half-open the wait is over and somebody calls: that call is a probe
half-open proven           closed    `successes_min` probes in a row have succeeded; the window begins empty
half-open probe failed     open      it failed, was slow, or had no outcome for `probe_s_max`
closed, open, half-open
          isolated         isolated  by hand; nothing is called, and nothing ends it but `release`
isolated  released         half-open by hand; the next call is a probe
========= ================ ========= ==================================================================================

One probe is under way at a time: until it is reported or given up, or `probe_s_max` has passed. Each opening waits
twice as long as the one before, from `open_s` to `open_s_max`, and up to `jitter_share` longer; who has been closed for
`stable_s` begins with `open_s` again. So with the defaults a component opens at most 30 times in an hour, whatever it
does. What is reported of a call that was let through before the last change is of another time, and passed over.

The defaults are those of resilience4j and pybreaker, cut down to one PC: few calls, each of which a person waits for.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class State(StrEnum):
    """What is done with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"


class Event(StrEnum):
    """What changes that."""

    TRIPPED = "tripped"
    WAITED = "waited"
    PROVEN = "proven"
    PROBE_FAILED = "probe_failed"
    ISOLATED = "isolated"
    RELEASED = "released"


TRANSITIONS: Final = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROVEN): State.CLOSED,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.CLOSED, Event.ISOLATED): State.ISOLATED,
    (State.OPEN, Event.ISOLATED): State.ISOLATED,
    (State.HALF_OPEN, Event.ISOLATED): State.ISOLATED,
    (State.ISOLATED, Event.RELEASED): State.HALF_OPEN,
}


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When it opens, and for how long.

    Attributes:
        failures_max: failures in a row that open it.
        failure_share: share of the window's calls that opens it, between 0 and 1.
        calls_min: calls that a window must hold before its share counts.
        calls_max: calls that a window holds at most; the oldest go first.
        window_s: age at which a call leaves the window.
        slow_s: a call that takes longer counts as a failure.
        open_s: the first wait.
        open_s_max: the longest wait, without jitter.
        jitter_share: a wait is longer by up to this share of itself.
        successes_min: probes that must succeed in a row to close it.
        probe_s_max: a probe without outcome counts as failed after so long.
        stable_s: time closed after which the waits begin anew.
    """

    failures_max: int = 3
    failure_share: float = 0.5
    calls_min: int = 5
    calls_max: int = 100
    window_s: float = 120.0
    slow_s: float = 30.0
    open_s: float = 15.0
    open_s_max: float = 300.0
    jitter_share: float = 0.1
    successes_min: int = 2
    probe_s_max: float = 60.0
    stable_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what could never open, close or be tried again.

        Raises:
            ValueError: which setting, and why.
        """
        if min(self.failures_max, self.calls_min, self.successes_min) < 1:
            raise ValueError("failures_max, calls_min and successes_min are at least 1")
        if self.calls_max < self.calls_min:
            raise ValueError("calls_max is smaller than calls_min")
        if not 0.0 < self.failure_share <= 1.0 or not 0.0 <= self.jitter_share <= 1.0:
            raise ValueError("failure_share and jitter_share are shares; failure_share is more than 0")
        spans = (self.window_s, self.slow_s, self.open_s, self.open_s_max, self.probe_s_max, self.stable_s)
        if not all(0.0 < span < math.inf for span in spans):
            raise ValueError("every time is more than 0 and finite")
        if self.open_s_max < self.open_s:
            raise ValueError("open_s_max is smaller than open_s")


@dataclass(frozen=True, slots=True)
class Permit:
    """A call that may be made: hand it back with `Breaker.report` or `Breaker.give_up`.

    Attributes:
        period: which change of state it follows, or which probe it is.
        probe: whether much depends on it.
    """

    period: int
    probe: bool


class Breaker:
    """One component's breaker; times are monotonic seconds and never run backwards.

    Attributes:
        state: see the module.
        since: when that began.
        openings: since it was last stable; what the next wait depends on.
    """

    def __init__(self, config: BreakerConfig, random: Callable[[], float], now: float) -> None:
        """Begin closed; `random` returns numbers from 0 to below 1, for the jitter."""
        self.state = State.CLOSED
        self.since = now
        self.openings = 0
        self._config = config
        self._random = random
        self._retry_at = now
        self._calls: deque[tuple[float, bool]] = deque(maxlen=config.calls_max)
        self._in_a_row = 0
        self._period = 0
        self._permit = Permit(0, probe=False)
        self._probe_until: float | None = None

    # --- calls ---

    def allow(self, now: float) -> Permit | None:
        """Decide on a call; None means that it must not be made."""
        if self.state is State.CLOSED:
            return self._permit
        self.tick(now)
        if self.state is State.OPEN and now >= self._retry_at:
            self._change(Event.WAITED, now)
        if self.state is not State.HALF_OPEN or self._probe_until is not None:
            return None
        self._probe_until = now + self._config.probe_s_max
        return self._next_permit(probe=True)

    def report(self, permit: Permit, *, ok: bool, took_s: float, now: float) -> None:
        """Take in how a call went.

        Args:
            permit: the call's.
            ok: whether it succeeded; one slower than `slow_s` has not.
            took_s: how long it took.
            now: when it ended.
        """
        self.tick(now)
        if permit.period != self._period:
            return
        ok = ok and took_s <= self._config.slow_s
        if permit.probe:
            self._probed(ok, now)
        else:
            self._called(ok, now)

    def give_up(self, permit: Permit, now: float) -> None:
        """Take in that nobody will know how a call went: its caller was cancelled. The next call may probe."""
        self.tick(now)
        if permit.probe and permit.period == self._period:
            self._probe_until = None
            self._next_permit(probe=False)

    def tick(self, now: float) -> None:
        """Take in that time has passed: a probe may have had no outcome for too long."""
        if self._probe_until is not None and now >= self._probe_until:
            self._change(Event.PROBE_FAILED, now)

    def retry_in_s(self, now: float) -> float | None:
        """Return in how many seconds a call becomes a probe: 0 at once; None while nothing is waited for."""
        if self.state is State.OPEN:
            return max(0.0, self._retry_at - now)
        return 0.0 if self.state is State.HALF_OPEN and self._probe_until is None else None

    # --- by hand ---

    def isolate(self, now: float) -> bool:
        """Have nothing called any more; False if that is so already."""
        if self.state is State.ISOLATED:
            return False
        self._change(Event.ISOLATED, now)
        return True

    def release(self, now: float) -> bool:
        """End the isolation; False if there is none."""
        if self.state is not State.ISOLATED:
            return False
        self._change(Event.RELEASED, now)
        return True

    # --- over restarts ---

    def saved(self, now: float) -> dict[str, Any]:
        """Return what a successor has to know, for any codec; see `restored`."""
        return {
            "state": str(self.state),
            "openings": self.openings,
            "for_s": max(0.0, now - self.since),
            "retry_in_s": self.retry_in_s(now) or 0.0,
        }

    @classmethod
    def restored(
        cls,
        config: BreakerConfig,
        random: Callable[[], float],
        saved: Mapping[str, Any],
        *,
        away_s: float,
        now: float,
    ) -> "Breaker":
        """Return a breaker that goes on from what `saved` returned, `away_s` after that.

        A probe was made by somebody who is gone: the next call is one. No wait is longer than the settings allow now.

        Raises:
            ValueError: `saved` is damaged.
        """
        try:
            state, openings = State(saved["state"]), saved["openings"]
            for_s, retry_in_s = float(saved["for_s"]), float(saved["retry_in_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of a breaker: {error!r}") from None
        if type(openings) is not int or openings < 0 or not for_s >= 0.0 or not retry_in_s >= 0.0:
            raise ValueError("not the state of a breaker: a number is out of its bounds")
        breaker = cls(config, random, now)
        breaker.state, breaker.openings = state, openings
        away_s = max(0.0, away_s)
        breaker.since = now - (for_s + away_s)
        longest_s = config.open_s_max * (1.0 + config.jitter_share)
        breaker._retry_at = now + max(0.0, min(retry_in_s, longest_s) - away_s)
        return breaker

    # --- the machine ---

    def _called(self, ok: bool, now: float) -> None:
        config, calls = self._config, self._calls
        calls.append((now, ok))
        while calls and now - calls[0][0] > config.window_s:
            calls.popleft()
        if ok:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        failed = sum(not good for _, good in calls)
        share = len(calls) >= config.calls_min and failed >= config.failure_share * len(calls)
        if share or self._in_a_row >= config.failures_max:
            self._change(Event.TRIPPED, now)

    def _probed(self, ok: bool, now: float) -> None:
        self._probe_until = None
        if not ok:
            self._change(Event.PROBE_FAILED, now)
            return
        self._in_a_row += 1
        if self._in_a_row >= self._config.successes_min:
            self._change(Event.PROVEN, now)
        else:
            self._next_permit(probe=False)

    def _change(self, event: Event, now: float) -> None:
        """Go where the table says.

        Raises:
            KeyError: it says nothing; a defect of this module.
        """
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if before is State.CLOSED and now - self.since >= self._config.stable_s:
            self.openings = 0
        if self.state is State.OPEN:
            self._retry_at = now + self._wait_s()
            self.openings += 1
        self.since = now
        self._calls.clear()
        self._in_a_row = 0
        self._probe_until = None
        self._next_permit(probe=False)

    def _wait_s(self) -> float:
        config = self._config
        doublings = min(self.openings, math.ceil(math.log2(config.open_s_max / config.open_s)))
        wait_s = min(config.open_s * 2.0**doublings, config.open_s_max)
        return wait_s * (1.0 + config.jitter_share * self._random())

    def _next_permit(self, *, probe: bool) -> Permit:
        """Make whatever was let through before belong to the past."""
        self._period += 1
        self._permit = Permit(self._period, probe)
        return self._permit
