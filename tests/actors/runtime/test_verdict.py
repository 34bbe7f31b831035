"""The judge of hangs on a fake clock: its tables row by row, then seeded schedules against its promises."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from actors.runtime.verdict import (
    EARLY_FACTOR,
    EXTENSIONS_MAX,
    WINDOW_TICKS_MIN,
    Cause,
    Doubt,
    HangDetector,
    Look,
    Observation,
    Round,
    Stage,
    Standing,
    name_cause,
    next_tick,
)

INTERVAL_S = 0.25
TIMEOUT_S = 5.0
WINDOW = 20

PEER = Observation(
    key=1,
    incarnation=1,
    pid=100,
    running=True,
    registered=True,
    ready=True,
    tick=1,
    lease_until_s=0.0,
    lease_holds_loop=False,
    hang_timeout_s=TIMEOUT_S,
    start_timeout_s=15.0,
)


@dataclass
class Observer:
    """A detector with its clock; peers are given as functions of the tick's number."""

    detector: HangDetector
    now: float = 1000.0
    turn: int = 0

    def tick(self, *observations: Observation, after_s: float = INTERVAL_S) -> Round:
        self.now += after_s
        self.turn += 1
        return self.detector.tick(self.now, observations)

    def alive(self, observation: Observation = PEER) -> Observation:
        return replace(observation, tick=self.turn + 2)


@pytest.fixture(name="watch")
def _watch() -> Observer:
    return Observer(HangDetector(INTERVAL_S))


def stage(result: Round, key: int = 1) -> Stage:
    return next(item.stage for item in result.judgements if item.key == key)


def standing(result: Round, key: int = 1) -> Standing:
    return next(item.standing for item in result.judgements if item.key == key)


def ticks_until_hung(watch: Observer, *peers: Observation, limit: int = 500) -> int:
    for count in range(1, limit):
        if any(item.stage is Stage.HUNG for item in watch.tick(*peers).judgements):
            return count
    raise AssertionError(f"nobody hung after {limit} ticks")


def test_a_ticking_peer_is_never_suspected(watch: Observer) -> None:
    for _ in range(200):
        result = watch.tick(watch.alive())
        assert (standing(result), stage(result)) == (Standing.TICKING, Stage.OK)


