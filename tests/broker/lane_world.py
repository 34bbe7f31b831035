"""One lane's router with a fake clock and peers that are names."""

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from broker.routing import Router
from broker.routing.bounds import CONTROL, LaneBounds
from broker.routing.delivery import Outgoing
from broker.routing.management import About, BrokerService
from protocol import mdp
from protocol.codec import pack, unpack
from protocol.messages import (
    ReplyHeader,
    RequestHeader,
    WorkerHello,
    decode_reply_header,
)

TOKEN = b"t" * 32
_ids = count(1)


@dataclass(frozen=True)
class Reply:
    """What a client got."""

    peer: bytes
    service: bytes
    body: list[bytes]

    @property
    def id(self) -> bytes:
        return decode_reply_header(self.body[0]).id

    @property
    def code(self) -> str:
        """The error's code; empty if it is none."""
        error = decode_reply_header(self.body[0]).error
        return error.code if error else ""

    @property
    def result(self) -> Any:
        return unpack(self.body[1], 1 << 20)


@dataclass
class World:
    """The router and everything that it has sent so far, sorted by `collect`."""

    bounds: LaneBounds = CONTROL
    settle_s: float = 0.0
    now: float = 1000.0
    replies: list[Reply] = field(default_factory=list)
    partials: list[Reply] = field(default_factory=list)
    dispatched: list[tuple[bytes, bytes, list[bytes]]] = field(default_factory=list)
    commands: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = BrokerService(About(1, 1, "0", self.now))
        self.router = Router(self.bounds, TOKEN, 1, self.own, self.now, self.settle_s)
        self.own.lanes["control"] = self.router

    # --- time

    def pass_time(self, seconds: float, step_s: float = 0.25) -> None:
        """Let time pass, with a tick at every step."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now = min(until, self.now + step_s)
            self.router.tick(self.now)
            self.collect()

    # --- peers

    def say(self, peer: bytes, *frames: bytes) -> None:
        """Have `peer` send something."""
        self.router.receive(peer, list(frames), sum(map(len, frames)), self.now)
        self.collect()

    def ready(self, peer: bytes, service: str = "health_monitor", incarnation: int = 1, window: int = 64) -> None:
        """Register a worker of ours."""
        self.say(peer, *mdp.ready(service.encode(), WorkerHello(TOKEN, incarnation, window).encode()))

    def ready_foreign(self, peer: bytes, service: str = "echo") -> None:
        """Register a plain Majordomo worker."""
        self.say(peer, mdp.WORKER, mdp.WORKER_READY, service.encode())

    def ask(
        self,
        peer: bytes = b"client",
        service: str = "health_monitor",
        op: str = "ping",
        within_s: float = 5.0,
        request_id: bytes | None = None,
        argument: Any = None,
    ) -> bytes:
        """Send a request; returns its id."""
        request_id = request_id or next(_ids).to_bytes(16, "big")
        header = RequestHeader(request_id, op, int((self.now + within_s) * 1000)).encode()
        self.say(peer, *mdp.request(service.encode(), header, pack({"x": argument})))
        return request_id

    def answer(self, number: int = -1, result: Any = "done") -> None:
        """Have a worker answer a request that was dispatched to it."""
        worker, address, body = self.dispatched[number]
        header = ReplyHeader(request_id_of(body)).encode()
        self.say(worker, *mdp.final(address, header, pack({"result": result})))

    # --- what came of it

    def collect(self) -> None:
        """Sort the outbox."""
        for outgoing in self.router.outbox:
            self._sort(outgoing)
        self.router.outbox.clear()
        counters = self.router.counters
        assert counters.imbalance() == 0, counters

    def _sort(self, outgoing: Outgoing) -> None:
        peer, frames, _ = outgoing
        if frames[0] == mdp.CLIENT:
            kind = self.replies if frames[1] == mdp.CLIENT_FINAL else self.partials
            kind.append(Reply(peer, frames[2], frames[3:]))
        elif frames[1] == mdp.WORKER_REQUEST:
            assert frames[3] == b""
            self.dispatched.append((peer, frames[2], frames[4:]))
        else:
            self.commands.append((peer, frames[1]))

    @property
    def codes(self) -> list[str]:
        """The error codes of all replies."""
        return [reply.code for reply in self.replies]

    @property
    def counts(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: value for name, value in self.router.counters.as_dict().items() if value}


def request_id_of(body: list[bytes]) -> bytes:
    """The id in a request's header."""
    value: bytes = unpack(body[0], 4096)["id"]
    return value


def small(**changes: int) -> LaneBounds:
    """The control lane's bounds, with changes."""
    return replace(CONTROL, **changes)
