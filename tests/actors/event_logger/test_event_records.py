"""Parsing at the edge: events, filters and journal entries."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from actors.event_logger.records import (
    ATTRIBUTES_BYTES_MAX,
    EMIT_EVENTS_MAX,
    Event,
    derived_id,
    event_document,
    format_timestamp,
    parse_event,
    parse_events,
    parse_filter,
    parse_journal_entries,
    parse_journal_entry,
    parse_timestamp,
    topic_of,
)
from protocol.errors import ErrorCode, ProtocolError
from protocol.names import NAME_LENGTH_MAX
from protocol.severity import Severity

ID = bytes(range(16))
FIELDS = {"severity": "warning", "component": "shop", "event_type": "order_paid", "message": "order 7"}


def test_an_event_takes_defaults_for_id_time_and_attributes() -> None:
    assert parse_event(FIELDS, ID, 1_000) == Event(ID, 1_000, Severity.WARN, "shop", "order_paid", "order 7", "{}")


def test_an_event_may_bring_its_id_time_and_attributes() -> None:
    extra = {
        "id": "ff" * 16,
        "timestamp": "2026-11-01T10:00:00.5+01:00",
        "attributes": {"größe": [1, None, {"a": 2.5}]},
    }
    event = parse_event(FIELDS | extra, ID, 1_000)
    document = event_document(9, event)
    assert document == {
        "seq": 9,
        "id": "ff" * 16,
        "timestamp": "2026-11-01T09:00:00.500Z",
        "severity_text": "WARN",
        "severity_number": 13,
        "component": "shop",
        "event_type": "order_paid",
        "message": "order 7",
        "attributes": {"größe": [1, None, {"a": 2.5}]},
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"severity": "LOUD"}, "severity"),
        ({"severity": None}, "severity"),
        ({"component": ""}, "component"),
        ({"component": 7}, "component"),
        ({"component": "x" * 129}, "component"),
        ({"event_type": "a\0b"}, "event_type"),
        ({"message": "half a pair \ud800"}, "message"),
        ({"message": "x" * 20_000}, "message"),
        ({"id": "ff"}, "id"),
        ({"id": "zz" * 16}, "id"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"attributes": [1]}, "attributes"),
        ({"attributes": {"blob": b"x"}}, "attributes"),
        ({"attributes": {"x": math.nan}}, "attributes"),
        ({"attributes": {"x": "x" * ATTRIBUTES_BYTES_MAX}}, "attributes"),
    ],
)
def test_a_wrong_argument_is_refused_and_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ProtocolError, match=named):
        parse_event(FIELDS | change, ID, 0)


def test_the_events_of_one_request_have_ids_of_their_own_and_the_same_ones_when_it_is_sent_again() -> None:
    first = parse_events({"events": [FIELDS, FIELDS | {"id": "ee" * 16}, FIELDS]}, ID, 0)
    again = parse_events({"events": [FIELDS, FIELDS | {"id": "ee" * 16}, FIELDS]}, ID, 99)
    assert [event.id for event in first] == [event.id for event in again]
    assert len({event.id for event in first}) == 3
    assert derived_id(b"short id") != derived_id(b"short id", 1)


def test_digests_load_no_openssl_and_are_those_of_hashlib() -> None:
    program = (
        "import sys; from actors.runtime.digests import blake2b; digest = blake2b(b'text', 16)\n"
        "assert '_hashlib' not in sys.modules; import _hashlib\n"
        "print(digest.hex())"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == hashlib.blake2b(b"text", digest_size=16).hexdigest()


def test_what_a_host_imports_leaves_its_hashlib_alone() -> None:
    program = "import sys; import actors.event_logger.queries\nassert 'actors.runtime.digests' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True)


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([], ErrorCode.BAD_REQUEST),
        ("x", ErrorCode.BAD_REQUEST),
        ([1], ErrorCode.BAD_REQUEST),
        ([FIELDS] * (EMIT_EVENTS_MAX + 1), ErrorCode.TOO_LARGE),
    ],
)
def test_a_list_of_events_is_bounded_and_typed(events: object, code: ErrorCode) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_events({"events": events}, ID, 0)
    assert caught.value.code == code


@pytest.mark.parametrize("milliseconds", [0, 1, 999, 1_795_000_000_123, 253_402_300_799_999, -1])
def test_timestamps_survive_their_text(milliseconds: int) -> None:
    assert parse_timestamp(format_timestamp(milliseconds), "t") == milliseconds


def test_a_filter_takes_a_level_range_times_and_bounds() -> None:
    found = parse_filter({"level": "ERROR", "since": "2026-11-01T10:00:00Z", "limit": 10**9, "reverse": True})
    assert (found.low, found.high) == (Severity.ERROR, Severity.FATAL)
    assert found.since_ms == 1_793_527_200_000
    assert found.limit == 10_000
    assert found.reverse
    middle = parse_filter({"level": "info..warn"})
    assert (middle.low, middle.high) == (Severity.INFO, Severity.WARN)


@pytest.mark.parametrize(
    "change", [{"level": "LOUD"}, {"level": 3}, {"since": "now"}, {"limit": -1}, {"after_seq": "x"}, {"grep": ""}]
)
def test_a_wrong_filter_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match=next(iter(change))):
        parse_filter(change)


@pytest.mark.parametrize(
    ("component", "topic"),
    [("shop", "event.shop"), ("my app:thing", "event.my_app_thing"), ("ü", "event._"), ("x" * 99, "event." + "x" * 42)],
)
def test_every_component_has_a_topic(component: str, topic: str) -> None:
    assert topic_of(component) == topic
    assert len(topic) <= NAME_LENGTH_MAX


COMMON = {"id": "ab" * 16, "at": "2026-11-23T18:00:00.250Z", "mono_ms": 5, "boot": "b"}


def test_a_journals_event_is_an_event() -> None:
    entry = parse_journal_entry(COMMON | {"kind": "event"} | FIELDS | {"attributes": {"pid": 7}})
    assert entry.event.id == b"\xab" * 16
    assert entry.event.timestamp_ms % 1000 == 250
    assert entry.restart is entry.recovery is None


def test_a_journals_restart_is_a_row_and_an_event() -> None:
    fields = {"kind": "restart", "name": "broker", "incarnation": 3, "reason": "killed by signal 9 (SIGKILL)"}
    entry = parse_journal_entry(COMMON | fields | {"exit_code": None, "signal": 9, "charged": True, "manual": False})
    assert entry.restart is not None
    assert (entry.restart.name, entry.restart.incarnation, entry.restart.signal) == ("broker", 3, 9)
    assert (entry.event.component, entry.event.event_type, entry.event.severity) == ("broker", "restart", Severity.WARN)
    assert json.loads(entry.event.attributes)["charged"] is True
    manual = parse_journal_entry(COMMON | fields | {"manual": True})
    assert manual.event.severity is Severity.NOTICE


def test_a_journals_recovery_names_its_restart() -> None:
    entry = parse_journal_entry(COMMON | {"kind": "recovery", "restart_id": "cd" * 16, "recovery_ms": 12})
    assert entry.recovery is not None
    assert (entry.recovery.restart_id, entry.recovery.recovery_ms) == (b"\xcd" * 16, 12)


def test_an_entry_that_cannot_be_understood_is_counted_and_passed_over() -> None:
    good = COMMON | {"kind": "event"} | FIELDS
    parsed, refused = parse_journal_entries([{}, good, {"kind": "event"}, COMMON | {"kind": "dance"}])
    assert len(parsed) == 1
    assert refused == 3
