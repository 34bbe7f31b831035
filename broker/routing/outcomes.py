"""Outcomes of finished requests: an id that comes again gets the same answer, unexecuted.

They are kept until no honest repetition can come any more: past the request's deadline, and for `s_min` at least.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

from broker.routing.requests import Part, Request

_OVERHEAD_BYTES: Final = 300
"""What an outcome takes besides its frames' bytes."""
_SHARE_MAX: Final = 8
"""An outcome that would fill more than this part of the store is remembered without its body."""


class Outcome(NamedTuple):
    """How a request ended.

    Attributes:
        content: as in `Request`.
        body: frames of the reply; None if they were too many to keep.
        size: bytes that it takes here.
        until: monotonic seconds.
    """

    content: int
    body: list[Part] | None
    size: int
    until: float


class Outcomes:
    """The newest outcomes, bounded by number and bytes."""

    def __init__(self, count_max: int, bytes_max: int, s_min: float) -> None:
        """Start empty."""
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._s_min = s_min
        self._by_id: OrderedDict[bytes, Outcome] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        """Outcomes kept."""
        return len(self._by_id)

    def get(self, request_id: bytes) -> Outcome | None:
        """Return how `request_id` ended, if that is still known."""
        return self._by_id.get(request_id)

    def keep(self, request: Request, body: list[Part], body_bytes: int, now: float) -> None:
        """Remember how a request ended, if it has an id; the oldest outcomes make room."""
        request_id = request.key
        if type(request_id) is not bytes:
            return
        kept: list[Part] | None = body
        size = body_bytes + _OVERHEAD_BYTES
        if size > self._bytes_max // _SHARE_MAX:
            kept, size = None, _OVERHEAD_BYTES
        by_id = self._by_id
        by_id[request_id] = Outcome(request.content, kept, size, max(request.deadline, now + self._s_min))
        self.bytes += size
        while len(by_id) > self._count_max or self.bytes > self._bytes_max:
            self.bytes -= by_id.popitem(last=False)[1].size

    def forget(self, now: float) -> None:
        """Drop the oldest as long as nobody can ask for them."""
        by_id = self._by_id
        while by_id:
            request_id, outcome = next(iter(by_id.items()))
            if outcome.until > now:
                return
            self.bytes -= outcome.size
            del by_id[request_id]
