"""The rules of checkpoints: what is kept, whose they are, what a recovery returns."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.checkpointer.core import GENESIS, Description, Gap, Holder, Link, broken_links, hash_of, with_gap
from actors.checkpointer.retention import Kept, Retention, plan_thinning
from actors.checkpointer.runs import Runs, TakenOver

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
BASE = 20_000 * DAY
DEFAULT = Retention(HOUR, DAY, 7 * DAY, keep_newest=20, count_max=1000, bytes_max=2**40)
BARE = Retention(HOUR, DAY, 7 * DAY, keep_newest=1, count_max=10**6, bytes_max=2**60)


def left(times: list[int], retention: Retention = BARE, **fields: int) -> list[int]:
    """Return the times that are kept of checkpoints taken at `times`, in their order."""
    kept = [Kept(seq, time, fields.get("size", 1)) for seq, time in enumerate(times, 1)]
    removed = set(plan_thinning(kept, retention))
    return [item.timestamp_ms for item in kept if item.seq not in removed]


def test_the_last_hour_is_kept_whole_then_one_an_hour_then_one_a_day_then_nothing() -> None:
    times = list(range(BASE - 10 * DAY, BASE + 1, 10 * MINUTE))
    kept = left(times)
    whole = [time for time in kept if BASE - time <= HOUR]
    hourly = [time for time in kept if HOUR < BASE - time <= DAY]
    daily = [time for time in kept if BASE - time > DAY]
    assert whole == list(range(BASE - HOUR, BASE + 1, 10 * MINUTE))
    assert len(hourly) in (23, 24)
    assert len({time // HOUR for time in hourly}) == len(hourly)
    assert len({time // DAY for time in daily}) == len(daily) in (6, 7)
    assert min(kept) >= BASE - 7 * DAY


def test_thinning_as_time_goes_leaves_the_same_as_thinning_once() -> None:
    kept: list[Kept] = []
    for seq in range(1, 3000):
        kept.append(Kept(seq, BASE + seq * 5 * MINUTE, 1))
        removed = set(plan_thinning(kept, BARE))
        kept = [item for item in kept if item.seq not in removed]
    now = kept[-1].timestamp_ms
    for window, bucket, span in ((DAY, HOUR, HOUR), (7 * DAY, DAY, DAY)):
        times = [item.timestamp_ms for item in kept if span < now - item.timestamp_ms <= window]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert max(gaps) <= 2 * bucket
    assert len(kept) < 12 + 1 + 25 + 8


@pytest.mark.parametrize("jump", [-10 * DAY, -HOUR, HOUR, 400 * DAY])
def test_a_clock_that_jumps_costs_no_recent_checkpoint(jump: int) -> None:
    before = [BASE + number * MINUTE for number in range(60)]
    after = [BASE + jump + (60 + number) * MINUTE for number in range(5)]
    kept = left(before + after, DEFAULT)
    assert kept[-20:] == (before + after)[-20:]
    if jump < 0:
        assert len(kept) == 65, "what seems to lie ahead is as old as what came after it"


def test_a_clock_that_ran_ahead_for_a_while_does_not_age_what_came_before() -> None:
    times = [BASE + number * MINUTE for number in range(60)]
    times[30] = BASE + 3650 * DAY
    assert len(left(times)) == 60


def test_a_computer_that_was_off_has_lost_nothing() -> None:
    times = [BASE + number * MINUTE for number in range(60)]
    assert left(times) == times  # nothing new was saved: however late it is now


def test_bounds_of_number_and_bytes_take_the_oldest_and_never_the_newest() -> None:
    times = [BASE + number for number in range(100)]
    assert left(times, Retention(HOUR, DAY, DAY, 20, count_max=10, bytes_max=10**9)) == times[-10:]
    assert left(times, Retention(HOUR, DAY, DAY, 20, count_max=1000, bytes_max=35), size=10) == times[-3:]
    assert left(times, Retention(HOUR, DAY, DAY, 20, count_max=1000, bytes_max=1), size=10) == times[-1:]


def test_the_newest_valid_one_stays_whatever_is_damaged_after_it() -> None:
    bound = Retention(0, 0, 0, keep_newest=1, count_max=1, bytes_max=1)
    kept = [Kept(seq, BASE + seq * DAY, 10, damaged=seq > 3) for seq in range(1, 8)]
    assert plan_thinning(kept, bound) == [1, 2, 4, 5, 6]
    late = [Kept(1, BASE, 10, run=2), Kept(2, BASE, 10, run=2), *(Kept(n, BASE + n, 10, run=1) for n in range(3, 9))]
    assert plan_thinning(late, bound) == [1, 3, 4, 5, 6, 7]


@given(
    st.lists(st.tuples(st.integers(0, 30 * DAY), st.integers(0, 1000), st.booleans(), st.integers(0, 3)), max_size=60),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(0, 5000),
)
def test_never_without_the_newest_valid_one(
    items: list[tuple[int, int, bool, int]], newest: int, count: int, size: int
) -> None:
    kept = [Kept(seq, BASE + time, bytes_, damaged, run) for seq, (time, bytes_, damaged, run) in enumerate(items, 1)]
    removed = plan_thinning(kept, Retention(HOUR, DAY, 7 * DAY, newest, count, size))
    assert removed == sorted(set(removed))
    valid = [item for item in kept if not item.damaged]
    if valid:
        assert valid[-1].seq not in removed
        assert max(valid, key=lambda item: (item.run, item.seq)).seq not in removed
    if kept:
        assert kept[-1].seq not in removed


# --- the chain --------------------------------------------------------------------------------------------------------


def chain(count: int) -> list[Link]:
    links, before = [], GENESIS
    for seq in range(1, count + 1):
        described = Description("app", seq, seq.to_bytes(16), bytes([seq]) * 32, BASE + seq)
        links.append(Link(described, before, hash_of(before, described)))
        before = links[-1].hash
    return links


def test_the_chain_holds_across_whatever_is_thinned_out() -> None:
    links, gaps = chain(50), list[Gap]()
    order = list(range(1, 50))
    random.Random(1).shuffle(order)
    present = {link.described.seq: link for link in links}
    for seq in order:
        link = present.pop(seq)
        gaps = with_gap(gaps, Gap(seq, seq, link.prev_hash, link.hash))
        assert broken_links(present.values(), gaps) == []
    assert [(gap.first_seq, gap.last_seq) for gap in gaps] == [(1, 49)]


def test_what_is_missing_exchanged_or_added_breaks_the_chain() -> None:
    links = chain(10)
    assert broken_links(links[:4] + links[5:], []) == [6]
    assert broken_links(links[1:], []) == [2]
    other = Description("app", 5, bytes(16), bytes(32), BASE)
    forged = Link(other, links[3].hash, hash_of(links[3].hash, other))
    assert broken_links([*links[:4], forged, *links[5:]], []) == [6]
    assert broken_links([*links, links[3]], []) != []


# --- runs -------------------------------------------------------------------------------------------------------------

ALIVE, DEAD = Holder(1, 1, "boot"), Holder(2, 1, "boot")


def runs() -> Runs:
    return Runs("app", [], lambda holder: holder == ALIVE)


def test_the_name_belongs_to_the_run_that_began_last_while_it_lives() -> None:
    book = runs()
    assert book.begin(b"a", ALIVE) == 1
    assert book.begin(b"b", ALIVE) == 2
    with pytest.raises(TakenOver):
        book.saves(b"a", acknowledged=False)
    assert book.saves(b"a", acknowledged=True) == 1
    assert book.saves(b"b", acknowledged=False) == 2
    assert book.saves(None, acknowledged=False) == 2
    book.end(b"b")
    assert book.saves(b"a", acknowledged=False) == 3
    assert book.begin(b"a", ALIVE) == 3, "to begin twice is to begin once"


def test_a_run_that_saves_without_having_begun_begins() -> None:
    book = runs()
    assert book.saves(b"a", acknowledged=False) == 1
    book.begin(b"dead", DEAD)
    assert book.saves(b"a", acknowledged=False) == 3


@pytest.mark.parametrize(
    ("story", "asking", "newest_run", "reason"),
    [
        ("", b"x", None, "nothing"),
        ("", None, 0, "crash"),
        ("a", b"a", None, "nothing"),
        ("a", b"a", 1, "same_run"),
        ("a b", b"b", 1, "crash"),
        ("a A b", b"b", 1, "clean_stop"),
        ("a A b", b"b", 2, "same_run"),
        ("a A b c", b"c", 1, "crash"),
        ("a A", None, 1, "clean_stop"),
        ("a", None, 1, "crash"),
        ("a A b", None, 1, "crash"),
        ("a A", b"never heard of", 1, "clean_stop"),
    ],
)
def test_what_a_recovery_returns(story: str, asking: bytes | None, newest_run: int | None, reason: str) -> None:
    """A small letter begins a run, a capital one ends it."""
    book = runs()
    for letter in story.split():
        if letter.islower():
            book.begin(letter.encode(), None)
        else:
            book.end(letter.lower().encode())
    assert book.decide(asking, newest_run).reason == reason
