"""What an actor answers: operations, their arguments' rules, and one request. Pure.

An argument is declared by a text, ``TYPE``, ``TYPE?`` (may be left out) or either with a unit or a note after a blank:
``"str"``, ``"float? seconds"``, ``"list? of names"``. Types are those that cross the wire: str, int (64 bits), float
(finite; an int will do), bool, bytes, list, map, any. What arrives is held to the declaration before a handler sees it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from protocol.errors import ErrorCode, ErrorInfo, ProtocolError

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_TYPES: Final[Mapping[str, frozenset[type]]] = {
    "str": frozenset({str}),
    "int": frozenset({int}),
    "float": frozenset({float, int}),
    "bool": frozenset({bool}),
    "bytes": frozenset({bytes}),
    "list": frozenset({list}),
    "map": frozenset({dict}),
    "any": frozenset({type(None), str, int, float, bool, bytes, list, dict}),
}
LEASE_CAP_DEFAULT_S: Final = 60.0
WINDOW_DEFAULT: Final = 64


class _Deferred:
    """The type of `DEFERRED`."""


DEFERRED: Final = _Deferred()
"""What a handler returns when it has kept the request and will answer it later."""


class Answer(Protocol):
    """How a request's outcome leaves: called once, on the message loop."""

    def __call__(
        self, request: "Request", error: ErrorInfo | None, result: Mapping[str, Any], raw: Sequence[bytes]
    ) -> None:
        """Send the outcome."""


class Request:
    """One request as a handler sees it. Loop thread only, except that a blocking handler may read it.

    Attributes:
        id: the client's id; a repetition carries the same and is not executed again.
        op: the operation's name.
        arguments: checked against the operation's declaration.
        raw: frames behind the arguments, unparsed.
        deadline: monotonic seconds; work that has not begun by then must not begin.
        answered: whether `reply` or `fail` was called.
    """

    __slots__ = ("_answer", "answered", "arguments", "deadline", "id", "op", "raw")

    def __init__(
        self,
        request_id: bytes,
        op: str,
        arguments: dict[str, Any],
        raw: Sequence[bytes],
        deadline: float,
        answer: Answer,
    ) -> None:
        """Hold what came and how to answer it."""
        self.id = request_id
        self.op = op
        self.arguments = arguments
        self.raw = raw
        self.deadline = deadline
        self.answered = False
        self._answer = answer

    def reply(self, result: Mapping[str, Any] | None = None, raw: Sequence[bytes] = ()) -> None:
        """Answer with a result."""
        self._finish(None, result or {}, raw)

    def fail(self, code: str, message: str, hint: str = "") -> None:
        """Answer with an error."""
        self._finish(ErrorInfo(code, message, hint), {}, ())

    def _finish(self, error: ErrorInfo | None, result: Mapping[str, Any], raw: Sequence[bytes]) -> None:
        if self.answered:
            raise RuntimeError(f"request {self.id.hex()} ({self.op}) was answered twice")
        self.answered = True
        self._answer(self, error, result, raw)


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that an actor does on request.

    Attributes:
        name: as in a request's `op`.
        summary: one line for people.
        arguments: name to declaration, as the module says.
        handler: returns the result (a map, or None for an empty one), or `DEFERRED` to answer later. What goes wrong in
            the world it raises as a `ReliabilityError`, which becomes the reply; any other exception is a fault of ours
            and ends the process.
        blocking: run it on the worker thread: anything that touches a disk, a name server or another process.
        lease_cap_s: a blocking run that takes longer counts as stuck.
    """

    name: str
    summary: str
    arguments: Mapping[str, str]
    handler: Callable[[Request], Any]
    blocking: bool = False
    lease_cap_s: float = LEASE_CAP_DEFAULT_S


@dataclass(frozen=True, slots=True)
class _Rule:
    types: frozenset[type]
    optional: bool
    declared: str


class ArgumentRules:
    """The checked form of one operation's declarations."""

    def __init__(self, operation: Operation) -> None:
        """Parse the declarations.

        Raises:
            ValueError: one of them names no type.
        """
        self._op = operation.name
        self._rules = {name: _parse_rule(name, text) for name, text in operation.arguments.items()}
        self._required = frozenset(name for name, rule in self._rules.items() if not rule.optional)

    def check(self, arguments: dict[str, Any]) -> None:
        """Hold what a client sent to the declaration. None for an optional argument counts as left out.

        Raises:
            ProtocolError: naming the first argument that is unknown, missing or of a wrong type.
        """
        for name, value in list(arguments.items()):
            rule = self._rules.get(name)
            if rule is None:
                known = ", ".join(self._rules) or "none"
                raise ProtocolError(f"{self._op} has no argument {name!r}; it has {known}")
            if value is None and rule.optional:
                del arguments[name]
            elif type(value) not in rule.types or not _is_in_range(value):
                raise ProtocolError(f"argument {name!r} of {self._op} is not {rule.declared!r}")
        for name in self._required:
            if name not in arguments:
                raise ProtocolError(f"{self._op} needs the argument {name!r}")


def describe(service: str, operations: Sequence[Operation], version: str, window: int) -> dict[str, Any]:
    """Return the answer to `describe`."""
    return {
        "service": service,
        "version": version,
        "window": window,
        "operations": [
            {"name": item.name, "summary": item.summary, "arguments": dict(item.arguments), "blocking": item.blocking}
            for item in operations
        ],
    }


def unknown_operation(service: str, op: str) -> ErrorInfo:
    """Return the error for an operation that `service` does not have."""
    return ErrorInfo(ErrorCode.UNKNOWN_OPERATION, f"{service} has no operation {op!r}", "Ask it to `describe` itself.")


def _parse_rule(name: str, declared: str) -> _Rule:
    word = declared.partition(" ")[0]
    kind = word.removesuffix("?")
    if kind not in _TYPES:
        raise ValueError(f"argument {name!r} is declared {declared!r}; types are {', '.join(_TYPES)}")
    return _Rule(_TYPES[kind], word.endswith("?"), declared)


def _is_in_range(value: object) -> bool:
    if type(value) is int:
        return _INT64_MIN <= value <= _INT64_MAX
    return type(value) is not float or math.isfinite(value)
