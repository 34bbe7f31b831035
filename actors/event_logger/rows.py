"""The fast form of events on the wire: one frame, an array of rows, checked column by column. Pure.

A row is ``[id, timestamp_ms, severity_number, component, event_type, message, attributes]``: 16 bytes, two integers,
three texts, and the text of a JSON object. Checking a column costs a tenth of checking its values one by one: that is
where the time of a batch goes.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import msgpack

from actors.event_logger.records import (
    ATTRIBUTES_BYTES_MAX,
    EVENT_ID_BYTES,
    MESSAGE_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    TIMESTAMP_MS_MAX,
    Event,
)
from protocol.codec import check
from protocol.errors import ErrorCode, ProtocolError
from protocol.limits import NESTING_MAX
from protocol.severity import Severity

ROWS_MAX: Final = 2000
"""Rows of one frame."""
ROW_FIELDS: Final = len(Event._fields)
ATTRIBUTES_NESTING_MAX: Final = NESTING_MAX - 4
"""An answer puts them a few containers deeper."""
_SIMPLE_CONTAINERS_MAX: Final = 16
"""A text with fewer opening brackets is not nested too deep."""

_SEVERITIES: Final = {int(level): level for level in Severity}
_NAMES: Final = {True: "component", False: "event_type"}


def parse_rows(frame: bytes) -> list[Event]:
    """Parse a frame of rows.

    Raises:
        ProtocolError: `bad_request` or `too_large`, naming the first wrong row; nothing of the frame is taken then.
    """
    try:
        rows = msgpack.unpackb(frame, raw=False, use_list=False, ext_hook=_refuse_extension, max_map_len=0)
    except ProtocolError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"rows are no msgpack of plain values: {type(error).__name__} {error}".rstrip()) from None
    if type(rows) is not tuple or not rows or set(map(type, rows)) != {tuple} or set(map(len, rows)) != {ROW_FIELDS}:
        raise ProtocolError(f"rows are an array of arrays of {ROW_FIELDS}")
    if len(rows) > ROWS_MAX:
        raise ProtocolError(f"more than {ROWS_MAX} rows at once", ErrorCode.TOO_LARGE)
    ids, times_ms, severities, components, event_types, messages, attributes = zip(*rows, strict=True)
    if set(map(type, ids)) != {bytes} or set(map(len, ids)) != {EVENT_ID_BYTES}:
        _refuse(rows, 0, f"id is not {EVENT_ID_BYTES} bytes", lambda value: _is(value, bytes, EVENT_ID_BYTES))
    if set(map(type, times_ms)) != {int} or min(times_ms) < 0 or max(times_ms) > TIMESTAMP_MS_MAX:
        _refuse(rows, 1, "timestamp_ms is none", lambda value: type(value) is int and 0 <= value <= TIMESTAMP_MS_MAX)
    if set(map(type, severities)) != {int} or not set(severities) <= _SEVERITIES.keys():
        levels = ", ".join(f"{level.name} {int(level)}" for level in Severity)
        _refuse(
            rows,
            2,
            f"severity is no level; levels are {levels}",
            lambda value: type(value) is int and value in _SEVERITIES,
        )
    for place, names in ((3, components), (4, event_types)):
        # One after another only what is different: a program has few names.
        if set(map(type, names)) != {str} or not all(map(_is_name, set(names))):
            _refuse(rows, place, f"{_NAMES[place == 3]} is not a text of 1 to {NAME_CHARACTERS_MAX}", _is_name)
    if set(map(type, messages)) != {str} or max(map(len, messages)) > MESSAGE_CHARACTERS_MAX or not _is_text(messages):
        _refuse(rows, 5, f"message is not a text of at most {MESSAGE_CHARACTERS_MAX} characters", _is_message)
    if set(map(type, attributes)) != {str}:
        _refuse(rows, 6, "attributes are not a text", lambda value: type(value) is str)
    for text in set(attributes):
        if text != "{}":
            _check_attributes(text, attributes)
    levels_of = map(_SEVERITIES.__getitem__, severities)
    return list(map(Event, ids, times_ms, levels_of, components, event_types, messages, attributes))


def _is(value: object, kind: type, length: int) -> bool:
    return type(value) is kind and len(value) == length  # type: ignore[arg-type]


def _is_name(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= NAME_CHARACTERS_MAX and _is_text((value,))


def _is_message(value: object) -> bool:
    return type(value) is str and len(value) <= MESSAGE_CHARACTERS_MAX and _is_text((value,))


def _is_text(values: Sequence[str]) -> bool:
    """Tell whether a database can hold them; msgpack has refused half surrogate pairs."""
    return "\0" not in "".join(values)


def _refuse(rows: Sequence[Sequence[Any]], place: int, problem: str, good: Any) -> NoReturn:
    number = next((number for number, row in enumerate(rows) if not good(row[place])), 0)
    raise ProtocolError(f"row {number}: {problem}")


def _check_attributes(text: str, column: Sequence[str]) -> None:
    """Raise unless `text` is one JSON object, of one line, that every reader can take as it stands."""
    try:
        if len(text) > ATTRIBUTES_BYTES_MAX or (not text.isascii() and len(text.encode()) > ATTRIBUTES_BYTES_MAX):
            raise ProtocolError(f"attributes take more than {ATTRIBUTES_BYTES_MAX} bytes", ErrorCode.TOO_LARGE)
        value, end = _scan(text, 0)
        if type(value) is not dict or end != len(text) or "\n" in text or "\r" in text:
            raise ProtocolError("attributes are not the text of one JSON object on one line")
        if text.count("{") + text.count("[") > _SIMPLE_CONTAINERS_MAX:
            check(value, ATTRIBUTES_NESTING_MAX)
        if "\\u" in text:  # it can spell half a surrogate pair, and NUL
            json.dumps(value, ensure_ascii=False).encode()
    except ProtocolError as error:
        raise ProtocolError(f"row {column.index(text)}: {error.message}", error.code) from None
    except (ValueError, StopIteration, RecursionError, OverflowError) as error:
        raise ProtocolError(f"row {column.index(text)}: attributes are no JSON: {error}") from None


def _whole_number(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**64:
        raise ValueError("a whole number of more than 64 bits")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ProtocolError(f"extension type {code} may not cross the wire")


_decoder: Final[Any] = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole_number, parse_float=_number)
_scan: Final = _decoder.scan_once
"""Not `decode`: that looks for blanks around the value, in Python."""
