"""What goes on behind the commits: files written, old segments retired. The loop's half; nothing recurs by itself.

The files are written in the tick after something was committed, so an idle log costs nothing, and they lag by a tick.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from actors.event_logger.core import ATTEMPT_PATIENCE_S, Trouble, TroubleReport
from actors.event_logger.filer import Filed, Filer
from actors.event_logger.store import EventStore
from actors.runtime.actor import Context
from actors.runtime.database_problem import DatabaseError
from actors.runtime.side_worker import side_worker
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

FILING_RETRY_S: Final = 1.0
FIRST_LOOK_S: Final = 60.0
LOOK_INTERVAL_S: Final = 3600.0
"""Between two looks for segments that are too old."""
JOBS_QUEUED_MAX: Final = 2


class Filing:
    """Has the files written behind the table."""

    def __init__(self, filer: Filer) -> None:
        """Write through `filer`."""
        self._filer = filer
        self._trouble = TroubleReport()
        self._ready = False
        self._asked_seq: int | None = None
        self._filed_seq = 0
        self._again_at = 0.0

    def start(self, context: Context) -> None:
        """Begin."""
        self._context = context
        self._worker = side_worker(context, f"{EVENT_LOGGER}-filer", JOBS_QUEUED_MAX)

    @property
    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._worker.idle

    def status(self) -> dict[str, int | None]:
        """Return how far the files go."""
        return {"filed_seq": self._filed_seq or None}

    def ready(self) -> None:
        """Take note that the table can be read: it was healed from the files, so they may be written now."""
        self._ready = True

    def tick(self, now: float, last_seq: int) -> None:
        """Begin to write, if the table has grown to `last_seq` since."""
        if self._ready and self._worker.idle and self._asked_seq != last_seq and now >= self._again_at:
            self._asked_seq = last_seq
            self._worker.submit(self._filer.catch_up, on_done=self._on_filed, what="write the event log's files")

    def rebuild(self, days: set[str]) -> None:
        """Have the files of some days written anew."""
        for day in days:
            self._worker.submit(partial(self._filer.rebuild, day), on_done=self._on_filed, what="rebuild")
        self._asked_seq = None

    def _on_filed(self, outcome: Any) -> None:
        failed = _of_the_world(outcome)
        now = self._context.now()
        if failed:
            self._asked_seq = None
            self._again_at = now + FILING_RETRY_S
        match self._trouble.note(failed=failed, now=now):
            case Trouble.BEGAN:
                message = f"the event log's files cannot be written: {outcome}"
                self._context.log(Severity.ERROR, "event_files_unavailable", message)
            case Trouble.ENDED:
                self._context.log(Severity.NOTICE, "event_files_available", "the event log's files are written again")
        if isinstance(outcome, Filed):
            self._filed_seq = max(self._filed_seq, outcome.seq)
            if outcome.more:
                self._asked_seq = None
            for day in outcome.rebuilt:
                message = f"the file of {day} did not agree with the table; it is kept as .damaged, and written anew"
                self._context.log(Severity.WARN, "event_file_rebuilt", message, day=day)


class Retention:
    """Retires old segments, slice by slice, through the thread that writes."""

    def __init__(
        self, store: EventStore, days_kept: int, submit: Callable[..., None], log: Callable[..., None]
    ) -> None:
        """Keep `days_kept` days of `store`; `submit` runs a job where the store is written, `log` tells of it."""
        self._store = store
        self._days_kept = days_kept
        self._submit = submit
        self._look_at: float | None = None
        self._looked_at = 0.0
        self._busy = False
        self._log = log

    def tick(self, now: float) -> None:
        """Look, if it is time to."""
        if self._look_at is None:
            self._look_at, self._looked_at = now + FIRST_LOOK_S, now
        if now < self._look_at or self._busy:
            return
        self._busy = True
        self._look_at = now + LOOK_INTERVAL_S
        run_s = int(now - self._looked_at)
        self._looked_at += run_s
        self._begin(self._on_looked, self._store.look_for_expired, run_s, self._days_kept)

    def _begin(self, on_done: Callable[[Any], None], function: Callable[..., Any], *arguments: Any) -> None:
        self._submit("retire old events", on_done, function, *arguments, ATTEMPT_PATIENCE_S)

    def _on_looked(self, outcome: Any) -> None:
        _of_the_world(outcome)
        self._next(list(outcome) if isinstance(outcome, list) else [])

    def _next(self, days: list[str]) -> None:
        self._busy = bool(days)
        if days:
            self._begin(partial(self._on_retired, days), self._store.retire, days[0])

    def _on_retired(self, days: list[str], outcome: Any) -> None:
        _of_the_world(outcome)
        if isinstance(outcome, Exception):
            self._next([])  # the next look goes on with it
        else:
            if not outcome:
                message = f"the events of {days[0]} were removed: they are older than {self._days_kept} days"
                self._log(Severity.INFO, "events_retired", message, day=days[0], days_kept=self._days_kept)
            self._next(days if outcome else days[1:])


def _of_the_world(outcome: Any) -> bool:
    """Tell whether a job failed by a fault of the world; raise one of ours."""
    if not isinstance(outcome, Exception):
        return False
    if not isinstance(outcome, OSError | DatabaseError):
        raise outcome
    return True
