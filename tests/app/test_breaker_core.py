"""The circuit breaker: each row of its table, and what must not follow."""

import pytest

from app.reliability._breaker_core import TRANSITIONS, Breaker, BreakerConfig, Event, Permit, State


def make(now: float = 0.0, **settings: float) -> Breaker:
    return Breaker(BreakerConfig(**settings), lambda: 0.0, now)  # type: ignore[arg-type]


def call(breaker: Breaker, now: float, *, ok: bool = True, took_s: float = 0.1) -> None:
    breaker.report(allowed(breaker, now), ok=ok, took_s=took_s, now=now)


def allowed(breaker: Breaker, now: float) -> Permit:
    permit = breaker.allow(now)
    assert permit is not None
    return permit


def opened(now: float = 0.0) -> Breaker:
    breaker = make(now)
    for _ in range(3):
        call(breaker, now, ok=False)
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_after_three_failures_in_a_row_and_not_before() -> None:
    breaker = make()
    for ok in (False, False, True, True, True, False, False):
        call(breaker, 1.0, ok=ok) if breaker.state is State.CLOSED else None
    assert breaker.state is State.OPEN  # four of seven in the window
    breaker = make()
    for ok in (True, True, True, True, False, False):
        call(breaker, 1.0, ok=ok)
    assert breaker.state is State.CLOSED
    call(breaker, 1.0, ok=False)
    assert breaker.state is State.OPEN


def test_a_share_of_too_few_or_too_old_calls_does_not_count() -> None:
    breaker = make()
    for now, ok in ((0.0, False), (0.0, True), (0.0, False), (0.0, True), (200.0, False)):
        call(breaker, now, ok=ok)
    assert breaker.state is State.CLOSED


def test_slow_calls_count_as_failures() -> None:
    breaker = make(slow_s=1.0)
    for _ in range(3):
        call(breaker, 5.0, took_s=1.5)
    assert breaker.state is State.OPEN


def test_nothing_is_called_while_it_is_open_and_one_probe_afterwards() -> None:
    breaker = opened()
    assert breaker.allow(14.9) is None
    assert breaker.retry_in_s(10.0) == 5.0
    probe = allowed(breaker, 15.0)
    assert probe.probe
    assert breaker.allow(15.0) is None
    assert breaker.retry_in_s(15.0) is None
    breaker.report(probe, ok=True, took_s=0.1, now=15.1)
    assert breaker.state is State.HALF_OPEN, "one success does not close it"
    call(breaker, 15.2)
    assert breaker.state is State.CLOSED


def test_waits_double_up_to_their_bound_and_begin_anew_after_a_stable_time() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        waits.append(breaker.retry_in_s(now))
        now += waits[-1] or 0.0
        call(breaker, now, ok=False)
    assert waits == [15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0]
    now += 300.0
    call(breaker, now)
    call(breaker, now)
    for wait_s, stable_s in ((300.0, 299.0), (15.0, 300.0)):
        now += stable_s
        for _ in range(3):
            call(breaker, now, ok=False)
        assert breaker.retry_in_s(now) == wait_s
        now += wait_s
        call(breaker, now)
        call(breaker, now)


def test_jitter_makes_a_wait_longer_never_shorter() -> None:
    breaker = Breaker(BreakerConfig(), lambda: 0.5, 0.0)
    for _ in range(3):
        call(breaker, 0.0, ok=False)
    assert breaker.retry_in_s(0.0) == pytest.approx(15.75)


def test_a_probe_without_outcome_has_failed_and_its_late_outcome_is_of_no_account() -> None:
    breaker = opened()
    lost = allowed(breaker, 15.0)
    assert breaker.allow(74.9) is None
    assert breaker.allow(75.0) is None
    assert breaker.state is State.OPEN
    probe = allowed(breaker, 105.0)
    breaker.report(lost, ok=False, took_s=90.0, now=105.1)
    assert breaker.state is State.HALF_OPEN
    breaker.report(probe, ok=True, took_s=0.1, now=105.2)
    assert breaker.retry_in_s(105.2) == 0.0


def test_a_probe_that_was_cancelled_makes_room_for_the_next() -> None:
    breaker = opened()
    probe = allowed(breaker, 15.0)
    breaker.give_up(probe, 16.0)
    assert allowed(breaker, 16.0) != probe


def test_calls_of_another_time_change_nothing() -> None:
    breaker = make()
    old = [allowed(breaker, 0.0) for _ in range(10)]
    for permit in old[:3]:
        breaker.report(permit, ok=False, took_s=0.1, now=1.0)
    for permit in old[3:]:
        breaker.report(permit, ok=True, took_s=0.1, now=2.0)
    assert breaker.state is State.OPEN
    assert breaker.openings == 1


def test_isolated_by_hand_it_stays_so_until_it_is_released_to_a_probe() -> None:
    breaker = make()
    assert breaker.isolate(1.0)
    assert not breaker.isolate(1.0)
    assert breaker.allow(1e6) is None
    assert breaker.release(1e6)
    assert not breaker.release(1e6)
    assert allowed(breaker, 1e6).probe


def test_a_probe_under_way_cannot_undo_an_isolation() -> None:
    breaker = opened()
    probe = allowed(breaker, 15.0)
    breaker.isolate(16.0)
    breaker.report(probe, ok=True, took_s=1.0, now=16.0)
    breaker.tick(1000.0)
    assert breaker.state is State.ISOLATED


def test_a_restart_neither_shortens_nor_prolongs_a_wait() -> None:
    breaker = opened()
    after = Breaker.restored(BreakerConfig(), lambda: 0.0, breaker.saved(5.0), away_s=4.0, now=1000.0)
    assert after.retry_in_s(1000.0) == 6.0
    assert after.openings == 1
    assert after.allow(1005.9) is None
    assert allowed(after, 1006.0).probe


def test_a_restart_during_a_probe_lets_the_next_call_probe() -> None:
    breaker = opened()
    allowed(breaker, 15.0)
    after = Breaker.restored(BreakerConfig(), lambda: 0.0, breaker.saved(16.0), away_s=0.0, now=3.0)
    assert allowed(after, 3.0).probe


def test_an_isolation_survives_a_restart() -> None:
    breaker = make()
    breaker.isolate(0.0)
    after = Breaker.restored(BreakerConfig(), lambda: 0.0, breaker.saved(1.0), away_s=1e9, now=0.0)
    assert after.allow(1e9) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"state": "ajar"},
        {"openings": -1},
        {"openings": True},
        {"openings": "1"},
        {"retry_in_s": float("nan")},
        {"for_s": None},
        {"for_s": -1},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not the state of a breaker"):
        Breaker.restored(BreakerConfig(), lambda: 0.0, opened().saved(0.0) | damage, away_s=0.0, now=0.0)


def test_no_saved_wait_is_longer_than_the_settings_allow() -> None:
    saved = opened().saved(0.0) | {"retry_in_s": 1e12, "openings": 10**6}
    after = Breaker.restored(BreakerConfig(), lambda: 0.0, saved, away_s=0.0, now=0.0)
    call(after, 330.0, ok=False)
    assert after.retry_in_s(330.0) == 300.0


@pytest.mark.parametrize(
    "settings",
    [
        {"failures_max": 0},
        {"calls_min": 0},
        {"successes_min": 0},
        {"calls_max": 4},
        {"failure_share": 0.0},
        {"jitter_share": -0.1},
        {"open_s": 0.0},
        {"window_s": float("inf")},
        {"slow_s": float("nan")},
        {"open_s_max": 1.0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|smaller|shares|finite"):
        make(**settings)


def test_every_state_can_be_left_and_isolated() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)
