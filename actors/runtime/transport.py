"""The sockets of the broker's lanes, local or TCP, behind one face.

On POSIX the lanes are ipc sockets in the owner-only runtime directory. The portable port is TCP on the loopback with
CURVE: encrypted, and only the one client key in run.json is let in (`Admission`, answered in the broker's own loop).

Every socket gets its bounds here: frame size, queue lengths, no linger. A connecting socket queues nothing while it has
no peer (IMMEDIATE), so `Again` on send means "no broker", and what was sent before a connection broke has to be sent
again: `ConnectionMonitor` tells when.
"""

import errno
import os
import struct
from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import Any, Final, Self

import zmq
from zmq.utils import z85

from actors.runtime.paths import Curve, RunInfo
from actors.runtime.registration import Link
from protocol.limits import BULK_FRAME_BYTES_MAX, CONTROL_FRAME_BYTES_MAX, TOPIC_BODY_BYTES_MAX

Socket = zmq.Socket[bytes]
ZmqContext = zmq.Context[Socket]

BACKLOG_CONNECTIONS: Final = 128

_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_ZAP_DOMAIN: Final = b"relctl"
_ZAP_DRAIN_MAX: Final = 64
_PORT_TAKEN: Final = frozenset({zmq.EADDRINUSE, errno.EACCES})


class Lane(StrEnum):
    """A way through the broker: requests, large requests, publications."""

    CONTROL = "req"
    BULK = "bulk"
    EVENTS = "events"


FRAME_BYTES_MAX: Final = {
    Lane.CONTROL: CONTROL_FRAME_BYTES_MAX,
    Lane.BULK: BULK_FRAME_BYTES_MAX,
    Lane.EVENTS: TOPIC_BODY_BYTES_MAX,
}


class Retry(Enum):
    """How a socket looks for a broker that is away: milliseconds to the first attempt, and at most between two.

    An attempt costs about 50 us.
    """

    QUICK = (1, 2)
    PATIENT = (50, 250)
    NEVER = (-1, 0)


QUEUED_MESSAGES_MAX: Final = {Lane.CONTROL: 256, Lane.BULK: 4, Lane.EVENTS: 1024}
"""Messages that one connection holds per direction before its sender is told to wait (or, for events, loses one)."""


class Transport:
    """Binds and connects sockets as one `RunInfo` says."""

    def __init__(self, endpoints: dict[Lane, str], curve: Curve | None = None) -> None:
        """Hold the lanes' endpoints, and the keys if they are TCP."""
        self.endpoints = endpoints
        self._curve = curve

    @classmethod
    def for_run(cls, run: RunInfo) -> Self:
        """Return the transport of the system that `run` describes."""
        return cls({Lane.CONTROL: run.endpoint, Lane.BULK: run.bulk, Lane.EVENTS: run.events}, run.curve)

    def bind(self, socket: Socket, lane: Lane) -> str:
        """Bind the broker's socket of `lane` and return its endpoint: another one than given if its TCP port was taken.

        libzmq unlinks an ipc path before it binds: the caller holds the lock that makes it the only broker. On TCP an
        `Admission` must exist in the same context and be polled, or nobody is let in.

        Raises:
            zmq.ZMQError: the endpoint cannot be bound.
        """
        _bound(socket, lane)
        socket.setsockopt(zmq.BACKLOG, BACKLOG_CONNECTIONS)
        endpoint = self.endpoints[lane]
        if self._curve is not None:
            socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._curve.server_secret.encode())
        elif hasattr(os, "geteuid"):
            _refuse_other_users(socket)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if self._curve is None or error.errno not in _PORT_TAKEN:
                raise
            socket.bind(endpoint.rpartition(":")[0] + ":*")
        return socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]

    def connect(self, socket: Socket, lane: Lane, retry: Retry = Retry.QUICK) -> None:
        """Connect a client's or worker's socket to `lane`; returns at once, whether or not a broker is there."""
        _bound(socket, lane)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        first_ms, most_ms = retry.value
        socket.setsockopt(zmq.RECONNECT_IVL, first_ms)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, most_ms)
        if self._curve is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, self._curve.server_public.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.client_public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._curve.client_secret.encode())
        socket.connect(self.endpoints[lane])

    def admission(self, context: ZmqContext) -> "Admission | None":
        """Return the guard of the broker's TCP sockets, to be made before they bind; None where no guard is needed."""
        return None if self._curve is None else Admission(context, self._curve.client_public)


