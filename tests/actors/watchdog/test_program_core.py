"""How programs are judged, on a fake clock."""

import random
from dataclasses import dataclass, field, replace

import pytest

from actors.runtime.programs import Probe
from actors.runtime.verdict import Cause, Doubt, Look, Observation
from actors.watchdog.core import AskStacks, Condemn, Doubted, Effect, PutOff, Subject, Tell, Warn
from actors.watchdog.program_core import (
    LAUNCHER_TICKS_MAX,
    STARTING_INTERVAL_S,
    ProbeBook,
    ProgramWatch,
    Progress,
    Shown,
    probe_pace,
)

INTERVAL_S = 0.25
HANG_TIMEOUT_S = 30.0
KEY = 16


@dataclass
class Program:
    """One program as the world has it."""

    key: int = KEY
    life: int = 1
    judged_by: str = "state"
    beats: int = 0
    answers: int = 0
    state: str = "S"
    cpu_share: float = 0.0
    wait_share: float = 0.0
    hang_timeout_s: float = HANG_TIMEOUT_S


@dataclass
class World:
    """A watch, its clock, a launcher that turns, and programs."""

    programs: list[Program] = field(default_factory=lambda: [Program()])
    watch: ProgramWatch = field(default_factory=lambda: ProgramWatch(INTERVAL_S))
    progress: Progress = field(default_factory=Progress)
    now: float = 1000.0
    epoch: int = 1
    turns: int = 0

    def tick(self, *, launcher: bool = True, after_s: float = INTERVAL_S, stopping: bool = False) -> list[Effect]:
        self.now += after_s
        self.turns += launcher
        suspects = self.watch.suspects
        subjects = [self._subject(program, program.key in suspects) for program in self.programs]
        return self.watch.step(self.now, (self.epoch, self.turns), subjects, stopping=stopping)

    def until(self, kind: type, limit_s: float = 200.0, *, launcher: bool = True) -> list[Effect]:
        effects: list[Effect] = []
        until = self.now + limit_s
        while self.now < until:
            effects += self.tick(launcher=launcher)
            if any(isinstance(effect, kind) for effect in effects):
                return effects
        raise AssertionError(f"no {kind.__name__} within {limit_s} s")

    def quiet_for(self, duration_s: float, *, launcher: bool = True) -> None:
        until = self.now + duration_s
        while self.now < until:
            assert not any(isinstance(effect, Condemn) for effect in self.tick(launcher=launcher))

    def _subject(self, program: Program, looked: bool) -> Subject:
        shown = Shown(program.life, program.judged_by, program.beats, program.answers, program.state)
        seen = Observation(
            key=program.key,
            incarnation=program.life,
            pid=program.key * 100 + program.life,
            running=True,
            registered=True,
            ready=True,
            tick=self.progress.step(program.key, shown),
            lease_until_s=0.0,
            lease_holds_loop=False,
            hang_timeout_s=program.hang_timeout_s,
            start_timeout_s=90.0,
        )
        look = None
        if looked:
            cpu_s, waited_s = self.now * program.cpu_share, self.now * program.wait_share
            look = Look(self.now, program.state, cpu_s, waited_s, "", True, {})
        return Subject(seen, look)


@pytest.fixture(name="world")
def _world() -> World:
    return World()


@pytest.mark.parametrize(
    ("judged_by", "change", "moved"),
    [
        ("beats", {"beats": 1}, True),
        ("beats", {"beats": 1, "state": "T"}, True),
        ("beats", {"answers": 1}, False),
        ("beats", {}, False),
        ("probe", {"answers": 1}, True),
        ("probe", {"answers": 1, "state": "T"}, False),
        ("probe", {"beats": 1}, False),
        ("state", {}, True),
        ("state", {"state": "R"}, True),
        ("state", {"state": "D"}, True),
        ("state", {"state": ""}, True),
        ("state", {"state": "T"}, True),
        ("state", {"judged_by": "beats"}, True),
        ("beats", {"life": 2}, True),
    ],
)
def test_what_counts_as_progress(judged_by: str, change: dict[str, object], moved: bool) -> None:
    progress = Progress()
    shown = Shown(1, judged_by, 0, 0, "S")
    before = progress.step(KEY, shown)
    assert (progress.step(KEY, replace(shown, **change)) != before) is moved  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "after", "moved"), [("T", "T", False), ("t", "T", False), ("T", "S", True)])
def test_of_one_that_is_stopped_the_second_look_counts(before: str, after: str, moved: bool) -> None:
    progress = Progress()
    shown = Shown(1, "state", 0, 0, before)
    count = progress.step(KEY, shown)
    assert (progress.step(KEY, replace(shown, state=after, beats=1)) != count) is moved


