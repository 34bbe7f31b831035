"""Rows of events: whatever a host logs becomes one that event_logger takes, or is refused before it is sent."""

import datetime
import json
import pathlib
import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.event_logger import records
from actors.event_logger.rows import ROWS_MAX, parse_rows
from app.reliability import _event_rows
from app.reliability._batches import BATCH_BYTES_MAX, BATCH_ROWS_MAX, QUEUED_BYTES_MAX, QUEUED_ROWS_MAX, Batch, Gatherer
from app.reliability._event_rows import Row, attributes_of, make_row, row_bytes
from protocol.errors import ProtocolError, RemoteError
from protocol.limits import CONTROL_FRAME_BYTES_MAX
from protocol.severity import Severity, severity_of_level

ID = bytes(range(16))


class Strange:
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no")


def taken(*rows: Row) -> list[records.Event]:
    """What event_logger makes of rows."""
    return parse_rows(Batch(list(rows), [None] * len(rows)).frame())


def row_of(details: object = None, message: str = "m", component: str = "c", event_type: str = "t") -> Row:
    return make_row(ID, 1_700_000_000_000, "INFO", component, event_type, message, details)  # type: ignore[arg-type]


def test_the_bounds_are_those_of_the_log() -> None:
    assert _event_rows.NAME_CHARACTERS_MAX == records.NAME_CHARACTERS_MAX
    assert _event_rows.MESSAGE_CHARACTERS_MAX == records.MESSAGE_CHARACTERS_MAX
    assert _event_rows.ATTRIBUTES_BYTES_MAX == records.ATTRIBUTES_BYTES_MAX
    assert BATCH_ROWS_MAX <= ROWS_MAX


def test_a_row_arrives_as_it_was_given() -> None:
    (event,) = taken(row_of({"a": 1, "b": ["x", None, 1.5]}, "grüße"))
    assert event == (ID, 1_700_000_000_000, Severity.INFO, "c", "t", "grüße", '{"a":1,"b":["x",null,1.5]}')


@pytest.mark.parametrize(
    "details",
    [
        {"path": pathlib.Path("/x"), "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)},
        {"nan": float("nan"), "inf": float("-inf")},
        {"big": 2**200, "small": -(2**90), "edge": 2**63 - 1},
        {"bytes": b"\xff", "set": {1}, "object": Strange()},
        {"half": "\ud800", "nul": "\0", "key\ud800": 1},
        {1: "number", None: "none", (1, 2): "tuple"},
        {"deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["end"]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]},
        {"many": [{"n": [n]} for n in range(100)]},
        {"line": "\u2028\n\r\x1b"},
    ],
)
def test_what_json_has_no_form_for_becomes_text(details: dict[object, object]) -> None:
    (event,) = taken(row_of(details))
    assert isinstance(json.loads(event.attributes), dict)


def test_a_structure_that_contains_itself_ends() -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop
    assert taken(row_of(loop))


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=20,
        ),
        max_size=5,
    ),
    st.text(min_size=1),
    st.text(),
)
def test_event_logger_takes_every_row(details: dict[str, object], name: str, message: str) -> None:
    (event,) = taken(row_of(details, message, name, name))
    assert event.id == ID


def test_texts_that_are_too_long_are_cut() -> None:
    (event,) = taken(row_of(None, "ü" * 100_000, "c" * 1000))
    assert event.message.endswith("[cut]")
    assert event.component == "c" * 127 + "…"


def test_what_cannot_be_mended_is_refused() -> None:
    for component, event_type in (("", "t"), ("c", ""), (None, "t"), (7, "t")):
        with pytest.raises(ProtocolError, match="not a non-empty text"):
            row_of(None, "m", component, event_type)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="65536 are the most"):
        row_of({"a": "x" * 70_000})
    with pytest.raises(ProtocolError, match="not a map"):
        row_of(["a"])
    with pytest.raises(ProtocolError, match="no level"):
        make_row(ID, 0, "LOUD", "c", "t", "m", None)
    with pytest.raises(ProtocolError, match="no level"):
        make_row(ID, 0, 3, "c", "t", "m", None)


def test_batches_fit_the_lane_whatever_is_in_them() -> None:
    draw = random.Random(5)
    rows: Gatherer[int] = Gatherer()
    for number in range(600):
        details = {"x": draw.choice(("", "ü")) * draw.choice((0, 10, 30_000))}
        rows.add(row_of(details, draw.choice(("", "€")) * draw.choice((0, 16_000))), number)
    seen: list[int] = []
    while len(rows):
        batch = rows.take()
        frame = batch.frame()
        assert len(frame) < CONTROL_FRAME_BYTES_MAX - 8192
        assert len(parse_rows(frame)) == len(batch.rows) <= BATCH_ROWS_MAX
        assert len(batch.rows) == 1 or sum(map(row_bytes, batch.rows)) <= BATCH_BYTES_MAX
        seen += batch.waiters
    assert seen == list(range(600))


def test_the_largest_row_goes_alone() -> None:
    rows: Gatherer[None] = Gatherer()
    largest = row_of({"x": "y" * 65_500}, "€" * 16_384, "€" * 128, "€" * 128)
    for _ in range(3):
        rows.add(largest, None)
    while len(rows):
        assert len(rows.take().frame()) < CONTROL_FRAME_BYTES_MAX


def test_the_queue_says_when_it_is_full() -> None:
    rows: Gatherer[None] = Gatherer()
    small, large = row_of(), row_of({"x": "y" * 60_000})
    for _ in range(QUEUED_ROWS_MAX):
        assert not rows.full
        rows.add(small, None)
    assert rows.full
    rows.take()
    assert not rows.full
    count = 0
    rows = Gatherer()
    while not rows.full:
        rows.add(large, None)
        count += 1
    assert count < QUEUED_BYTES_MAX // 60_000 + 2


def test_what_an_answer_means_for_each() -> None:
    batch = Batch([row_of(), row_of()], [1, 2])
    spooled = {"id": ID.hex(), "seq": None, "spooled": True}
    assert batch.outcomes({"id": "00", "seq": None, "spooled": True}) == [spooled, spooled]
    first, second = batch.outcomes({"seqs": [5, None], "spooled": False})
    assert first == {"id": ID.hex(), "seq": 5, "spooled": False}
    assert isinstance(second, RemoteError)
    assert second.code == "id_conflict"


def test_levels_of_logging() -> None:
    names = [severity_of_level(level).name for level in (0, 5, 10, 20, 25, 30, 35, 40, 50, 60)]
    assert names == ["TRACE", "TRACE", "DEBUG", "INFO", "NOTICE", "WARN", "WARN", "ERROR", "CRITICAL", "FATAL"]


def test_plain_details_cost_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_event_rows, "_plain", None)
    assert attributes_of({"n": 123456789012345678, "text": "grüße", "list": [1, 2]}).startswith('{"n":')
    assert msgpack.packb(row_of({"a": 1}))
