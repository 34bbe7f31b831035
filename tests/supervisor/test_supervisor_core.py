"""The supervision core, scripted: what happens, and exactly what it wants done."""

from collections.abc import Iterable

import pytest

from protocol.errors import LocalError
from supervisor.budget import Budget
from supervisor.core import BACKOFF_S_MAX, KILL_AGAIN_S, KILL_PATIENCE_S, MARK_PATIENCE_S, Supervisor
from supervisor.model import (
    LIVE,
    TRANSITIONS,
    ChildSpec,
    Effect,
    Event,
    Exit,
    Found,
    Kill,
    Leave,
    MarkStop,
    Persist,
    Phase,
    RecordRecovery,
    RecordRestart,
    Remembered,
    Say,
    Spawn,
    State,
    Terminate,
)

CRASH = Exit("exited with code 1", exit_code=1)
LATE_TURN_S = 1.5
START_S, STOP_S, PERIOD_S = 15.0, 5.0, 3600.0


def specs(*names: str, restart_max: int = 3) -> list[ChildSpec]:
    budget = Budget(restart_max, PERIOD_S)
    return [ChildSpec(name, budget, START_S, STOP_S, rank) for rank, name in enumerate(names)]


def supervisor(
    *names: str, restart_max: int = 3, remembered: dict[str, Remembered] | None = None
) -> tuple[Supervisor, list[Effect]]:
    """A supervisor whose children were all started at 0."""
    core = Supervisor.of(specs(*names, restart_max=restart_max), remembered or {}, LATE_TURN_S)
    return core, core.begin({}, 0.0)


def running(*names: str, restart_max: int = 3) -> Supervisor:
    core, _ = supervisor(*names, restart_max=restart_max)
    for name in names:
        core.became_ready(name, 1, 0.1)
    return core


def acts(effects: Iterable[Effect]) -> list[Effect]:
    """The effects without what is only said and written down."""
    return [effect for effect in effects if not isinstance(effect, Say | Persist | RecordRestart | RecordRecovery)]


def turns(core: Supervisor, start: float, end: float) -> list[Effect]:
    """Punctual turns of half a second each."""
    effects, now = [], start
    while now <= end:
        effects += core.turn(now)
        now += 0.5
    return effects


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_state_can_be_left_and_every_change_keeps_processes_and_states_together() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State)
    for (state, event), after in TRANSITIONS.items():
        if event in (Event.FAILED, Event.EXHAUSTED, Event.LEFT):
            assert after not in LIVE
        if event is Event.START:
            assert state not in LIVE
            assert after is State.STARTING
        if event in (Event.READY, Event.LEAVE):
            assert state in LIVE
            assert after in LIVE


def test_a_change_that_the_table_does_not_know_is_a_defect() -> None:
    core = running("a")
    with pytest.raises(RuntimeError, match="cannot happen in ready"):
        core.children["a"].move(Event.START, 1.0)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_start_remembers_before_it_spawns() -> None:
    core, effects = supervisor("a", "b")
    assert effects == [Persist(), Spawn("a", 1), Persist(), Spawn("b", 1)]
    assert core.remembered()["a"] == Remembered(incarnation=1)


def test_one_that_was_ready_is_started_again_at_once_and_charged() -> None:
    core = running("a", "b")
    assert core.exited("a", 1, CRASH, 10.0) == [
        RecordRestart("a", 1, CRASH, charged=True, manual=False),
        Persist(),
        Spawn("a", 2),
    ]
    assert core.children["a"].charges == (10.0,)
    assert core.children["b"].charges == ()
    assert core.became_ready("a", 2, 10.25)[-1] == RecordRecovery("a", 1, 0.25)


def test_the_exit_of_another_life_is_nobody_s_business() -> None:
    core = running("a")
    core.exited("a", 1, CRASH, 10.0)
    assert core.exited("a", 1, CRASH, 10.1) == []
    assert core.became_ready("a", 1, 10.1) == []
    assert core.judged_hung("a", 1, "frozen", "", 10.1) == []


