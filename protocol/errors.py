"""Typed errors that say whose fault it was and what to do.

`LocalError`: the caller's side - it could not be asked (nothing was executed, or nothing is known to have been).
`RemoteError`: the asked side answered with an error. Both carry a stable `code`, a message and a hint.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """Stable codes: in error replies, in JSON on stderr and in exceptions."""

    BROKER_DOWN = "broker_down"
    BROKER_HUNG = "broker_hung"
    NOT_RUNNING = "not_running"
    SERVICE_MISSING = "service_missing"
    SERVICE_UNKNOWN = "service_unknown"
    BUSY = "busy"
    DEADLINE_PASSED = "deadline_passed"
    BAD_REQUEST = "bad_request"
    BAD_VERSION = "bad_version"
    UNKNOWN_OPERATION = "unknown_operation"
    TOO_LARGE = "too_large"
    ID_CONFLICT = "id_conflict"
    REFUSED = "refused"
    DRAINING = "draining"
    FAILED = "failed"
    INTEGRITY = "integrity"
    LOCKED = "locked"
    NOT_DURABLE = "not_durable"
    USAGE = "usage"
    CONFIGURATION = "configuration"


EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BROKER_UNREACHABLE: Final = 10
EXIT_LOCKED: Final = 11
EXIT_INTEGRITY: Final = 12
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final[dict[ErrorCode, int]] = {
    ErrorCode.BROKER_DOWN: EXIT_BROKER_UNREACHABLE,
    ErrorCode.BROKER_HUNG: EXIT_BROKER_UNREACHABLE,
    ErrorCode.NOT_RUNNING: EXIT_BROKER_UNREACHABLE,
    ErrorCode.LOCKED: EXIT_LOCKED,
    ErrorCode.INTEGRITY: EXIT_INTEGRITY,
    ErrorCode.USAGE: EXIT_USAGE,
    ErrorCode.CONFIGURATION: EXIT_USAGE,
}
"""Exit code of a command that ended in this error; every other code exits `EXIT_FAILED`."""

HINTS: Final[dict[ErrorCode, str]] = {
    ErrorCode.BROKER_DOWN: "The launcher brings it back within seconds; `relctl ps` shows the processes meanwhile.",
    ErrorCode.BROKER_HUNG: "The watchdog replaces it after the hang timeout; `relctl ps` shows it meanwhile.",
    ErrorCode.NOT_RUNNING: "Start the system with `relctl up --detach` or `python launcher.py`.",
    ErrorCode.SERVICE_MISSING: "Its process is down or restarting; see `relctl ps` and `relctl restart-status`.",
    ErrorCode.SERVICE_UNKNOWN: "Check the name: `relctl ps` lists what runs.",
    ErrorCode.BUSY: "It is alive but its queue is full; try again or give more --timeout.",
    ErrorCode.DEADLINE_PASSED: "Give more --timeout; `relctl ps` shows whether the process makes progress.",
    ErrorCode.NOT_DURABLE: "Nothing is known to be kept: call again, best under the same id, once this is mended.",
}


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What an error reply carries: a code, a sentence for people, and what they can do."""

    code: str
    message: str
    hint: str = ""


class ReliabilityError(Exception):
    """Base of every error that this system raises on purpose.

    Attributes:
        code: stable identifier, a value of `ErrorCode` (or one that a foreign service chose).
        message: one sentence for people.
        hint: what to do about it; may be empty.
    """

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        """Keep `code`, `message` and `hint`; without a hint the code's own one serves."""
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.hint = hint if hint is not None else _default_hint(code)

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends in this error."""
        return EXIT_CODES.get(self.code, EXIT_FAILED)  # type: ignore[call-overload,no-any-return]

    def info(self) -> ErrorInfo:
        """Return the form that crosses the wire."""
        return ErrorInfo(self.code, self.message, self.hint)


class LocalError(ReliabilityError):
    """The fault lies on the caller's side: nobody is known to have executed anything."""


class NotDurable(LocalError):
    """Nobody keeps what the call was given, or nobody is known to: neither its owner nor the spool."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        """Say why, and what to do about it."""
        super().__init__(ErrorCode.NOT_DURABLE, message, hint)


class RemoteError(ReliabilityError):
    """The asked side, or the broker on its behalf, answered with an error."""


class ProtocolError(ReliabilityError):
    """A peer sent something that breaks the protocol. What it sent is dropped and counted."""

    def __init__(self, message: str, code: str = ErrorCode.BAD_REQUEST) -> None:
        """Keep what was wrong with the bytes."""
        super().__init__(code, message, "")


def _default_hint(code: str) -> str:
    try:
        return HINTS.get(ErrorCode(code), "")
    except ValueError:
        return ""
