"""Queries on a thread of their own, so that none waits for a commit and no commit for a query."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from actors.runtime.actor import Context
from actors.runtime.operations import DEFERRED, Request
from actors.runtime.side_worker import side_worker
from protocol.errors import ReliabilityError
from protocol.names import EVENT_LOGGER

READS_QUEUED_MAX: Final = 64


class Reading:
    """Answers requests from the reader thread."""

    def __init__(self, path: str) -> None:
        """Read the database at `path`."""
        self._path = path
        self._early: list[Callable[[], None]] | None = []

    def start(self, context: Context) -> None:
        """Begin."""
        self._reader = side_worker(context, f"{EVENT_LOGGER}-reader", READS_QUEUED_MAX)

    def status(self) -> dict[str, int]:
        """Return how many queries wait, and how many may."""
        return {"queued": self._reader.queued_count, "capacity": self._reader.capacity}

    def tables_exist(self) -> None:
        """Take note that the first write is over: what waited for it begins."""
        early, self._early = self._early, None
        for read in early or ():
            read()

    def answer(
        self,
        request: Request,
        function: Callable[..., Any],
        *arguments: object,
        then: Callable[[Any], dict[str, Any]] = dict,
    ) -> object:
        """Answer with ``then(function(path, *arguments))``; before the first write there may be no tables to read."""
        read = partial(
            self._reader.submit,
            function,
            self._path,
            *arguments,
            on_done=partial(_answer, request, then),
            what=request.op,
            deadline=request.deadline,
        )
        if self._early is None:
            read()
        else:
            self._early.append(read)
        return DEFERRED


def _answer(request: Request, then: Callable[[Any], dict[str, Any]], outcome: Any) -> None:
    """Answer a request that the reader has read for."""
    if isinstance(outcome, ReliabilityError):
        request.fail(outcome.code, outcome.message, outcome.hint)
    elif isinstance(outcome, Exception):
        raise outcome
    else:
        request.reply(then(outcome))
