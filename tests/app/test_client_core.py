"""One call on a fake clock: when it is sent, and what its failure is called."""

import itertools

import pytest

from actors.runtime.registration import Link
from app.reliability._client_core import (
    PROBE_FIRST_S,
    PROBE_S,
    RECONNECT_FIRST_S,
    RECONNECT_GROWTH,
    RECONNECT_S_MAX,
    RESEND_S,
    SEND_RETRY_S,
    Call,
    Scene,
    Step,
)
from protocol.errors import ErrorCode

ID = b"request-id"


def test_it_is_sent_as_soon_as_there_is_a_connection_and_not_again_at_once() -> None:
    call = Call(ID, 5.0, 100.0)
    assert call.step(Link.DOWN, 0, 100.0) is Step.WAIT
    assert call.step(Link.OPENING, 0, 100.01) is Step.WAIT
    assert call.step(Link.UP, 1, 100.02) is Step.SEND
    call.sent(100.02)
    assert call.step(Link.UP, 1, 100.03) is Step.WAIT
    assert call.wake_at == pytest.approx(100.02 + RESEND_S)


def test_it_is_sent_at_once_on_a_connection_that_is_up_already() -> None:
    assert Call(ID, 5.0, 100.0).step(Link.UP, 7, 100.0) is Step.SEND


def test_a_new_connection_gets_it_at_once_even_if_the_loss_went_unseen() -> None:
    call = Call(ID, 5.0, 0.0)
    call.step(Link.UP, 1, 0.0)
    call.sent(0.0)
    assert call.step(Link.UP, 2, 0.1) is Step.SEND


def test_it_is_repeated_slowly_on_the_same_connection() -> None:
    call = Call(ID, 5.0, 0.0)
    call.step(Link.UP, 1, 0.0)
    call.sent(0.0)
    assert call.step(Link.UP, 1, RESEND_S - 0.01) is Step.WAIT
    assert call.step(Link.UP, 1, RESEND_S) is Step.SEND


def test_a_broker_that_does_not_take_it_is_tried_again_soon() -> None:
    call = Call(ID, 5.0, 0.0)
    call.step(Link.UP, 1, 0.0)
    call.not_sent(0.0)
    assert call.step(Link.UP, 1, 0.001) is Step.WAIT
    assert call.step(Link.UP, 1, SEND_RETRY_S) is Step.SEND


def test_without_a_connection_it_looks_now_and_then() -> None:
    call = Call(ID, 5.0, 0.0)
    assert call.step(Link.DOWN, 0, 0.0) is Step.WAIT
    assert call.wake_at == pytest.approx(PROBE_FIRST_S)
    assert call.step(Link.DOWN, 0, PROBE_FIRST_S) is Step.PROBE
    assert call.step(Link.DOWN, 0, PROBE_FIRST_S) is Step.WAIT
    assert call.wake_at == pytest.approx(PROBE_FIRST_S + PROBE_S)


def test_a_lost_connection_is_sought_anew_in_ever_longer_steps_until_it_is_up() -> None:
    call = Call(ID, 60.0, 0.0)
    now, attempts = 0.0, []
    while now < 1.0:
        if call.step(Link.LOST, 0, now) is Step.RECONNECT:
            attempts.append(now)
        assert call.wake_at > now
        now = call.wake_at
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert pauses[:2] == pytest.approx([RECONNECT_FIRST_S, RECONNECT_FIRST_S * RECONNECT_GROWTH])
    assert pauses[-1] == pytest.approx(RECONNECT_S_MAX)
    call.step(Link.UP, 1, now)
    assert call.step(Link.LOST, 1, now) is Step.RECONNECT
    assert call.wake_at - now == pytest.approx(RECONNECT_FIRST_S)


def test_an_attempt_under_way_is_not_cut_short() -> None:
    call = Call(ID, 60.0, 0.0)
    assert call.step(Link.DOWN, 0, 0.05) is Step.WAIT


@pytest.mark.parametrize("timeout_s", [0.001, 0.1, 1.0, 60.0])
def test_the_brokers_verdict_is_due_before_the_call_gives_up_and_that_before_patience_ends(timeout_s: float) -> None:
    call = Call(ID, timeout_s, 10.0)
    assert 10.0 < call.request_deadline < call.give_up_at < 10.0 + timeout_s
    assert call.give_up_at > 10.0 + 0.9 * timeout_s
    assert call.step(Link.UP, 1, call.give_up_at) is Step.GIVE_UP


@pytest.mark.parametrize(
    ("link", "scene", "code"),
    [
        (Link.LOST, Scene.NOBODY, ErrorCode.NOT_RUNNING),
        (Link.LOST, Scene.BROKER_GONE, ErrorCode.BROKER_DOWN),
        (Link.DOWN, Scene.NOBODY, ErrorCode.NOT_RUNNING),
        (Link.DOWN, Scene.BROKER_GONE, ErrorCode.BROKER_DOWN),
        (Link.DOWN, Scene.BROKER_STILL, ErrorCode.BROKER_DOWN),
        (Link.DOWN, Scene.BROKER_MOVES, ErrorCode.BROKER_DOWN),
        (Link.OPENING, Scene.BROKER_STILL, ErrorCode.BROKER_HUNG),
        (Link.OPENING, Scene.BROKER_MOVES, ErrorCode.BROKER_HUNG),
        (Link.UP, Scene.BROKER_STILL, ErrorCode.BROKER_HUNG),
        (Link.UP, Scene.BROKER_MOVES, ErrorCode.DEADLINE_PASSED),
        (Link.UP, Scene.NOBODY, ErrorCode.DEADLINE_PASSED),
    ],
)
def test_each_cause_has_its_error(link: Link, scene: Scene, code: ErrorCode) -> None:
    call = Call(ID, 1.0, 0.0)
    call.step(link, 0, 2.0)
    error = call.failure(scene)
    assert error.code == code
    assert error.hint