def test_a_silent_peer_passes_every_stage_once_and_is_hung_after_its_window(watch: Observer) -> None:
    watch.tick(PEER)
    changes = []
    for count in range(1, WINDOW + 5):
        (judgement,) = watch.tick(PEER).judgements
        assert judgement.silent_ticks == count
        assert judgement.silent_s == pytest.approx((count - 1) * INTERVAL_S)
        if judgement.changed:
            changes.append((count, judgement.stage))
    assert changes == [(WINDOW // 2, Stage.SUSPECT), (WINDOW - 1, Stage.ASK), (WINDOW, Stage.HUNG)]


def test_a_peer_that_moves_again_starts_afresh(watch: Observer) -> None:
    for _ in range(WINDOW):
        watch.tick(PEER)
    (judgement,) = watch.tick(replace(PEER, tick=2)).judgements
    assert (judgement.stage, judgement.changed, judgement.silent_ticks) == (Stage.OK, True, 0)
    assert ticks_until_hung(watch, replace(PEER, tick=2)) == WINDOW


def test_a_freeze_right_after_a_beat_is_judged_within_the_timeout_and_a_tick(watch: Observer) -> None:
    watch.tick(PEER)
    frozen_at = watch.now  # the beat that comes right after this look is seen at the next
    last = replace(PEER, tick=2)
    watch.tick(last)
    ticks_until_hung(watch, last)
    assert watch.now - frozen_at <= TIMEOUT_S + INTERVAL_S + 0.01


def test_a_missing_peer_is_no_hang_whatever_was_counted(watch: Observer) -> None:
    for _ in range(WINDOW):
        watch.tick(PEER)
    for _ in range(2 * WINDOW):
        result = watch.tick(replace(PEER, running=False))
        assert (standing(result), stage(result)) == (Standing.MISSING, Stage.OK)


@pytest.mark.parametrize("change", [{"incarnation": 2}, {"pid": 101}])
def test_another_life_starts_afresh(watch: Observer, change: dict[str, int]) -> None:
    for _ in range(WINDOW):
        watch.tick(PEER)
    successor = replace(PEER, incarnation=change.get("incarnation", 1), pid=change.get("pid", 100))
    assert stage(watch.tick(successor)) is Stage.OK
    assert ticks_until_hung(watch, successor) == WINDOW


@pytest.mark.parametrize("unready", [{"registered": False}, {"ready": False}])
def test_a_peer_that_is_not_ready_has_its_start_timeout(watch: Observer, unready: dict[str, bool]) -> None:
    starting = replace(PEER, registered=unready.get("registered", True), ready=unready.get("ready", True))
    count = 0
    while True:
        count += 1
        result = watch.tick(watch.alive(starting))  # a loop that turns but never becomes ready counts as well
        assert standing(result) is Standing.STARTING
        if stage(result) is Stage.HUNG:
            break
    assert count == 60


def test_readiness_ends_the_start_timeout(watch: Observer) -> None:
    for _ in range(59):
        watch.tick(replace(PEER, ready=False))
    assert stage(watch.tick(PEER)) is Stage.OK
    assert ticks_until_hung(watch, PEER) == WINDOW - 1  # the first silent tick was the one before


def test_a_lease_on_the_loop_excuses_silence_until_its_cap(watch: Observer) -> None:
    leased = replace(PEER, lease_until_s=watch.now + 30.0, lease_holds_loop=True)
    watch.tick(leased)
    while watch.now + INTERVAL_S <= leased.lease_until_s:
        result = watch.tick(leased)
        assert (standing(result), stage(result)) == (Standing.HOLDING, Stage.OK)
    assert ticks_until_hung(watch, leased) == WINDOW


def test_a_workers_lease_past_its_cap_is_a_hang_though_the_loop_turns(watch: Observer) -> None:
    leased = replace(PEER, lease_until_s=watch.now + 10.0)
    while watch.now + INTERVAL_S <= leased.lease_until_s:
        assert standing(watch.tick(watch.alive(leased))) is Standing.TICKING
    for _ in range(WINDOW - 1):
        result = watch.tick(watch.alive(leased))
        assert (standing(result), stage(result) is Stage.HUNG) == (Standing.OVERDUE, False)
    assert stage(watch.tick(watch.alive(leased))) is Stage.HUNG


def test_a_workers_lease_does_not_excuse_the_loop(watch: Observer) -> None:
    leased = replace(PEER, lease_until_s=watch.now + 100.0)
    watch.tick(leased)
    assert ticks_until_hung(watch, leased) == WINDOW


def test_work_that_ends_late_is_forgiven(watch: Observer) -> None:
    leased = replace(PEER, lease_until_s=watch.now + 1.0)
    for _ in range(WINDOW):
        watch.tick(watch.alive(leased))
    assert stage(watch.tick(watch.alive())) is Stage.OK


def test_a_late_own_tick_grants_one_fresh_window(watch: Observer) -> None:
    for _ in range(WINDOW):
        watch.tick(PEER)
    result = watch.tick(PEER, after_s=10.0)
    assert (stage(result), result.doubt, result.gap_s) == (Stage.OK, Doubt.OWN_TICK_LATE, 10.0)
    assert ticks_until_hung(watch, PEER) == WINDOW


def test_grace_for_own_lateness_is_not_rearmed_before_a_window_on_time(watch: Observer) -> None:
    """An observer that starves for good still acts, after so many of its own ticks."""
    watch.tick(PEER)
    turns = 0
    while stage(watch.tick(PEER, after_s=3.0)) is not Stage.HUNG:
        turns += 1
    assert turns == WINDOW


def test_grace_for_own_lateness_comes_back_after_a_window_on_time(watch: Observer) -> None:
    assert watch.tick(watch.alive()).doubt is None
    assert watch.tick(watch.alive(), after_s=10.0).doubt is Doubt.OWN_TICK_LATE
    for _ in range(WINDOW - 1):
        watch.tick(watch.alive())
    assert watch.tick(watch.alive(), after_s=10.0).doubt is None
    for _ in range(WINDOW):
        watch.tick(watch.alive())
    assert watch.tick(watch.alive(), after_s=10.0).doubt is Doubt.OWN_TICK_LATE


def test_ticks_that_come_in_a_burst_count_once(watch: Observer) -> None:
    watch.tick(PEER)
    watch.tick(PEER, after_s=1.0)
    for _ in range(10 * WINDOW):
        assert watch.tick(PEER, after_s=0.0005) == Round()
    (judgement,) = watch.tick(PEER).judgements
    assert judgement.silent_ticks == 2


def peers(count: int) -> list[Observation]:
    return [replace(PEER, key=key, pid=100 + key) for key in range(1, count + 1)]


def test_when_most_fall_silent_at_once_the_machine_gets_one_more_window(watch: Observer) -> None:
    group = peers(4)
    watch.tick(*group)
    for _ in range(WINDOW - 1):
        assert watch.tick(*group[:3], watch.alive(group[3])).doubt is None
    result = watch.tick(*group[:3], watch.alive(group[3]))
    assert result.doubt is Doubt.MOST_SILENT
    assert all(item.stage is Stage.OK for item in result.judgements)
    assert ticks_until_hung(watch, *group[:3]) == WINDOW


@pytest.mark.parametrize(("hang_timeout_s", "apart"), [(5.0, 5), (2.5, 3), (60.0, 5)])
def test_together_is_within_a_beat_of_each_other(hang_timeout_s: float, apart: int) -> None:
    for ticks, doubt in ((apart, Doubt.MOST_SILENT), (apart + 1, None)):
        watch = Observer(HangDetector(INTERVAL_S))
        group = [replace(item, hang_timeout_s=hang_timeout_s) for item in peers(4)]
        for turn in range(int(hang_timeout_s / INTERVAL_S) + 1):
            result = watch.tick(group[0], *(item if turn >= ticks else watch.alive(item) for item in group[1:]))
        assert result.doubt is doubt


def test_a_pair_out_of_four_gets_no_grace(watch: Observer) -> None:
    group = peers(4)
    watch.tick(*group)
    for _ in range(WINDOW):
        result = watch.tick(*group[:2], watch.alive(group[2]), watch.alive(group[3]))
        assert result.doubt is None
    assert [item.stage for item in result.judgements] == [Stage.HUNG, Stage.HUNG, Stage.OK, Stage.OK]


def test_those_that_fell_silent_one_after_another_get_no_grace(watch: Observer) -> None:
    group = peers(4)
    for turn in range(1, WINDOW + 2):
        silent_since = {1: 1, 2: 8, 3: 15}
        seen = [item if turn >= silent_since.get(item.key, 999) else watch.alive(item) for item in group]
        result = watch.tick(*seen)
    assert result.doubt is None
    assert stage(result, 1) is Stage.HUNG


def test_one_that_cannot_be_killed_does_not_cost_the_others_their_grace(watch: Observer) -> None:
    group = peers(5)
    for _ in range(3 * WINDOW):
        result = watch.tick(group[0], *(watch.alive(item) for item in group[1:]))
    frozen = [watch.alive(item) for item in group[1:4]]
    for _ in range(WINDOW + 1):
        result = watch.tick(group[0], *frozen, watch.alive(group[4]))
        if result.doubt:
            break
    assert result.doubt is Doubt.MOST_SILENT
    assert stage(result, 1) is Stage.HUNG


def test_grace_for_the_machine_is_not_rearmed_while_most_stay_silent(watch: Observer) -> None:
    group = peers(3)
    granted = 0
    for turn in range(10 * WINDOW):
        # They stir every now and then, together, without ever beating in between for long.
        seen = [replace(item, tick=turn // (WINDOW + 3)) for item in group]
        granted += watch.tick(*seen).doubt is not None
    assert granted == 1


def test_two_peers_are_too_few_to_blame_the_machine(watch: Observer) -> None:
    group = peers(2)
    watch.tick(*group)
    assert ticks_until_hung(watch, *group) == WINDOW


def test_the_caller_may_put_off_a_deadline_so_many_times(watch: Observer) -> None:
    watch.tick(PEER)
    for _ in range(EXTENSIONS_MAX):
        assert ticks_until_hung(watch, PEER) == WINDOW
        assert watch.detector.extend(1)
        assert watch.detector.stage_of(PEER) is Stage.HUNG
    assert ticks_until_hung(watch, PEER) == WINDOW
    assert not watch.detector.extend(1)
    assert not watch.detector.extend(99)


def test_short_timeouts_are_kept_above_what_a_living_peer_may_be_silent(watch: Observer) -> None:
    assert stage(watch.tick(replace(PEER, hang_timeout_s=0.01))) is Stage.OK
    assert ticks_until_hung(watch, replace(PEER, hang_timeout_s=0.01)) == WINDOW_TICKS_MIN


def test_a_peer_first_seen_past_its_lease_has_its_window(watch: Observer) -> None:
    late = replace(PEER, lease_until_s=1.0, hang_timeout_s=1.0)
    assert ticks_until_hung(watch, late) == 4


def test_the_verdict_is_on_a_life_that_has_not_moved_since(watch: Observer) -> None:
    watch.tick(PEER)
    ticks_until_hung(watch, PEER)
    assert watch.detector.stage_of(PEER) is Stage.HUNG
    for other in ({"incarnation": 2}, {"pid": 101}, {"tick": 2}, {"key": 2}):
        assert watch.detector.stage_of(replace(PEER, **other)) is Stage.OK


def test_a_peer_that_is_not_observed_is_forgotten(watch: Observer) -> None:
    for _ in range(WINDOW):
        watch.tick(PEER)
    watch.tick()
    assert watch.detector.stage_of(PEER) is Stage.OK
    assert stage(watch.tick(PEER)) is Stage.OK


# --- seeded schedules -----------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A simulated peer whose loop turns every half second of the time that it gets."""

    key: int
    phase: float
    frozen_at: float | None = None

    def observe(self, run_time: float) -> Observation:
        lived = run_time if self.frozen_at is None else min(run_time, self.frozen_at)
        return replace(PEER, key=self.key, pid=100 + self.key, tick=int((lived + self.phase) / 0.5))


def simulate(
    generator: random.Random,
    processes: Sequence[Process],
    duration_s: float,
    *,
    pause: Callable[[], float] = lambda: 0.0,
    stumble: float = 0.0,
) -> dict[int, float]:
    """Run a detector against processes; returns when (in time that the machine ran) each was found hung.

    The machine may stand still, everybody with it, for as long as `pause` says before each tick; on waking, processes
    get going within some 100 ms. `stumble` is the probability that the observer alone comes late.
    """
    detector = HangDetector(INTERVAL_S)
    clock, ran = 1000.0, 0.0
    found: dict[int, float] = {}
    while ran < duration_s:
        step = INTERVAL_S + generator.uniform(0.0, 0.02)
        if generator.random() < stumble:
            step += generator.uniform(0.0, 0.6)
        slept = pause()
        clock += step + slept
        ran += step
        woken = generator.uniform(0.0, 0.4) if slept else 0.0
        seen = [process.observe(max(0.0, ran - woken)) for process in processes if process.key not in found]
        for judgement in detector.tick(clock, seen).judgements:
            if judgement.stage is Stage.HUNG:
                found[judgement.key] = ran
    return found


@pytest.mark.parametrize("seed", range(60))
def test_sleeping_machines_kill_nobody(seed: int) -> None:
    generator = random.Random(seed)
    processes = [Process(key, generator.uniform(0, 0.5)) for key in range(1, generator.randint(2, 7))]

    def pause() -> float:
        return generator.uniform(1.0, 40_000.0) if generator.random() < 0.02 else 0.0

    assert simulate(generator, processes, 300.0, pause=pause, stumble=0.02) == {}, f"seed {seed}"


@pytest.mark.parametrize("seed", range(60))
def test_frozen_ones_are_found_within_the_timeout_and_half_a_second(seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(3, 6)
    processes = [Process(key, generator.uniform(0, 0.5)) for key in range(1, count + 1)]
    victims = generator.sample(processes, generator.randint(1, count // 2))  # no majority
    start = generator.uniform(20.0, 40.0)
    for victim in victims:
        victim.frozen_at = start + generator.uniform(0.0, 1.0)

    found = simulate(generator, processes, 60.0)
    assert set(found) == {victim.key for victim in victims}, f"seed {seed}"
    for victim in victims:
        assert victim.frozen_at is not None
        # Its last beat may lie half a second before the freeze; the schedule's ticks are up to 20 ms late each.
        assert TIMEOUT_S - 0.5 <= found[victim.key] - victim.frozen_at <= TIMEOUT_S + 0.5 + WINDOW * 0.02, (
            f"seed {seed}"
        )


@pytest.mark.parametrize("seed", range(60))
def test_frozen_ones_are_found_after_a_bounded_time_however_the_machine_sleeps(seed: int) -> None:
    generator = random.Random(seed)
    processes = [Process(key, generator.uniform(0, 0.5)) for key in range(1, 5)]
    for victim in generator.sample(processes, generator.randint(1, 4)):
        victim.frozen_at = generator.uniform(1.0, 10.0)

    def pause() -> float:
        return generator.uniform(1.0, 4000.0) if generator.random() < 0.05 else 0.0

    found = simulate(generator, processes, 60.0, pause=pause, stumble=0.02)
    assert set(found) == {process.key for process in processes if process.frozen_at is not None}, f"seed {seed}"


# --- causes ---------------------------------------------------------------------------------------------------------


def look(at: float, state: str = "S", cpu_s: float = 0.0, waited_s: float | None = 0.0, waits_in: str = "") -> Look:
    return Look(at=at, state=state, cpu_s=cpu_s, waited_s=waited_s, waits_in=waits_in)


@pytest.mark.parametrize(
    ("standing_", "first", "second", "cause"),
    [
        (Standing.MISSING, None, None, Cause.EXITED),
        (Standing.SILENT, look(0), look(2, "T"), Cause.FROZEN),
        (Standing.STARTING, look(0), look(2, "T"), Cause.FROZEN),
        (Standing.OVERDUE, look(0), look(2, "T"), Cause.FROZEN),
        (Standing.SILENT, look(0), look(2, "S", waits_in="do_freezer_trap"), Cause.FROZEN),
        (Standing.SILENT, look(0), look(2, "t"), Cause.TRACED),
        (Standing.STARTING, look(0), look(2, "R", 2.0), Cause.DID_NOT_START),
        (Standing.OVERDUE, look(0), look(2, "D"), Cause.LEASE_OVERRUN),
        (Standing.SILENT, look(0), look(2, "D"), Cause.WAITING_ON_DISK),
        (Standing.SILENT, look(0), look(2, "R", 1.9), Cause.STUCK_IN_LOOP),
        (Standing.SILENT, look(0), look(2, "R", 1.9, None), Cause.STUCK_IN_LOOP),
        (Standing.SILENT, look(0), look(2.5, "R", 0.55, 1.9), Cause.STUCK_IN_LOOP),
        (Standing.SILENT, look(0), look(2.5, "R", 0.05, 2.4), Cause.STARVED),
        (Standing.SILENT, look(0), look(2.5, "S", 0.01, 0.01), Cause.BLOCKED),
        (Standing.SILENT, look(5), look(5, "R"), Cause.BLOCKED),
        (Standing.SILENT, None, None, Cause.BLOCKED),
    ],
)
def test_causes(standing_: Standing, first: Look | None, second: Look | None, cause: Cause) -> None:
    assert name_cause(standing_, first, second) is cause


@pytest.mark.parametrize("interval_s", [0.02, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("lag_share", [0.0, 0.1])
def test_ticks_stay_at_full_multiples_and_find_back_to_them_without_one_that_does_not_count(
    interval_s: float, lag_share: float
) -> None:
    """A late tick must cost an observer no more than its own lateness."""
    lag_s = lag_share * interval_s
    for late_share in (0.0, 0.2, 0.3, 0.5, 0.9, 0.99, 1.5, 7.3):
        now = 1000 * interval_s + lag_s + late_share * interval_s
        for _ in range(8):
            coming = next_tick(now, interval_s, lag_s)
            assert coming - now > EARLY_FACTOR * interval_s
            assert (coming - lag_s + 1e-9) // interval_s > (now - lag_s + 1e-9) // interval_s, "twice in one interval"
            now = coming
        off_s = (now - lag_s + interval_s / 2) % interval_s - interval_s / 2
        assert abs(off_s) < 1e-6, f"not back at full multiples after being {late_share} intervals late"
