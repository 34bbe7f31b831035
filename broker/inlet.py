"""Sockets waited for by their descriptors: one system call a turn, where `zmq.Poller` makes three for each socket.

A ZeroMQ descriptor tells only of what has happened since the socket was last used in any way. So whoever has received
or sent looks for input once more before waiting (`unsure`), until there is none.
"""

import os
import selectors
import time
from collections.abc import Iterable
from typing import Final, Protocol

import zmq

from actors.runtime.transport import Admission, Socket, ZmqContext

CONNECTION_PING_MS: Final = 5000
CONNECTION_SILENCE_MS: Final = 15_000
"""A connection whose other side takes nothing out of it for so long is dropped, with what is queued for it."""

AWAKE_S: Final = 0.0002
"""How long the loop stays awake for the next message when the last one came this soon."""
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


class Waiter:
    """Waits until one of some descriptors is readable.

    Going to sleep and being woken takes longer than most messages take to be routed. So after a wait that was shorter
    than `AWAKE_S` the next one begins by looking again and again for so long, letting others run in between. That is
    the case only in the middle of a conversation; a system at rest never gets there.
    """

    def __init__(self, descriptors: Iterable[int]) -> None:
        """Wait for these."""
        self._selector = selectors.DefaultSelector()
        for descriptor in descriptors:
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._let_others_run = getattr(os, "sched_yield", None)
        self._in_conversation = False

    def wait(self, timeout_s: float) -> set[int]:
        """Return the readable ones; none of them after `timeout_s`."""
        began = time.monotonic()
        found = None
        if self._in_conversation and self._let_others_run is not None:
            until = began + min(AWAKE_S, timeout_s)
            found = self._selector.select(0)
            while not found and time.monotonic() < until:
                self._let_others_run()
                found = self._selector.select(0)
        if not found:
            found = self._selector.select(timeout_s)
        self._in_conversation = bool(found) and time.monotonic() - began < AWAKE_S
        return {key.fd for key, _ in found}

    def close(self) -> None:
        """Wait no more."""
        self._selector.close()


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
