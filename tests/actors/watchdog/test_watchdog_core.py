"""What the watchdog decides, on a fake clock."""

from dataclasses import dataclass, field, replace

import pytest

from actors.runtime.verdict import EXTENSIONS_MAX, Cause, Doubt, Look, Observation, Stage, Standing
from actors.watchdog.core import (
    KILL_AGAIN_TICKS,
    AskStacks,
    ClockChange,
    ClockWatch,
    Condemn,
    Doubted,
    Effect,
    Finding,
    KillAgain,
    PutOff,
    Subject,
    Tell,
    Watch,
)

INTERVAL_S = 0.25
WINDOW = 20
KEY = 3

ALIVE = Observation(
    key=KEY,
    incarnation=5,
    pid=100,
    running=True,
    registered=True,
    ready=True,
    tick=1,
    lease_until_s=0.0,
    lease_holds_loop=False,
    hang_timeout_s=INTERVAL_S * WINDOW,
    start_timeout_s=15.0,
)


@dataclass
class World:
    """A watch with its clock; looks are what a process in `state` with `cpu_share` and `wait_share` shows."""

    watch: Watch = field(default_factory=lambda: Watch(INTERVAL_S))
    now: float = 1000.0
    state: str = "S"
    cpu_share: float = 0.0
    wait_share: float = 0.0
    answers: bool = True
    looked: int = 0

    def tick(self, seen: Observation = ALIVE, *, stopping: bool = False, after_s: float = INTERVAL_S) -> list[Effect]:
        self.now += after_s
        look = None
        if seen.key in self.watch.suspects:
            self.looked += 1
            look = Look(
                self.now, self.state, self.now * self.cpu_share, self.now * self.wait_share, "", self.answers, {}
            )
        return self.watch.step(self.now, [Subject(seen, look)], stopping=stopping)

    def until(self, kind: type, seen: Observation = ALIVE, limit: int = 500) -> list[Effect]:
        """Tick until an effect of `kind` comes; returns all effects on the way."""
        effects: list[Effect] = []
        for _ in range(limit):
            effects += self.tick(seen)
            if any(isinstance(effect, kind) for effect in effects):
                return effects
        raise AssertionError(f"no {kind.__name__} after {limit} ticks")

    @property
    def finding(self) -> Finding:
        return self.watch.findings[KEY]


@pytest.fixture(name="world")
def _world() -> World:
    return World()


