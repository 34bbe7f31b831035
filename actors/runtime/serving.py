"""What a request meets in an actor, from its arrival to its answer.

In this order: malformed, expired, one of `ping`, `status` and `describe` (always answered by the loop itself, whatever
the worker thread is doing), unknown operation, draining, a repetition (`RequestBook`), arguments that break their
declaration, the handler. What a handler raises as `ReliabilityError` becomes the reply; any other exception is a fault
of ours and leaves through the loop.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

from actors.runtime.operations import (
    DEFERRED,
    ArgumentRules,
    Operation,
    Request,
    describe,
    unknown_operation,
)
from actors.runtime.requests import Admission, Frames, RequestBook
from actors.runtime.transport import FRAME_BYTES_MAX, Lane
from actors.runtime.version import VERSION
from actors.runtime.worker import Worker
from protocol import limits, mdp
from protocol.codec import pack
from protocol.errors import ErrorCode, ErrorInfo, ProtocolError, ReliabilityError
from protocol.messages import ReplyHeader, RequestHeader, decode_arguments, decode_request_header
from protocol.names import COMMON_OPS, OP_DESCRIBE, OP_PING

_UNKNOWN_ID: Final = bytes(limits.ID_BYTES)
_NEVER_BEGAN: Final = frozenset({ErrorCode.BUSY, ErrorCode.DRAINING, ErrorCode.DEADLINE_PASSED})
"""Outcomes that are not remembered: a repetition may well be executed."""
_BYTES_MAX: Final = {Lane.CONTROL: limits.CONTROL_MESSAGE_BYTES_MAX, Lane.BULK: limits.BULK_MESSAGE_BYTES_MAX}
_FRAMES_MAX: Final = {Lane.CONTROL: limits.CONTROL_FRAMES_MAX, Lane.BULK: limits.BULK_FRAMES_MAX}
_ENVELOPE_FRAMES: Final = 4
_ENVELOPE_BYTES: Final = limits.KIB


class Draining(Enum):
    """What becomes of a request that would have to be begun."""

    NO = "it is executed"
    HAND_OVER = "it is left unanswered: at our DISCONNECT the broker gives it to our successor"
    REFUSE = "it is answered `draining`: the system stops, there will be no successor"


class ReplyPath(Protocol):
    """Where requests come from and answers go: a `BrokerConnection`."""

    @property
    def lane(self) -> Lane:
        """The lane, for its bounds."""

    def send(self, frames: list[bytes]) -> None:
        """Send without blocking."""


@dataclass(frozen=True, slots=True)
class _Served:
    operation: Operation
    rules: ArgumentRules


class Service:
    """Answers the requests of one actor.

    Attributes:
        counters: what came and what became of it, by name.
        draining: whether and how requests that have not begun are turned away.
    """

    def __init__(
        self,
        name: str,
        operations: Sequence[Operation],
        window: int,
        worker: Worker,
        *,
        status: Callable[[], dict[str, Any]],
        announce: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """Serve `operations` as `name`.

        Args:
            name: the service.
            operations: what it does besides what the loop answers.
            window: requests that it takes at once, for `describe`.
            worker: runs the blocking ones.
            status: makes the answer to `status`.
            announce: is told what comes next, before it is done; evidence in case it never ends.
            clock: monotonic seconds.

        Raises:
            ValueError: an argument is declared without a type, or an operation has a name that the loop answers.
        """
        for operation in operations:
            if operation.name in COMMON_OPS:
                raise ValueError(f"{operation.name!r} is answered by the loop")
        self.counters: Counter[str] = Counter()
        self.draining = Draining.NO
        self._name = name
        self._served = {item.name: _Served(item, ArgumentRules(item)) for item in operations}
        self._description = describe(name, operations, VERSION, window)
        self._worker = worker
        self._status = status
        self._announce = announce
        self._clock = clock
        self._books: dict[ReplyPath, RequestBook] = {}

    @property
    def running_count(self) -> int:
        """Requests under way."""
        return sum(book.running_count for book in self._books.values())

    def disconnected(self, path: ReplyPath) -> None:
        """Take in that `path` leads to another broker than before."""
        self._book(path).disconnected()

    def forget(self) -> None:
        """Drop what nobody waits for any more; once in a while."""
        for book in self._books.values():
            self.counters["given_up"] += book.forget(self._clock())

    def receive(self, path: ReplyPath, address: bytes, body: list[bytes]) -> None:
        """Take in one request; `address` is the broker's name for it."""
        self.counters["received"] += 1
        try:
            header = decode_request_header(body[0])
        except ProtocolError as error:
            self._refuse(path, address, _UNKNOWN_ID, error.info(), "malformed")
            return
        self._announce(header.op)
        if self._clock() * 1000 >= header.deadline_ms:
            late = ErrorInfo(ErrorCode.DEADLINE_PASSED, f"the request reached {self._name} after its deadline")
            self._refuse(path, address, header.id, late, "expired")
        elif header.op in COMMON_OPS:
            self.counters["answered"] += 1
            self._send(path, [address], self._encode(path, header.id, None, self._common(header.op), ()))
        elif header.op not in self._served:
            self._refuse(path, address, header.id, unknown_operation(self._name, header.op), "refused")
        else:
            self._admit(path, address, header, body)

    def _common(self, op: str) -> Mapping[str, Any]:
        if op == OP_PING:
            return {"name": self._name}
        return self._description if op == OP_DESCRIBE else self._status()

    def _admit(self, path: ReplyPath, address: bytes, header: RequestHeader, body: list[bytes]) -> None:
        arguments, raw = (body[1], body[2:]) if len(body) > 1 else (b"", [])
        book = self._book(path)
        if self.draining is not Draining.NO and not book.knows(header.id):
            self.counters["turned_away"] += 1
            if self.draining is Draining.REFUSE:
                stopping = ErrorInfo(ErrorCode.DRAINING, f"{self._name} is stopping")
                self._refuse(path, address, header.id, stopping, "refused")
            return
        content = hash((header.op, arguments, *map(len, raw)))
        deadline = header.deadline_ms / 1000
        match book.admit(header.id, content, address, deadline, self._clock()):
            case Admission.RUN:
                self._execute(path, header, arguments, raw, deadline)
            case Admission.JOINED:
                self.counters["repeated"] += 1
            case Admission.REPLAYED:
                self.counters["repeated"] += 1
                self._send(path, [address], book.outcome(header.id))
            case Admission.CONFLICT:
                conflict = ErrorInfo(ErrorCode.ID_CONFLICT, "this id was used for another request")
                self._refuse(path, address, header.id, conflict, "refused")
            case Admission.FULL:
                full = ErrorInfo(ErrorCode.BUSY, f"{self._name} has {book.running_count} requests under way")
                self._refuse(path, address, header.id, full, "refused")

    def _execute(
        self, path: ReplyPath, header: RequestHeader, frame: bytes, raw: Sequence[bytes], deadline: float
    ) -> None:
        served = self._served[header.op]
        request = Request(header.id, header.op, {}, raw, deadline, partial(self._answer, path))
        try:
            request.arguments = decode_arguments(frame, FRAME_BYTES_MAX[path.lane])
            served.rules.check(request.arguments)
            if not served.operation.blocking:
                result = served.operation.handler(request)
                if result is not DEFERRED:
                    request.reply(result)
                return
            self._worker.submit(
                served.operation.handler,
                request,
                on_done=partial(self._blocking_done, request),
                what=f"{self._name}.{header.op}",
                lease_cap_s=served.operation.lease_cap_s,
                deadline=deadline,
            )
        except ReliabilityError as error:
            request.fail(error.code, error.message, error.hint)

    def _blocking_done(self, request: Request, outcome: Any) -> None:
        if isinstance(outcome, ReliabilityError):
            request.fail(outcome.code, outcome.message, outcome.hint)
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            request.reply(outcome)

    def _answer(
        self,
        path: ReplyPath,
        request: Request,
        error: ErrorInfo | None,
        result: Mapping[str, Any],
        raw: Sequence[bytes],
    ) -> None:
        self.counters["answered" if error is None else f"error_{error.code}"] += 1
        frames = self._encode(path, request.id, error, result, raw)
        remember = error is None or error.code not in _NEVER_BEGAN
        self._send(path, self._book(path).finish(request.id, frames, self._clock(), remember=remember), frames)

    def _refuse(self, path: ReplyPath, address: bytes, request_id: bytes, error: ErrorInfo, counter: str) -> None:
        self.counters[counter] += 1
        self._send(path, [address], self._encode(path, request_id, error, {}, ()))

    def _encode(
        self,
        path: ReplyPath,
        request_id: bytes,
        error: ErrorInfo | None,
        result: Mapping[str, Any],
        raw: Sequence[bytes],
    ) -> Frames:
        try:
            frames = (ReplyHeader(request_id, error).encode(), pack(dict(result)), *raw)
        except ProtocolError as problem:
            error = ErrorInfo(ErrorCode.FAILED, f"{self._name} made an answer that {problem.message}")
            return ReplyHeader(request_id, error).encode(), pack({})
        lane = path.lane
        if (
            max(map(len, frames)) <= FRAME_BYTES_MAX[lane]
            and sum(map(len, frames)) <= _BYTES_MAX[lane] - _ENVELOPE_BYTES
            and len(frames) <= _FRAMES_MAX[lane] - _ENVELOPE_FRAMES
        ):
            return frames
        hint = f"Ask for less; an answer has at most {FRAME_BYTES_MAX[lane]} bytes on this lane."
        error = ErrorInfo(ErrorCode.TOO_LARGE, f"the answer has {sum(map(len, frames))} bytes", hint)
        return ReplyHeader(request_id, error).encode(), pack({})

    def _send(self, path: ReplyPath, addresses: Sequence[bytes], frames: Frames) -> None:
        for address in addresses:
            path.send(mdp.final(address, *frames))

    def _book(self, path: ReplyPath) -> RequestBook:
        book = self._books.get(path)
        if book is None:
            book = self._books[path] = RequestBook()
        return book