def test_failing_before_ready_backs_off_doubling_up_to_a_bound() -> None:
    core, _ = supervisor("a", restart_max=100)
    now, delays = 0.0, []
    for life in range(1, 8):
        effects = core.exited("a", life, CRASH, now)
        assert acts(effects) == []
        assert core.children["a"].state is State.BACKOFF
        due = core.next_deadline()
        assert due is not None
        delays.append(due - now)
        assert acts(core.turn(due - 0.001)) == []
        assert acts(core.turn(due)) == [Spawn("a", life + 1)]
        now = due
    assert delays == pytest.approx([0.5, 1.0, 2.0, 4.0, BACKOFF_S_MAX, BACKOFF_S_MAX, BACKOFF_S_MAX])


def test_becoming_ready_forgives_the_backoff() -> None:
    core, _ = supervisor("a", restart_max=100)
    core.exited("a", 1, CRASH, 0.0)
    core.turn(0.5)
    core.became_ready("a", 2, 0.6)
    assert acts(core.exited("a", 2, CRASH, 0.7)) == [Spawn("a", 3)]


def test_the_failure_beyond_the_budget_quarantines_and_is_tried_again_when_the_oldest_ages_out() -> None:
    core = running("a")
    for life, now in ((1, 10.0), (2, 20.0), (3, 30.0)):
        assert Spawn("a", life + 1) in core.exited("a", life, CRASH, now)
        core.became_ready("a", life + 1, now + 1)
    effects = core.exited("a", 4, CRASH, 40.0)
    assert acts(effects) == []
    assert [effect.event_type for effect in effects if isinstance(effect, Say)] == ["process_quarantined"]
    assert core.remembered()["a"].quarantined
    core.turn(3609.0)
    assert core.children["a"].state is State.QUARANTINED
    assert acts(core.turn(3610.0)) == [Spawn("a", 5)]
    assert core.children["a"].charges == (20.0, 30.0, 3610.0)
    core.became_ready("a", 5, 3611.0)
    core.exited("a", 5, CRASH, 3612.0)
    assert core.children["a"].state is State.QUARANTINED


def test_with_no_restart_allowed_only_a_person_starts_it_again() -> None:
    core = running("a", restart_max=0)
    core.exited("a", 1, CRASH, 10.0)
    assert core.children["a"].state is State.QUARANTINED
    assert core.next_deadline() is None
    assert acts(core.command("start", "a", "me", 20.0)) == [Spawn("a", 2)]


def test_one_that_is_not_ready_in_time_is_killed_and_charged() -> None:
    core, _ = supervisor("a")
    effects = turns(core, 0.5, START_S)
    assert acts(effects) == [Kill("a")]
    assert core.children["a"].state is State.STOPPING
    effects = core.exited("a", 1, Exit("killed", signal=9), START_S + 0.1)
    assert effects == [
        RecordRestart("a", 1, Exit("did not become ready within 15 s", signal=9), charged=True, manual=False)
    ]
    assert core.children["a"].state is State.BACKOFF


def test_a_hung_one_is_killed_once_and_charged() -> None:
    core = running("watchdog")
    assert acts(core.judged_hung("watchdog", 1, "frozen", "", 10.0)) == [Kill("watchdog")]
    assert core.judged_hung("watchdog", 1, "frozen", "", 10.5) == []
    effects = core.exited("watchdog", 1, Exit("killed", signal=9), 10.6)
    assert RecordRestart("watchdog", 1, Exit("hung: frozen", signal=9), charged=True, manual=False) in effects
    assert Spawn("watchdog", 2) in effects


def test_the_launchers_own_absence_is_counted_against_nobody_however_often() -> None:
    core, _ = supervisor("a")
    turns(core, 0.5, 2.0)
    for slept_until in (5000.0, 9000.0):
        assert acts(core.turn(slept_until)) == []
    assert acts(turns(core, 9000.5, 9000.0 + START_S - 2.5)) == []
    assert Kill("a") in acts(turns(core, 9000.0 + START_S - 2.0, 9000.0 + START_S))


def test_what_does_not_die_is_killed_again_and_then_complained_about() -> None:
    core = running("a")
    core.judged_hung("a", 1, "waiting on disk", "", 10.0)
    effects = turns(core, 10.5, 10.0 + KILL_PATIENCE_S + 5)
    assert acts(effects) == [Kill("a")] * int(KILL_PATIENCE_S / KILL_AGAIN_S - 1)
    assert [effect.event_type for effect in effects if isinstance(effect, Say)] == ["process_unkillable"]
    assert Spawn("a", 2) in core.exited("a", 1, CRASH, 500.0)


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_restart_by_hand_is_not_charged() -> None:
    core = running("a")
    assert acts(core.command("restart", "a", "me", 10.0)) == [Terminate("a")]
    effects = core.exited("a", 1, Exit("exited with code 0", exit_code=0), 10.2)
    ended = Exit("restart requested by me", exit_code=0)
    assert effects == [RecordRestart("a", 1, ended, charged=False, manual=True), Persist(), Spawn("a", 2)]
    assert core.children["a"].charges == ()


