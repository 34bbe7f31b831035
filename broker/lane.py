"""The socket of one lane: drains it without ever blocking, and sends what the router decides."""

import time
from typing import Final

import zmq

from actors.runtime.transport import Lane, Transport, ZmqContext
from broker.inlet import descriptor_of, has_input, server_socket
from broker.routing import Router
from broker.routing.backlog import Backlog, BacklogBounds
from broker.routing.bounds import LaneBounds
from broker.routing.delivery import Outgoing
from broker.routing.requests import Part
from protocol import mdp
from protocol.limits import BULK_MESSAGE_BYTES_MAX, KIB, MIB

COPIED_BYTES_MAX: Final = 32 * KIB
"""Larger frames are passed on where they lie."""
THROWN_AWAY_FRAMES_MAX: Final = 1000
"""Frames of one oversized message that are taken in per turn."""
BATCH_MESSAGES: Final = 16
MESSAGES_PER_TURN: Final = {Lane.CONTROL: 64, Lane.BULK: 2}
BYTES_PER_S_MAX: Final = {Lane.CONTROL: float("inf"), Lane.BULK: 256.0 * MIB}
"""Unchecked, 100 MB pass in a tenth of a second, in which nobody else on two cores gets anything done."""
BYTES_PER_STRETCH: Final = 2 * MIB
"""So many bytes beyond its limit and a lane rests until it is back within. One message of a MiB now and then does not
count: its answer would wait for the end of the rest."""
RETRY_S: Final = 0.002
"""How soon a peer that was not reading is tried again."""
BACKLOGS: Final = {
    Lane.CONTROL: BacklogBounds(peers_max=64, peer_bytes_max=2 * MIB, bytes_max=16 * MIB),
    Lane.BULK: BacklogBounds(peers_max=16, peer_bytes_max=BULK_MESSAGE_BYTES_MAX, bytes_max=2 * BULK_MESSAGE_BYTES_MAX),
}
_NEVER: Final = float("inf")
_MORE: Final = int(zmq.SNDMORE | zmq.NOBLOCK)
_LAST: Final = int(zmq.NOBLOCK)


