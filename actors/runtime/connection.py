"""An actor's connection to one lane of the broker: `Registration` decides, this sends, receives and reconnects."""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from actors.runtime.paths import RUN_FILE, read_run_file
from actors.runtime.reactor import Reactor
from actors.runtime.registration import Effect, Link, Phase, Registration
from actors.runtime.transport import ConnectionMonitor, Lane, Retry, Socket, Transport, ZmqContext, send_now
from protocol import mdp
from protocol.errors import ErrorCode, LocalError

DRAIN_MESSAGES_MAX: Final = {Lane.CONTROL: 64, Lane.BULK: 4, Lane.EVENTS: 64}
"""Messages taken per turn, so that the loop goes on beating under load."""
BACKLOG_MESSAGES_MAX: Final = 256
"""Replies that wait for a broker that is there and does not read."""
BACKLOG_RETRY_S: Final = 0.01
ENDPOINT_CHECK_S: Final = 0.25
"""How often run.json is read while no broker is there: on TCP it may come back on another port."""
PATIENT_AFTER_S: Final = 5.0
"""A broker that stays away for so long is looked for less often: it may be quarantined for an hour."""


def read_transport(runtime_dir: str) -> Transport:
    """Return the transport that the runtime directory's run.json describes.

    Raises:
        LocalError: there is none.
    """
    run = read_run_file(os.path.join(runtime_dir, RUN_FILE))
    if run is None:
        raise LocalError(ErrorCode.NOT_RUNNING, f"{runtime_dir} has no {RUN_FILE}")
    return Transport.for_run(run)


