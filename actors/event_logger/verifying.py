"""`verify` as an operation: a thread of its own looks at the whole log, and what is proven is mended."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from actors.event_logger.core import ATTEMPT_PATIENCE_S
from actors.event_logger.mending import Mending, Row, put_back
from actors.event_logger.queries import verify_log
from actors.event_logger.store import EventStore
from actors.event_logger.verify import Kind
from actors.runtime.actor import Context
from actors.runtime.database_problem import DatabaseError
from actors.runtime.operations import DEFERRED, Operation, Request
from actors.runtime.side_worker import side_worker
from protocol.errors import ErrorCode, ReliabilityError
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

VERIFICATIONS_QUEUED_MAX: Final = 2
ANSWER_MARGIN_S: Final = 0.5
"""What an answer needs to reach its caller before the caller's deadline."""


class Verifying:
    """Answers `verify`."""

    def __init__(
        self,
        store: EventStore,
        rebuild: Callable[[set[str]], None],
        submit: Callable[..., None],
        wall_ms: Callable[[], int],
    ) -> None:
        """Look at the log of `store`.

        `rebuild` has the files of days written anew, `submit` runs a job where the store is written, `wall_ms` is the
        time of events.
        """
        self._store = store
        self._data_dir = os.path.dirname(store.database.path)
        self._rebuild = rebuild
        self._submit = submit
        self._wall_ms = wall_ms
        self._days: list[str] = []

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        summary = (
            "Tell whether the event log is what was written. Unless repair is false, files that alone are wrong are"
            " kept aside and written anew, and events of the table are put back where the chain proves the file's."
            " With too little time the answer is not complete."
        )
        return (Operation("verify", summary, {"repair": "bool?"}, self._verify),)

    def start(self, context: Context) -> None:
        """Begin."""
        self._context = context
        self._worker = side_worker(context, f"{EVENT_LOGGER}-verifier", VERIFICATIONS_QUEUED_MAX)

    def _verify(self, request: Request) -> object:
        until = request.deadline - ANSWER_MARGIN_S
        self._worker.submit(
            verify_log,
            self._data_dir,
            lambda: self._context.now() >= until,
            on_done=partial(self._on_verified, request),
            what="verify the event log",
            deadline=request.deadline,
        )
        return DEFERRED

    def _on_verified(self, request: Request, outcome: Any) -> None:
        if isinstance(outcome, ReliabilityError):
            request.fail(outcome.code, outcome.message, outcome.hint)
        elif isinstance(outcome, OSError):
            request.fail(ErrorCode.FAILED, f"the event log's files cannot be read: {outcome}")
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            repair = request.arguments.get("repair", True)
            if outcome["spoilt_days"] and repair:
                self._rebuild(set(outcome["spoilt_days"]))
            self._tell(outcome)
            if repair and not self._days:
                self._days = list(outcome["broken_days"])
                self._mend_next()
            request.reply(outcome)

    # --- events in the middle of the table ---

    def _mend_next(self) -> None:
        """Begin with the next day whose events are to be put back; one after the other, behind what was asked."""
        if self._days:
            self._look(Mending(self._store.database.path, self._store.files, self._days[0]))

    def _look(self, mending: Mending) -> None:
        try:
            done = partial(self._on_looked, mending)
            self._worker.submit(mending.next_slice, on_done=done, what="look for lost events")
        except ReliabilityError:  # verifications wait: the next one finds the rest
            self._days.clear()

    def _on_looked(self, mending: Mending, outcome: Any) -> None:
        if isinstance(outcome, ReliabilityError | OSError):
            self._days.clear()
        elif isinstance(outcome, Exception):
            raise outcome
        elif outcome:
            self._submit("put events back", partial(self._on_put_back, mending), self._put_back, outcome)
        else:
            del self._days[:1]
            self._mend_next()

    def _put_back(self, rows: list[Row]) -> int:
        """For the thread that writes."""
        store, now_ms = self._store, self._wall_ms()
        return store.write(lambda connection: put_back(connection, store.log, rows, now_ms), ATTEMPT_PATIENCE_S)

    def _on_put_back(self, mending: Mending, outcome: Any) -> None:
        if isinstance(outcome, DatabaseError):  # the next verification finds the rest
            self._days.clear()
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            self._look(mending)

    def _tell(self, outcome: dict[str, Any]) -> None:
        """Leave a trace of the look in the log itself."""
        wrong = [item for item in outcome["findings"] if item["kind"] != Kind.LOST]
        checked = f"{outcome['checked']} events were verified"
        if wrong:
            message = f"{checked}: {outcome['finding_count']} findings, the first: {wrong[0]['message']}"
            self._context.log(Severity.CRITICAL, "event_log_not_intact", message, first=wrong[0])
        else:
            self._context.log(Severity.INFO, "event_log_verified", checked, complete=outcome["complete"])
