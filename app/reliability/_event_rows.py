"""Events as rows of the wire (`emit_rows` of event_logger), made so that event_logger never refuses one.

A row is ``[id, timestamp_ms, severity, component, event_type, message, attributes]``. Whoever logs has better things to
do than to mind what a log can hold: texts that are too long are cut, characters that no text has are replaced, values
that JSON has no form for become their `str`. Only what cannot be mended is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from protocol.errors import ErrorCode, ProtocolError
from protocol.limits import KIB
from protocol.severity import Severity, parse_severity

NAME_CHARACTERS_MAX: Final = 128
MESSAGE_CHARACTERS_MAX: Final = 16 * KIB
ATTRIBUTES_BYTES_MAX: Final = 64 * KIB
ATTRIBUTES_NESTING_MAX: Final = 24
"""What event_logger takes, a little less."""
ROW_BYTES: Final = 64
"""What a row takes beside its texts."""
_CUT: Final = " …[cut]"
_BRACKETS_MAX: Final = 16
_LONG_NUMBER: Final = re.compile(r"\d{19}")
_INTEGER_MAX: Final = 2**63

Row = tuple[bytes, int, int, str, str, str, str]

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_severities: Final[dict[object, int]] = {severity.name: int(severity) for severity in Severity}


def make_row(
    event_id: bytes,
    timestamp_ms: int,
    level: str | int,
    component: str,
    event_type: str,
    message: str,
    details: Mapping[str, Any] | None,
) -> Row:
    """Return the row of one event.

    Raises:
        ProtocolError: there is no such level, component or event type are empty or no texts, or the details are no map,
            or too large.
    """
    if not details:
        attributes = "{}"
    elif not isinstance(details, Mapping):
        raise ProtocolError("details are not a map")
    else:
        attributes = attributes_of(details)
    return (
        event_id,
        timestamp_ms,
        _severities.get(level) or _severity(level),
        text_of("component", component),
        text_of("event_type", event_type),
        message_of(message),
        attributes,
    )


def row_bytes(row: Row) -> int:
    """Return about what a row takes in a frame."""
    return ROW_BYTES + sum(len(text) if text.isascii() else len(text.encode()) for text in row[3:])


def text_of(label: str, text: object) -> str:
    """Return a name as the log can hold it.

    Raises:
        ProtocolError: it is none.
    """
    if type(text) is not str or not text:
        if not isinstance(text, str) or not text:
            raise ProtocolError(f"{label} is not a non-empty text")
        text = str(text)
    if len(text) > NAME_CHARACTERS_MAX:
        text = text[: NAME_CHARACTERS_MAX - 1] + "…"
    return text if text.isascii() and "\0" not in text else clean(text)


def message_of(message: object) -> str:
    """Return a message as the log can hold it."""
    text = message if type(message) is str else str(message)
    if len(text) > MESSAGE_CHARACTERS_MAX:
        text = text[: MESSAGE_CHARACTERS_MAX - len(_CUT)] + _CUT
    return text if text.isascii() and "\0" not in text else clean(text)


def attributes_of(details: Mapping[str, Any]) -> str:
    """Return the text of a JSON object of `details`.

    Raises:
        ProtocolError: it is too large.
    """
    try:
        text = _encode(details if type(details) is dict else dict(details))
        strange = (
            text.count("{") + text.count("[") > _BRACKETS_MAX or _LONG_NUMBER.search(text) is not None or "\\u" in text
        )
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, RecursionError):
        strange, size_bytes, text = True, 0, ""
    if strange:
        text = _encode(_plain(details, ATTRIBUTES_NESTING_MAX))
        size_bytes = len(text.encode())
    if size_bytes > ATTRIBUTES_BYTES_MAX:
        raise ProtocolError(
            f"details take {size_bytes} bytes; {ATTRIBUTES_BYTES_MAX} are the most", ErrorCode.TOO_LARGE
        )
    return text


def clean(text: str) -> str:
    """Return `text` without what no text has: halves of surrogate pairs, NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\0", "\N{SYMBOL FOR NULL}")


def _plain(value: Any, depth: int) -> Any:
    """Return `value` as what JSON has, not deeper than `depth`."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return clean(str(value))
    if isinstance(value, int):
        number = int(value)
        return number if -_INTEGER_MAX <= number < _INTEGER_MAX else hex(number)  # decimals of any length are refused
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping) and depth > 0:
        return {clean(str(key)): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth > 0:
        return [_plain(item, depth - 1) for item in value]
    try:
        return clean(str(value))
    except Exception as error:  # noqa: BLE001 - somebody else's __str__: the event matters more than this value
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _severity(level: object) -> int:
    try:
        found = parse_severity(level) if isinstance(level, str) else Severity(level)  # type: ignore[arg-type]
    except ValueError:
        levels = ", ".join(Severity.__members__)
        raise ProtocolError(f"{str(level)[:40]!r} is no level; levels are {levels}") from None
    return int(found)
