"""`verify` as an operation: a thread of its own looks at the whole log, and files that alone are wrong are mended."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from actors.event_logger.queries import verify_log
from actors.event_logger.verify import Kind
from actors.runtime.actor import Context
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

    def __init__(self, data_dir: str, rebuild: Callable[[set[str]], None]) -> None:
        """Look at the log in `data_dir`; `rebuild` has the files of days written anew."""
        self._data_dir = data_dir
        self._rebuild = rebuild

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        summary = (
            "Tell whether the event log is what was written; files that alone are wrong are kept aside and written"
            " anew, unless repair is false. With too little time the answer is not complete."
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
            if outcome["spoilt_days"] and request.arguments.get("repair", True):
                self._rebuild(set(outcome["spoilt_days"]))
            self._tell(outcome)
            request.reply(outcome)

    def _tell(self, outcome: dict[str, Any]) -> None:
        """Leave a trace of the look in the log itself."""
        wrong = [item for item in outcome["findings"] if item["kind"] != Kind.LOST]
        checked = f"{outcome['checked']} events were verified"
        if wrong:
            message = f"{checked}: {outcome['finding_count']} findings, the first: {wrong[0]['message']}"
            self._context.log(Severity.CRITICAL, "event_log_not_intact", message, first=wrong[0])
        else:
            self._context.log(Severity.INFO, "event_log_verified", checked, complete=outcome["complete"])
