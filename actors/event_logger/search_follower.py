"""Has the search index follow the log: the loop's half, which decides when a step is due.

What the log has let go of is let go of with the next events: each day that is retired is told of by one.

In normal operation the index is at most `LAG_S_MAX` behind. Nothing recurs by itself: an idle log costs no wake-up.
While there is much to do, a step is followed by a rest `REST_RATIO` times as long, in which the thread sleeps, so that
the index takes a third of a core at most and acknowledging goes first.
"""

import threading
from typing import Any, Final

import apsw

from actors.event_logger.core import Trouble, TroubleReport
from actors.event_logger.search_index import Progress, SearchIndex
from actors.runtime.actor import Context
from actors.runtime.database_problem import DatabaseError
from actors.runtime.side_worker import side_worker
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

LAG_S_MAX: Final = 2.0
INTERVAL_S: Final = 1.0
"""Between two bursts of steps: what is committed within it is indexed together."""
REST_RATIO: Final = 2.0
REST_S_MAX: Final = 0.2
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 30.0
STOP_S_MAX: Final = 1.0
"""What a stop waits for a step that does not end: nothing is lost with it."""
REBUILDS_IN_A_ROW_MAX: Final = 3
"""An index that is damaged again and again waits like one that cannot be written."""
JOBS_QUEUED_MAX: Final = 4


class SearchFollower:
    """Follows `index`."""

    def __init__(self, index: SearchIndex) -> None:
        """Follow with `index`; the first step opens it."""
        self._index = index
        self._stop = threading.Event()
        self._trouble = TroubleReport()
        self._problem = ""
        self._last_seq = 0
        self._through_seq = 0
        self._behind = True
        self._due_at: float | None = None
        self._retry_s = RETRY_S_MIN
        self._rebuilds = 0
        self._stopped_at: float | None = None

    def start(self, context: Context) -> None:
        """Begin."""
        self._context = context
        self._worker = side_worker(context, f"{EVENT_LOGGER}-search", JOBS_QUEUED_MAX)

    def ready(self) -> None:
        """Take note that the table can be read: from now on there is something to follow."""
        if self._due_at is None:
            self._due_at = 0.0

    def tick(self, now: float, last_seq: int) -> None:
        """Begin a step if one is due; the log goes up to `last_seq`, 0 if that is not known yet."""
        if last_seq > self._last_seq:
            self._last_seq = last_seq
            self._behind = True
        if self._behind and self._worker.idle and self._due_at is not None and now >= self._due_at:
            self._submit(0.0)

    def on_answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Take in how a search found the index, and hand its answer on: one that it could not read is begun anew."""
        if answer.get("index", {}).get("problem") and self._stopped_at is None:
            self._index.suspect(answer["index"]["problem"])
            self._behind = True
        return answer

    def stop(self) -> None:
        """Begin no further step, and close the file in good order."""
        self._stopped_at = self._context.now()
        self._stop.set()
        self._worker.submit(self._index.close, on_done=_ignore, what="close the search index")

    @property
    def idle(self) -> bool:
        """Whether nothing is under way that a stop has to wait for."""
        stopped_at = self._stopped_at
        return stopped_at is None or self._worker.idle or self._context.now() - stopped_at > STOP_S_MAX

    def status(self) -> dict[str, Any]:
        """Return how far the index goes."""
        return {"through_seq": self._through_seq or None, "behind": self._behind, "problem": self._problem or None}

    def _submit(self, rest_s: float) -> None:
        if self._stopped_at is None:
            self._worker.submit(self._step, rest_s, on_done=self._on_stepped, what="index events")

    def _step(self, rest_s: float) -> Progress | None:
        """Rest, then take one step. On the worker thread."""
        return None if self._stop.wait(rest_s) else self._index.step(self._context.now)

    def _on_stepped(self, outcome: Any) -> None:
        now = self._context.now()
        if isinstance(outcome, Exception):
            self._on_failed(outcome, now)
        elif isinstance(outcome, Progress):
            self._on_progress(outcome, now)

    def _on_progress(self, progress: Progress, now: float) -> None:
        self._through_seq = progress.through_seq
        if progress.rebuilt:
            self._rebuilds += 1
            if self._rebuilds > REBUILDS_IN_A_ROW_MAX:
                self._on_failed(OSError(progress.rebuilt), now)
                return
            message = f"the search index is built anew: {progress.rebuilt}"
            self._context.log(Severity.WARN, "search_index_rebuilt", message, reason=progress.rebuilt)
        elif not progress.opening:
            self._rebuilds = 0
            self._retry_s = RETRY_S_MIN
            self._note("", now)
        if progress.more:
            self._submit(min(REST_S_MAX, REST_RATIO * progress.took_s))
        else:
            self._behind = self._last_seq > progress.last_seq
            self._due_at = now + INTERVAL_S

    def _on_failed(self, error: Exception, now: float) -> None:
        """Try again after a while; searches scan meanwhile."""
        if not isinstance(error, OSError | apsw.Error | DatabaseError):
            raise error
        self._behind = True
        self._due_at = now + self._retry_s
        self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)
        self._note(str(error) or type(error).__name__, now)

    def _note(self, problem: str, now: float) -> None:
        self._problem = problem
        match self._trouble.note(failed=bool(problem), now=now):
            case Trouble.BEGAN:
                message = f"the search index does not follow, so searches take longer: {problem}"
                self._context.log(Severity.WARN, "search_index_behind", message)
            case Trouble.ENDED:
                self._context.log(Severity.NOTICE, "search_index_follows", "the search index follows the log again")


def _ignore(_outcome: object) -> None:
    """Whether it was closed well is found out by the next opening."""
