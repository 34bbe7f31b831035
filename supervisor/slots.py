"""The board as the launcher uses it: what a predecessor left there, how a life ended, and what it writes itself."""

import signal
from collections.abc import Callable
from typing import Final

from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import (
    LauncherRecord,
    ProcessKind,
    ProcessRecord,
    ProcessState,
    Verdict,
    WatchdogRecord,
)
from supervisor.core import Child
from supervisor.model import Exit, Found, State
from supervisor.port import ExitStatus

REASON_CHARACTERS_MAX: Final = 200
"""So that a record fits its area whatever a cause says."""


def found_in(
    record: LauncherRecord,
    own: ProcessRecord | None,
    verdict: WatchdogRecord | None,
    boot: str,
    is_running: Callable[[ProcessIdentity], bool] = ProcessIdentity.is_running,
) -> tuple[Found, ProcessIdentity | None]:
    """Return what a predecessor left in a slot, and the process it means if that runs.

    Args:
        record: what the launcher wrote there.
        own: what the process wrote there.
        verdict: what the watchdog wrote there.
        boot: the present boot.
        is_running: tells whether exactly this process exists.
    """
    pid, start_time = record.pid, record.start_time
    same_life = own is not None and own.incarnation == record.incarnation
    if not pid and own is not None and same_life:
        pid, start_time = own.pid, own.start_time  # started, and its launcher died before it could say so
    identity = ProcessIdentity(pid, start_time, boot)
    alive = pid != 0 and is_running(identity)
    found = Found(
        state=_state(record.state),
        incarnation=record.incarnation,
        alive=alive,
        had_process=record.pid != 0 or alive,
        leaving=own is not None and same_life and own.state == ProcessState.STOPPING,
        since=record.since_ms / 1000,
        started_at=record.started_ms / 1000,
        retry_at=record.retry_at_ms / 1000,
        reason=record.reason,
        exit=Exit(record.reason)
        if record.state == ProcessState.HUNG
        else how_it_ended(verdict, record.incarnation, None),
    )
    return found, identity if alive else None


def how_it_ended(verdict: WatchdogRecord | None, incarnation: int, status: ExitStatus | None) -> Exit:
    """Say why a life ended: the watchdog's verdict on it comes before what the system says.

    Args:
        verdict: what the watchdog wrote last.
        incarnation: the life that ended.
        status: what the system says; None if no launcher was there when it ended.
    """
    code, number = (status.exit_code, status.signal) if status else (None, None)
    if verdict is not None and verdict.incarnation == incarnation and verdict.verdict == Verdict.HUNG:
        return Exit(f"hung: {verdict.cause}"[:REASON_CHARACTERS_MAX], code, number, verdict.evidence)
    if number is not None:
        return Exit(f"killed by signal {number} ({_signal_name(number)})", code, number)
    if code is not None:
        return Exit(f"exited with code {code}", code, number)
    how = "its exit code is unknown, because this launcher had not started it" if status else "while no launcher ran"
    return Exit(f"ended: {how}")


def record_of(
    child: Child, kind: ProcessKind, identity: ProcessIdentity | None, hang_timeout_s: float, now: float
) -> LauncherRecord:
    """Return what the board shall say of `child`: `HUNG`, and of what, while it is being killed for a failure."""
    budget = child.spec.budget
    condemned = child.ending if child.ending is not None and child.ending.failed else None
    return LauncherRecord(
        name=child.spec.name,
        kind=kind,
        pid=identity.pid if identity else 0,
        start_time=identity.start_time if identity else 0,
        incarnation=child.incarnation,
        state=ProcessState.HUNG if condemned else child.state,
        since_ms=int(child.since * 1000),
        started_ms=int(child.started_at * 1000),
        restarts_in_period=len(budget.recent(child.charges, now)),
        restarts_left=budget.left(child.charges, now),
        retry_at_ms=int((child.due_at or 0.0) * 1000),
        hang_timeout_ms=int(hang_timeout_s * 1000),
        start_timeout_ms=int(child.spec.start_timeout_s * 1000),
        reason=(condemned.reason if condemned else child.reason)[:REASON_CHARACTERS_MAX],
    )


def record_of_launcher(own: Child, identity: ProcessIdentity, hang_timeout_s: float, now: float) -> LauncherRecord:
    """Return what the board shall say of the launcher; its `retry_at_ms` tells survivors when they may replace it."""
    budget = own.spec.budget
    free_at = budget.free_at(own.charges, now)
    own.due_at = None if free_at == now else free_at or now + budget.period_s
    return record_of(own, ProcessKind.LAUNCHER, identity, hang_timeout_s, now)


def says_ready(own: ProcessRecord | None, child: Child) -> bool:
    """Tell whether the process itself says that this life of `child` is ready."""
    return own is not None and own.incarnation == child.incarnation and own.state == ProcessState.READY


def _state(text: str) -> State:
    if text == ProcessState.HUNG:
        return State.READY  # if it still lives, it dies of the signal that it got
    try:
        return State(text)
    except ValueError:  # a newer release's word; whether it runs is seen by itself
        return State.STOPPED


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