def test_a_stopped_program_hangs_after_its_timeout_and_is_warned_before(world: World) -> None:
    world.quiet_for(5 * HANG_TIMEOUT_S)
    world.programs[0].state = "T"
    stopped_at = world.now
    effects = world.until(Condemn)
    assert [type(effect) for effect in effects] == [Tell, Tell, Warn, Condemn]
    condemned = effects[-1]
    assert isinstance(condemned, Condemn)
    assert condemned.cause is Cause.FROZEN
    assert 0 <= world.now - stopped_at - HANG_TIMEOUT_S <= INTERVAL_S


@pytest.mark.parametrize("hang_timeout_s", [1.0, 2.0, 5.0, 30.0])
def test_the_warning_comes_a_second_before_the_end_or_a_quarter(world: World, hang_timeout_s: float) -> None:
    world.programs[0] = replace(world.programs[0], judged_by="beats", hang_timeout_s=hang_timeout_s)
    world.tick()
    effects = world.until(Warn)
    warned_at = world.now
    assert AskStacks(KEY) in effects, "it was looked at before"
    world.until(Condemn)
    assert world.now - warned_at == pytest.approx(min(1.0, hang_timeout_s / 4), abs=INTERVAL_S / 2)


def test_one_that_beats_twice_in_its_timeout_is_never_suspected(world: World) -> None:
    program = world.programs[0] = replace(world.programs[0], judged_by="beats")
    for turn in range(2000):
        program.beats += turn % int(HANG_TIMEOUT_S / INTERVAL_S / 2) == 0
        assert world.tick() == []


def test_one_that_stops_beating_in_a_loop_hangs_of_it(world: World) -> None:
    program = world.programs[0] = replace(world.programs[0], judged_by="beats", state="R", cpu_share=0.9)
    program.beats += 1
    world.tick()
    last_beat = world.now
    condemned = world.until(Condemn)[-1]
    assert isinstance(condemned, Condemn)
    assert condemned.cause is Cause.STUCK_IN_LOOP
    assert 0 <= world.now - last_beat - HANG_TIMEOUT_S <= 0.5


def test_while_the_launcher_stands_still_no_time_passes_for_programs(world: World) -> None:
    world.programs[0].judged_by = "beats"
    world.until(Warn)
    world.quiet_for(100.0, launcher=False)
    effects = world.until(Condemn)
    assert not any(isinstance(effect, Doubted) for effect in effects)


def test_beats_that_waited_for_the_launcher_are_taken_in_first(world: World) -> None:
    """A launcher that stands still again and again, each time until the end of the window and longer."""
    program = world.programs[0] = replace(world.programs[0], judged_by="beats", hang_timeout_s=1.0)
    for _ in range(50):
        world.quiet_for(3.0, launcher=False)
        world.quiet_for(INTERVAL_S)  # it turns, and only then reads its sockets
        program.beats += 1
        world.quiet_for(INTERVAL_S)


def test_a_new_launcher_begins_anew(world: World) -> None:
    world.programs[0].judged_by = "beats"
    world.until(Warn)
    world.epoch += 1
    world.quiet_for(HANG_TIMEOUT_S - 1.0)
    world.until(Condemn)


def test_after_a_suspend_there_is_a_fresh_window(world: World) -> None:
    world.programs[0].judged_by = "beats"
    world.until(Warn)
    (doubted,) = (effect for effect in world.tick(after_s=3600.0) if isinstance(effect, Doubted))
    assert doubted.doubt is Doubt.OWN_TICK_LATE
    world.quiet_for(HANG_TIMEOUT_S - 1.0)


def test_all_that_fall_silent_together_get_a_second_window(world: World) -> None:
    world.programs[:] = [Program(key=KEY + number, judged_by="beats") for number in range(4)]
    world.tick()
    world.quiet_for(2 * HANG_TIMEOUT_S - 1.0)
    world.until(Condemn, 3.0)


def test_one_without_a_processor_is_left_alone_for_a_while(world: World) -> None:
    world.programs[0] = replace(world.programs[0], judged_by="beats", state="R", wait_share=0.98)
    world.tick()
    effects = world.until(Condemn, 5 * HANG_TIMEOUT_S)
    assert [effect for effect in effects if isinstance(effect, PutOff)] == [PutOff(KEY, Cause.STARVED)] * 3


def test_the_verdict_stands_until_the_launcher_acts_and_is_given_once(world: World) -> None:
    world.programs[0].state = "T"
    world.until(Condemn)
    for _ in range(200):
        assert not any(isinstance(effect, Condemn | Tell) for effect in world.tick())


def test_a_verdict_on_one_that_moves_after_all_is_withdrawn(world: World) -> None:
    world.programs[0].state = "T"
    world.until(Condemn)
    world.programs[0].state = "S"
    assert world.tick() == [Tell(KEY, 1, suspect=False)]
    world.programs[0].state = "T"
    world.until(Condemn)


