"""An actor on a loop of its own, without process and broker: real worker threads, answers and publications kept."""

import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.runtime.actor import Actor
from actors.runtime.operations import DEFERRED, ArgumentRules, Request
from actors.runtime.reactor import Mailbox
from actors.runtime.worker import Worker
from protocol.errors import ErrorInfo, ReliabilityError
from protocol.severity import Severity

_KEPT: deque["Harness"] = deque()
KEPT_MAX = 8
"""A check that hangs may come back after its test and still posts its outcome: mailboxes stay open for some tests."""


@dataclass
class Asked:
    """One request and what became of it."""

    request: Request | None = None
    answered_at: float | None = None
    error: ErrorInfo | None = None
    result: dict[str, Any] = field(default_factory=dict)
    raw: Sequence[bytes] = ()

    def __call__(
        self, request: Request, error: ErrorInfo | None, result: Mapping[str, Any], raw: Sequence[bytes]
    ) -> None:
        """Take in the outcome."""
        self.answered_at = time.monotonic()
        self.error = error
        self.result = dict(result)
        self.raw = raw

    @property
    def done(self) -> bool:
        """Whether there is an outcome."""
        return self.answered_at is not None


class Harness:
    """Stands in for the loop's `Context`, and turns."""

    def __init__(self, actor: Actor) -> None:
        """Start `actor`."""
        self.actor = actor
        self.published: list[tuple[str, Any]] = []
        self.logged: list[tuple[Severity, str, str]] = []
        self.longest_turn_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._mailbox = Mailbox()
        self.register(self._mailbox.fileno(), self._mailbox.drain)
        self.worker = Worker("test", self, self._mailbox)
        _KEPT.append(self)
        if len(_KEPT) > KEPT_MAX:
            _KEPT.popleft().close()
        self._operations = {item.name: item for item in actor.operations()}
        self._requests = 0
        actor.on_start(self)  # type: ignore[arg-type]

    # --- what an actor's Context does ---

    def now(self) -> float:
        return time.monotonic()

    def publish(self, topic: str, value: Any) -> None:
        self.published.append((topic, value))

    def submit(self, function: Callable[..., Any], *arguments: Any, what: str, **options: Any) -> None:
        on_done = options.pop("on_done", None) or _raise_if_error
        self.worker.submit(function, *arguments, what=what, on_done=on_done, **options)

    def register(self, source: int, callback: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, callback)

    def log(self, severity: Severity, event_type: str, message: str, **attributes: Any) -> None:
        self.logged.append((severity, event_type, message))

    def begin_lease(self, what: str, cap_s: float) -> None:
        """Hold no lease."""

    def end_lease(self) -> None:
        """Hold no lease."""

    # --- what a test does ---

    def ask(
        self,
        op: str,
        timeout_s: float = 5.0,
        request_id: bytes | None = None,
        raw: Sequence[bytes] = (),
        **arguments: Any,
    ) -> Asked:
        """Send one request; its outcome comes in later turns."""
        self._requests += 1
        asked = Asked()
        operation = self._operations[op]
        identifier = request_id or self._requests.to_bytes(16)
        request = Request(identifier, op, arguments, raw, time.monotonic() + timeout_s, asked)
        asked.request = request
        try:
            ArgumentRules(operation).check(arguments)
            result = operation.handler(request)
            if result is not DEFERRED:
                request.reply(result)
        except ReliabilityError as error:
            request.fail(error.code, error.message, error.hint)
        return asked

    def close(self) -> None:
        """Give back the descriptors of the loop; nothing of it is used any more."""
        mailboxes = [getattr(key.data, "__self__", None) for key in self._selector.get_map().values()]
        self._selector.close()
        for mailbox in mailboxes:
            if isinstance(mailbox, Mailbox):
                mailbox.close()

    def turn(self) -> None:
        """One turn of the loop, with a tick."""
        ready = self._selector.select(0.01)
        began = time.monotonic()
        for key, _ in ready:
            key.data()
        self.actor.on_tick(self, time.monotonic())  # type: ignore[arg-type]
        self.longest_turn_s = max(self.longest_turn_s, time.monotonic() - began)

    def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Turn until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            self.turn()

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask, and return the result."""
        asked = self.ask(op, **arguments)
        self.until(lambda: asked.done)
        assert asked.error is None, asked.error
        return asked.result

    def stop(self) -> None:
        """Let the actor drain, as the loop does."""
        self.until(lambda: self.actor.on_drain(self) and self.worker.idle)  # type: ignore[arg-type]


def _raise_if_error(outcome: Any) -> None:
    if isinstance(outcome, BaseException):
        raise outcome
