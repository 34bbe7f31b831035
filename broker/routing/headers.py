"""What the broker believes of a request's head: the rules of `protocol.messages`, quick on the usual case."""

from typing import Final

import msgpack

from broker.routing.requests import Part
from protocol.limits import HEADER_BYTES_MAX, ID_BYTES_MAX, ID_BYTES_MIN
from protocol.messages import decode_request_header
from protocol.names import PROTOCOL_VERSION, is_valid_name

_SAMPLED_BYTES: Final = 64 * 1024
"""Frames above this are told apart by length, head and tail: hashing 64 MiB would hold up everybody else."""
_FOUR_ENTRIES: Final = 0x84
"""First byte of a msgpack map of four entries."""


def read_request_header(frame: Part) -> tuple[bytes, str, int]:
    """Return id, operation and `deadline_ms`; accepts and refuses exactly what `decode_request_header` does.

    A map of four entries that decodes to the four that are required has neither a key twice nor anything nested in it,
    so the general decoder's checks for those are spared.

    Raises:
        ProtocolError: as `decode_request_header`.
    """
    data = frame if type(frame) is bytes else bytes(memoryview(frame)[: HEADER_BYTES_MAX + 1])
    if data and data[0] == _FOUR_ENTRIES and len(data) <= HEADER_BYTES_MAX:
        try:
            fields = msgpack.unpackb(data)
            if len(fields) == 4:
                request_id, op, deadline_ms = fields["id"], fields["op"], fields["deadline_ms"]
                if (
                    type(request_id) is bytes
                    and ID_BYTES_MIN <= len(request_id) <= ID_BYTES_MAX
                    and type(deadline_ms) is int
                    and deadline_ms >= 0
                    and type(op) is str
                    and is_valid_name(op)
                    and type(fields["v"]) is int
                    and fields["v"] == PROTOCOL_VERSION
                ):
                    return request_id, op, deadline_ms
        except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException):
            pass
    header = decode_request_header(data)
    return header.id, header.op, header.deadline_ms


def content_of(service: bytes, op: str, body: list[Part]) -> int:
    """Return a number that stands for what a request asks: a retry has the same, whatever its deadline and trace ids.

    Keyed anew in every process, so that nobody can prepare two requests that look the same.
    """
    if len(body) == 2 and type(body[1]) is bytes:
        return hash((service, op, body[1]))
    return hash((service, op, *[part if type(part) is bytes else _sample(part) for part in body[1:]]))


def _sample(part: Part) -> tuple[int, bytes, bytes]:
    view = memoryview(part)
    return len(view), bytes(view[:_SAMPLED_BYTES]), bytes(view[-_SAMPLED_BYTES:])
