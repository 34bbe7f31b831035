"""A worker's side of its registration with the broker, as a state machine: no socket, no clock.

The shell reports what happened to the connection; `Registration` says what to send and when to start over with a fresh
socket (ZeroMQ RFC 18 wants one after a DISCONNECT). In words, with `TRANSITIONS` as the table:

- A connection that comes up, the first or a later one, is greeted with READY at once: a restarted broker knows nobody.
- A broker that says DISCONNECT has dropped us. A registration that held for a while is renewed at once, one that was
  refused soon after READY after a delay that doubles, so that a refused worker does not storm the broker.
- A broker that is silent for `WORKER_HEARTBEAT_LIVENESS` intervals while connected is left and joined anew. Only turns
  of the own loop that came in time count as silence: after a suspend nobody is blamed.
"""

import math
from collections.abc import Mapping
from enum import Enum
from typing import Final

from protocol.limits import WORKER_HEARTBEAT_INTERVAL_S, WORKER_HEARTBEAT_LIVENESS

SILENCE_S_MAX: Final = WORKER_HEARTBEAT_INTERVAL_S * WORKER_HEARTBEAT_LIVENESS
LATE_TURN_S: Final = 2 * WORKER_HEARTBEAT_INTERVAL_S
"""Own turns further apart than this say nothing about the broker."""
RETRY_FIRST_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
HELD_S: Final = 5.0
"""A registration that lasted this long was accepted; its end is no refusal."""


class Link(Enum):
    """How far a connecting socket has come."""

    DOWN = "not connected; attempts are made"
    LOST = "not connected; no attempt will be made"
    OPENING = "connected, and not yet greeted: a hung broker stays like this"
    UP = "usable"


class Phase(Enum):
    """Where the registration stands."""

    APART = "no connection"
    JOINED = "READY was sent on the present connection"
    WAITING = "dropped by the broker; the next attempt has a time"
    LEFT = "taken back for good"


class Event(Enum):
    """What can happen to it."""

    LINK_UP = "a connection came up"
    LINK_DOWN = "the connection is gone"
    DROPPED = "the broker said DISCONNECT"
    SILENCE = "the broker has not been heard for too long"
    RETRY_DUE = "the time of the next attempt has come"
    LEAVE = "the process stops"


class Effect(Enum):
    """What the shell does, in the order given."""

    SEND_READY = "send READY"
    SEND_HEARTBEAT = "send HEARTBEAT"
    SEND_DISCONNECT = "send DISCONNECT"
    RENEW = "close the socket and connect a fresh one"


_Outcome = tuple[Phase, tuple[Effect, ...]]

TRANSITIONS: Final[Mapping[tuple[Phase, Event], _Outcome]] = {
    (Phase.APART, Event.LINK_UP): (Phase.JOINED, (Effect.SEND_READY,)),
    (Phase.APART, Event.LEAVE): (Phase.LEFT, ()),
    (Phase.JOINED, Event.LINK_UP): (Phase.JOINED, (Effect.SEND_READY,)),
    (Phase.JOINED, Event.LINK_DOWN): (Phase.APART, ()),
    (Phase.JOINED, Event.DROPPED): (Phase.WAITING, ()),
    (Phase.JOINED, Event.SILENCE): (Phase.APART, (Effect.SEND_DISCONNECT, Effect.RENEW)),
    (Phase.JOINED, Event.LEAVE): (Phase.LEFT, (Effect.SEND_DISCONNECT,)),
    (Phase.WAITING, Event.RETRY_DUE): (Phase.APART, (Effect.RENEW,)),
    (Phase.WAITING, Event.LEAVE): (Phase.LEFT, ()),
}
"""Every pair that is not here changes nothing."""


class Registration:
    """One worker's registration on one lane.

    Attributes:
        phase: where it stands.
        joined_count: how often READY was sent.
    """

    def __init__(self, now: float) -> None:
        """Start apart, at monotonic time `now`."""
        self.phase = Phase.APART
        self.joined_count = 0
        self._joined_at = now
        self._heard_at = now
        self._stepped_at = now
        self._heartbeat_at = now
        self._retry_at = now
        self._retry_delay_s = 0.0

    def link_changed(self, link: Link, now: float) -> tuple[Effect, ...]:
        """Take in that the socket's connection is now `link`."""
        return self._apply(Event.LINK_UP if link is Link.UP else Event.LINK_DOWN, now)

    def heard(self, now: float) -> None:
        """Take in that the broker sent something."""
        self._heard_at = now

    def dropped(self, now: float) -> tuple[Effect, ...]:
        """Take in a DISCONNECT of the broker."""
        if self.phase is not Phase.JOINED:
            return ()
        if now - self._joined_at >= HELD_S:
            self._retry_delay_s = 0.0
        self._retry_at = now + self._retry_delay_s
        self._retry_delay_s = min(RETRY_S_MAX, max(RETRY_FIRST_S, self._retry_delay_s * 2))
        return self._apply(Event.DROPPED, now) + self.step(now)

    def step(self, now: float) -> tuple[Effect, ...]:
        """Look at the time: heartbeats, silence, the next attempt. Call it after the socket was drained."""
        if now - self._stepped_at > LATE_TURN_S:
            self._heard_at = now
        self._stepped_at = now
        if self.phase is Phase.WAITING and now >= self._retry_at:
            return self._apply(Event.RETRY_DUE, now)
        if self.phase is not Phase.JOINED:
            return ()
        if now - self._heard_at > SILENCE_S_MAX:
            return self._apply(Event.SILENCE, now)
        if now >= self._heartbeat_at:
            self._heartbeat_at = _next_heartbeat(now)
            return (Effect.SEND_HEARTBEAT,)
        return ()

    def leave(self, now: float) -> tuple[Effect, ...]:
        """Take the registration back for good."""
        return self._apply(Event.LEAVE, now)

    @property
    def wake_at(self) -> float:
        """When `step` has something to do that cannot wait for the next regular turn; infinity if nothing."""
        return self._retry_at if self.phase is Phase.WAITING else math.inf

    def _apply(self, event: Event, now: float) -> tuple[Effect, ...]:
        self.phase, effects = TRANSITIONS.get((self.phase, event), (self.phase, ()))
        if Effect.SEND_READY in effects:
            self.joined_count += 1
            self._joined_at = self._heard_at = now
            self._heartbeat_at = _next_heartbeat(now)
        return effects


def _next_heartbeat(now: float) -> float:
    """At full multiples of the interval, like the broker's own."""
    return (now // WORKER_HEARTBEAT_INTERVAL_S + 1) * WORKER_HEARTBEAT_INTERVAL_S
