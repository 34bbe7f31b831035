"""Events as lines of JSON: INTERFACES' fields, then the hash. Pure.

The attributes stand in a line letter for letter as in the table, and the order of the fields is fixed: so a line gives
back exactly what was hashed.
"""

import json
from collections.abc import Iterable
from json.encoder import encode_basestring as quote
from typing import Any, Final, NamedTuple

from actors.event_logger.records import Event, format_timestamp, parse_id, parse_timestamp
from protocol.errors import ProtocolError
from protocol.severity import Severity

_ATTRIBUTES: Final = b',"attributes":'
_HASH: Final = b',"hash":"'
_END: Final = b'"}'
_HASH_HEX: Final = 64
_TAIL_BYTES: Final = len(_HASH) + _HASH_HEX + len(_END)
_LEVELS: Final = {int(level): f'"severity_text":"{level.name}","severity_number":{int(level)}' for level in Severity}
_NAMES_MAX: Final = 1000
"""Names whose spelling is remembered."""


class Line(NamedTuple):
    """What a line says.

    Attributes:
        seq: the event's place.
        event: the event.
        hash: as written there.
    """

    seq: int
    event: Event
    hash: bytes


class LineFormat:
    """Writes lines. It remembers how a second, and names that recur, are spelt: they are most of the work."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._second = -1
        self._spelt_second = ""
        self._names: dict[str, str] = {}

    def lines(self, rows: Iterable[tuple[Any, ...]]) -> bytes:
        """Return the lines of rows: those of the table, the hash last."""
        out = []
        for seq, event_id, time_ms, severity, component, event_type, message, attributes, event_hash in rows:
            second, millisecond = divmod(time_ms, 1000)
            if second != self._second:
                self._second, self._spelt_second = second, format_timestamp(second * 1000)[:-4]
            out.append(
                f'{{"seq":{seq},"id":"{event_id.hex()}","timestamp":"{self._spelt_second}{millisecond:03d}Z",'
                f'{_LEVELS[severity]},"component":{self._name(component)},"event_type":{self._name(event_type)},'
                f'"message":{quote(message)},"attributes":{attributes},"hash":"{event_hash.hex()}"}}\n'
            )
        return "".join(out).encode()

    def _name(self, name: str) -> str:
        spelt = self._names.get(name)
        if spelt is None:
            if len(self._names) >= _NAMES_MAX:
                self._names.clear()
            spelt = self._names[name] = quote(name)
        return spelt


def seq_of(line: bytes) -> int | None:
    """Return the place that a line names, as far as its beginning is whole; quicker than parsing it."""
    begin, comma, _ = line[:32].partition(b",")
    digits = begin.removeprefix(b'{"seq":')
    return int(digits) if comma and digits.isdigit() and len(digits) < len(begin) else None


def parse_line(line: bytes) -> Line:
    """Parse a line, without its newline.

    Raises:
        ValueError: it is damaged.
    """
    begin = line.find(_ATTRIBUTES)
    end = len(line) - _TAIL_BYTES
    if begin < 0 or begin > end or not line.endswith(_END) or line[end : end + len(_HASH)] != _HASH:
        raise ValueError("no line of this log")
    try:
        fields = json.loads(line)
        event = Event(
            id=parse_id(fields["id"]),
            timestamp_ms=parse_timestamp(fields["timestamp"], "timestamp"),
            severity=Severity(fields["severity_number"]),
            component=str(fields["component"]),
            event_type=str(fields["event_type"]),
            message=str(fields["message"]),
            attributes=line[begin + len(_ATTRIBUTES) : end].decode(),
        )
        return Line(int(fields["seq"]), event, bytes.fromhex(fields["hash"]))
    except (KeyError, TypeError, RecursionError, ProtocolError) as error:
        raise ValueError(f"no line of this log: {error!r}") from None
