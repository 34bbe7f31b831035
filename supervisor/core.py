"""The launcher's decisions: who is started, when, and who is told to leave. A pure state machine.

`Supervisor` takes what happened (`exited`, `became_ready`, `judged_hung`, `command`, `stop`, `turn`) with the
monotonic time, and returns effects, to be carried out in their order: what is to be remembered comes before what
depends on it. The changes of state are `model.TRANSITIONS`. What it holds to:

- a name has at most one process: the next one is started when the last one is known to be dead;
- charged restarts never exceed the budget in any rolling period; whoever failed beyond it is quarantined, and tried
  again as soon as the budget allows;
- only the process that failed is charged, and what a person asks for never is;
- what was stopped stays stopped until a person starts it;
- whoever hangs is judged by somebody: by the watchdog, and that by the launcher, which stands in for it as well;
- a program is first started when all that it comes after have been ready, and ends by its own policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from protocol.errors import ErrorCode, LocalError
from protocol.names import WATCHDOG
from protocol.severity import Severity
from supervisor.budget import Charges
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
from supervisor.policy import OWN_PATIENCE_S, STEADY_S, stays_down, waiting_for

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_S_MAX: Final = 5.0
"""Delay before the next start of a process that ended before it was ready; doubles with each such end in a row."""
KILL_AGAIN_S: Final = 1.0
KILL_PATIENCE_S: Final = 10.0
"""A process that survives SIGKILL for so long (it waits in the kernel) no longer holds up a stop of the system."""
MARK_PATIENCE_S: Final = 2.0
"""How long a stop waits for its durable marker: a stalled disk must not keep the system from stopping."""


@dataclass(slots=True)
class Child:
    """One supervised process, as the core sees it.

    Attributes:
        state: changed by `TRANSITIONS` only, once adopted.
        since: when the state began.
        incarnation: the present life, or the last one.
        wanted: whether it shall run; False after a stop by hand.
        charges: its charged restarts.
        paid: the life that the last charge paid for.
        started_at: when the present process was started.
        due_at: when the next start is due, in `BACKOFF` and `QUARANTINED`; None if only a person can start it.
        deadline: when the core acts by itself: `STARTING` must be over, or `STOPPING` has taken too long.
        killed_at: when it was first killed, in `STOPPING`.
        ending: why it was told to leave; None if it was not.
        reason: why the last life ended.
        failures: how many lives in a row ended before they were ready.
        ended_at: when the life before this one ended, until this one is ready.
        was_ready: whether it has been ready since this launcher began.
        waiting: whether its first start waits for others.
        said_stopping: whether its present life has said that it is leaving.
    """

    spec: ChildSpec
    state: State = State.STOPPED
    since: float = 0.0
    incarnation: int = 0
    wanted: bool = True
    charges: Charges = ()
    paid: int = 0
    started_at: float = 0.0
    due_at: float | None = None
    deadline: float | None = None
    killed_at: float | None = None
    ending: "Ending | None" = None
    reason: str = ""
    failures: int = 0
    ended_at: float | None = None
    was_ready: bool = False
    waiting: bool = False
    said_stopping: bool = False

    def move(self, event: Event, now: float) -> None:
        """Change the state as `TRANSITIONS` says.

        Raises:
            RuntimeError: the table has no such change; that is a defect.
        """
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise RuntimeError(f"{self.spec.name}: {event} cannot happen in {self.state}")
        self.state = state
        self.since = now


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a process was told to leave: a failure that the launcher saw, or somebody's wish."""

    reason: str
    failed: bool
    manual: bool = False
    evidence: str = ""


