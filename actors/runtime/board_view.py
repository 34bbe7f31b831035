"""The board as people see it: one state per process, from what itself, the launcher and the watchdog say of it."""

from dataclasses import dataclass
from typing import Final

from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import Board, LauncherRecord, ProcessKind, ProcessRecord, ProcessState, Slot, Verdict

OK: Final = "ok"
WARNING: Final = "warning"
CRITICAL: Final = "critical"
BEATS: Final = "beats"
"""`ProcessRecord.judged_by` of all that beat."""

_NO_PROCESS: Final = frozenset({ProcessState.BACKOFF, ProcessState.QUARANTINED, ProcessState.STOPPED})
_SETTLED: Final = {
    ProcessState.STARTING: (WARNING, "starting"),
    ProcessState.STOPPING: (WARNING, "stopping"),
    ProcessState.STOPPED: (WARNING, "stopped on purpose"),
}


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process.

    Attributes:
        name: its name.
        kind: a `ProcessKind`.
        pid: its process id; 0 if it does not run.
        state: a `ProcessState`.
        incarnation: its life number.
        uptime_s: since its start; None if it does not run.
        restarts_in_period: charged restarts within the rolling period.
        restarts_left: restarts that its budget still allows.
        progress_age_s: since its own loop turned last; None if it does not run or has not begun, or if it is a program
            that is not judged by its beats.
        hang_timeout_s: silence after which it counts as hung.
        retry_in_s: until it is started again; None if no start is due.
        cause: why it hangs, as the watchdog says; empty if it does not.
        evidence: file name of what the watchdog found; empty if nothing.
        reason: why its last life ended; empty if none did.
        lease_what: long work that it has declared; empty without.
    """

    name: str
    kind: str
    pid: int
    state: str
    incarnation: int
    uptime_s: float | None
    restarts_in_period: int
    restarts_left: int
    progress_age_s: float | None
    hang_timeout_s: float
    retry_in_s: float | None
    cause: str
    evidence: str
    reason: str
    lease_what: str


def snapshot(board: Board, now_ms: int) -> list[ProcessView]:
    """Return every process on the board, in the order of its slots; `now_ms` is on the monotonic clock."""
    return [_view(slot, record, board, now_ms) for slot, record in board.occupied()]


def check_of(view: ProcessView) -> tuple[str, str]:
    """Return a process's health: ok, warning or critical, and a sentence."""
    again = "" if view.retry_in_s is None else f"; tried again in {view.retry_in_s:.0f} s"
    why = f": {view.reason}" if view.reason else ""
    if view.state == ProcessState.QUARANTINED:
        return CRITICAL, f"quarantined after {view.restarts_in_period} restarts{why}{again}"
    if view.state == ProcessState.HUNG:
        return CRITICAL, f"hung: {view.cause}"
    if view.state == ProcessState.BACKOFF:
        return WARNING, f"down{why}{again}"
    if view.state == ProcessState.STOPPED and view.kind == ProcessKind.PROGRAM and why:
        return WARNING, f"stopped{why}"
    if view.state in _SETTLED:
        return _SETTLED[ProcessState(view.state)]
    if view.progress_age_s is not None and view.progress_age_s > view.hang_timeout_s and not view.lease_what:
        return WARNING, f"no progress for {view.progress_age_s:.1f} s"
    return OK, "running" + (f"; restarts of late: {view.restarts_in_period}" if view.restarts_in_period else "")


def _view(slot: Slot, record: LauncherRecord, board: Board, now_ms: int) -> ProcessView:
    running = record.pid != 0 and ProcessIdentity(record.pid, record.start_time, board.boot_id).is_running()
    own = slot.process.read()
    if own is not None and (own.incarnation, own.pid) != (record.incarnation, record.pid):
        own = None
    hung = slot.watchdog.read() if running else None
    if hung is not None and (hung.incarnation, hung.verdict) != (record.incarnation, Verdict.HUNG):
        hung = None
    return ProcessView(
        name=record.name,
        kind=record.kind,
        pid=record.pid if running else 0,
        state=ProcessState.HUNG if hung else _state(record, own, running=running, stopping=board.stopping),
        incarnation=record.incarnation,
        uptime_s=_seconds(now_ms - record.started_ms) if running else None,
        restarts_in_period=record.restarts_in_period,
        restarts_left=record.restarts_left,
        progress_age_s=_seconds(now_ms - slot.read_beat().tick_ms)
        if running and own and own.judged_by == BEATS
        else None,
        hang_timeout_s=record.hang_timeout_ms / 1000,
        retry_in_s=_seconds(record.retry_at_ms - now_ms) if record.retry_at_ms and not running else None,
        cause=hung.cause if hung else "",
        evidence=hung.evidence if hung else "",
        reason=record.reason,
        lease_what=own.lease_what if running and own else "",
    )


def _state(record: LauncherRecord, own: ProcessRecord | None, *, running: bool, stopping: bool) -> str:
    """Return the state of a process that is not judged hung; the first row that fits.

    ======================================== =================================
    what is so                               state
    ======================================== =================================
    it runs, the launcher is stopping it     stopping
    it runs, and says itself how far it is   what it says
    it runs                                  starting
    the launcher knows that it does not run  what the launcher says
    a deliberate stop is going on            stopped
    none of these: its launcher is to notice backoff
    ======================================== =================================
    """
    if running and record.state == ProcessState.STOPPING:
        return ProcessState.STOPPING
    if running:
        return own.state if own else ProcessState.STARTING
    if record.state in _NO_PROCESS:
        return record.state
    return ProcessState.STOPPED if stopping else ProcessState.BACKOFF


def _seconds(milliseconds: int) -> float:
    return max(0, milliseconds) / 1000
