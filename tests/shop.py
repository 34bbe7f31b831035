"""An actor for tests of its surroundings, with one operation of each kind: ``python -m tests.shop --name=shop ...``."""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from actors.runtime.actor import Actor, Context, run_actor
from actors.runtime.arguments import ProcessArguments
from actors.runtime.operations import DEFERRED, Operation, Request
from protocol.errors import ErrorCode, ReliabilityError


class Shop(Actor):
    """Counts what it executes, and publishes the count."""

    bulk = True

    def __init__(self) -> None:
        """Begin with nothing executed."""
        self.executed = 0
        self._released = threading.Event()

    def operations(self) -> Sequence[Operation]:
        """Return one of each kind."""
        return [
            Operation("order", "counts, and returns its text and raw frames", {"text": "str"}, self._order),
            Operation("wait", "waits on the worker thread until released", {}, self._wait, blocking=True),
            Operation("release", "lets the waiting ones go", {}, self._release),
            Operation("refuse", "fails", {}, self._refuse),
            Operation("announce", "publishes", {"topic": "str", "value": "any"}, self._announce),
        ]

    def on_start(self, context: Context) -> None:
        """Keep the context."""
        self._context = context

    def status(self) -> Mapping[str, Any]:
        """Return how much was executed."""
        return {"executed": self.executed}

    def _order(self, request: Request) -> object:
        self.executed += 1
        request.reply({"text": request.arguments["text"]}, request.raw)
        return DEFERRED

    def _wait(self, request: Request) -> None:
        self._released.wait(30.0)

    def _release(self, request: Request) -> None:
        self._released.set()

    def _refuse(self, request: Request) -> None:
        raise ReliabilityError(ErrorCode.INTEGRITY, "the till does not balance", "Count again.")

    def _announce(self, request: Request) -> None:
        self._context.publish(request.arguments["topic"], request.arguments["value"])


if __name__ == "__main__":
    sys.exit(run_actor(ProcessArguments.from_argv(sys.argv[1:]), lambda _runtime: Shop()))
