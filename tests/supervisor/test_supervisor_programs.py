"""The supervision core with programs: policies, order of starting, gentle ends, and a set that changes."""

import pytest

from actors.runtime.programs import Restart
from protocol.errors import LocalError
from supervisor.budget import Budget
from supervisor.core import BACKOFF_FIRST_S, Supervisor
from supervisor.model import (
    ChildSpec,
    Effect,
    Exit,
    Found,
    Kill,
    Phase,
    RecordRestart,
    Remembered,
    Spawn,
    State,
    Terminate,
)
from supervisor.policy import OWN_PATIENCE_S, STEADY_S

BUDGET = Budget(3, 3600.0)
OWN = ChildSpec("broker", BUDGET, 15.0, 5.0, 0)
CLEAN, CRASH, UNKNOWN = Exit("exited with code 0", exit_code=0), Exit("exited with code 1", exit_code=1), Exit("ended")
ASKED = Exit("killed by signal 15 (SIGTERM)", signal=15)


def program(name: str = "web", restart: Restart = Restart.ON_FAILURE, *after: str, started: bool = True) -> ChildSpec:
    return ChildSpec(name, BUDGET, 90.0, 10.0, -1, restart, after, late=True, ready_when_started=started, gentle=True)


def running(spec: ChildSpec, now: float = 0.0) -> Supervisor:
    core = Supervisor.of([spec], {}, 1.5)
    core.begin({}, now)
    core.became_ready(spec.name, 1, now)
    return core


def spawned(effects: list[Effect]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Spawn)]


@pytest.mark.parametrize(
    ("restart", "exit_", "again"),
    [
        (Restart.ON_FAILURE, CLEAN, False),
        (Restart.ON_FAILURE, ASKED, False),
        (Restart.ON_FAILURE, CRASH, True),
        (Restart.ON_FAILURE, UNKNOWN, True),
        (Restart.ALWAYS, CLEAN, True),
        (Restart.ALWAYS, CRASH, True),
        (Restart.NEVER, CLEAN, False),
        (Restart.NEVER, CRASH, False),
    ],
)
def test_the_policy_decides_what_follows_an_end(restart: Restart, exit_: Exit, again: bool) -> None:
    core = running(program(restart=restart))
    effects = core.exited("web", 1, exit_, 5.0)
    assert spawned(effects) == (["web"] if again else [])
    assert [effect.charged for effect in effects if isinstance(effect, RecordRestart)] == ([True] if again else [])
    if not again:
        assert core.children["web"].state is State.STOPPED
        assert core.children["web"].reason == exit_.reason
        assert not core.remembered()["web"].wanted, "a successor would start it"
        assert spawned(core.command("start", "web", "me", 6.0)) == ["web"]


def test_whoever_said_that_it_stops_ended_well() -> None:
    core = running(program())
    core.says_stopping("web", 1)
    assert not spawned(core.exited("web", 1, CRASH, 5.0))
    core.command("start", "web", "me", 6.0)
    assert core.exited("web", 2, CRASH, 20.0)
    assert core.children["web"].state is State.STARTING, "what one life said does not count for the next"


def test_whoever_is_ready_at_once_is_started_at_once_only_after_a_good_life() -> None:
    core = running(program())
    assert not spawned(core.exited("web", 1, CRASH, STEADY_S / 2))
    assert core.children["web"].due_at == STEADY_S / 2 + BACKOFF_FIRST_S
    assert spawned(core.turn(2.0)) == ["web"]
    core.became_ready("web", 2, 2.0)
    assert spawned(core.exited("web", 2, CRASH, 2.0 + STEADY_S)) == ["web"]


def test_programs_start_after_our_own_and_after_each_other() -> None:
    core = Supervisor.of([OWN, program("web", Restart.ALWAYS, "db"), program("db")], {}, 1.5)
    assert spawned(core.begin({}, 0.0)) == ["broker"]
    assert core.children["web"].reason == "waits for db, broker"
    core.became_ready("broker", 1, 0.1)
    assert spawned(core.turn(0.1)) == ["db"]
    core.became_ready("db", 1, 0.2)
    assert spawned(core.turn(0.2)) == ["web"]
    assert spawned(core.exited("db", 1, CRASH, 5.0)) == ["db"]
    assert spawned(core.exited("web", 1, CRASH, 5.0)) == ["web"], "once they have been ready nobody waits any more"


def test_nobody_of_ours_keeps_a_program_down_for_long() -> None:
    core = Supervisor.of([OWN, program()], {}, 1.5)
    core.begin({}, 0.0)
    assert core.next_deadline() == OWN_PATIENCE_S
    assert spawned(core.turn(OWN_PATIENCE_S)) == ["web"]
    waiting = Supervisor.of([OWN, program("web", Restart.ALWAYS, "db"), program("db", started=False)], {}, 1.5)
    waiting.begin({}, 0.0)
    assert spawned(waiting.turn(OWN_PATIENCE_S)) == ["db"]
    deadline = waiting.next_deadline()
    assert deadline is not None
    assert deadline > OWN_PATIENCE_S, "what nobody knows the time of is not waited for in a circle"


