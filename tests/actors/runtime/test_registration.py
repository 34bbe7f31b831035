"""The registration with the broker, on a fake clock."""

import pytest

from actors.runtime.registration import (
    HELD_S,
    LATE_TURN_S,
    RETRY_FIRST_S,
    RETRY_S_MAX,
    SILENCE_S_MAX,
    TRANSITIONS,
    Effect,
    Event,
    Link,
    Phase,
    Registration,
)
from protocol.limits import WORKER_HEARTBEAT_INTERVAL_S


def joined(now: float = 0.0) -> Registration:
    registration = Registration(now)
    assert registration.link_changed(Link.UP, now) == (Effect.SEND_READY,)
    return registration


def step_until(registration: Registration, start: float, end: float, turn_s: float = 0.5) -> list[tuple[float, Effect]]:
    """Take regular turns from `start` to `end`; return the effects with their times."""
    effects = []
    now = start
    while now < end:
        now += turn_s
        effects += [(now, effect) for effect in registration.step(now)]
    return effects


def test_nothing_is_sent_before_a_connection() -> None:
    registration = Registration(0.0)
    assert step_until(registration, 0, 60) == []
    assert registration.phase is Phase.APART


def test_every_new_connection_is_greeted_at_once() -> None:
    registration = joined()
    assert registration.link_changed(Link.DOWN, 1.0) == ()
    assert registration.phase is Phase.APART
    assert registration.link_changed(Link.UP, 1.001) == (Effect.SEND_READY,)
    assert registration.link_changed(Link.UP, 1.002) == (Effect.SEND_READY,)
    assert registration.joined_count == 3


def test_a_heartbeat_goes_out_every_interval_while_the_broker_is_heard() -> None:
    registration = joined()
    now, sent = 0.0, 0
    while now < 60 * WORKER_HEARTBEAT_INTERVAL_S:
        now += 0.5
        registration.heard(now)
        sent += registration.step(now).count(Effect.SEND_HEARTBEAT)
    assert sent == 60
    assert registration.phase is Phase.JOINED


def test_a_silent_broker_is_left_and_joined_anew() -> None:
    registration = joined()
    effects = [item for item in step_until(registration, 0, 2 * SILENCE_S_MAX) if item[1] is not Effect.SEND_HEARTBEAT]
    assert effects == [(SILENCE_S_MAX + 0.5, Effect.SEND_DISCONNECT), (SILENCE_S_MAX + 0.5, Effect.RENEW)]
    assert registration.link_changed(Link.UP, 2 * SILENCE_S_MAX + 1) == (Effect.SEND_READY,)


def test_own_late_turns_are_not_the_brokers_silence() -> None:
    registration = joined()
    for now in (0.5, 0.5 + 10 * LATE_TURN_S, 2000.0):
        assert Effect.RENEW not in registration.step(now)
    assert registration.phase is Phase.JOINED


def test_a_registration_that_held_is_renewed_at_once_after_disconnect() -> None:
    registration = joined()
    assert registration.dropped(HELD_S) == (Effect.RENEW,)
    assert registration.phase is Phase.APART


def test_a_refused_worker_tries_again_ever_more_slowly() -> None:
    registration = joined()
    now, delays = 0.0, []
    for _ in range(10):
        effects = registration.dropped(now)
        wait_until = registration.wake_at
        delays.append(0.0 if effects else wait_until - now)
        if not effects:
            assert effects == ()
            assert registration.step(wait_until - 0.001) == ()
            now = wait_until
            assert registration.step(now) == (Effect.RENEW,)
        registration.link_changed(Link.UP, now)
    assert delays[:3] == pytest.approx([0.0, RETRY_FIRST_S, 2 * RETRY_FIRST_S])
    assert delays[-1] == pytest.approx(RETRY_S_MAX)


def test_a_registration_that_held_resets_the_delay() -> None:
    registration = joined()
    registration.dropped(0.1)
    registration.link_changed(Link.UP, 0.2)
    assert registration.dropped(0.2 + HELD_S) == (Effect.RENEW,)


def test_leaving_says_so_once_and_is_final() -> None:
    registration = joined()
    assert registration.leave(1.0) == (Effect.SEND_DISCONNECT,)
    assert registration.leave(1.1) == ()
    assert registration.link_changed(Link.UP, 1.2) == ()
    assert step_until(registration, 1.2, 30) == []


def test_a_disconnect_while_apart_or_waiting_changes_nothing() -> None:
    registration = Registration(0.0)
    assert registration.dropped(0.1) == ()
    assert registration.phase is Phase.APART


def test_the_table_leaves_no_phase_without_a_way_out() -> None:
    for phase in Phase:
        exits = {outcome[0] for (start, _), outcome in TRANSITIONS.items() if start is phase} - {phase}
        assert exits or phase is Phase.LEFT
    assert not [event for event in Event if not any(event is key[1] for key in TRANSITIONS)]
