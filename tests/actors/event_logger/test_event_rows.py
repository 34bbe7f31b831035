"""The fast form of events: everything that `emit` refuses is refused here too, and lines give back what was hashed."""

import os
from typing import Any

import msgpack
import pytest

from actors.event_logger.chain import GENESIS, link_all
from actors.event_logger.lines import LineFormat, parse_line, seq_of
from actors.event_logger.records import Event
from actors.event_logger.rows import ROWS_MAX, parse_rows
from protocol.errors import ErrorCode, ProtocolError
from protocol.severity import Severity

GOOD: list[Any] = [b"i" * 16, 1_790_000_000_000, 9, "shop", "order_paid", "order 7", '{"total":12.5,"of":["ä",null]}']


def test_rows_become_events() -> None:
    (event,) = parse_rows(msgpack.packb([GOOD]))
    assert event == Event(*GOOD)
    assert event.severity is Severity.INFO
    assert len(parse_rows(msgpack.packb([GOOD] * ROWS_MAX))) == ROWS_MAX


@pytest.mark.parametrize(
    ("place", "bad"),
    [
        (0, b"x"),
        (0, "i" * 16),
        (1, -1),
        (1, 2**60),
        (1, 1.5),
        (2, 3),
        (2, True),
        (3, ""),
        (3, "x" * 129),
        (3, ["x"]),
        (4, None),
        (4, "a\0"),
        (5, "a\0"),
        (5, "x" * 16_385),
        (6, "[]"),
        (6, ""),
        (6, "{} "),
        (6, '{"a":\n1}'),
        (6, '{"a":NaN}'),
        (6, '{"a":1e999}'),
        (6, '{"a":' + "9" * 40 + "}"),
        (6, '{"a":' + "[" * 30 + "]" * 30 + "}"),
        (6, '{"a":' + "[" * 5000 + "]" * 5000 + "}"),
        (6, '{"a":"\\ud800"}'),
        (6, '{"a":"' + "x" * 65_536 + '"}'),
        (6, '{"a":"' + "ä" * 40_000 + '"}'),
        (6, {}),
        (6, msgpack.ExtType(1, b"")),
    ],
)
def test_a_wrong_row_is_refused_with_its_number(place: int, bad: object) -> None:
    row = list(GOOD)
    row[place] = bad
    with pytest.raises(ProtocolError, match=r"row 1|extension|map") as caught:
        parse_rows(msgpack.packb([GOOD, row]))
    assert caught.value.code in (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x90",
        b"\xc0",
        b"\xff\xff",
        b"\x91" * 5000,
        msgpack.packb([[1]]),
        msgpack.packb({"a": 1}),
        msgpack.packb([GOOD]) + b"x",
        msgpack.packb([GOOD] * (ROWS_MAX + 1)),
        msgpack.packb([GOOD[:6]]),
        msgpack.packb([[*GOOD, 1]]),
    ],
)
def test_what_is_no_frame_of_rows_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_rows(frame)


def test_a_line_gives_back_exactly_what_was_hashed() -> None:
    texts = ['a "quoted"\n\t\\ ä \u2028 😀', ',"attributes":{},"hash":"', "", "x" * 16_384]
    attributes = ["{}", '{"a":1.50,"attributes":{"hash":"x"}}', '{ "spaced" : 1 }', '{"hash":"' + "0" * 64 + '"}']
    events = [
        Event(os.urandom(16), time_ms, Severity.WARN, text[:5] or "c", "t", text, attributes[number])
        for number, text in enumerate(texts)
        for time_ms in (0, 999, 1_790_000_000_001, 253_402_300_799_999, -1)
    ]
    rows = link_all(GENESIS, 1, events)
    lines = LineFormat().lines(rows).split(b"\n")
    assert lines.pop() == b""
    assert [(line.seq, *line.event, line.hash) for line in map(parse_line, lines)] == rows
    assert [seq_of(line) for line in lines] == [row[0] for row in rows]


def test_a_flipped_bit_never_goes_unnoticed_in_a_line() -> None:
    event = Event(b"i" * 16, 1_790_000_000_000, Severity.INFO, "c", "t", "message", '{"a":1}')
    (row,) = link_all(GENESIS, 1, [event])
    line = LineFormat().lines([row])[:-1]
    for place in range(len(line)):
        for bit in range(8):
            spoilt = line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]
            try:
                found = parse_line(spoilt)
            except ValueError:
                continue
            ((*_, expected),) = link_all(GENESIS, found.seq, [found.event])
            harmless = (found.seq, *found.event, found.hash) == row  # the case of a hash's digit, severity_text
            assert harmless or expected != found.hash, spoilt