def test_a_restart_by_hand_that_does_not_leave_is_killed() -> None:
    core = running("a")
    core.turn(10.0)
    core.command("restart", "a", "me", 10.0)
    assert acts(turns(core, 10.5, 10.0 + STOP_S)) == [Kill("a")]
    effects = core.exited("a", 1, Exit("killed", signal=9), 16.0)
    assert Spawn("a", 2) in effects
    assert core.children["a"].charges == ()


@pytest.mark.parametrize("op", ["restart", "start"])
def test_a_person_lifts_a_quarantine(op: str) -> None:
    core = running("a", restart_max=1)
    core.exited("a", 1, CRASH, 10.0)
    core.became_ready("a", 2, 11.0)
    core.exited("a", 2, CRASH, 12.0)
    assert acts(core.command(op, "a", "me", 20.0)) == [Spawn("a", 3)]
    assert core.children["a"].charges == (10.0,)
    assert not core.remembered()["a"].quarantined


def test_what_is_stopped_by_hand_stays_stopped_until_it_is_started() -> None:
    core = running("a")
    assert acts(core.command("stop", "a", "me", 10.0)) == [Terminate("a")]
    assert core.children["a"].state is State.STOPPING
    assert acts(core.exited("a", 1, Exit("exited with code 0", exit_code=0), 10.5)) == []
    assert core.children["a"].state is State.STOPPED
    assert core.remembered()["a"] == Remembered(incarnation=1, wanted=False)
    assert acts(turns(core, 11.0, 4000.0)) == []
    assert acts(core.command("start", "a", "me", 4000.0)) == [Spawn("a", 2)]


def test_a_stop_calls_off_a_start_that_is_due_later() -> None:
    core, _ = supervisor("a")
    core.exited("a", 1, CRASH, 0.2)
    assert core.children["a"].state is State.BACKOFF
    assert acts(core.command("stop", "a", "me", 0.3)) == []
    assert core.children["a"].state is State.STOPPED
    assert acts(turns(core, 0.5, 100.0)) == []


def test_a_stop_while_it_is_being_killed_keeps_it_down() -> None:
    core = running("a")
    core.judged_hung("a", 1, "frozen", "", 10.0)
    assert acts(core.command("stop", "a", "me", 10.1)) == []
    assert acts(core.exited("a", 1, CRASH, 10.2)) == []
    assert core.children["a"].state is State.STOPPED


def test_a_start_while_it_is_stopping_brings_it_back() -> None:
    core = running("a")
    core.command("stop", "a", "me", 10.0)
    assert acts(core.command("start", "a", "me", 10.1)) == []
    assert acts(core.exited("a", 1, Exit("left", exit_code=0), 10.2)) == [Spawn("a", 2)]


def test_a_start_of_what_runs_does_nothing() -> None:
    core = running("a")
    assert acts(core.command("start", "a", "me", 10.0)) == []


def test_an_unknown_name_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(LocalError, match="no process called 'c'") as caught:
        running("a", "b").command("restart", "c", "me", 1.0)
    assert caught.value.hint == "It knows a, b."


# --- the stop of the system -------------------------------------------------------------------------------------------


def test_a_stop_is_made_durable_first_then_goes_rank_by_rank() -> None:
    core = running("a", "b", "c")
    assert acts(core.stop("me", 10.0)) == [MarkStop("me")]
    assert core.phase is Phase.MARKING
    assert acts(core.turn(10.5)) == []
    assert acts(core.stop_marked(10.6)) == [Terminate("a")]
    assert acts(core.turn(11.0)) == []
    core.exited("a", 1, Exit("left", exit_code=0), 11.1)
    assert acts(core.turn(11.1)) == [Terminate("b")]
    assert acts(turns(core, 11.5, 11.1 + STOP_S + 0.5)) == [Kill("b")]
    core.exited("b", 1, Exit("killed", signal=9), 17.0)
    assert acts(core.turn(17.0)) == [Terminate("c")]
    core.exited("c", 1, Exit("left", exit_code=0), 17.2)
    assert acts(core.turn(17.2)) == [Leave(0)]
    assert core.phase is Phase.GONE


