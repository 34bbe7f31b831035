"""The messages themselves, as frozen dataclasses, and their headers' encoding.

A request body is ``[header, arguments, *raw]``: a msgpack header map, a msgpack arguments map, then optional raw
bytes that nobody in between copies or parses. A reply body is ``[header, result, *raw]``. Keys of the header maps:

========== ======== ==============================================================================================
key        request  meaning
========== ======== ==============================================================================================
v          both     protocol version
id         both     8 to 32 bytes, chosen by the client; a retry carries the same one and takes effect once
op         request  operation of the service
deadline_ms request absolute, on the machine's monotonic clock: a relative one would revive after a freeze
trace_id   request  optional, 16 bytes (OTel)
span_id    request  optional, 8 bytes (OTel)
error      reply    absent, or a map of code, message, hint
========== ======== ==============================================================================================
"""

from dataclasses import dataclass
from typing import Any

from protocol import limits
from protocol.codec import pack, unpack
from protocol.errors import ErrorCode, ErrorInfo, ProtocolError
from protocol.names import PROTOCOL_VERSION, is_valid_name


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """Head of a request; `deadline_ms` is absolute on the monotonic clock."""

    id: bytes
    op: str
    deadline_ms: int
    trace_id: bytes | None = None
    span_id: bytes | None = None

    def encode(self) -> bytes:
        """Return the header frame."""
        fields: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": self.id, "op": self.op, "deadline_ms": self.deadline_ms}
        if self.trace_id is not None:
            fields["trace_id"] = self.trace_id
        if self.span_id is not None:
            fields["span_id"] = self.span_id
        return pack(fields)


@dataclass(frozen=True, slots=True)
class ReplyHeader:
    """Head of a reply: the request's id, and the error if it failed."""

    id: bytes
    error: ErrorInfo | None = None

    def encode(self) -> bytes:
        """Return the header frame."""
        if self.error is None:
            return pack({"v": PROTOCOL_VERSION, "id": self.id})
        text = limits.ERROR_TEXT_CHARACTERS_MAX
        error = {"code": str(self.error.code), "message": self.error.message[:text], "hint": self.error.hint[:text]}
        return pack({"v": PROTOCOL_VERSION, "id": self.id, "error": error})


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """The extra frame of our workers' READY.

    `token` proves that the worker belongs to this installation, `incarnation` outranks any lower one of the same
    service, and `window` is how many requests it takes at once.
    """

    token: bytes
    incarnation: int
    window: int

    def encode(self) -> bytes:
        """Return the frame."""
        return pack({"token": self.token, "incarnation": self.incarnation, "window": self.window})


def decode_request_header(frame: bytes) -> RequestHeader:
    """Parse a request's header frame.

    Raises:
        ProtocolError: with `bad_version` for another version, else `bad_request`.
    """
    fields = _decode_map(frame)
    _check_version(fields)
    request_id, op, deadline_ms = fields.get("id"), fields.get("op"), fields.get("deadline_ms")
    _check_id(request_id)
    if type(op) is not str or not is_valid_name(op):
        raise ProtocolError("op is not a valid name")
    if type(deadline_ms) is not int or deadline_ms < 0:
        raise ProtocolError("deadline_ms is not a whole number of milliseconds")
    trace_id, span_id = fields.get("trace_id"), fields.get("span_id")
    for value in (trace_id, span_id):
        if value is not None and (type(value) is not bytes or len(value) > limits.ID_BYTES_MAX):
            raise ProtocolError("trace_id and span_id are short bytes")
    return RequestHeader(request_id, op, deadline_ms, trace_id, span_id)  # type: ignore[arg-type]


def decode_reply_header(frame: bytes) -> ReplyHeader:
    """Parse a reply's header frame.

    Raises:
        ProtocolError: as for requests.
    """
    fields = _decode_map(frame)
    _check_version(fields)
    _check_id(fields.get("id"))
    error = fields.get("error")
    if error is None:
        return ReplyHeader(fields["id"])
    if type(error) is not dict or type(error.get("code")) is not str:
        raise ProtocolError("error is not a map with a code")
    message, hint = error.get("message", ""), error.get("hint", "")
    if type(message) is not str or type(hint) is not str:
        raise ProtocolError("error message and hint are strings")
    return ReplyHeader(fields["id"], ErrorInfo(error["code"], message, hint))


def decode_worker_hello(frame: bytes) -> WorkerHello:
    """Parse the extra frame of a READY.

    Raises:
        ProtocolError: a field is missing or out of bounds.
    """
    fields = _decode_map(frame)
    token, incarnation, window = fields.get("token"), fields.get("incarnation"), fields.get("window")
    if type(token) is not bytes or type(incarnation) is not int or type(window) is not int:
        raise ProtocolError("a worker's hello needs token, incarnation and window")
    if incarnation < 0 or not 1 <= window <= limits.WINDOW_MAX:
        raise ProtocolError(f"incarnation below 0 or window outside 1..{limits.WINDOW_MAX}")
    return WorkerHello(token, incarnation, window)


def decode_arguments(frame: bytes, bytes_max: int = limits.CONTROL_FRAME_BYTES_MAX) -> dict[str, Any]:
    """Parse an arguments frame: a map, or nothing for an empty frame.

    Raises:
        ProtocolError: not a map, or outside the bounds of `protocol.codec`.
    """
    if not frame:
        return {}
    value = unpack(frame, bytes_max)
    if type(value) is not dict:
        raise ProtocolError("arguments are a map")
    return value


def _decode_map(frame: bytes) -> dict[str, Any]:
    value = unpack(frame, limits.HEADER_BYTES_MAX, nesting_max=2)
    if type(value) is not dict or len(value) > limits.HEADER_ENTRIES_MAX:
        raise ProtocolError(f"a header is a map of at most {limits.HEADER_ENTRIES_MAX} entries")
    return value


def _check_version(fields: dict[str, Any]) -> None:
    if fields.get("v") != PROTOCOL_VERSION:
        raise ProtocolError(f"protocol version {fields.get('v')!r} is not {PROTOCOL_VERSION}", ErrorCode.BAD_VERSION)


def _check_id(value: object) -> None:
    if type(value) is not bytes or not limits.ID_BYTES_MIN <= len(value) <= limits.ID_BYTES_MAX:
        raise ProtocolError(f"id is not {limits.ID_BYTES_MIN} to {limits.ID_BYTES_MAX} bytes")
