"""The codec believes nothing before its size, depth and types are checked."""

import random

import msgpack
import pytest

from protocol import codec, limits, messages
from protocol.errors import ErrorCode, ErrorInfo, ProtocolError

HEADER = messages.RequestHeader(b"i" * 16, "ping", 123)


def test_plain_data_returns_as_it_was() -> None:
    value = {"a": [1, 2.5, None, True, "é", b"\x00\xff", {"b": []}]}
    assert codec.unpack(codec.pack(value), 1000) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\xdf\xff\xff\xff\xff",
        msgpack.packb({"a": 1}) + b"\x00",
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.Timestamp(1)),
        msgpack.packb({1: 2}),
        msgpack.packb({b"k": 2}),
        b"\x82\xa1a\x01\xa1a\x02",
        b"\xa2\xff\xfe",
    ],
    ids=[
        "empty", "reserved", "truncated", "huge map", "trailing", "extension", "timestamp", "int key", "bytes key",
        "key twice", "not utf-8",
    ],
)  # fmt: skip
def test_bad_bytes_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.unpack(data, 1000)


@pytest.mark.parametrize("depth", [limits.NESTING_MAX + 1, 500, 100_000])
def test_deep_nesting_is_refused_at_any_depth(depth: int) -> None:
    with pytest.raises(ProtocolError):
        codec.unpack(b"\x91" * depth + b"\x00", 200_000)


def test_nesting_up_to_the_limit_is_allowed() -> None:
    assert codec.unpack(b"\x91" * limits.NESTING_MAX + b"\x00", 1000)


def test_size_is_checked_before_parsing() -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.unpack(b"\xc1" * 11, 10)
    assert caught.value.code == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**80, (1, 2)])
def test_what_may_not_cross_is_refused_at_the_sender(value: object) -> None:
    with pytest.raises(ProtocolError):
        codec.pack(value)


def test_random_bytes_never_raise_anything_else() -> None:
    generator = random.Random(1)
    for _ in range(5000):
        data = generator.randbytes(generator.randrange(60))
        for decode in (
            messages.decode_request_header,
            messages.decode_reply_header,
            messages.decode_worker_hello,
            messages.decode_arguments,
        ):
            try:
                decode(data)
            except ProtocolError:
                continue


def test_flipped_bits_never_raise_anything_else() -> None:
    frame = HEADER.encode()
    for position in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[position // 8] ^= 1 << position % 8
        try:
            messages.decode_request_header(bytes(damaged))
        except ProtocolError:
            continue


def test_request_header_survives_the_wire() -> None:
    header = messages.RequestHeader(b"i" * 16, "ping", 5, b"t" * 16, b"s" * 8)
    assert messages.decode_request_header(header.encode()) == header


def test_reply_header_survives_the_wire_and_bounds_its_texts() -> None:
    assert messages.decode_reply_header(messages.ReplyHeader(b"i" * 16).encode()).error is None
    long = messages.ReplyHeader(b"i" * 16, ErrorInfo("busy", "m" * 10_000, "h" * 10_000))
    error = messages.decode_reply_header(long.encode()).error
    assert error is not None
    assert (error.code, len(error.message), len(error.hint)) == ("busy", 500, 500)


def test_another_version_is_told_apart() -> None:
    frame = msgpack.packb({"v": 2, "id": b"i" * 16, "op": "ping", "deadline_ms": 1})
    with pytest.raises(ProtocolError) as caught:
        messages.decode_request_header(frame)
    assert caught.value.code == ErrorCode.BAD_VERSION


@pytest.mark.parametrize(
    "change",
    [
        {"id": "text"},
        {"id": b"short"},
        {"id": b"l" * 33},
        {"op": ""},
        {"op": "with space"},
        {"op": "x" * 100},
        {"deadline_ms": -1},
        {"deadline_ms": True},
        {"deadline_ms": 1.5},
        {"trace_id": 7},
        {"v": None},
        {"extra": {"a": {"b": {}}}},
    ],
)
def test_every_header_field_is_checked(change: dict[str, object]) -> None:
    fields = {"v": 1, "id": b"i" * 16, "op": "ping", "deadline_ms": 1} | change
    with pytest.raises(ProtocolError):
        messages.decode_request_header(msgpack.packb(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"token": b"t", "incarnation": 1},
        {"token": "t", "incarnation": 1, "window": 1},
        {"token": b"t", "incarnation": -1, "window": 1},
        {"token": b"t", "incarnation": 1, "window": 0},
        {"token": b"t", "incarnation": 1, "window": limits.WINDOW_MAX + 1},
    ],
)
def test_worker_hello_is_checked(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_worker_hello(msgpack.packb(fields))


def test_worker_hello_survives_the_wire() -> None:
    hello = messages.WorkerHello(b"t" * 32, 7, 64)
    assert messages.decode_worker_hello(hello.encode()) == hello


def test_missing_arguments_are_an_empty_map() -> None:
    assert messages.decode_arguments(b"") == {}
    with pytest.raises(ProtocolError):
        messages.decode_arguments(msgpack.packb([1]))
