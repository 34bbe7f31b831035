"""health_monitor at work: each check on its own thread, the processes from the board, answers from what is known."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from actors.health_monitor.checks import Check
from actors.health_monitor.config import HealthConfig
from actors.health_monitor.core import Change, CheckSpec, Finding, HealthCore, Observation, Status, next_multiple
from actors.health_monitor.queries import HISTORY_ROWS_MAX, read_history
from actors.health_monitor.store import SCHEMA, HealthStore, HistoryRow
from actors.runtime.actor import Actor, Context
from actors.runtime.board_view import ProcessView, check_of, snapshot
from actors.runtime.database import DISK_LEASE_S, Database
from actors.runtime.database_problem import DatabaseError
from actors.runtime.liveness import Board
from actors.runtime.operations import DEFERRED, Operation, Request
from actors.runtime.side_worker import side_worker
from actors.runtime.worker import Worker
from protocol.names import HEALTH_MONITOR
from protocol.severity import Severity

TOPIC: Final = "state.health"
PUBLISH_INTERVAL_S: Final = 30.0
FIRST_RESULTS_S: Final = 0.3
"""Requests wait this long, until the tick after it at most, for the first results of all checks: they take some 10 ms,
unless a disk or a lock is in the way of one, which must not keep callers from the others."""
ROWS_WAITING_MAX: Final = 1000
"""Rows kept while the database cannot be written; beyond it the oldest are dropped and counted."""
ROWS_WRITTEN_MAX: Final = 200
WRITE_RETRY_S: Final = 10.0
_DAY_MS: Final = 86_400_000

_SEVERITIES: Final = {
    Status.OK: Severity.NOTICE,
    Status.UNKNOWN: Severity.WARN,
    Status.WARNING: Severity.WARN,
    Status.CRITICAL: Severity.CRITICAL,
}


class HealthMonitor(Actor):
    """Runs the checks and answers how things are."""

    def __init__(
        self,
        path: str,
        board: Board,
        config: HealthConfig,
        checks: Sequence[tuple[CheckSpec, Check]],
        wall_ms: Callable[[], int],
    ) -> None:
        """Wire a monitor that keeps its history in the database at `path`; `wall_ms` is the clock of the history."""
        self._path = path
        self._board = board
        self._config = config
        self._checks = {spec.name: check for spec, check in checks}
        self._specs = [spec for spec, _ in checks]
        self._wall_ms = wall_ms
        self._store = HealthStore(Database(path, SCHEMA))
        self._rows: deque[HistoryRow] = deque()
        self._rows_dropped = 0
        self._writing: list[HistoryRow] = []
        self._write_again_at = 0.0
        self._processes: set[str] = set()
        self._early: list[Request] = []
        self._published_at = 0.0

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        history = {"name": "str? of a check", "limit": f"int? rows, at most {HISTORY_ROWS_MAX}"}
        return (
            Operation("health", "Return how every check stands.", {}, self._health),
            Operation(
                "history",
                "Return how checks stood, the newest first.",
                history,
                self._history,
                blocking=True,
                lease_cap_s=DISK_LEASE_S,
            ),
        )

    def on_start(self, context: Context) -> None:
        """Begin: every check is due at once."""
        now = context.now()
        self._context = context
        self._core = HealthCore(self._specs, now)
        self._workers: dict[str, Worker] = {
            name: side_worker(context, f"{HEALTH_MONITOR}-{name}", 1) for name in self._checks
        }
        self._look_at_processes_at = now
        self._patient_until = now + FIRST_RESULTS_S
        self._sample_at = now + self._config.history_interval_s

    def on_tick(self, context: Context, now: float) -> None:
        """Run what is due, look at the processes, tell what changed."""
        for name in self._core.due(now):
            self._workers[name].submit(self._checks[name], on_done=partial(self._finished, name), what=name)
        self._tell(self._core.tick(now))
        self._answer_early(now)
        if now >= self._look_at_processes_at:
            self._look_at_processes(now)
        if now >= self._sample_at:
            self._sample_at = now + self._config.history_interval_s
            self._record(self._core.findings(now))
        self._write(now)
        if now - self._published_at >= PUBLISH_INTERVAL_S:
            self._publish()

    def on_drain(self, context: Context) -> bool:
        """Write what is waiting to be written. Checks that run are left to themselves."""
        self._write(context.now())
        return not self._writing

    def status(self) -> Mapping[str, Any]:
        """Return what the monitor itself is doing."""
        busy = {name: worker.busy_s(self._context.now()) for name, worker in self._workers.items()}
        return {
            "checks": {name: {"busy_s": round(seconds, 3)} for name, seconds in busy.items()},
            "history": {"waiting": len(self._rows) + len(self._writing), "dropped": self._rows_dropped},
        }

    # --- requests ---

    def _health(self, request: Request) -> object:
        if self._is_new(self._context.now()):
            self._early.append(request)
            return DEFERRED
        return self._report()

    def _is_new(self, now: float) -> bool:
        """Whether first results are still to come: until then nothing is told."""
        return not self._core.is_complete and now < self._patient_until

    def _answer_early(self, now: float) -> None:
        if self._early and not self._is_new(now):
            early, self._early = self._early, []
            for request in early:
                request.reply(self._report())

    def _report(self) -> dict[str, Any]:
        now = self._context.now()
        self._look_at_processes(now)  # costs little, and nobody is told that a process that was just killed is well
        return self._core.report(now)

    def _history(self, request: Request) -> dict[str, Any]:
        return read_history(self._path, request.arguments.get("name"), request.arguments.get("limit", 100))

    # --- checks ---

    def _finished(self, name: str, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            outcome = Observation(f"the check failed: {type(outcome).__name__}: {outcome}", status=Status.UNKNOWN)
        now = self._context.now()
        self._tell(self._core.finished(name, outcome, now))
        self._answer_early(now)

    def _look_at_processes(self, now: float) -> None:
        """Read the board. What happens to processes launcher and watchdog log themselves: one cause, one alert."""
        self._look_at_processes_at = next_multiple(now, self._config.process_interval_s)
        views = snapshot(self._board, int(now * 1000))
        changes = []
        names = set()
        for view in views:
            name = view.name if view.name not in self._checks else f"process {view.name}"
            names.add(name)
            spec = CheckSpec(name, self._config.process_interval_s, self._config.check_timeout_s)
            changes += self._core.pushed(spec, _observe_process(view), now)
        for name in self._processes - names:
            self._core.forget(name)
        self._processes = names
        self._keep(changes)

    # --- what follows from a change ---

    def _tell(self, changes: list[Change]) -> None:
        """Log changes, and keep them. That something is well from the start is no news."""
        for change in changes:
            finding = change.finding
            if change.before is not None or finding.status is not Status.OK:
                self._context.log(
                    _SEVERITIES[finding.status],
                    "health_changed",
                    f"{finding.name} is {finding.status}: {finding.message}",
                    check=finding.name,
                    status=finding.status,
                    before=change.before,
                    value=finding.value,
                    unit=finding.unit,
                )
        self._keep(changes)

    def _keep(self, changes: list[Change]) -> None:
        """Record and publish changes."""
        if changes:
            self._record(change.finding for change in changes)
            self._publish()

    def _publish(self) -> None:
        now = self._context.now()
        if self._is_new(now):
            return
        self._published_at = now
        self._context.publish(TOPIC, self._core.report(now))

    # --- history ---

    def _record(self, findings: Iterable[Finding]) -> None:
        now_ms = self._wall_ms()
        for item in findings:
            self._rows.append(HistoryRow(now_ms, item.name, item.status, item.message, item.value, item.unit))
        self._bound_rows()

    def _bound_rows(self) -> None:
        while len(self._rows) > ROWS_WAITING_MAX:
            self._rows.popleft()
            self._rows_dropped += 1

    def _write(self, now: float) -> None:
        """Have the worker write some of the rows that wait, unless it is at it or has just failed."""
        if self._writing or not self._rows or now < self._write_again_at:
            return
        self._writing = [self._rows.popleft() for _ in range(min(len(self._rows), ROWS_WRITTEN_MAX))]
        keep_from_ms = self._wall_ms() - int(self._config.history_days * _DAY_MS)
        self._context.submit(
            self._store.record,
            self._writing,
            keep_from_ms,
            what="record health",
            on_done=self._on_written,
            lease_cap_s=DISK_LEASE_S,
        )

    def _on_written(self, outcome: Any) -> None:
        rows, self._writing = self._writing, []
        if isinstance(outcome, DatabaseError):  # the check of the database tells of it
            self._write_again_at = self._context.now() + WRITE_RETRY_S
            self._rows.extendleft(reversed(rows))
            self._bound_rows()
        elif isinstance(outcome, Exception):
            raise outcome


def _observe_process(view: ProcessView) -> Observation:
    status, message = check_of(view)
    return Observation(message, view.progress_age_s, "s", Status(status))
