"""What the event log holds, and how it is parsed at the edge: requests, filters and journal entries. Pure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from protocol.errors import ErrorCode, ProtocolError
from protocol.limits import KIB
from protocol.names import NAME_LENGTH_MAX, is_valid_name
from protocol.severity import Severity, parse_severity, parse_severity_range

EVENT_ID_BYTES: Final = 16
NAME_CHARACTERS_MAX: Final = 128
"""Of `component` and `event_type`."""
MESSAGE_CHARACTERS_MAX: Final = 16 * KIB
ATTRIBUTES_BYTES_MAX: Final = 64 * KIB
TIMESTAMP_MS_MAX: Final = 253_402_300_799_999
"""The last millisecond that RFC 3339 can write."""
EMIT_EVENTS_MAX: Final = 1000
"""Events of one `emit_many`."""

QUERY_EVENTS_DEFAULT: Final = 100
QUERY_EVENTS_MAX: Final = 10_000
PATTERN_CHARACTERS_MAX: Final = 1000

TOPIC_PREFIX: Final = "event."
RESTART: Final = "restart"
RECOVERY: Final = "recovery"


class Event(NamedTuple):
    """One event, before it has a place in the log. A tuple, because tens of thousands a second are made of rows.

    Attributes:
        id: 16 bytes; an event is written once per id.
        timestamp_ms: milliseconds since 1970 UTC, for display: order is by the place in the log.
        severity: OTel level.
        component: what it is about.
        event_type: what happened, for machines.
        message: what happened, for people.
        attributes: the rest, text of a JSON object.
    """

    id: bytes
    timestamp_ms: int
    severity: Severity
    component: str
    event_type: str
    message: str
    attributes: str = "{}"

    @property
    def size_bytes(self) -> int:
        """Roughly what it takes in memory and in the database."""
        return 128 + len(self.component) + len(self.event_type) + len(self.message) + len(self.attributes)


@dataclass(frozen=True, slots=True)
class Restart:
    """The end of one life of a process.

    Attributes:
        id: 16 bytes, the journal entry's.
        timestamp_ms: when it ended.
        name: the process.
        incarnation: the life that ended.
        reason: why, in words.
        exit_code: as far as known; an adopted process has none.
        signal: that killed it, else None.
        charged: whether it counts against the restart budget.
        manual: whether a person asked for it.
        evidence: name of the evidence file; empty if there is none.
    """

    id: bytes
    timestamp_ms: int
    name: str
    incarnation: int
    reason: str
    exit_code: int | None
    signal: int | None
    charged: bool
    manual: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """The next life of a process is ready: how long it was away."""

    restart_id: bytes
    recovery_ms: int


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What one line of a journal becomes: always an event, and for restarts and recoveries a row as well.

    Attributes:
        event: in any case.
        mono_ms: monotonic time at which it was written: the order among journals.
        restart: of kind "restart".
        recovery: of kind "recovery".
    """

    event: Event
    mono_ms: int = 0
    restart: Restart | None = None
    recovery: Recovery | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to return, newest ones first to be counted against `limit`.

    Attributes:
        component: only these.
        since_ms: not before.
        until_ms: not after.
        low: lowest level.
        high: highest level.
        grep: regular expression that the message must match.
        text: text that message, component, type or attributes must contain, whatever the case of its letters.
        after_seq: only later ones; counted against `limit` from the oldest of them on.
        before_seq: only earlier ones.
        limit: how many at most.
        reverse: return the newest first.
    """

    component: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    low: Severity = Severity.TRACE
    high: Severity = Severity.FATAL
    grep: str | None = None
    text: str | None = None
    after_seq: int | None = None
    before_seq: int | None = None
    limit: int = QUERY_EVENTS_DEFAULT
    reverse: bool = False


def parse_event(fields: dict[str, Any], default_id: bytes, now_ms: int) -> Event:
    """Parse the arguments of `emit`: severity, component, event_type, message, and perhaps attributes, id, timestamp.

    Raises:
        ProtocolError: `bad_request` or `too_large`, naming the argument.
    """
    return Event(
        id=default_id if fields.get("id") is None else parse_id(fields["id"]),
        timestamp_ms=_event_time_ms(fields, now_ms),
        severity=_severity(fields.get("severity")),
        component=_text(fields, "component", NAME_CHARACTERS_MAX),
        event_type=_text(fields, "event_type", NAME_CHARACTERS_MAX),
        message=_text(fields, "message", MESSAGE_CHARACTERS_MAX, empty=True),
        attributes=_attributes(fields.get("attributes")),
    )


def parse_events(fields: dict[str, Any], default_id: bytes, now_ms: int) -> list[Event]:
    """Parse the argument of `emit_many`: events, a list of maps as for `emit`.

    Raises:
        ProtocolError: as `parse_event`; nothing of the list is taken then.
    """
    items = fields.get("events")
    if type(items) is not list or not items or not all(type(item) is dict for item in items):
        raise ProtocolError("events is not a list of maps")
    if len(items) > EMIT_EVENTS_MAX:
        raise ProtocolError(f"more than {EMIT_EVENTS_MAX} events at once", ErrorCode.TOO_LARGE)
    return [parse_event(item, derived_id(default_id, number), now_ms) for number, item in enumerate(items)]


def derived_id(request_id: bytes, number: int = 0) -> bytes:
    """Return the id of the event number `number` of a request: a request that is sent again makes no second event."""
    if number == 0 and len(request_id) == EVENT_ID_BYTES:
        return request_id
    from actors.runtime.digests import blake2b  # noqa: PLC0415 - hosts import this without need of it

    return blake2b(request_id + number.to_bytes(4), EVENT_ID_BYTES)


def parse_filter(fields: dict[str, Any]) -> EventFilter:
    """Parse the arguments of `query` and `search`.

    Raises:
        ProtocolError: `bad_request`, naming the argument.
    """
    level, since, until = fields.get("level"), fields.get("since"), fields.get("until")
    low, high = (Severity.TRACE, Severity.FATAL) if level is None else _severity_range(level)
    limit = _number(fields, "limit")
    return EventFilter(
        component=_optional_text(fields, "component", NAME_CHARACTERS_MAX),
        since_ms=None if since is None else parse_timestamp(since, "since"),
        until_ms=None if until is None else parse_timestamp(until, "until"),
        low=low,
        high=high,
        grep=_optional_text(fields, "grep", PATTERN_CHARACTERS_MAX),
        text=_optional_text(fields, "text", PATTERN_CHARACTERS_MAX),
        after_seq=_number(fields, "after_seq"),
        before_seq=_number(fields, "before_seq"),
        limit=QUERY_EVENTS_DEFAULT if limit is None else min(limit, QUERY_EVENTS_MAX),
        reverse=bool(fields.get("reverse")),
    )


def parse_journal_entry(fields: dict[str, Any]) -> JournalEntry:
    """Parse one entry of a journal (the kinds are described with the journals' writers).

    Raises:
        ProtocolError: a field is missing or wrong, or the kind is unknown.
    """
    entry_id, timestamp_ms = parse_id(fields.get("id")), parse_timestamp(fields.get("at"), "at")
    mono_ms = _number(fields, "mono_ms") or 0
    match fields.get("kind"):
        case "event":
            return JournalEntry(parse_event(fields, entry_id, timestamp_ms), mono_ms)
        case "restart":
            restart = Restart(
                id=entry_id,
                timestamp_ms=timestamp_ms,
                name=_text(fields, "name", NAME_CHARACTERS_MAX),
                incarnation=_number(fields, "incarnation") or 0,
                reason=_text(fields, "reason", MESSAGE_CHARACTERS_MAX),
                exit_code=_integer(fields, "exit_code"),
                signal=_integer(fields, "signal"),
                charged=bool(fields.get("charged")),
                manual=bool(fields.get("manual")),
                evidence=_text(fields, "evidence", NAME_CHARACTERS_MAX, empty=True) if fields.get("evidence") else "",
            )
            return JournalEntry(_restart_event(restart), mono_ms, restart=restart)
        case "recovery":
            recovery = Recovery(parse_id(fields.get("restart_id")), _number(fields, "recovery_ms") or 0)
            return JournalEntry(_recovery_event(entry_id, timestamp_ms, recovery), mono_ms, recovery=recovery)
        case kind:
            raise ProtocolError(f"kind {kind!r} is unknown")


def parse_journal_entries(entries: Iterable[dict[str, Any]]) -> tuple[list[JournalEntry], int]:
    """Parse what can be parsed; returns that and how many entries were refused."""
    parsed, refused = [], 0
    for entry in entries:
        try:
            parsed.append(parse_journal_entry(entry))
        except ProtocolError:
            refused += 1
    return parsed, refused


def parse_restart(fields: dict[str, Any], default_id: bytes, now_ms: int) -> JournalEntry:
    """Parse the arguments of `record_restart`: name, reason, and perhaps exit_code and timestamp.

    Raises:
        ProtocolError: `bad_request` or `too_large`, naming the argument.
    """
    restart = Restart(
        id=default_id if fields.get("id") is None else parse_id(fields["id"]),
        timestamp_ms=_event_time_ms(fields, now_ms),
        name=_text(fields, "name", NAME_CHARACTERS_MAX),
        incarnation=0,
        reason=_text(fields, "reason", MESSAGE_CHARACTERS_MAX),
        exit_code=_integer(fields, "exit_code"),
        signal=None,
        charged=False,
        manual=False,
        evidence="",
    )
    return JournalEntry(_restart_event(restart), restart=restart)


def event_document(seq: int, event: Event) -> dict[str, Any]:
    """Return an event as others see it: in replies, publications and on relctl's output."""
    return {
        "seq": seq,
        "id": event.id.hex(),
        "timestamp": format_timestamp(event.timestamp_ms),
        "severity_text": event.severity.name,
        "severity_number": int(event.severity),
        "component": event.component,
        "event_type": event.event_type,
        "message": event.message,
        "attributes": json.loads(event.attributes),
    }


def topic_of(component: str) -> str:
    """Return the topic of a component's events: names that no topic can have are cut and their characters replaced."""
    topic = (TOPIC_PREFIX + component)[:NAME_LENGTH_MAX]
    if is_valid_name(topic):
        return topic
    return "".join(character if is_valid_name(character) else "_" for character in topic)


def format_timestamp(milliseconds: int) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC).isoformat()
    return f"{moment[:19]}.{milliseconds % 1000:03d}Z"


