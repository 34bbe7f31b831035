"""Sockets waited for by their descriptors: one system call a turn, where `zmq.Poller` makes three for each socket.

A ZeroMQ descriptor tells only of what has happened since the socket was last used in any way. So whoever has received
or sent looks for input once more before waiting (`unsure`), until there is none.
"""

from typing import Final, Protocol

import zmq

from actors.runtime.transport import Admission, Socket, ZmqContext

CONNECTION_PING_MS: Final = 5000
CONNECTION_SILENCE_MS: Final = 15_000
"""A connection whose other side takes nothing out of it for so long is dropped, with what is queued for it."""

_POLLIN: Final = int(zmq.POLLIN)


class Inlet(Protocol):
    """Something that takes in messages.

    Attributes:
        descriptor: readable when something may have come.
        unsure: whether something may be waiting that `descriptor` does not tell of.
    """

    descriptor: int
    unsure: bool

    def drain(self) -> None:
        """Take in what has come, a bounded part of it; sets `unsure`."""


def server_socket(context: ZmqContext, kind: int, affinity: int) -> Socket:
    """Return a socket that drops connections whose other side has stopped reading."""
    socket: Socket = context.socket(kind)
    socket.setsockopt(zmq.AFFINITY, affinity)
    socket.setsockopt(zmq.HEARTBEAT_IVL, CONNECTION_PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, CONNECTION_SILENCE_MS)
    return socket


def descriptor_of(socket: Socket) -> int:
    """Return the socket's descriptor."""
    return int(socket.get(zmq.FD))


def has_input(socket: Socket) -> bool:
    """Tell whether something can be received."""
    return (int(socket.get(zmq.EVENTS)) & _POLLIN) != 0


class AdmissionInlet:
    """Those who want to connect by TCP."""

    def __init__(self, admission: Admission) -> None:
        """Watch them for `admission`."""
        self._admission = admission
        self.descriptor = descriptor_of(admission.socket)
        self.unsure = True

    def drain(self) -> None:
        """Let them in, or not."""
        self._admission.handle()
        self.unsure = has_input(self._admission.socket)
