"""What the broker believes of a request's head: the rules of `protocol.messages`, quick on what our client sends."""

from typing import Final

from broker.routing.requests import Part
from protocol.limits import HEADER_BYTES_MAX, ID_BYTES
from protocol.messages import RequestHeader, decode_request_header

_SAMPLED_BYTES: Final = 64 * 1024
"""Frames above this are told apart by length, head and tail: hashing 64 MiB would hold up everybody else."""
_FORMS_MAX: Final = 256
_HEAD: Final = RequestHeader(bytes(ID_BYTES), "x", 0).encode().partition(bytes(ID_BYTES))[0]
_ID_END: Final = len(_HEAD) + ID_BYTES
_DEADLINE_BYTES: Final = 4
_DEADLINE_MS: Final = 1 << 31
"""Takes `_DEADLINE_BYTES`, like every time from the first minute to the 49th day after a start of the machine."""


class HeaderReader:
    """Reads request headers; accepts and refuses exactly what `decode_request_header` does.

    A header that `RequestHeader.encode` made is the same bytes every time, but for the id and the deadline at known
    places. So for each operation the bytes around those are kept after they were decoded once, and a header that has
    them is taken apart without decoding.
    """

    def __init__(self) -> None:
        """Know no form yet."""
        self._op_of_form: dict[bytes, str] = {}
        self._known: set[str] = set()

    def read(self, frame: Part) -> tuple[bytes, str, int]:
        """Return id, operation and `deadline_ms`.

        Raises:
            ProtocolError: as `decode_request_header`.
        """
        data = frame if type(frame) is bytes else bytes(memoryview(frame)[: HEADER_BYTES_MAX + 1])
        if data.startswith(_HEAD):
            op = self._op_of_form.get(data[_ID_END:-_DEADLINE_BYTES])
            if op is not None:
                return data[len(_HEAD) : _ID_END], op, int.from_bytes(data[-_DEADLINE_BYTES:], "big")
        header = decode_request_header(data)
        if header.op not in self._known and len(self._known) < _FORMS_MAX:
            self._known.add(header.op)
            form = RequestHeader(bytes(ID_BYTES), header.op, _DEADLINE_MS).encode()
            self._op_of_form[form[_ID_END:-_DEADLINE_BYTES]] = header.op
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