def parse_timestamp(text: object, label: str) -> int:
    """Return the milliseconds since 1970 of an RFC 3339 time; one without an offset is UTC.

    Raises:
        ProtocolError: it is none; `label` names the argument.
    """
    if type(text) is str:
        try:
            moment = datetime.fromisoformat(text)
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return round(aware.timestamp() * 1000)
        except (ValueError, OverflowError):
            pass
    raise ProtocolError(f"{label} is not an RFC 3339 time such as 2026-11-01T10:00:00Z")


def parse_id(text: object) -> bytes:
    """Return the bytes of an id, given as such or written as 32 hexadecimal digits.

    Raises:
        ProtocolError: it is none.
    """
    if type(text) is bytes and len(text) == EVENT_ID_BYTES:
        return text
    if type(text) is str and len(text) == 2 * EVENT_ID_BYTES:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    raise ProtocolError("id is not 32 hexadecimal digits")


def _restart_event(restart: Restart) -> Event:
    attributes = {
        "incarnation": restart.incarnation,
        "exit_code": restart.exit_code,
        "signal": restart.signal,
        "charged": restart.charged,
        "manual": restart.manual,
        "evidence": restart.evidence,
    }
    return Event(
        id=restart.id,
        timestamp_ms=restart.timestamp_ms,
        severity=Severity.NOTICE if restart.manual else Severity.WARN,
        component=restart.name,
        event_type=RESTART,
        message=f"{restart.name}: {restart.reason}",
        attributes=json.dumps(attributes),
    )


