"""One open request, and the frames that answer it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from protocol import mdp
from protocol.errors import ErrorInfo
from protocol.messages import ReplyHeader

if TYPE_CHECKING:
    from broker.routing.registry import Service, Worker

Part = Any
"""One frame: bytes, or on the bulk lane an object of the transport that has a length and lends its bytes."""

NO_ID: Final = bytes(16)
"""In the header of an error reply to somebody whose request had no readable id."""
EMPTY_RESULT: Final = b"\x80"
"""An empty msgpack map."""


class Request:
    """One request from its arrival to its outcome.

    ================ ============ ===============================================================
    state            event        next
    ================ ============ ===============================================================
    waiting          worker free  dispatched, unless its deadline has passed
    waiting          deadline     expired: `busy`, or `service_missing` if there is no worker
    dispatched       FINAL        delivered to everybody who waits
    dispatched       deadline     expired: `deadline_passed`
    dispatched       worker lost  waiting, at the head of the queue; dead-lettered the second time
    any              draining     rejected: `draining`
    ================ ============ ===============================================================

    Attributes:
        key: its id, or for an opaque request of a foreign client a number that no id can be.
        op: operation; empty if opaque.
        service: where it goes.
        peers: who waits for the outcome; at least one.
        body: frames as they came.
        size: bytes of the whole message.
        deadline: monotonic seconds.
        content: stands for service, operation and arguments; a retry has the same.
        worker: who has it; None while it waits.
        address: what it was given to that worker under.
        attempts: workers it was given to.
        closed: whether it has its outcome.
    """

    __slots__ = (
        "address",
        "attempts",
        "body",
        "closed",
        "content",
        "deadline",
        "key",
        "op",
        "peers",
        "service",
        "size",
        "worker",
    )

    def __init__(
        self,
        key: bytes | int,
        op: str,
        service: "Service",
        peer: bytes,
        body: list[Part],
        size: int,
        deadline: float,
        content: int,
    ) -> None:
        """Open it, waiting."""
        self.key = key
        self.op = op
        self.service = service
        self.peers = [peer]
        self.body = body
        self.size = size
        self.deadline = deadline
        self.content = content
        self.worker: Worker | None = None
        self.address = b""
        self.attempts = 0
        self.closed = False

    @property
    def id(self) -> bytes:
        """The id for a reply's header."""
        return self.key if type(self.key) is bytes else NO_ID


def reply(service: bytes, body: Sequence[Part]) -> list[Part]:
    """Return the FINAL frames that a client gets."""
    return [mdp.CLIENT, mdp.CLIENT_FINAL, service, *body]


def error_body(request_id: bytes, error: ErrorInfo) -> list[Part]:
    """Return the body of an error reply."""
    return [ReplyHeader(request_id, error).encode(), EMPTY_RESULT]
