"""How a record lies in a spool file, so that what is torn or changed is told from what is whole. Pure.

A record is a head of 44 bytes and a payload. All numbers are little-endian::

    head     magic (4) | bytes of the payload (4) | SHA-256 of the payload (32) | CRC-32 of all that (4)
    payload  bytes of the message (4) | message: msgpack [op, id, arguments, [bytes of each raw frame]] | raw frames

The CRC also covers the file's own id and the record's offset: a record that was copied elsewhere, such as into a
payload, is none there.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Any, Final

from protocol.codec import pack, unpack
from protocol.errors import ProtocolError
from protocol.limits import BULK_MESSAGE_BYTES_MAX, ID_BYTES_MAX, ID_BYTES_MIN

MAGIC: Final = b"rSp\x01"
_HEAD: Final = Struct("<4sI32s")
_WORD: Final = Struct("<I")
_OFFSET: Final = Struct("<Q")
HEAD_BYTES: Final = _HEAD.size + _WORD.size
PAYLOAD_BYTES_MAX: Final = BULK_MESSAGE_BYTES_MAX
"""As much as the bulk lane takes in one message."""

Digest = Callable[[Sequence[bytes]], bytes]
"""SHA-256 over several pieces: whoever has OpenSSL loaded already uses it, nobody loads it for this."""


class Damage(Enum):
    """What is wrong with bytes where a record should be."""

    INCOMPLETE = "the file ends before the record does"
    HEAD = "the head is not one that was written here"
    PAYLOAD = "the payload is not the one that was written"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one record.

    Attributes:
        payload_bytes: how much follows it.
        digest: SHA-256 of that.
    """

    payload_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody wanted done.

    Attributes:
        op: operation of the service.
        id: of the request; done once.
        arguments: the operation's.
        raw: frames beside them.
    """

    op: str
    id: bytes
    arguments: dict[str, Any]
    raw: tuple[bytes, ...]


def encode_payload(op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes]) -> list[bytes]:
    """Return the pieces of a payload.

    Raises:
        ProtocolError: the arguments are not plain data, or it is all too large.
    """
    if not ID_BYTES_MIN <= len(request_id) <= ID_BYTES_MAX:
        raise ProtocolError(f"an id has {ID_BYTES_MIN} to {ID_BYTES_MAX} bytes, this one {len(request_id)}")
    message = pack([op, request_id, arguments, [len(frame) for frame in raw]])
    payload = [_WORD.pack(len(message)), message, *raw]
    size = sum(map(len, payload))
    if size > PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"{size} bytes exceed the {PAYLOAD_BYTES_MAX} of one spooled call", "too_large")
    return payload


def encode_head(file_id: bytes, offset: int, payload: Sequence[bytes], digest: Digest) -> bytes:
    """Return the head of `payload` for the record at `offset` of the file `file_id`."""
    head = _HEAD.pack(MAGIC, sum(map(len, payload)), digest(payload))
    return head + _WORD.pack(_check(file_id, offset, head))


def decode_head(file_id: bytes, offset: int, data: bytes) -> Head | Damage:
    """Return the head that `data` begins with, or what is wrong with it."""
    if len(data) < HEAD_BYTES:
        return Damage.INCOMPLETE if MAGIC.startswith(data[: len(MAGIC)]) else Damage.HEAD
    magic, payload_bytes, digest = _HEAD.unpack_from(data)
    (check,) = _WORD.unpack_from(data, _HEAD.size)
    if magic != MAGIC or check != _check(file_id, offset, data[: _HEAD.size]) or payload_bytes > PAYLOAD_BYTES_MAX:
        return Damage.HEAD
    return Head(payload_bytes, digest)


def decode_payload(head: Head, payload: bytes, digest: Digest) -> Message | Damage:
    """Return what `payload` says, or what is wrong with it."""
    if len(payload) < head.payload_bytes:
        return Damage.INCOMPLETE
    if digest([payload]) != head.digest:
        return Damage.PAYLOAD
    try:
        (size,) = _WORD.unpack_from(payload)
        body = memoryview(payload)
        op, request_id, arguments, sizes = unpack(body[4 : 4 + size], PAYLOAD_BYTES_MAX)
        if type(op) is not str or type(request_id) is not bytes or type(arguments) is not dict:
            return Damage.PAYLOAD
        raw, at = [], 4 + size
        for length in sizes:
            raw.append(bytes(body[at : at + length]))
            at += length
    except (ValueError, TypeError, ProtocolError):
        return Damage.PAYLOAD
    return Message(op, request_id, arguments, tuple(raw)) if at == len(payload) else Damage.PAYLOAD


def next_record(file_id: bytes, offset: int, data: bytes) -> int | None:
    """Return how far into `data`, which lies at `offset` of the file, the next head is that was written there."""
    at = data.find(MAGIC)
    while at >= 0:
        if isinstance(decode_head(file_id, offset + at, data[at : at + HEAD_BYTES]), Head):
            return at
        at = data.find(MAGIC, at + 1)
    return None


def _check(file_id: bytes, offset: int, head: bytes) -> int:
    return zlib.crc32(head, zlib.crc32(_OFFSET.pack(offset), zlib.crc32(file_id)))