def _recovery_event(entry_id: bytes, timestamp_ms: int, recovery: Recovery) -> Event:
    """The component is filled in by the store, which knows whose restart it was."""
    attributes = {"restart_id": recovery.restart_id.hex(), "recovery_ms": recovery.recovery_ms}
    message = f"ready again after {recovery.recovery_ms} ms"
    return Event(entry_id, timestamp_ms, Severity.NOTICE, "launcher", RECOVERY, message, json.dumps(attributes))


def _event_time_ms(fields: dict[str, Any], now_ms: int) -> int:
    if fields.get("timestamp") is not None:
        return parse_timestamp(fields["timestamp"], "timestamp")
    time_ms = _number(fields, "timestamp_ms")
    if time_ms is not None and time_ms > TIMESTAMP_MS_MAX:
        raise ProtocolError("timestamp_ms is beyond the year 9999")
    return now_ms if time_ms is None else time_ms


def _severity(text: object) -> Severity:
    try:
        return parse_severity(text) if type(text) is str else Severity(text)  # type: ignore[arg-type]
    except ValueError:
        levels = ", ".join(Severity.__members__)
        raise ProtocolError(f"severity {str(text)[:40]!r} is no level; levels are {levels}") from None


def _severity_range(text: object) -> tuple[Severity, Severity]:
    if type(text) is not str:
        raise ProtocolError("level is not a text")
    try:
        return parse_severity_range(text[:100])
    except ValueError as error:
        raise ProtocolError(f"level: {error}") from None


def _text(fields: dict[str, Any], key: str, characters_max: int, *, empty: bool = False) -> str:
    value = fields.get(key)
    if type(value) is not str or not (value or empty):
        raise ProtocolError(f"{key} is not a {'' if empty else 'non-empty '}text")
    if len(value) > characters_max:
        raise ProtocolError(f"{key} is longer than {characters_max} characters", ErrorCode.TOO_LARGE)
    if "\0" in value or not _is_unicode(value):
        raise ProtocolError(f"{key} holds characters that no text has")
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and no database stores
        return False
    return True


def _optional_text(fields: dict[str, Any], key: str, characters_max: int) -> str | None:
    return None if fields.get(key) is None else _text(fields, key, characters_max)


def _number(fields: dict[str, Any], key: str) -> int | None:
    value = _integer(fields, key)
    if value is not None and value < 0:
        raise ProtocolError(f"{key} is below 0")
    return value


def _integer(fields: dict[str, Any], key: str) -> int | None:
    value = fields.get(key)
    if value is not None and (type(value) is not int or not -(2**63) <= value < 2**63):
        raise ProtocolError(f"{key} is not a whole number")
    return value


def _attributes(value: object) -> str:
    if value is None or value == {}:
        return "{}"
    if type(value) is not dict:
        raise ProtocolError("attributes is not a map")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size_bytes = len(text.encode())
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"attributes hold what JSON cannot: {error}") from None
    if size_bytes > ATTRIBUTES_BYTES_MAX:
        raise ProtocolError(f"attributes take more than {ATTRIBUTES_BYTES_MAX} bytes", ErrorCode.TOO_LARGE)
    return text
