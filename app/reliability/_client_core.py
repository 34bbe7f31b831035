"""One call, as a state machine without socket and clock: when to send it (again), and what its failure means.

A connection that is lost is sought anew in ever longer steps. One that comes up, the first or a later one, gets the
request at once: a broker that was restarted knows nothing of it. While connected it is repeated slowly, in case a
message was lost on the way. Every repetition carries the same id, so it takes effect once. While no broker is there,
the shell looks now and then (`PROBE`) whether anybody is, and whether the endpoint has moved. What it means if the
caller's patience ends without an answer:

============ ================== ==================
connection   the board says     error
============ ================== ==================
none         nobody runs        `not_running` (already at the first probe)
none         anything else      `broker_down`
not greeted  anything           `broker_hung`
up           broker stands      `broker_hung`
up           anything else      `deadline_passed`
============ ================== ==================

Everything else (service missing or unknown, busy, deadline passed in a queue) is the broker's own answer, for which the
request's deadline lies a little before the caller's.
"""

import math
from enum import Enum
from typing import Final

from actors.runtime.registration import Link
from protocol.errors import ErrorCode, LocalError

MARGIN_S_MAX: Final = 0.05
MARGIN_SHARE: Final = 0.1
"""How long before the call gives up the broker's own verdict is due: the smaller of the two."""
DIAGNOSIS_S_MAX: Final = 0.005
DIAGNOSIS_SHARE: Final = 0.02
"""How long before the caller's patience ends the call gives up, to find out why: the smaller of the two."""
RESEND_S: Final = 1.0
SEND_RETRY_S: Final = 0.01
RECONNECT_FIRST_S: Final = 0.002
RECONNECT_GROWTH: Final = 1.25
"""The pauses grow with the outage, so that its end is noticed within about a quarter of what it took."""
RECONNECT_S_MAX: Final = 0.05
PROBE_FIRST_S: Final = 0.1
PROBE_S: Final = 0.25
STANDING_STILL_S: Final = 1.25
"""A broker whose loop has not turned for so long stands still: it turns every half second when idle."""


class Step(Enum):
    """What the shell does next."""

    WAIT = "wait for an answer, at most until `wake_at`"
    SEND = "send, and say so with `sent` or `not_sent`"
    RECONNECT = "start a new attempt to connect"
    PROBE = "look at run.json and at the board"
    GIVE_UP = "raise `failure`"


class Scene(Enum):
    """What the liveness board says."""

    NOBODY = "no process of this system runs"
    BROKER_GONE = "the broker does not run, others do"
    BROKER_STILL = "the broker runs, its loop does not turn"
    BROKER_MOVES = "the broker's loop turns"


class Call:
    """One request on its way.

    Attributes:
        id: the request's id.
        give_up_at: when the call fails, in monotonic seconds.
        request_deadline: the deadline that the request carries.
    """

    def __init__(self, request_id: bytes, timeout_s: float, now: float) -> None:
        """Begin at monotonic time `now`, with `timeout_s` of patience."""
        self.id = request_id
        self.give_up_at = now + timeout_s - min(DIAGNOSIS_S_MAX, timeout_s * DIAGNOSIS_SHARE)
        self.request_deadline = self.give_up_at - min(MARGIN_S_MAX, timeout_s * MARGIN_SHARE)
        self._timeout_s = timeout_s
        self._link = Link.DOWN
        self._connection: int | None = None
        self._send_at = now
        self._probe_at = now + PROBE_FIRST_S
        self._reconnect_at = now
        self._reconnect_pause_s = RECONNECT_FIRST_S

    def step(self, link: Link, connection: int, now: float) -> Step:
        """Decide what to do, with the connection at `link` and being the `connection`-th."""
        self._link = link
        if connection != self._connection:
            self._connection = connection
            self._send_at = now
        if now >= self.give_up_at:
            return Step.GIVE_UP
        if link is Link.UP:
            self._reconnect_pause_s = RECONNECT_FIRST_S
            self._probe_at = now + PROBE_FIRST_S
            return Step.SEND if now >= self._send_at else Step.WAIT
        if now >= self._probe_at:
            self._probe_at = now + PROBE_S
            return Step.PROBE
        if link is Link.LOST and now >= self._reconnect_at:
            self._reconnect_at = now + self._reconnect_pause_s
            self._reconnect_pause_s = min(RECONNECT_S_MAX, self._reconnect_pause_s * RECONNECT_GROWTH)
            return Step.RECONNECT
        return Step.WAIT

    def sent(self, now: float) -> None:
        """Take in that the request went out."""
        self._send_at = now + RESEND_S

    def not_sent(self, now: float) -> None:
        """Take in that the broker did not take it now."""
        self._send_at = now + SEND_RETRY_S

    @property
    def wake_at(self) -> float:
        """When `step` has something new to decide, if nothing happens before."""
        if self._link is Link.UP:
            return min(self.give_up_at, self._send_at)
        return min(self.give_up_at, self._probe_at, self._reconnect_at if self._link is Link.LOST else math.inf)

    def failure(self, scene: Scene) -> LocalError:
        """Return the error of a call that has had no answer, given what the board says."""
        within = f"within {self._timeout_s:g} s"
        if self._link in (Link.DOWN, Link.LOST):
            if scene is Scene.NOBODY:
                return LocalError(ErrorCode.NOT_RUNNING, "the system does not run")
            return LocalError(ErrorCode.BROKER_DOWN, f"the broker could not be reached {within}")
        if self._link is Link.OPENING:
            return LocalError(ErrorCode.BROKER_HUNG, f"the broker has not even greeted {within}")
        if scene is Scene.BROKER_STILL:
            return LocalError(ErrorCode.BROKER_HUNG, f"the broker stands still; no answer {within}")
        return LocalError(ErrorCode.DEADLINE_PASSED, f"no answer {within}")
