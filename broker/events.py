"""The socket of the publications: forwards them, and replays last values to new subscribers."""

from typing import Final

import zmq

from actors.runtime.transport import Lane, Socket, Transport, ZmqContext
from broker.inlet import descriptor_of, has_input, server_socket
from broker.routing.topics import Topics

SUBSCRIPTIONS_PER_TURN: Final = 64
REPLAY_INTERVAL_S: Final = 0.02
"""Subscriptions that come faster than this share one replay."""
_SUBSCRIBE: Final = 1
_NEVER: Final = float("inf")


class EventsSocket:
    """Publications of the control lane go out here.

    An `Inlet` once it is open.

    Attributes:
        endpoint: where it is bound.
        replay_at: monotonic time at which `replay` has something to do.
    """

    def __init__(self, topics: Topics) -> None:
        """Serve last values from `topics`."""
        self._topics = topics
        self._wanted: dict[bytes, None] = {}
        self._replayed_at = -_NEVER
        self.endpoint = ""
        self.unsure = False
        self.replay_at = _NEVER

    def open(self, context: ZmqContext, transport: Transport, affinity: int) -> None:
        """Make the socket and bind it."""
        self.socket: Socket = server_socket(context, zmq.XPUB, affinity)
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.endpoint = transport.bind(self.socket, Lane.EVENTS)
        self.descriptor = descriptor_of(self.socket)
        self.unsure = True

    def drain(self) -> None:
        """Take in subscriptions; what they ask for is sent by `replay`."""
        for _ in range(SUBSCRIPTIONS_PER_TURN):
            try:
                message = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if message and message[0] == _SUBSCRIBE:
                self._wanted.update(dict.fromkeys(self._topics.matching(message[1:])))
        if self._wanted and self.replay_at == _NEVER:
            self.replay_at = self._replayed_at + REPLAY_INTERVAL_S
        self.unsure = has_input(self.socket)

    def replay(self, now: float) -> None:
        """Publish the last values that new subscribers asked for, if it is time."""
        if now < self.replay_at:
            return
        for topic in self._wanted:
            body = self._topics.last(topic)
            if body is not None:
                self.publish([(topic, body)])
        self._wanted.clear()
        self._replayed_at, self.replay_at = now, _NEVER

    def publish(self, publications: list[tuple[bytes, bytes]]) -> None:
        """Send publications; a subscriber that does not keep up loses some, nobody waits."""
        self.unsure = True
        for topic, body in publications:
            try:
                self.socket.send_multipart([topic, body], zmq.NOBLOCK)
            except zmq.Again:
                return
