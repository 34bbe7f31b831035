"""Who brings a dead launcher back, and when: a pure machine that runs once in every process of ours.

What it sees (`_trouble`), and how long it leaves the matter to others:

============= ============================================== =====================================================
trouble       when                                           patience
============= ============================================== =====================================================
LAUNCHER_GONE the launcher's process does not exist          none for the watchdog, nor for anybody as soon as
                                                             that is gone as well; else `PATIENCE_S`
BOTH_SILENT   the launcher hangs, and the watchdog, whose    none: their silence took long enough
              business that would be, hangs or is gone
(none)        otherwise; always in a deliberate stop, and as
              long as the launcher's budget forbids a start
============= ============================================== =====================================================

A launcher that hangs alone is the watchdog's business, a watchdog that is gone or hangs alone the launcher's.

What it does about it:

============ ================ =========== ========================================================================
phase        event            next        effect
============ ================ =========== ========================================================================
AT_REST      TROUBLE          WAITING     .
WAITING      TURN_COME        WAITING     ASK_LOCK: the succession lock, without waiting for it
WAITING      LOCK_TAKEN       ACTING      LAUNCH: kill whoever hangs, start a launcher
WAITING      LOCK_BUSY        WAITING     . somebody else is at it
WAITING      LOCK_BUSY_LONG   ACTING      LAUNCH: its holder hangs; the instance lock decides between successors
ACTING       ATTEMPT_ENDED    BACKING_OFF RELEASE: the successor has left without ruling
ACTING       ATTEMPT_SLOW     BACKING_OFF ABANDON: the successor rules not yet; kill it, release
BACKING_OFF  PAUSE_OVER       WAITING     .
ACTING       CALM             AT_REST     RELEASE: a launcher rules
(another)    CALM             AT_REST     .
============ ================ =========== ========================================================================

The pause doubles with every attempt that comes to nothing, and so does the time that an attempt is given; both are
bounded, and a calm minute resets them.

Everybody is told of the launcher's exit at once, and then looks more often than its loop ticks (`wake_at`).
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PATIENCE_S: Final = 0.75
LOOK_INTERVAL_S: Final = 0.1
"""How often one looks whose turn may come, or who has started a launcher."""
LOCK_PATIENCE_S: Final = 10.0
ATTEMPT_S_MIN: Final = 8.0
ATTEMPT_S_MAX: Final = 64.0
PAUSE_S_MIN: Final = 0.5
PAUSE_S_MAX: Final = 30.0
CALM_S: Final = 60.0
_DOUBLINGS_MAX: Final = 16


class Seen(StrEnum):
    """What a survivor sees of the launcher or the watchdog."""

    WELL = "well"
    SILENT = "silent"
    GONE = "gone"


class Trouble(StrEnum):
    """See the module's first table."""

    LAUNCHER_GONE = "launcher_gone"
    BOTH_SILENT = "both_silent"


class Phase(StrEnum):
    """Where the machine stands."""

    AT_REST = "at_rest"
    WAITING = "waiting"
    ACTING = "acting"
    BACKING_OFF = "backing_off"


class Event(StrEnum):
    """What moves the machine."""

    TROUBLE = "trouble"
    CALM = "calm"
    TURN_COME = "turn_come"
    LOCK_TAKEN = "lock_taken"
    LOCK_BUSY = "lock_busy"
    LOCK_BUSY_LONG = "lock_busy_long"
    ATTEMPT_ENDED = "attempt_ended"
    ATTEMPT_SLOW = "attempt_slow"
    PAUSE_OVER = "pause_over"


class Effect(StrEnum):
    """What the shell has to do."""

    ASK_LOCK = "ask_lock"
    LAUNCH = "launch"
    RELEASE = "release"
    ABANDON = "abandon"


