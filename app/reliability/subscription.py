"""What the system publishes, as an iterator or with a timeout."""

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import zmq

from actors.runtime.registration import Link
from actors.runtime.transport import ConnectionMonitor, Lane, Retry, Socket, Transport
from app.reliability._channel import Locator, own_context
from app.reliability._client_core import PROBE_S
from protocol.codec import unpack
from protocol.errors import LocalError, ProtocolError
from protocol.limits import TOPIC_BODY_BYTES_MAX

Publication = tuple[str, Any]
"""Topic and value."""


class Subscription:
    """Publications from now on, and first the last value of each state topic; it goes on when the broker is replaced.

    What is published while no broker is there, or while the reader falls far behind, is lost; a state topic's value is
    repeated whenever somebody subscribes. For one thread.

    Attributes:
        socket: its descriptor (``socket.FD``) becomes readable when `receive_now` is worth another try.
    """

    def __init__(self, locator: Locator, topic_prefixes: Sequence[str]) -> None:
        """Subscribe to topics that begin with one of `topic_prefixes`; without any, to all.

        Raises:
            LocalError: nothing was ever started on the data directory.
        """
        self._locator = locator
        self._prefixes = [prefix.encode() for prefix in topic_prefixes] or [b""]
        self._connect(locator.transport())

    def receive(self, timeout: float | None = None) -> Publication | None:
        """Return the next publication, or None if none came within `timeout` seconds (None waits for ever)."""
        end = None if timeout is None else time.monotonic() + timeout
        while (publication := self.receive_now()) is None:
            left_s = PROBE_S if end is None else min(PROBE_S, end - time.monotonic())
            if left_s <= 0:
                return None
            self._poller.poll(math.ceil(left_s * 1000))
            self.follow()
        return publication

    def receive_now(self) -> Publication | None:
        """Return the next publication if it is there already. What is malformed is passed over."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                topic, body = frames
                return topic.decode("ascii"), unpack(body, TOPIC_BODY_BYTES_MAX)
            except (ValueError, ProtocolError):
                continue

    def follow(self) -> None:
        """Connect elsewhere if the broker is not there and its endpoint has moved."""
        self._monitor.drain()
        if self._monitor.link is Link.UP:
            return
        try:
            transport = self._locator.transport_now()
        except LocalError:
            return
        if transport.endpoints != self._transport.endpoints:
            self.close()
            self._connect(transport)

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Publication:
        """Wait for the next publication."""
        publication = self.receive()
        if publication is None:
            raise RuntimeError("waiting for ever came to an end")
        return publication

    def close(self) -> None:
        """Close the sockets."""
        self._monitor.close()
        self.socket.close()

    def __enter__(self) -> Self:
        """Return the subscription."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _connect(self, transport: Transport) -> None:
        self._transport = transport
        self.socket: Socket = own_context().socket(zmq.SUB)
        self._monitor = ConnectionMonitor(self.socket, Retry.PATIENT)
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        for prefix in self._prefixes:
            self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
        transport.connect(self.socket, Lane.EVENTS, Retry.PATIENT)