def test_a_stalled_disk_does_not_keep_the_system_from_stopping() -> None:
    core = running("a")
    core.stop("me", 10.0)
    assert acts(turns(core, 10.5, 10.0 + MARK_PATIENCE_S)) == [Terminate("a")]
    assert core.stop_marked(20.0) == []


def test_nothing_is_restarted_once_a_stop_has_begun() -> None:
    core = running("a", "b")
    core.exited("b", 1, CRASH, 9.0)
    core.stop("me", 10.0)
    assert acts(core.exited("a", 1, CRASH, 10.1)) == []
    assert acts(core.exited("b", 2, CRASH, 10.2)) == []
    assert acts(core.stop_marked(10.3)) == [Leave(0)]
    with pytest.raises(LocalError, match="stopping"):
        core.command("start", "a", "me", 10.4)


def test_a_start_that_is_due_is_called_off_by_a_stop() -> None:
    core, _ = supervisor("a")
    core.exited("a", 1, CRASH, 0.1)
    core.stop("me", 0.2)
    assert acts(core.turn(0.7)) == []
    assert acts(core.stop_marked(0.8)) == [Leave(0)]
    assert core.remembered()["a"].wanted


def test_force_kills_everybody_at_once() -> None:
    core = running("a", "b")
    core.stop("me", 10.0)
    assert sorted(map(str, acts(core.force(10.1)))) == sorted(map(str, [Terminate("a"), Kill("a"), Kill("b")]))


def test_a_process_that_cannot_be_killed_does_not_hold_the_stop_up_for_ever() -> None:
    core = running("a", "b")
    core.stop("me", 10.0)
    core.stop_marked(10.1)
    effects = turns(core, 10.5, 10.1 + STOP_S + KILL_PATIENCE_S + 2)
    assert acts(effects)[-1] == Terminate("b")
    core.exited("b", 1, Exit("left", exit_code=0), 30.0)
    assert acts(core.turn(30.0)) == [Leave(1)]


# --- adoption ---------------------------------------------------------------------------------------------------------


def adopted(found: Found, **past: object) -> tuple[Supervisor, list[Effect]]:
    remembered = {"a": Remembered(**({"incarnation": found.incarnation} | past))}  # type: ignore[arg-type]
    core = Supervisor.of(specs("a"), remembered, LATE_TURN_S)
    return core, core.begin({"a": found}, 1000.0)


def test_what_runs_well_goes_on() -> None:
    core, effects = adopted(Found(State.READY, 7, alive=True, had_process=True, started_at=5.0, since=6.0))
    assert acts(effects) == []
    child = core.children["a"]
    assert (child.state, child.incarnation, child.started_at, child.since) == (State.READY, 7, 5.0, 6.0)
    assert child.charges == ()


def test_what_was_starting_gets_a_whole_start_timeout() -> None:
    core, effects = adopted(Found(State.STARTING, 2, alive=True, had_process=True, started_at=990.0))
    assert acts(effects) == []
    assert core.next_deadline() == 1000.0 + START_S


def test_what_died_meanwhile_is_charged_and_started() -> None:
    core, effects = adopted(Found(State.READY, 7, had_process=True), charges=(500.0,))
    assert acts(effects) == [Spawn("a", 8)]
    assert core.children["a"].charges == (500.0, 1000.0)
    record = next(effect for effect in effects if isinstance(effect, RecordRestart))
    assert (record.incarnation, record.charged, record.exit.exit_code) == (7, True, None)


def test_what_died_meanwhile_beyond_its_budget_is_quarantined() -> None:
    core, effects = adopted(Found(State.READY, 7, had_process=True), charges=(500.0, 600.0, 700.0))
    assert acts(effects) == []
    assert core.children["a"].state is State.QUARANTINED


def test_a_quarantine_outlives_the_launcher() -> None:
    core, effects = adopted(Found(State.QUARANTINED, 4), charges=(500.0, 600.0, 700.0), quarantined=True)
    assert acts(effects) == []
    assert core.children["a"].state is State.QUARANTINED
    assert core.next_deadline() == 500.0 + PERIOD_S