@dataclass(slots=True)
class Supervisor:
    """Decides for all processes of one system.

    Attributes:
        children: by name, in the order of starting.
        phase: whether the system runs or stops.
        late_turn_s: a turn that comes so much later than the last one means that the launcher, or the machine, stood
            still: that time is counted against nobody who is being waited for.
    """

    children: dict[str, Child]
    late_turn_s: float
    phase: Phase = Phase.RUNNING
    _marking_until: float = 0.0
    _last_turn: float | None = None
    _requested_by: str = ""
    _patience_until: float | None = None

    @classmethod
    def of(cls, specs: Sequence[ChildSpec], remembered: Mapping[str, Remembered], late_turn_s: float) -> "Supervisor":
        """Return a supervisor of `specs` that has started nothing yet."""
        children = {}
        for spec in specs:
            past = remembered.get(spec.name, Remembered())
            children[spec.name] = Child(
                spec, incarnation=past.incarnation, wanted=past.wanted, charges=past.charges, paid=past.paid
            )
            if past.quarantined:
                children[spec.name].state = State.QUARANTINED
        return cls(children, late_turn_s)

    def remembered(self) -> dict[str, Remembered]:
        """Return what has to outlive this launcher."""
        return {
            name: Remembered(
                child.incarnation, child.charges, child.paid, child.wanted, child.state is State.QUARANTINED
            )
            for name, child in self.children.items()
        }

    def next_deadline(self) -> float | None:
        """Return when `turn` has something to do at the latest, if nothing else happens."""
        times = [self._marking_until] if self.phase is Phase.MARKING else []
        if self._patience_until is not None and any(child.waiting for child in self.children.values()):
            times.append(self._patience_until)
        for child in self.children.values():
            times += [time for time in (child.due_at, child.deadline) if time is not None]
        return min(times, default=None)

    def judges(self) -> list[str]:
        """Return whom the launcher judges: the watchdog, which judges everybody else; as long as there is none, all."""
        ready = [name for name, child in self.children.items() if child.state is State.READY and not child.spec.gentle]
        return [WATCHDOG] if WATCHDOG in ready else ready

    # --- what happens ---------------------------------------------------------------------------------------------

    def begin(self, found: Mapping[str, Found], now: float) -> list[Effect]:
        """Take over what a predecessor left on the board (nothing, after a clean start), and start the rest."""
        self._last_turn = now
        self._patience_until = now + OWN_PATIENCE_S
        effects: list[Effect] = []
        for name, child in self.children.items():
            child.since = now
            if name in found:
                effects += self._adopt(child, found[name], now)
            elif not child.wanted:
                child.state = State.STOPPED
            elif child.state is State.QUARANTINED and not child.spec.budget.allows(child.charges, now):
                child.due_at = child.spec.budget.free_at(child.charges, now)
            else:
                effects += self._start_first(child, now)
        return effects

    def became_ready(self, name: str, incarnation: int, now: float) -> list[Effect]:
        """The process says that it is ready."""
        child = self.children.get(name)
        if child is None or child.state is not State.STARTING or child.incarnation != incarnation:
            return []
        child.move(Event.READY, now)
        child.deadline = None
        child.was_ready = True
        if not child.spec.ready_when_started:
            child.failures = 0
        effects: list[Effect] = [Say(Severity.INFO, "process_ready", f"{name} is ready", name)]
        if child.ended_at is not None:
            effects.append(RecordRecovery(name, incarnation - 1, now - child.ended_at))
            child.ended_at = None
        return effects

    def exited(self, name: str, incarnation: int, exit_: Exit, now: float) -> list[Effect]:
        """The process is dead. It is started again, quarantined, or stays down, as budget and wishes have it."""
        child = self.children[name]
        if child.state not in LIVE or child.incarnation != incarnation:
            return []
        ending = child.ending
        if child.spec.ready_when_started and now - child.started_at >= STEADY_S:
            child.failures = 0
        failed = ending is not None and ending.failed
        stays = stays_down(child.spec.restart, exit_, said_stopping=child.said_stopping, failed=failed)
        if ending is not None:
            exit_ = Exit(ending.reason, exit_.exit_code, exit_.signal, ending.evidence or exit_.evidence)
        child.ending = child.deadline = child.killed_at = None
        child.reason = exit_.reason
        child.ended_at = now
        if self.phase is not Phase.RUNNING or not child.wanted:
            return self._left(child, exit_, now)
        if ending is not None and not ending.failed:
            child.move(Event.LEFT, now)
            record = RecordRestart(name, incarnation, exit_, charged=False, manual=ending.manual)
            return [record, *self._start(child, now, charged=False)]
        if stays:
            child.wanted = False  # until a person starts it, whoever is the launcher then
            return [Persist(), *self._left(child, exit_, now)]
        return self._failed(child, exit_, now)

    def judged_hung(self, name: str, incarnation: int, cause: str, evidence: str, now: float) -> list[Effect]:
        """The process does not move any more; it is killed, a gentle one asked first, and counts as failed."""
        child = self.children.get(name)
        if child is None or child.state not in (State.STARTING, State.READY) or child.incarnation != incarnation:
            return []
        return self._end(child, Ending(f"hung: {cause}", failed=True, evidence=evidence), now)

    def says_stopping(self, name: str, incarnation: int) -> None:
        """The process says that it is leaving by itself: an exit that follows is a clean one."""
        child = self.children.get(name)
        if child is not None and child.state in LIVE and child.incarnation == incarnation:
            child.said_stopping = True

    def extend(self, name: str, seconds: float, now: float) -> None:
        """The process needs so much longer, from now on, to become ready or to leave; never less than it has."""
        child = self.children.get(name)
        if child is not None and child.deadline is not None and child.killed_at is None:
            child.deadline = max(child.deadline, now + seconds)

    def add(self, spec: ChildSpec, past: Remembered, now: float) -> list[Effect]:
        """Supervise one more process, beginning after `past`, and start it as soon as it may be.

        Raises:
            LocalError: the name is taken, or the system is stopping.
        """
        self.check_running()
        if spec.name in self.children:
            raise LocalError(
                ErrorCode.USAGE, f"the launcher supervises a {spec.name!r} already", "Choose another name."
            )
        child = Child(spec, since=now, incarnation=past.incarnation, charges=past.charges, paid=past.paid)
        self.children[spec.name] = child
        return self._start_first(child, now)

    def take_in(self, spec: ChildSpec, past: Remembered, who: str, now: float) -> list[Effect]:
        """Supervise a process that runs already, as the first life of `spec`; it stands in for one that does not run.

        The shell has the process in its hands before it carries the effects out.

        Raises:
            LocalError: a process of that name runs, or the system is stopping.
        """
        self.check_running()
        name = spec.name
        child = self.children.get(name)
        if child is None:
            child = Child(spec, since=now, incarnation=past.incarnation, charges=past.charges, paid=past.paid)
        elif child.state in LIVE:
            raise LocalError(ErrorCode.LOCKED, f"{name} runs already", f"Stop it first: `relctl stop {name}`.")
        elif child.state is not State.STOPPED:
            child.move(Event.LEFT, now)
        child.spec = spec
        self.children[name] = child
        child.wanted, child.ended_at = True, None
        self._begin_life(child, now, charged=False)
        message = f"{name} was running and is supervised from now on, because {who} asked for it"
        return [
            Persist(),
            Say(Severity.NOTICE, "process_taken_in", message, name),
            *self.became_ready(name, child.incarnation, now),
        ]

    def remove(self, name: str, now: float) -> list[Effect]:
        """Forget a process that does not run.

        Raises:
            LocalError: there is none of that name, or it runs.
        """
        child = self._child(name)
        if child.state in LIVE:
            raise LocalError(ErrorCode.LOCKED, f"{name} runs", f"Stop it first: `relctl stop {name}`.")
        del self.children[name]
        return [Persist(), Say(Severity.INFO, "process_forgotten", f"{name} is forgotten", name)]

    def command(self, op: str, name: str, who: str, now: float) -> list[Effect]:
        """Start, stop or restart one process because a person wants it; never charged.

        Raises:
            LocalError: there is no such process, or the system is stopping.
        """
        child = self._child(name)
        self.check_running()
        child.wanted = op != "stop"
        child.waiting = False
        effects: list[Effect] = [Persist(), Say(Severity.NOTICE, f"{op}_requested", f"{op} of {name} by {who}", name)]
        if child.state not in LIVE:
            if child.wanted:
                effects += self._start(child, now, charged=False)
            elif child.state is not State.STOPPED:
                child.move(Event.LEFT, now)
                child.due_at = None
        elif op != "start" and child.state is not State.STOPPING:
            effects += self._terminate(child, Ending(f"{op} requested by {who}", failed=False, manual=True), now)
        return effects

    def stop(self, who: str, now: float) -> list[Effect]:
        """Stop the whole system, because `who` wants it."""
        if self.phase is not Phase.RUNNING:
            return []
        self.phase = Phase.MARKING
        self._marking_until = now + MARK_PATIENCE_S
        self._requested_by = who
        message = f"the system is being stopped: requested by {who}"
        return [Say(Severity.NOTICE, "system_stopping", message, "launcher"), MarkStop(who)]

    def stop_marked(self, now: float) -> list[Effect]:
        """The stop marker is durable."""
        if self.phase is not Phase.MARKING:
            return []
        self.phase = Phase.STOPPING
        for child in self.children.values():
            child.due_at = None
            child.waiting = False
            if child.state is State.BACKOFF:
                child.move(Event.LEFT, now)
        return self._stop_next_rank(now)

    def force(self, now: float) -> list[Effect]:
        """Do not wait any longer: kill whoever is left of a system that is being stopped."""
        effects = self.stop_marked(now)
        for child in self.children.values():
            if child.state in LIVE and child.killed_at is None:
                effects += self._kill(child, Ending("killed: the stop was forced", failed=False), now)
        return effects

    def turn(self, now: float) -> list[Effect]:
        """Do what has become due; to be called on every turn of the launcher's loop."""
        if self._last_turn is not None and now - self._last_turn > self.late_turn_s:
            self._put_off(now - self._last_turn, now)
        self._last_turn = now
        if self._patience_until is not None and now >= self._patience_until:
            self._patience_until = None
        effects: list[Effect] = []
        if self.phase is Phase.MARKING and now >= self._marking_until:
            effects += self.stop_marked(now)
        for child in self.children.values():
            if child.deadline is not None and now >= child.deadline:
                effects += self._overdue(child, now)
            elif child.due_at is not None and now >= child.due_at and self.phase is Phase.RUNNING:
                effects += self._start(child, now, charged=True)
            elif child.waiting and self.phase is Phase.RUNNING:
                effects += self._start_first(child, now)
        if self.phase is Phase.STOPPING:
            effects += self._stop_next_rank(now)
        return effects

    # --- how it is decided ----------------------------------------------------------------------------------------

    def _child(self, name: str) -> Child:
        child = self.children.get(name)
        if child is None:
            known = ", ".join(self.children)
            raise LocalError(
                ErrorCode.USAGE, f"the launcher supervises no process called {name!r}", f"It knows {known}."
            )
        return child

    def check_running(self) -> None:
        """Raise `LocalError` if the system is stopping."""
        if self.phase is not Phase.RUNNING:
            raise LocalError(ErrorCode.DRAINING, "the system is stopping", "Start it again with `relctl up`.")

    def _awaited(self, child: Child) -> list[str]:
        """Return for whom the first start of `child` has to wait."""
        others = self.children
        awaited = [name for name in child.spec.after if name in others and not others[name].was_ready]
        if child.spec.late and self._patience_until is not None:
            awaited += [name for name, other in others.items() if not other.spec.late and not other.was_ready]
        return awaited

    def _start_first(self, child: Child, now: float) -> list[Effect]:
        """Start `child`, or have it wait for those it comes after: stopped, and saying why."""
        awaited = self._awaited(child)
        child.waiting = bool(awaited)
        if not awaited:
            return self._start(child, now, charged=False)
        child.state = State.STOPPED  # from quarantine it may have come: its budget is free again
        child.reason = waiting_for(awaited)
        return []

    def _adopt(self, child: Child, found: Found, now: float) -> list[Effect]:
        child.reason = found.reason
        child.since = found.since
        owing = found.state is State.STARTING and not found.had_process and child.paid >= found.incarnation
        effects: list[Effect] = []
        if owing or child.paid > found.incarnation:
            # A predecessor died after it had paid for a start, and before it made or even showed it: who makes it pays.
            child.charges, child.paid = child.charges[:-1], 0
            effects.append(
                Persist()
            )  # before the board shows the later incarnation, by which a successor would miss it
        if found.had_process:
            child.incarnation = found.incarnation
            child.started_at = found.started_at
            child.state = found.state if found.state in LIVE else State.READY
            adopt = self._adopt_living if found.alive else self._adopt_dead
            return effects + adopt(child, found, now)
        child.incarnation = max(child.incarnation, found.incarnation)
        if child.wanted and found.state in (State.BACKOFF, State.QUARANTINED):
            child.state = found.state
            child.due_at = child.spec.budget.free_at(child.charges, now)
            if child.due_at != now:
                child.state = State.QUARANTINED
            elif found.state is State.BACKOFF:
                child.due_at = min(max(found.retry_at, now), now + BACKOFF_S_MAX)
            return effects
        child.state = State.STOPPED
        if owing and child.wanted:
            return effects + self._start(child, now, charged=True)
        return effects + self._start_first(child, now) if child.wanted else effects

    def _adopt_living(self, child: Child, found: Found, now: float) -> list[Effect]:
        name = child.spec.name
        said = Say(Severity.INFO, "process_adopted", f"{name} was found running and goes on", name)
        if not child.wanted:
            child.state = State.READY
            return [said, *self._terminate(child, Ending("stopped by hand before", failed=False), now)]
        if found.leaving or found.state is State.STOPPING:
            child.state = State.READY
            return [said, *self._terminate(child, Ending("was leaving when this launcher began", failed=False), now)]
        child.said_stopping = found.said_stopping
        if child.state is State.STARTING:
            child.deadline = now + child.spec.start_timeout_s
            child.failures = 1
        else:
            child.was_ready = True
        return [said]

    def _adopt_dead(self, child: Child, found: Found, now: float) -> list[Effect]:
        child.failures = int(child.state is State.STARTING)
        child.was_ready = child.state is State.READY
        child.said_stopping = found.said_stopping
        if found.leaving or found.state is State.STOPPING:
            child.ending = Ending("was leaving when its launcher died", failed=False)
        return self.exited(child.spec.name, found.incarnation, found.exit, now)

    def _start(self, child: Child, now: float, *, charged: bool) -> list[Effect]:
        effects: list[Effect] = []
        if child.state is State.QUARANTINED:
            message = f"{child.spec.name} leaves quarantine and is tried again"
            effects.append(Say(Severity.NOTICE, "quarantine_left", message, child.spec.name))
        self._begin_life(child, now, charged=charged)
        return [Persist(), Spawn(child.spec.name, child.incarnation), *effects]

    def _begin_life(self, child: Child, now: float, *, charged: bool) -> None:
        if charged:
            child.charges = child.spec.budget.add(child.charges, now)
        child.failures = child.failures + 1 if charged else 1
        child.move(Event.START, now)
        child.incarnation += 1
        child.paid = child.incarnation if charged else child.paid
        child.started_at = now
        child.due_at = child.ending = child.killed_at = None
        child.waiting = child.said_stopping = False
        child.deadline = now + child.spec.start_timeout_s

    def _failed(self, child: Child, exit_: Exit, now: float) -> list[Effect]:
        name, budget = child.spec.name, child.spec.budget
        if not budget.allows(child.charges, now):
            child.move(Event.EXHAUSTED, now)
            child.due_at = budget.free_at(child.charges, now)
            again = (
                "only a person can start it" if child.due_at is None else f"tried again in {child.due_at - now:.0f} s"
            )
            message = (
                f"{name}: {exit_.reason}; after {budget.restart_max} restarts in {budget.period_s:g} s it is "
                f"quarantined, {again}"
            )
            return [
                Persist(),
                RecordRestart(name, child.incarnation, exit_, charged=False, manual=False),
                Say(Severity.CRITICAL, "process_quarantined", message, name),
            ]
        child.move(Event.FAILED, now)
        delay_s = min(BACKOFF_FIRST_S * 2.0 ** (child.failures - 1), BACKOFF_S_MAX) if child.failures else 0.0
        child.due_at = now + delay_s
        effects: list[Effect] = [RecordRestart(name, child.incarnation, exit_, charged=True, manual=False)]
        return effects if delay_s else effects + self._start(child, now, charged=True)

    def _left(self, child: Child, exit_: Exit, now: float) -> list[Effect]:
        child.move(Event.LEFT, now)
        child.ended_at = None
        return [Say(Severity.NOTICE, "process_stopped", f"{child.spec.name}: {exit_.reason}", child.spec.name)]

    def _end(self, child: Child, ending: Ending, now: float) -> list[Effect]:
        """Have a process leave that failed: at once, or asked first if it is gentle."""
        if not child.spec.gentle:
            return self._kill(child, ending, now)
        name = child.spec.name
        said = Say(Severity.WARN, "process_condemned", f"{name} is told to leave: {ending.reason}", name)
        return [*self._terminate(child, ending, now), said]

    def _terminate(self, child: Child, ending: Ending, now: float) -> list[Effect]:
        child.move(Event.LEAVE, now)
        child.ending = ending
        child.deadline = now + child.spec.stop_timeout_s
        return [Terminate(child.spec.name)]

    def _kill(self, child: Child, ending: Ending, now: float) -> list[Effect]:
        if child.state is not State.STOPPING:
            child.move(Event.LEAVE, now)
        child.ending = ending
        child.killed_at = now
        child.deadline = now + KILL_AGAIN_S
        name = child.spec.name
        return [Kill(name), Say(Severity.WARN, "process_killed", f"{name} is killed: {ending.reason}", name)]

    def _overdue(self, child: Child, now: float) -> list[Effect]:
        name = child.spec.name
        if child.state is State.STARTING:
            reason = f"did not become ready within {child.spec.start_timeout_s:g} s"
            return self._end(child, Ending(reason, failed=True), now)
        if child.killed_at is None:
            ending = child.ending or Ending("was told to leave", failed=False)
            said = f"{ending.reason}; did not leave within {child.spec.stop_timeout_s:g} s"
            return self._kill(child, replace(ending, reason=said), now)
        if now - child.killed_at < KILL_PATIENCE_S:
            child.deadline = now + KILL_AGAIN_S
            return [Kill(name)]
        child.deadline = None
        message = (
            f"{name} was killed {KILL_PATIENCE_S:g} s ago and is not dead: it waits in the kernel, maybe for a disk"
        )
        return [Say(Severity.ERROR, "process_unkillable", message, name)]

    def _stop_next_rank(self, now: float) -> list[Effect]:
        left = [child for child in self.children.values() if child.state in LIVE]
        awaited = [child for child in left if child.killed_at is None or child.deadline is not None]
        if not awaited:
            self.phase = Phase.GONE
            message = f"the system has stopped: requested by {self._requested_by}"
            return [Persist(), Say(Severity.NOTICE, "system_stopped", message, "launcher"), Leave(1 if left else 0)]
        rank = min(child.spec.stop_rank for child in awaited)
        effects: list[Effect] = []
        for child in awaited:
            if child.spec.stop_rank == rank and child.state is not State.STOPPING:
                effects += self._terminate(child, Ending("the system stops", failed=False), now)
        return effects

    def _put_off(self, absence_s: float, now: float) -> None:
        for child in self.children.values():
            if child.deadline is not None and child.killed_at is None:
                starting = child.state is State.STARTING
                window_s = child.spec.start_timeout_s if starting else child.spec.stop_timeout_s
                child.deadline = max(child.deadline, min(child.deadline + absence_s, now + window_s))