class Admission:
    """Lets in who proves to hold the one client key (ZAP, ZeroMQ RFC 27); runs in its owner's poll loop, no thread.

    Attributes:
        socket: poll this for input, then call `handle`.
        refused: how many connections were turned away.
    """

    def __init__(self, context: ZmqContext, client_public: str) -> None:
        """Take the context's ZAP address; one per context."""
        self._client_key = z85.decode(client_public)
        self.refused = 0
        self.socket: Socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP_ENDPOINT)

    def handle(self) -> None:
        """Answer the connections that wait; never blocks."""
        for _ in range(_ZAP_DRAIN_MAX):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        if len(frames) < 8:
            self.refused += 1
            return
        peer, _, version, request_id, _domain, _address, _identity, mechanism, *credentials = frames
        admitted = mechanism == b"CURVE" and credentials == [self._client_key]
        if not admitted:
            self.refused += 1
        status = [b"200", b"OK", b"relctl"] if admitted else [b"400", b"not the client key of this system", b""]
        try:
            self.socket.send_multipart([peer, b"", version, request_id, *status, b""], zmq.NOBLOCK)
        except zmq.Again:
            return


_EVENT: Final = struct.Struct("=hi")
_LINK_AFTER: Final = {
    int(zmq.EVENT_CONNECTED): Link.OPENING,
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): Link.UP,
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): Link.DOWN,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): Link.DOWN,
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): Link.DOWN,
    int(zmq.EVENT_DISCONNECTED): Link.DOWN,
}
_LINK_AFTER_ONE_ATTEMPT: Final = {
    event: Link.LOST if link is Link.DOWN else link for event, link in _LINK_AFTER.items()
} | {int(zmq.EVENT_CLOSED): Link.LOST}


class ConnectionMonitor:
    """Follows the connection of one connecting socket. Make it before `Transport.connect`, close it before the socket.

    Attributes:
        socket: poll this for input, then call `drain`.
        link: the present state.
        connections: how often it came up; what was sent in an earlier connection may be lost.
    """

    def __init__(self, socket: Socket, retry: Retry = Retry.QUICK) -> None:
        """Watch `socket`, which is not connected yet, and will be with this `retry`."""
        self._watched = socket
        self._link_after = _LINK_AFTER_ONE_ATTEMPT if retry is Retry.NEVER else _LINK_AFTER
        self.socket: Socket = socket.get_monitor_socket(sum(self._link_after))
        self.link = Link.DOWN
        self.connections = 0

    def drain(self) -> None:
        """Take in what has happened; never blocks."""
        while True:
            try:
                frames: list[bytes] = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            link = self._link_after.get(_EVENT.unpack(frames[0])[0])
            if link is not None:
                self.link = link
                self.connections += link is Link.UP

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self.socket.close()


def send_now(socket: Socket, frames: Sequence[bytes]) -> bool:
    """Send on a connecting socket; False if there is no broker, or it does not take any more now. Never blocks."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.Again:
        # A send looks only now and then whether a connection has come up; a poll makes it look.
        if not socket.poll(0, zmq.POLLOUT):
            return False
        socket.send_multipart(frames, zmq.NOBLOCK)
    return True


def _bound(socket: Socket, lane: Lane) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX[lane])
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES_MAX[lane])
    socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES_MAX[lane])


def _refuse_other_users(socket: Socket) -> None:
    """Second fence behind the 0700 directory, where the system tells a socket its peer's user."""
    try:
        socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
    except zmq.ZMQError as error:
        if error.errno != errno.EINVAL:
            raise


def local_endpoints(runtime_dir: str) -> dict[Lane, str]:
    """Return the ipc endpoints of the lanes in `runtime_dir`."""
    return {lane: f"ipc://{os.path.join(runtime_dir, lane)}" for lane in Lane}


def new_curve_keys() -> Curve:
    """Return fresh keys for the portable transport."""
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    keys: list[Any] = [server_public, server_secret, client_public, client_secret]
    return Curve(*(key.decode() for key in keys))
