"""Who brings a dead launcher back: the tables on a fake clock, then many survivors under seeded schedules."""

import math
import random
from dataclasses import dataclass, field, replace

import pytest

from actors.runtime.succession_core import (
    ATTEMPT_S_MIN,
    CALM_S,
    LOCK_PATIENCE_S,
    LOOK_INTERVAL_S,
    PATIENCE_S,
    PAUSE_S_MAX,
    PAUSE_S_MIN,
    TRANSITIONS,
    Effect,
    Event,
    Phase,
    Scene,
    Seen,
    Succession,
)

WELL = Scene(Seen.WELL, Seen.WELL, stopping=False, retry_at_s=0.0, attempt_ended=False)
GONE = replace(WELL, launcher=Seen.GONE)
BOTH_GONE = replace(GONE, watchdog=Seen.GONE)
BOTH_SILENT = replace(WELL, launcher=Seen.SILENT, watchdog=Seen.SILENT)


def launching(now: float = 0.0) -> Succession:
    """A survivor that has just launched a successor."""
    core = Succession(is_watchdog=False)
    assert core.step(now, BOTH_GONE) is Effect.ASK_LOCK
    assert core.lock_answered(now, taken=True) is Effect.LAUNCH
    return core


def test_every_phase_can_calm_down() -> None:
    assert all((phase, Event.CALM) in TRANSITIONS for phase in Phase)


@pytest.mark.parametrize(
    "scene",
    [
        WELL,
        replace(WELL, launcher=Seen.SILENT),
        replace(WELL, watchdog=Seen.SILENT),
        replace(WELL, watchdog=Seen.GONE),
        replace(BOTH_GONE, stopping=True),
        replace(BOTH_SILENT, stopping=True),
        replace(BOTH_GONE, retry_at_s=1e9),
    ],
)
@pytest.mark.parametrize("is_watchdog", [False, True])
def test_what_is_nobody_elses_business(scene: Scene, is_watchdog: bool) -> None:
    core = Succession(is_watchdog=is_watchdog)
    assert [core.step(turn * 0.5, scene) for turn in range(100)] == [None] * 100
    assert core.phase is Phase.AT_REST


def test_the_watchdog_acts_at_once() -> None:
    assert Succession(is_watchdog=True).step(0.0, GONE) is Effect.ASK_LOCK


@pytest.mark.parametrize("scene", [BOTH_GONE, BOTH_SILENT, replace(BOTH_SILENT, watchdog=Seen.GONE)])
def test_others_act_at_once_when_the_watchdog_cannot(scene: Scene) -> None:
    assert Succession(is_watchdog=False).step(0.0, scene) is Effect.ASK_LOCK


@pytest.mark.parametrize("watchdog", [Seen.WELL, Seen.SILENT])
def test_others_leave_a_dead_launcher_to_a_watchdog_that_exists_for_a_while(watchdog: Seen) -> None:
    core = Succession(is_watchdog=False)
    scene = replace(GONE, watchdog=watchdog)
    assert core.step(0.0, scene) is None
    assert core.step(PATIENCE_S - 0.01, scene) is None
    assert core.step(PATIENCE_S, scene) is Effect.ASK_LOCK


def test_others_act_as_soon_as_the_watchdog_is_gone_as_well() -> None:
    core = Succession(is_watchdog=False)
    assert core.step(0.0, GONE) is None
    assert core.step(0.1, GONE) is None
    assert core.step(0.2, BOTH_GONE) is Effect.ASK_LOCK


def test_it_wants_to_look_sooner_only_while_there_is_trouble() -> None:
    core = Succession(is_watchdog=False)
    core.step(0.0, WELL)
    assert core.wake_at == math.inf
    core.step(1.0, GONE)
    assert core.wake_at == 1.0 + LOOK_INTERVAL_S
    core.step(1.1, BOTH_GONE)
    core.lock_answered(1.1, taken=True)
    assert core.phase is Phase.ACTING
    assert core.wake_at == 1.1 + LOOK_INTERVAL_S
    core.step(1.2, replace(BOTH_GONE, attempt_ended=True))
    assert core.wake_at == 1.2 + PAUSE_S_MIN
    core.step(1.3, WELL)
    assert core.wake_at == math.inf


def test_who_does_not_get_the_lock_keeps_asking_and_in_the_end_acts_without() -> None:
    core = Succession(is_watchdog=True)
    now = 0.0
    while now < LOCK_PATIENCE_S:
        assert core.step(now, GONE) is Effect.ASK_LOCK
        assert core.lock_answered(now, taken=False) is None
        now += 0.5
    assert core.step(now, GONE) is Effect.ASK_LOCK
    assert core.lock_answered(now, taken=False) is Effect.LAUNCH


def test_the_lock_is_given_back_once_a_launcher_rules() -> None:
    core = launching()
    assert core.step(0.3, BOTH_GONE) is None
    assert core.step(0.6, WELL) is Effect.RELEASE
    assert core.phase is Phase.AT_REST


def test_a_stop_calls_it_off() -> None:
    assert launching().step(0.3, replace(BOTH_GONE, stopping=True)) is Effect.RELEASE


def test_a_successor_that_leaves_is_tried_again_with_growing_pauses() -> None:
    core, now, pauses = launching(), 0.0, []
    for _ in range(10):
        assert core.step(now, replace(BOTH_GONE, attempt_ended=True)) is Effect.RELEASE
        ended = now
        while core.step(now, BOTH_GONE) is None:
            now += 0.25
        pauses.append(now - ended)
        assert core.lock_answered(now, taken=True) is Effect.LAUNCH
    assert pauses[:4] == [PAUSE_S_MIN, 2 * PAUSE_S_MIN, 4 * PAUSE_S_MIN, 8 * PAUSE_S_MIN]
    assert pauses[-1] == PAUSE_S_MAX