def test_a_quarantine_outlives_a_clean_start() -> None:
    past = {"a": Remembered(4, charges=(-100.0, -90.0, -80.0), quarantined=True)}
    core, effects = supervisor("a", remembered=past)
    assert acts(effects) == []
    assert core.next_deadline() == PERIOD_S - 100.0
    assert acts(core.turn(PERIOD_S - 100.0)) == [Spawn("a", 5)]


def test_a_quarantine_that_has_aged_out_ends_with_a_clean_start() -> None:
    past = {"a": Remembered(4, charges=(-4000.0, -3900.0, -3800.0), quarantined=True)}
    _, effects = supervisor("a", remembered=past)
    assert acts(effects) == [Spawn("a", 5)]


def test_what_was_stopped_by_hand_stays_stopped_under_the_next_launcher() -> None:
    core, effects = adopted(Found(State.STOPPED, 4), wanted=False)
    assert acts(effects) == []
    assert core.children["a"].state is State.STOPPED


def test_a_stop_by_hand_that_was_cut_short_is_finished() -> None:
    core, effects = adopted(Found(State.STOPPING, 4, alive=True, had_process=True), wanted=False)
    assert acts(effects) == [Terminate("a")]
    core.exited("a", 4, Exit("left"), 1001.0)
    assert core.children["a"].state is State.STOPPED


def test_a_restart_by_hand_that_was_cut_short_is_finished_uncharged() -> None:
    core, effects = adopted(Found(State.STOPPING, 4, alive=True, had_process=True))
    assert acts(effects) == [Terminate("a")]
    assert acts(core.exited("a", 4, Exit("left"), 1001.0)) == [Spawn("a", 5)]
    assert core.children["a"].charges == ()


def test_one_that_was_leaving_and_is_gone_is_not_charged() -> None:
    core, effects = adopted(Found(State.READY, 4, had_process=True, leaving=True))
    assert acts(effects) == [Spawn("a", 5)]
    assert core.children["a"].charges == ()


def test_a_backoff_goes_on() -> None:
    core, effects = adopted(Found(State.BACKOFF, 4, retry_at=1003.0))
    assert acts(effects) == []
    assert acts(core.turn(1002.9)) == []
    assert acts(core.turn(1003.0)) == [Spawn("a", 5)]


def test_a_backoff_that_the_budget_no_longer_allows_becomes_a_quarantine() -> None:
    core, _ = adopted(Found(State.BACKOFF, 4, retry_at=1003.0), charges=(997.0, 998.0, 999.0))
    assert core.children["a"].state is State.QUARANTINED


def test_a_start_that_was_paid_and_not_made_is_paid_when_it_is_made_and_only_then() -> None:
    core, effects = adopted(Found(State.STARTING, 5), charges=(990.0, 999.0), paid=5)
    assert acts(effects) == [Spawn("a", 6)]
    assert core.children["a"].charges == (990.0, 1000.0)


def test_a_payment_given_back_is_remembered_before_the_board_shows_the_later_life() -> None:
    core, effects = adopted(Found(State.BACKOFF, 5, retry_at=1001.0), incarnation=6, charges=(990.0, 999.0), paid=6)
    assert effects == [Persist()]
    assert (core.children["a"].incarnation, core.children["a"].charges) == (6, (990.0,))


def test_a_start_that_was_paid_and_is_not_even_on_the_board_is_paid_when_it_is_made() -> None:
    core, effects = adopted(Found(State.READY, 5, had_process=True), incarnation=6, charges=(990.0, 999.0), paid=6)
    assert acts(effects) == [Spawn("a", 6)]
    assert core.children["a"].charges == (990.0, 1000.0)


def test_a_start_that_two_launchers_paid_in_turn_and_neither_made_is_paid_when_it_is_made() -> None:
    core, effects = adopted(Found(State.STARTING, 5), incarnation=6, charges=(990.0, 999.0), paid=6)
    assert acts(effects) == [Spawn("a", 7)]
    assert core.children["a"].charges == (990.0, 1000.0)


def test_a_start_that_nobody_had_to_pay_is_made_up_for_free() -> None:
    core, effects = adopted(Found(State.STARTING, 5), charges=(990.0,), paid=3)
    assert acts(effects) == [Spawn("a", 6)]
    assert core.children["a"].charges == (990.0,)
