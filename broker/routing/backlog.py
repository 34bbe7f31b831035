"""Answers for peers that do not read as fast as they ask: kept for a moment, within bounds, and tried again. Pure."""

from collections import deque
from dataclasses import dataclass

from broker.routing.delivery import Outgoing


@dataclass(frozen=True, slots=True)
class BacklogBounds:
    """How much is kept on one lane.

    Attributes:
        peers_max: peers that it is kept for.
        peer_bytes_max: bytes for one of them; one message is kept whatever its size.
        bytes_max: bytes for all.
        s_max: how long a peer may take nothing.
    """

    peers_max: int
    peer_bytes_max: int
    bytes_max: int
    s_max: float = 5.0


class _Held:
    __slots__ = ("bytes", "messages", "since")

    def __init__(self, now: float) -> None:
        self.messages: deque[tuple[Outgoing, int]] = deque()
        self.bytes = 0
        self.since = now


class Backlog:
    """What could not be sent yet, in order, by peer.

    Attributes:
        bytes: all that is held.
    """

    def __init__(self, bounds: BacklogBounds) -> None:
        """Start empty."""
        self._bounds = bounds
        self._held: dict[bytes, _Held] = {}
        self.bytes = 0

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._held)

    def __contains__(self, peer: bytes) -> bool:
        """Whether something is held for `peer`, so that whatever else is for it has to queue behind."""
        return peer in self._held

    def hold(self, outgoing: Outgoing, now: float) -> bool:
        """Keep a message; False if the bounds forbid it."""
        peer, frames, _ = outgoing
        size = sum(map(len, frames))
        held = self._held.get(peer)
        bounds = self._bounds
        if self.bytes + size > bounds.bytes_max:
            return False
        if held is None:
            if len(self._held) >= bounds.peers_max:
                return False
            held = self._held[peer] = _Held(now)
        elif held.bytes + size > bounds.peer_bytes_max:
            return False
        held.messages.append((outgoing, size))
        held.bytes += size
        self.bytes += size
        return True

    def first_of_each(self) -> list[Outgoing]:
        """Return the next message of every peer."""
        return [held.messages[0][0] for held in self._held.values()]

    def sent(self, peer: bytes, now: float) -> Outgoing | None:
        """Take out the first message of `peer`, which was sent; returns its next one."""
        held = self._held[peer]
        _, size = held.messages.popleft()
        held.bytes -= size
        held.since = now
        self.bytes -= size
        if held.messages:
            return held.messages[0][0]
        del self._held[peer]
        return None

    def give_up(self, peer: bytes) -> list[Outgoing]:
        """Take out everything for `peer`."""
        held = self._held.pop(peer)
        self.bytes -= held.bytes
        return [outgoing for outgoing, _ in held.messages]

    def overdue(self, now: float) -> list[bytes]:
        """Return the peers that have taken nothing for too long."""
        return [peer for peer, held in self._held.items() if now - held.since > self._bounds.s_max]