def test_a_successor_that_does_not_rule_is_abandoned_with_growing_patience() -> None:
    core = launching()
    assert core.step(ATTEMPT_S_MIN - 0.01, BOTH_GONE) is None
    assert core.step(ATTEMPT_S_MIN, BOTH_GONE) is Effect.ABANDON
    again = ATTEMPT_S_MIN + PAUSE_S_MIN
    assert core.step(again, BOTH_GONE) is Effect.ASK_LOCK
    core.lock_answered(again, taken=True)
    assert core.step(again + ATTEMPT_S_MIN, BOTH_GONE) is None
    assert core.step(again + 2 * ATTEMPT_S_MIN, BOTH_GONE) is Effect.ABANDON


def test_a_calm_minute_forgets_the_failures() -> None:
    core = launching()
    core.step(1.0, replace(BOTH_GONE, attempt_ended=True))
    core.step(2.0, WELL)
    core.step(2.0 + CALM_S, WELL)
    now = 3.0 + CALM_S
    core.step(now, BOTH_GONE)
    core.lock_answered(now, taken=True)
    assert core.step(now, replace(BOTH_GONE, attempt_ended=True)) is Effect.RELEASE
    assert core.step(now + PAUSE_S_MIN, BOTH_GONE) is Effect.ASK_LOCK


# --- seeded schedules -----------------------------------------------------------------------------------------------

START_S = 0.3
TICK_S = 0.5


@dataclass
class Survivor:
    core: Succession
    next_tick: float
    ready_at: float | None = None  # of the successor that it started
    frozen_until: float = 0.0


@dataclass
class World:
    """Survivors in their own phases, one lock, and a launcher that takes `START_S` to rule."""

    survivors: list[Survivor]
    launcher_alive: bool = True
    watchdog_alive: bool = True
    holder: Survivor | None = None
    launched_at: list[float] = field(default_factory=list)
    now: float = 0.0

    def run(self, until: float) -> None:
        while self.survivors:
            due = min(self.survivors, key=lambda one: one.next_tick)
            if due.next_tick > until:
                break
            self.now = due.next_tick
            due.next_tick = max(self.now, due.frozen_until) + TICK_S
            if self.now >= due.frozen_until:
                self.turn(due)
        self.now = until

    def turn(self, one: Survivor) -> None:
        for other in self.survivors:
            if other.ready_at is not None and self.now >= other.ready_at:
                self.launcher_alive, other.ready_at = True, None
        launcher = Seen.WELL if self.launcher_alive else Seen.GONE
        watchdog = Seen.WELL if self.watchdog_alive else Seen.GONE
        effect = one.core.step(self.now, Scene(launcher, watchdog, stopping=False, retry_at_s=0, attempt_ended=False))
        if effect is Effect.ASK_LOCK:
            taken = self.holder is None
            if taken:
                self.holder = one
            effect = one.core.lock_answered(self.now, taken=taken)
        if effect is Effect.LAUNCH:
            self.launched_at.append(self.now)
            one.ready_at = self.now + START_S
        elif effect is not None and self.holder is one:
            self.holder = None

    def kill(self, one: Survivor) -> None:
        """The lock goes with its holder; a successor that was being started lives on."""
        self.survivors.remove(one)
        if self.holder is one:
            self.holder = None
        if one.ready_at is not None and self.survivors:
            self.survivors[0].ready_at = min(one.ready_at, self.survivors[0].ready_at or one.ready_at)


def world(generator: random.Random, *, watchdog: bool) -> World:
    count = generator.randint(1, 6)
    survivors = [Survivor(Succession(is_watchdog=False), generator.uniform(0, TICK_S)) for _ in range(count)]
    if watchdog:
        survivors.append(Survivor(Succession(is_watchdog=True), generator.uniform(0, TICK_S)))
    return World(survivors, watchdog_alive=watchdog)


@pytest.mark.parametrize("seed", range(100))
def test_one_launcher_is_started_and_soon(seed: int) -> None:
    generator = random.Random(seed)
    made = world(generator, watchdog=generator.random() < 0.5)
    made.run(5.0)
    assert made.launched_at == [], f"seed {seed}"
    made.launcher_alive = False
    made.run(5.0 + 20.0)
    assert made.launcher_alive, f"seed {seed}"
    assert len(made.launched_at) == 1, f"seed {seed}"
    assert made.launched_at[0] - 5.0 <= TICK_S, f"seed {seed}"
    assert made.holder is None, f"seed {seed}"


@pytest.mark.parametrize("seed", range(100))
def test_whoever_dies_or_freezes_while_acting_the_launcher_comes_back(seed: int) -> None:
    generator = random.Random(seed)
    made = world(generator, watchdog=False)
    made.launcher_alive = False
    until = 0.0
    while len(made.survivors) > 1:
        until += generator.uniform(0.05, 1.0)
        made.run(until)
        victim = generator.choice(made.survivors)
        if generator.random() < 0.5:
            made.kill(victim)
        else:
            victim.frozen_until = made.now + generator.uniform(1.0, 30.0)
        if generator.random() < 0.2:
            break
        if generator.random() < 0.3:
            made.launcher_alive = False
    for one in made.survivors[1:]:
        one.frozen_until = 1e9
    made.survivors[0].frozen_until = 0.0
    made.survivors[0].next_tick = min(made.survivors[0].next_tick, made.now + TICK_S)
    made.run(made.now + LOCK_PATIENCE_S + PAUSE_S_MAX + 2 * ATTEMPT_S_MIN)
    assert made.launcher_alive, f"seed {seed}"