class LaneSocket:
    """One lane's socket and router; an `Inlet` once it is open.

    Attributes:
        router: decides.
        endpoint: where it is bound.
    """

    def __init__(self, lane: Lane, bounds: LaneBounds, router: Router) -> None:
        """Name the lane; `open` binds it."""
        self.lane = lane
        self.unsure = False
        self.router = router
        self.endpoint = ""
        self._bounds = bounds
        self._messages_per_turn = MESSAGES_PER_TURN[lane]
        self._bytes_per_s_max = BYTES_PER_S_MAX[lane]
        self._stretch_bytes = 0
        self._counted_at = 0.0
        self._resume_at = _NEVER
        self._backlog = Backlog(BACKLOGS[lane])
        self._retry_at = _NEVER
        self._oversized: tuple[bytes, list[Part]] | None = None

    def open(self, context: ZmqContext, transport: Transport, affinity: int) -> None:
        """Make the socket and bind it."""
        self.socket = server_socket(context, zmq.ROUTER, affinity)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # The checks that pyzmq's `send` adds in front of this one cost as much as the sending.
        self._send = super(zmq.Socket, self.socket).send
        self._recv = self.socket.recv
        self.endpoint = transport.bind(self.socket, self.lane)
        self.descriptor = descriptor_of(self.socket)
        self.unsure = True

    def forget_connections(self) -> None:
        """Take in that all connections are gone, after the socket was closed."""
        self._oversized = None
        self._backlog = Backlog(BACKLOGS[self.lane])
        self._retry_at = _NEVER

    @property
    def due_at(self) -> float:
        """Monotonic time of the next `turn` that has something to do."""
        return min(self.router.due_at, self._retry_at, self._resume_at)

    def drain(self) -> None:
        """Take in what has arrived, and send what comes of it.

        The first message is answered before the next is looked for; a crowd is taken in batches, which wakes the
        transport less often.
        """
        if self._resume_at != _NEVER:
            has_input(self.socket)  # so that the descriptor does not wake anybody until then
            self.unsure = False
            return
        left = self._messages_per_turn - self._take_in(1)
        while has_input(self.socket):
            if left <= 0:
                self.unsure = True
                break
            left -= self._take_in(min(left, BATCH_MESSAGES))
        else:
            self.unsure = False
        if self._stretch_bytes > BYTES_PER_STRETCH:
            self._rest()

    def _rest(self) -> None:
        """Rest for as long as what has passed may take, unless the time since the last count was long enough."""
        now = time.monotonic()
        seconds = self._stretch_bytes / self._bytes_per_s_max - (now - self._counted_at)
        self._counted_at = now
        if seconds * self._bytes_per_s_max > BYTES_PER_STRETCH:
            self._stretch_bytes = 0
            self._resume_at = self._counted_at = now + seconds
        else:
            self._stretch_bytes = max(0, int(seconds * self._bytes_per_s_max)) if seconds > 0 else 0

    def _take_in(self, messages_max: int) -> int:
        recv, router = self._recv, self.router
        receive = router.receive
        frames_max, bytes_max = self._bounds.frames_max, self._bounds.message_bytes_max
        monotonic = time.monotonic
        if self._oversized is not None:
            if not self._throw_away():
                return THROWN_AWAY_FRAMES_MAX
            self._refuse_oversized()
        for number in range(messages_max):
            try:
                peer = recv(_LAST)
            except zmq.Again:
                messages_max = number
                break
            frames: list[Part] = []
            size = 0
            while True:
                frame = recv(_LAST, False)
                length = len(frame)
                size += length
                frames.append(frame.bytes if length <= COPIED_BYTES_MAX else frame)
                if len(frames) > frames_max or size > bytes_max:
                    self._oversized = peer, frames[:4]
                    if frame.more and not self._throw_away():
                        return THROWN_AWAY_FRAMES_MAX
                    self._refuse_oversized()
                    break
                if not frame.more:
                    self._stretch_bytes += size
                    receive(peer, frames, size, monotonic())
                    break
        if router.outbox:
            self.flush()
        return messages_max

    def flush(self) -> None:
        """Send the outbox; what cannot be sent is held for a while, or reported to the router, which may add to it."""
        send, outbox, backlog = self._send, self.router.outbox, self._backlog
        self.unsure = True
        for outgoing in outbox:
            peer, frames, _ = outgoing
            if backlog and peer in backlog:
                self._hold(outgoing)
                continue
            try:
                send(peer, _MORE)
                for frame in frames[:-1]:
                    send(frame, _MORE)
                send(frames[-1], _LAST)
            except zmq.Again:
                self._hold(outgoing)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self.router.undelivered(outgoing, time.monotonic(), gone=True)
        outbox.clear()

    def turn(self, now: float) -> None:
        """Do what has fallen due."""
        if now >= self.router.due_at:
            self.router.tick(now)
            self.flush()
        if now >= self._retry_at:
            self._retry(now)
        if now >= self._resume_at:
            self._resume_at = _NEVER
            self.unsure = True

    def drain_and_refuse(self) -> None:
        """Answer everybody who is still waiting that the system is stopping."""
        self.router.drain(time.monotonic())
        self.flush()

    def _retry(self, now: float) -> None:
        """Try again what is held."""
        backlog = self._backlog
        for first in backlog.first_of_each():
            outgoing: Outgoing | None = first
            while outgoing is not None:
                try:
                    self.socket.send_multipart([outgoing[0], *outgoing[1]], zmq.NOBLOCK)
                except zmq.Again:
                    break
                except zmq.ZMQError as error:
                    if error.errno != zmq.EHOSTUNREACH:
                        raise
                    self._give_up(outgoing[0], now, gone=True)
                    break
                outgoing = backlog.sent(outgoing[0], now)
        for peer in backlog.overdue(now):
            self._give_up(peer, now, gone=False)
        self._retry_at = now + RETRY_S if backlog else _NEVER
        self.flush()

    def _hold(self, outgoing: Outgoing) -> None:
        """Keep an answer for later; a request goes back to its queue instead, for another worker perhaps."""
        now = time.monotonic()
        if outgoing[1][0] == mdp.CLIENT and self._backlog.hold(outgoing, now):
            self._retry_at = min(self._retry_at, now + RETRY_S)
        else:
            self.router.undelivered(outgoing, now, gone=False)

    def _give_up(self, peer: bytes, now: float, *, gone: bool) -> None:
        for outgoing in self._backlog.give_up(peer):
            self.router.undelivered(outgoing, now, gone=gone)

    def _throw_away(self) -> bool:
        """Take in a slice of what is left of a message that is too large; True once it has ended."""
        return any(not self._recv(_LAST, False).more for _ in range(THROWN_AWAY_FRAMES_MAX))

    def _refuse_oversized(self) -> None:
        if self._oversized is not None:
            self.router.receive_oversized(*self._oversized)
            self._oversized = None
            self.flush()