def test_a_time_without_programs_is_no_doubt(world: World) -> None:
    world.programs[0].judged_by = "beats"
    world.until(Warn)
    for _ in range(2):
        world.watch.rest()
        assert world.watch.findings == {}
    assert world.tick(after_s=600.0) == []
    world.quiet_for(HANG_TIMEOUT_S - 1.0)
    assert not any(isinstance(effect, Doubted) for effect in world.until(Condemn))


def test_nobody_is_judged_in_a_stop(world: World) -> None:
    world.programs[0].state = "T"
    world.until(Warn)
    for _ in range(1000):
        assert world.tick(stopping=True) == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_machine_does_only_who_hangs_is_condemned(seed: int) -> None:
    """Programs that beat in time, in a world of late ticks, suspends, launcher stalls and deaths; then one hangs."""
    chance = random.Random(seed)
    programs = [
        Program(key=KEY + number, judged_by=chance.choice(["beats", "state", "probe"]), hang_timeout_s=timeout_s)
        for number, timeout_s in enumerate([2.0, 5.0, 30.0, 30.0, 30.0])
    ]
    world = World(programs)
    waiting = [0] * len(programs)
    next_beat = [0.0] * len(programs)
    stall = 0
    for _ in range(4000):
        after_s = INTERVAL_S
        if chance.random() < 0.005:
            after_s = chance.choice([0.6, 3.0, 7200.0])
        if stall == 0 and chance.random() < 0.01:
            stall = chance.randrange(1, 400)
            world.epoch += chance.random() < 0.3
        launcher = stall == 0
        stall -= stall > 0
        effects = world.tick(launcher=launcher, after_s=after_s)
        assert not any(isinstance(effect, Condemn) for effect in effects)
        for number, program in enumerate(programs):
            if world.now >= next_beat[number]:
                waiting[number] += 1
                program.answers += 1
                next_beat[number] = world.now + chance.uniform(0.2, 0.5) * program.hang_timeout_s
            if launcher:
                program.beats, waiting[number] = program.beats + waiting[number], 0
    victim = chance.choice(programs)
    victim.state = "T"
    alive = [program for program in programs if program is not victim]
    began = world.now
    while world.now - began < 5 * victim.hang_timeout_s:
        for program in alive:
            program.beats += 1
            program.answers += 1
        condemned = [effect for effect in world.tick() if isinstance(effect, Condemn)]
        if condemned:
            assert [effect.judgement.key for effect in condemned] == [victim.key]
            return
    raise AssertionError("the one that hangs was not found")


def test_the_launcher_may_turn_as_seldom_as_it_does(world: World) -> None:
    """At rest it turns every second tick of the watchdog."""
    world.programs[0].state = "T"
    began = world.now
    for turn in range(1000):
        if any(isinstance(effect, Condemn) for effect in world.tick(launcher=turn % LAUNCHER_TICKS_MAX == 0)):
            break
    assert world.now - began <= HANG_TIMEOUT_S + 0.5


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_s", "timeout_s", "hang_timeout_s", "ready", "pace"),
    [
        (5.0, 3.0, 30.0, True, (5.0, 3.0)),
        (5.0, 3.0, 30.0, False, (STARTING_INTERVAL_S, 3.0)),
        (5.0, 3.0, 2.0, True, (0.5, 2.0)),
        (0.1, 3.0, 30.0, False, (0.1, 3.0)),
        (60.0, 3.0, 30.0, True, (7.5, 3.0)),
    ],
)
def test_probes_come_often_enough_for_the_hang_timeout(
    interval_s: float, timeout_s: float, hang_timeout_s: float, ready: bool, pace: tuple[float, float]
) -> None:
    assert probe_pace(Probe("tcp", "h:1", interval_s, timeout_s), hang_timeout_s, ready=ready) == pace


def test_a_life_is_probed_at_once_then_in_its_pace_and_its_answers_are_its_own() -> None:
    book = ProbeBook()
    assert book.is_due(KEY, 1, 10.0)
    book.begun(KEY, 10.0, 5.0)
    assert not book.is_due(KEY, 1, 14.9)
    assert book.is_due(KEY, 1, 15.0)
    assert not book.ended(KEY, 1, "refused")
    assert book.ended(KEY, 1, "")
    assert not book.ended(KEY, 1, "")
    assert book.answers(KEY, 1) == 2
    assert book.tell(KEY) == {"answers": 2, "failures": 1, "last_problem": ""}
    assert book.is_due(KEY, 2, 15.0)
    assert not book.ended(KEY, 1, ""), "an answer to a question to the former life"
    assert book.answers(KEY, 2) == 0
    book.retain([])
    assert not book.ended(KEY, 2, "")
    assert book.tell(KEY) == {}