class BrokerConnection:
    """A DEALER that stays registered as one worker of one service.

    Attributes:
        lane: request or bulk lane.
        transport: the broker's endpoints as last read.
        registration: where it stands with the broker.
        dropped_count: messages that could not be sent: no broker, or a full backlog.
    """

    def __init__(
        self,
        context: ZmqContext,
        runtime_dir: str,
        lane: Lane,
        ready: list[bytes],
        reactor: Reactor,
    ) -> None:
        """Hold what it needs; `ready` is the READY message. Nothing happens before `open`."""
        self.lane = lane
        self.dropped_count = 0
        self.transport = read_transport(runtime_dir)
        self.registration = Registration(time.monotonic())
        self._context = context
        self._runtime_dir = runtime_dir
        self._ready = ready
        self._reactor = reactor
        self._backlog: deque[list[bytes]] = deque()
        self._retry = Retry.QUICK
        self._up_at = time.monotonic()
        self._stepped_at = 0.0
        self._endpoint_check_at = time.monotonic() + ENDPOINT_CHECK_S

    def open(
        self,
        on_request: Callable[["BrokerConnection", bytes, list[bytes]], None],
        on_joined: Callable[["BrokerConnection"], None],
    ) -> None:
        """Connect, without waiting for it.

        Args:
            on_request: takes return address and body of each request.
            on_joined: is called when READY has gone out on a new connection; whatever was sent before may be lost.
        """
        self._on_request = on_request
        self._on_joined = on_joined
        self._connect()

    def send(self, frames: list[bytes]) -> None:
        """Send now, or keep for a broker that is there and does not read, or count as dropped. Never blocks."""
        if self._backlog or not self._try_send(frames):
            if self.registration.phase is Phase.JOINED and len(self._backlog) < BACKLOG_MESSAGES_MAX:
                self._backlog.append(frames)
            else:
                self.dropped_count += 1

    def step(self, now: float) -> None:
        """Take a regular turn: heartbeat, silence, the next attempt, what waits in the backlog."""
        self._stepped_at = now
        self._perform(self.registration.step(now))
        self.flush()
        if self._monitor.link is Link.UP:
            self._up_at = now
            return
        if now >= self._endpoint_check_at:
            self._endpoint_check_at = now + ENDPOINT_CHECK_S
            self._follow_endpoint()
        if now - self._up_at > PATIENT_AFTER_S and self._monitor.link is Link.DOWN:
            self._use(Retry.PATIENT)

    def flush(self) -> None:
        """Send what waits in the backlog, as far as the broker takes it."""
        while self._backlog and self._try_send(self._backlog[0]):
            self._backlog.popleft()

    @property
    def wake_at(self) -> float:
        """When `step` wants to be called, if that is before the regular tick."""
        return self._stepped_at + BACKLOG_RETRY_S if self._backlog else self.registration.wake_at

    def leave(self) -> None:
        """Take the registration back; the connection stays open for what is still to be sent."""
        self.flush()
        self._perform(self.registration.leave(time.monotonic()))

    def close(self) -> None:
        """Close the sockets."""
        self._reactor.unregister(self._monitor.socket)
        self._reactor.unregister(self._socket)
        self._monitor.close()
        self._socket.close()

    def _connect(self) -> None:
        self._socket: Socket = self._context.socket(zmq.DEALER)
        self._monitor = ConnectionMonitor(self._socket, self._retry)
        self._reactor.register(self._monitor.socket, self._link_changed)
        self._reactor.register(self._socket, self._receive)
        self.transport.connect(self._socket, self.lane, self._retry)

    def _use(self, retry: Retry) -> None:
        if retry is not self._retry:
            self._retry = retry
            self._renew()

    def _renew(self) -> None:
        self.close()
        self._backlog.clear()
        self._connect()

    def _follow_endpoint(self) -> None:
        try:
            transport = read_transport(self._runtime_dir)
        except LocalError:
            return
        if transport.endpoints != self.transport.endpoints:
            self.transport = transport
            self._renew()

    def _link_changed(self) -> None:
        connections = self._monitor.connections
        self._monitor.drain()
        now = time.monotonic()
        if self._monitor.link is Link.UP and self._retry is not Retry.QUICK:
            self._use(Retry.QUICK)  # it is back: from now on its next loss counts in milliseconds again
            return
        if self._monitor.connections != connections:
            self._backlog.clear()
            self._perform(self.registration.link_changed(Link.UP, now))
        if self._monitor.link is not Link.UP:
            self._backlog.clear()
            self._perform(self.registration.link_changed(self._monitor.link, now))

    def _receive(self) -> None:
        socket = self._socket
        for _ in range(DRAIN_MESSAGES_MAX[self.lane]):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) < 2 or frames[0] != mdp.WORKER:
                continue
            self.registration.heard(time.monotonic())
            command = frames[1]
            if command == mdp.WORKER_REQUEST and len(frames) >= 5:
                self._on_request(self, frames[2], frames[4:])
            elif command == mdp.WORKER_DISCONNECT:
                self._perform(self.registration.dropped(time.monotonic()))
            if self._socket is not socket:
                return
        self._reactor.doubt(socket)

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Effect.SEND_READY:
                    self.send(self._ready)
                    self._on_joined(self)
                case Effect.SEND_HEARTBEAT:
                    self._try_send(mdp.HEARTBEAT)
                case Effect.SEND_DISCONNECT:
                    self._try_send(mdp.DISCONNECT)
                case Effect.RENEW:
                    self._renew()

    def _try_send(self, frames: list[bytes]) -> bool:
        self._reactor.doubt(self._socket)
        return send_now(self._socket, frames)


class Subscriber:
    """A SUB socket on the events lane; libzmq subscribes anew by itself when the broker comes back.

    Attributes:
        transport: where it is connected.
    """

    def __init__(
        self, context: ZmqContext, transport: Transport, topics: tuple[str, ...], reactor: Reactor,
        on_message: Callable[[list[bytes]], None],
    ) -> None:  # fmt: skip
        """Subscribe to the topics that begin with one of `topics`."""
        self.transport = transport
        self._reactor = reactor
        self._on_message = on_message
        self._socket: Socket = context.socket(zmq.SUB)
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        reactor.register(self._socket, self._receive)
        transport.connect(self._socket, Lane.EVENTS, Retry.PATIENT)

    def close(self) -> None:
        """Close the socket."""
        self._reactor.unregister(self._socket)
        self._socket.close()

    def _receive(self) -> None:
        for _ in range(DRAIN_MESSAGES_MAX[Lane.EVENTS]):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(frames)
        self._reactor.doubt(self._socket)
