"""The restart budget: the rolling window, and charges dated across reboots and clock jumps."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.budget import Budget, age_s
from supervisor.memory import Moment, decode, encode, latest
from supervisor.model import Remembered

HOUR = Budget(3, 3600.0)


def test_three_restarts_an_hour_and_no_fourth() -> None:
    charges: tuple[float, ...] = ()
    for now in (0.0, 10.0, 20.0):
        assert HOUR.allows(charges, now)
        charges = HOUR.add(charges, now)
    assert not HOUR.allows(charges, 30.0)
    assert HOUR.left(charges, 30.0) == 0
    with pytest.raises(RuntimeError, match="beyond 3"):
        HOUR.add(charges, 30.0)


def test_the_next_one_is_free_when_the_oldest_ages_out() -> None:
    charges = (0.0, 10.0, 20.0)
    assert HOUR.free_at(charges, 30.0) == 3600.0
    assert not HOUR.allows(charges, 3599.9)
    assert HOUR.allows(charges, 3600.0)
    assert HOUR.add(charges, 3600.0) == (10.0, 20.0, 3600.0)


def test_a_budget_that_was_lowered_waits_until_enough_have_aged_out() -> None:
    charges = (0.0, 10.0, 20.0)
    lowered = Budget(1, 3600.0)
    assert lowered.free_at(charges, 30.0) == 3620.0
    assert lowered.allows(charges, 3620.0)


def test_no_restart_at_all_is_never_free() -> None:
    assert Budget(0, 60.0).free_at((), 5.0) is None


@given(
    st.integers(1, 5),
    st.floats(0.5, 100.0),
    st.lists(st.floats(0.0, 30.0, allow_nan=False), min_size=1, max_size=60),
)
def test_no_rolling_window_ever_holds_more(restart_max: int, period_s: float, gaps: list[float]) -> None:
    budget, now = Budget(restart_max, period_s), 0.0
    charges: tuple[float, ...] = ()
    granted: list[float] = []
    for gap in gaps:
        now += gap
        free_at = budget.free_at(charges, now)
        assert free_at is not None
        if budget.allows(charges, now):
            assert free_at == now
            charges = budget.add(charges, now)
            granted.append(now)
        else:
            assert free_at > now
            assert budget.allows(charges, free_at)
        assert len([then for then in granted if then + period_s > now]) <= restart_max


@pytest.mark.parametrize(
    ("then", "now", "age"),
    [(1000.0, 1500.0, 500.0), (1000.0, 1e9, 3600.0), (1000.0, 10.0, 0.0)],
    ids=["honest clock", "clock set far ahead", "clock set back"],
)
def test_the_age_across_a_reboot_is_clamped(then: float, now: float, age: float) -> None:
    assert age_s(then, now, 3600.0) == age


BEFORE = Moment(now=5000.0, wall_s=1_000_000.0, boot="one")


def remember(**fields: object) -> dict[str, Remembered]:
    return {"broker": Remembered(**fields)}  # type: ignore[arg-type]


def test_within_a_boot_the_monotonic_clock_dates_charges_whatever_the_wall_clock_does() -> None:
    data = encode(1, remember(incarnation=4, charges=(4000.0, 4990.5)), BEFORE)
    after = Moment(now=5100.0, wall_s=5.0, boot="one")
    assert decode(data, after, 3600.0) == (1, remember(incarnation=4, charges=(4000.0, 4990.5)))


@pytest.mark.parametrize(
    ("wall_s", "expected"),
    [
        (1_000_060.0, (30.0 - 1060.0, 30.0 - 70.0)),
        (2_000_000.0, (30.0 - 3600.0, 30.0 - 3600.0)),
        (0.0, (30.0, 30.0)),
    ],
    ids=["honest clock", "clock set far ahead", "clock set back"],
)
def test_across_a_reboot_the_wall_clock_dates_them_within_bounds(wall_s: float, expected: tuple[float, ...]) -> None:
    data = encode(7, remember(charges=(4000.0, 4990.0)), BEFORE)
    revision, read = decode(data, Moment(now=30.0, wall_s=wall_s, boot="two"), 3600.0)
    assert revision == 7
    assert read["broker"].charges == pytest.approx(expected)


def test_what_is_dated_in_a_new_boot_stays_so() -> None:
    data = encode(1, remember(charges=(4990.0,)), BEFORE)
    second = Moment(now=30.0, wall_s=0.0, boot="two")  # the clock went back: it counts for a whole period
    _, read = decode(data, second, 3600.0)
    again = encode(2, read, second)
    _, reread = decode(again, Moment(now=1000.0, wall_s=9e9, boot="two"), 3600.0)
    assert reread["broker"].charges == (30.0,)


def test_stopped_by_hand_and_quarantine_are_remembered() -> None:
    past = remember(incarnation=9, wanted=False, quarantined=True)
    assert decode(encode(3, past, BEFORE), BEFORE, 60.0) == (3, past)


def test_the_higher_revision_is_believed() -> None:
    old, new = encode(3, remember(incarnation=3), BEFORE), encode(4, remember(incarnation=4), BEFORE)
    for copies in ([old, new], [new, old], [b"[1,", new], [new, b""]):
        assert latest(copies, BEFORE, 60.0) == (4, remember(incarnation=4))
    assert latest([b"", b"{}", b"[]"], BEFORE, 60.0) == (0, {})


def test_what_is_damaged_counts_as_not_there() -> None:
    content = {
        "revision": "x",
        "processes": {
            "a": {"incarnation": -4, "wanted": "no", "quarantined": 1, "restarts": [None, {}, {"boot": "one"}, 7]},
            "b": 3,
            "c": {"restarts": [{"boot": "one", "mono_ms": 9e9, "wall_s": 0}]},
        },
    }
    revision, read = decode(json.dumps(content).encode(), BEFORE, 60.0)
    assert revision == 0
    assert read == {"a": Remembered(), "c": Remembered(charges=(BEFORE.now,))}