def test_a_hang_from_the_first_silence_to_the_kill(world: World) -> None:
    world.tick()
    effects = world.until(Condemn)
    suspected, known, asked, condemned = effects
    assert suspected == Tell(KEY, 5, suspect=True, cause="")
    assert known == Tell(KEY, 5, suspect=True, cause=Cause.BLOCKED)
    assert asked == AskStacks(KEY)
    assert isinstance(condemned, Condemn)
    assert condemned.cause is Cause.BLOCKED
    assert condemned.judgement.silent_ticks == WINDOW
    assert [look.at for look in condemned.looks] == [world.now - INTERVAL_S * (WINDOW // 2 - 1), world.now]
    assert world.finding == Finding(Standing.SILENT, Stage.HUNG, Cause.BLOCKED, (WINDOW - 1) * INTERVAL_S)


def test_nobody_is_looked_at_who_works(world: World) -> None:
    for turn in range(100):
        assert world.tick(replace(ALIVE, tick=turn)) == []
    assert world.looked == 0
    assert world.watch.suspects == frozenset()


def test_a_suspicion_is_withdrawn(world: World) -> None:
    world.tick()
    world.until(AskStacks)
    assert world.tick(replace(ALIVE, tick=2)) == [Tell(KEY, 5, suspect=False)]
    assert world.tick(replace(ALIVE, tick=3)) == []
    assert world.finding == Finding(Standing.TICKING, Stage.OK, "", 0.0)


@pytest.mark.parametrize(
    ("state", "cpu_share", "cause"),
    [
        ("T", 0.0, Cause.FROZEN),
        ("t", 0.0, Cause.TRACED),
        ("D", 0.0, Cause.WAITING_ON_DISK),
        ("R", 1, Cause.STUCK_IN_LOOP),
    ],
)
def test_causes_are_named_and_the_stopped_are_not_asked(
    world: World, state: str, cpu_share: float, cause: Cause
) -> None:
    world.state, world.cpu_share = state, cpu_share
    world.tick()
    effects = world.until(Condemn)
    assert isinstance(effects[-1], Condemn)
    assert effects[-1].cause is cause
    assert (AskStacks(KEY) in effects) is (state not in "tT")


@pytest.mark.parametrize("changes", [{"registered": False}, {}])
def test_who_would_die_of_the_question_is_not_asked(world: World, changes: dict[str, bool]) -> None:
    world.answers = bool(changes)
    seen = replace(ALIVE, registered=changes.get("registered", True))
    world.tick(seen)
    assert not any(isinstance(effect, AskStacks) for effect in world.until(Condemn, seen))


def test_a_start_that_takes_too_long_is_told_of_once_it_is_condemned(world: World) -> None:
    (condemned,) = world.until(Condemn, replace(ALIVE, registered=False))
    assert isinstance(condemned, Condemn)
    assert condemned.cause is Cause.DID_NOT_START


def test_a_condemned_one_is_killed_again_until_it_is_gone_and_its_verdict_stands(world: World) -> None:
    world.tick()
    world.until(Condemn)
    effects = [effect for _ in range(3 * KILL_AGAIN_TICKS) for effect in world.tick()]
    assert effects == [KillAgain(KEY)] * 3
    assert world.tick(replace(ALIVE, running=False)) == []
    assert world.finding.cause == Cause.EXITED
    assert world.tick(replace(ALIVE, incarnation=6, pid=101, registered=False)) == []
    assert world.finding.standing is Standing.STARTING


def test_one_that_died_as_a_suspect_is_not_cleared(world: World) -> None:
    world.tick()
    world.until(AskStacks)
    assert world.tick(replace(ALIVE, running=False)) == []


def test_who_gets_no_processor_is_left_alone_a_bounded_number_of_times(world: World) -> None:
    world.state, world.wait_share = "R", 0.99
    world.tick()
    effects = world.until(Condemn)
    put_off = [effect for effect in effects if isinstance(effect, PutOff)]
    assert put_off == [PutOff(KEY, Cause.STARVED)] * EXTENSIONS_MAX
    assert isinstance(effects[-1], Condemn)
    assert effects[-1].cause is Cause.STARVED
    assert effects[-1].judgement.silent_ticks == (EXTENSIONS_MAX + 1) * WINDOW


def test_after_a_sleep_of_the_machine_the_silent_have_a_fresh_window(world: World) -> None:
    world.tick()
    world.until(AskStacks)
    effects = world.tick(after_s=3600.0)
    assert Doubted(Doubt.OWN_TICK_LATE, 3600.0) in effects
    assert world.finding.cause == Cause.MACHINE_SLEPT
    assert world.tick(replace(ALIVE, tick=2)) == [Tell(KEY, 5, suspect=False)]


def test_nobody_is_judged_during_a_stop_nor_for_the_time_of_it(world: World) -> None:
    world.tick()
    world.until(AskStacks)
    for _ in range(2 * WINDOW):
        assert world.tick(stopping=True) == []
    assert world.watch.findings == {}
    assert world.tick() == []
    assert world.finding.silent_s == 0.0


def test_a_call_too_early_decides_nothing(world: World) -> None:
    world.tick()
    world.until(AskStacks)
    assert world.tick(after_s=0.01) == []
    assert world.finding.stage is Stage.ASK


def test_another_life_in_the_slot_owes_nothing(world: World) -> None:
    world.tick()
    world.until(Condemn)
    successor = replace(ALIVE, incarnation=6, pid=101)
    assert world.tick(successor) == []
    effects = world.until(Condemn, successor)
    assert isinstance(effects[-1], Condemn)
    assert effects[-1].judgement.incarnation == 6


@pytest.mark.parametrize(
    ("what", "awake_s", "asleep_s", "wall_s", "expected"),
    [
        ("a tick on time", 0.25, 0.0, 0.25, None),
        ("a tick that came an hour late", 3600.0, 0.0, 3600.0, None),
        ("slew as ntpd does, over a late hour", 3600.0, 0.0, 3601.8, None),
        ("slew as chrony does, for a minute", 60.0, 0.0, 65.0, None),
        ("a step too small to tell", 0.25, 0.0, 1.2, None),
        ("set forward", 0.25, 0.0, 86400.25, (0.0, 86400.0)),
        ("set back", 0.25, 0.0, -3599.75, (0.0, -3600.0)),
        ("set back within a late hour", 3600.0, 0.0, 0.0, (0.0, -3600.0)),
        ("suspended", 0.25, 3600.0, 3600.25, (3600.0, 0.0)),
        ("suspended, and the clock set at the resume", 0.25, 3600.0, 3590.25, (3600.0, -10.0)),
        ("clocks read a moment apart", 0.25, 0.003, 0.26, None),
        ("no clock tells of a suspend", 0.25, 0.0, 3600.25, (0.0, 3600.0)),
    ],
)
def test_suspends_and_jumps_of_the_wall_clock_are_told_apart(
    what: str, awake_s: float, asleep_s: float, wall_s: float, expected: tuple[float, float] | None
) -> None:
    clocks = ClockWatch(100.0, 150.0, 1e9)
    change = clocks.step(100.0 + awake_s, 150.0 + awake_s + asleep_s, 1e9 + wall_s)
    assert change == (None if expected is None else ClockChange(*(pytest.approx(value) for value in expected))), what
    after_s = 100.25 + awake_s
    assert clocks.step(after_s, after_s + 50 + asleep_s, 1e9 + wall_s + 0.25) is None, "it is told once"


def test_a_clock_that_is_slewed_for_days_is_never_told_to_jump() -> None:
    clocks = ClockWatch(0.0, 0.0, 1e9)
    assert not any(clocks.step(at, at, 1e9 + at * 1.08) for at in (number / 4 for number in range(1, 20_000)))