def test_a_stop_while_a_program_waits_starts_nothing() -> None:
    core = Supervisor.of([OWN, program()], {}, 1.5)
    core.begin({}, 0.0)
    core.stop("me", 0.1)
    core.became_ready("broker", 1, 0.2)
    assert not spawned(core.turn(0.2))
    core.stop_marked(0.3)
    core.exited("broker", 1, CLEAN, 0.4)
    assert not spawned(core.turn(OWN_PATIENCE_S + 1))
    assert core.phase is Phase.GONE


def test_a_hung_program_is_asked_before_it_is_killed() -> None:
    core = running(program())
    assert core.judges() == [], "it beats no slot"
    for second in range(1, 5):
        core.turn(float(second))
    effects = core.judged_hung("web", 1, "frozen", "evidence.json", 5.0)
    assert Terminate("web") in effects
    assert Kill("web") not in effects
    for second in range(5, 15):
        assert Kill("web") not in core.turn(float(second))
    assert Kill("web") in core.turn(15.0)
    effects = core.exited("web", 1, CLEAN, 16.5)
    assert spawned(effects) == ["web"], "its good exit code does not make it well"
    (record,) = [effect for effect in effects if isinstance(effect, RecordRestart)]
    assert record.exit.reason.startswith("hung: frozen")
    assert record.exit.evidence == "evidence.json"
    assert record.charged


def test_a_deadline_can_be_moved_and_is_never_moved_forward() -> None:
    core = Supervisor.of([program(started=False)], {}, 1.5)
    core.begin({}, 0.0)
    core.extend("web", 200.0, 10.0)
    core.extend("web", 1.0, 10.0)
    assert core.children["web"].deadline == 210.0
    core.turn(20.0)
    core.turn(100.0)  # the launcher stood still
    assert core.children["web"].deadline == 210.0
    core.extend("nobody", 1.0, 10.0)


def test_programs_come_and_go() -> None:
    core = running(program("db"))
    assert spawned(core.add(program("web", Restart.ALWAYS, "db"), Remembered(incarnation=7), 1.0)) == ["web"]
    assert core.children["web"].incarnation == 8
    with pytest.raises(LocalError, match="already"):
        core.add(program("web"), Remembered(), 1.0)
    with pytest.raises(LocalError, match="runs"):
        core.remove("web", 1.0)
    core.command("stop", "web", "me", 2.0)
    core.exited("web", 8, ASKED, 2.5)
    core.remove("web", 3.0)
    assert "web" not in core.children
    assert core.became_ready("web", 8, 4.0) == []
    assert core.judged_hung("web", 8, "late", "", 4.0) == []
    with pytest.raises(LocalError, match="no process called"):
        core.remove("web", 3.0)


def test_a_running_process_is_taken_in_as_a_first_life() -> None:
    core = running(OWN)
    effects = core.take_in(program(), Remembered(incarnation=3), "me", 5.0)
    assert not spawned(effects)
    assert (core.children["web"].state, core.children["web"].incarnation) == (State.READY, 4)
    with pytest.raises(LocalError, match="runs already"):
        core.take_in(program(), Remembered(), "me", 5.0)
    assert spawned(core.exited("web", 4, UNKNOWN, 9.0)) == ["web"]


@pytest.mark.parametrize("state", [State.BACKOFF, State.QUARANTINED, State.STOPPED])
def test_a_running_process_stands_in_for_one_that_is_down(state: State) -> None:
    core = running(program())
    for _ in range(20):
        child = core.children["web"]
        if child.state is state:
            break
        if state is State.STOPPED:
            core.command("stop", "web", "me", 0.1)
        core.exited("web", child.incarnation, CRASH, 0.1)
        if child.state is not state:
            child.due_at = 0.1
            core.turn(0.1)
    assert core.children["web"].state is state
    before = core.children["web"].incarnation
    core.take_in(program(), Remembered(), "me", 0.2)
    assert (core.children["web"].state, core.children["web"].incarnation) == (State.READY, before + 1)
    assert not spawned(core.turn(0.3))


def test_a_successor_goes_on_with_programs_and_knows_what_one_has_said() -> None:
    core = Supervisor.of([OWN, program(), program("db", Restart.NEVER)], {"db": Remembered(2, wanted=False)}, 1.5)
    alive = Found(State.READY, 4, alive=True, had_process=True, said_stopping=True)
    effects = core.begin({"broker": alive, "web": alive, "db": Found(State.STOPPED, 2)}, 0.0)
    assert not spawned(effects)
    assert not [effect for effect in effects if isinstance(effect, Terminate)]
    assert core.children["db"].state is State.STOPPED
    assert not spawned(core.exited("web", 4, UNKNOWN, 5.0))


def test_the_system_stops_dependents_before_what_they_depend_on() -> None:
    low, high = program("web"), program("db")
    core = Supervisor.of(
        [OWN, high, ChildSpec("web", BUDGET, 90.0, 10.0, -2, low.restart, late=True, gentle=True)], {}, 1.5
    )
    core.begin({}, 0.0)
    core.became_ready("broker", 1, 0.0)
    core.turn(0.0)
    core.stop("me", 1.0)
    assert core.stop_marked(1.0) == [Terminate("web")]
    core.exited("web", 1, ASKED, 1.1)
    assert core.turn(1.2) == [Terminate("db")]
    core.exited("db", 1, ASKED, 1.3)
    assert core.turn(1.4) == [Terminate("broker")]