TRANSITIONS: Final[dict[tuple[Phase, Event], tuple[Phase, Effect | None]]] = {
    (Phase.AT_REST, Event.TROUBLE): (Phase.WAITING, None),
    (Phase.WAITING, Event.TURN_COME): (Phase.WAITING, Effect.ASK_LOCK),
    (Phase.WAITING, Event.LOCK_TAKEN): (Phase.ACTING, Effect.LAUNCH),
    (Phase.WAITING, Event.LOCK_BUSY): (Phase.WAITING, None),
    (Phase.WAITING, Event.LOCK_BUSY_LONG): (Phase.ACTING, Effect.LAUNCH),
    (Phase.ACTING, Event.ATTEMPT_ENDED): (Phase.BACKING_OFF, Effect.RELEASE),
    (Phase.ACTING, Event.ATTEMPT_SLOW): (Phase.BACKING_OFF, Effect.ABANDON),
    (Phase.BACKING_OFF, Event.PAUSE_OVER): (Phase.WAITING, None),
    (Phase.ACTING, Event.CALM): (Phase.AT_REST, Effect.RELEASE),
    (Phase.AT_REST, Event.CALM): (Phase.AT_REST, None),
    (Phase.WAITING, Event.CALM): (Phase.AT_REST, None),
    (Phase.BACKING_OFF, Event.CALM): (Phase.AT_REST, None),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a survivor sees at one tick.

    Attributes:
        launcher: the launcher.
        watchdog: the watchdog.
        stopping: whether a deliberate stop has begun.
        retry_at_s: monotonic time before which the launcher's budget forbids another start.
        attempt_ended: whether a successor that this process started has ended.
    """

    launcher: Seen
    watchdog: Seen
    stopping: bool
    retry_at_s: float
    attempt_ended: bool


class Succession:
    """One survivor's part in bringing the launcher back. See the module for its rules."""

    def __init__(self, *, is_watchdog: bool) -> None:
        """At rest."""
        self._is_watchdog = is_watchdog
        self.phase = Phase.AT_REST
        self._since = 0.0  # when the phase began
        self._wait_until = 0.0  # end of the patience or pause
        self._looked_at = 0.0
        self._lock_busy_since: float | None = None
        self._failures = 0

    def step(self, now: float, scene: Scene) -> Effect | None:
        """Take one look; return what to do now. ASK_LOCK is answered with `lock_answered` at once."""
        self._looked_at = now
        trouble = self._trouble(now, scene)
        if trouble is None:
            if self.phase is Phase.AT_REST and now - self._since >= CALM_S:
                self._failures = 0
            return self._move(now, Event.CALM)
        if self.phase is Phase.AT_REST:
            self._move(now, Event.TROUBLE)
            self._wait_until = now + PATIENCE_S
        if self.phase is Phase.WAITING and self._is_urgent(trouble, scene):
            self._wait_until = min(self._wait_until, now)
        if self.phase is Phase.BACKING_OFF and now >= self._wait_until:
            self._move(now, Event.PAUSE_OVER)
        if self.phase is Phase.WAITING and now >= self._wait_until:
            return self._move(now, Event.TURN_COME)
        if self.phase is Phase.ACTING and scene.attempt_ended:
            return self._failed(now, Event.ATTEMPT_ENDED)
        if self.phase is Phase.ACTING and now - self._since >= _doubled(ATTEMPT_S_MIN, self._failures, ATTEMPT_S_MAX):
            return self._failed(now, Event.ATTEMPT_SLOW)
        return None

    @property
    def wake_at(self) -> float:
        """When `step` wants to be called, if that is before the loop's next tick; infinity if not."""
        if self.phase is Phase.BACKING_OFF:
            return self._wait_until
        return math.inf if self.phase is Phase.AT_REST else self._looked_at + LOOK_INTERVAL_S

    def lock_answered(self, now: float, *, taken: bool) -> Effect | None:
        """Say whether the lock could be had; return what to do now."""
        if taken:
            return self._move(now, Event.LOCK_TAKEN)
        if self._lock_busy_since is None:
            self._lock_busy_since = now
        if now - self._lock_busy_since >= LOCK_PATIENCE_S:
            return self._move(now, Event.LOCK_BUSY_LONG)
        return self._move(now, Event.LOCK_BUSY)

    def _trouble(self, now: float, scene: Scene) -> Trouble | None:
        if scene.stopping or now < scene.retry_at_s:
            return None
        if scene.launcher is Seen.GONE:
            return Trouble.LAUNCHER_GONE
        if scene.launcher is Seen.SILENT and scene.watchdog is not Seen.WELL:
            return Trouble.BOTH_SILENT
        return None

    def _is_urgent(self, trouble: Trouble, scene: Scene) -> bool:
        """Whether there is nobody to leave the matter to."""
        return self._is_watchdog or trouble is Trouble.BOTH_SILENT or scene.watchdog is Seen.GONE

    def _failed(self, now: float, event: Event) -> Effect | None:
        self._wait_until = now + _doubled(PAUSE_S_MIN, self._failures, PAUSE_S_MAX)
        self._failures += 1
        return self._move(now, event)

    def _move(self, now: float, event: Event) -> Effect | None:
        phase, effect = TRANSITIONS[self.phase, event]
        if phase is not self.phase:
            self.phase, self._since = phase, now
        if phase is not Phase.WAITING:
            self._lock_busy_since = None
        return effect


def _doubled(base_s: float, times: int, max_s: float) -> float:
    return float(min(base_s * 2 ** min(times, _DOUBLINGS_MAX), max_s))
