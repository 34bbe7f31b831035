"""One poll over everything that a loop waits for, and a mailbox through which other threads reach that loop."""

import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from actors.runtime.transport import Socket

Source = Socket | int
"""A ZeroMQ socket, or a descriptor of the system."""

_MAILBOX_READ_BYTES: Final = 4096


class Reactor:
    """Calls back whoever waits for input. One system call a turn, where `zmq.Poller` makes three for each socket.

    A ZeroMQ descriptor tells only of what has happened since its socket was last used in any way. So whoever has sent,
    or has not received all there is, says so (`doubt`), and the socket is asked before the next wait.
    """

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[Source, Callable[[], None]] = {}
        self._doubted: set[Socket] = set()

    def register(self, source: Source, callback: Callable[[], None]) -> None:
        """Call `callback` in each turn in which `source` is readable."""
        self._selector.register(_descriptor(source), selectors.EVENT_READ, source)
        self._callbacks[source] = callback
        if isinstance(source, zmq.Socket):
            self._doubted.add(source)

    def unregister(self, source: Source) -> None:
        """Stop waiting for `source`; does nothing if nobody does. Before it is closed."""
        if self._callbacks.pop(source, None) is not None:
            self._selector.unregister(_descriptor(source))
            if isinstance(source, zmq.Socket):
                self._doubted.discard(source)

    def doubt(self, socket: Socket) -> None:
        """Take in that `socket` may have input that its descriptor does not tell of."""
        self._doubted.add(socket)

    def wait(self, timeout_s: float) -> list[Source]:
        """Wait for input, at most `timeout_s`; return who may have some."""
        ready: list[Source] = [socket for socket in self._doubted if _has_input(socket)]
        self._doubted.clear()
        timeout_s = 0.0 if ready else max(0.0, timeout_s)
        return ready + [key.data for key, _ in self._selector.select(timeout_s) if key.data not in ready]

    def call(self, ready: list[Source]) -> None:
        """Call back for each of `ready`, unless an earlier callback has unregistered it."""
        for source in ready:
            callback = self._callbacks.get(source)
            if callback is not None:
                callback()

    def close(self) -> None:
        """Give the selector's descriptor back."""
        self._selector.close()


class Mailbox:
    """Callbacks that other threads hand to the loop's thread. It holds as many as their senders may have under way."""

    def __init__(self) -> None:
        """Open the pair of sockets that wakes the loop."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._callbacks: deque[Callable[[], None]] = deque()
        self._awake = False

    def fileno(self) -> int:
        """Return the descriptor that is readable while something was posted."""
        return self._reader.fileno()

    def post(self, callback: Callable[[], None]) -> None:
        """Have the loop call `callback`; from any thread."""
        self._callbacks.append(callback)
        if not self._awake:
            self._awake = True
            try:
                self._writer.send(b"\0")
            except (
                OSError
            ):  # full of such bytes, so that the loop wakes anyway; or closed, so that nobody wakes any more
                return

    def drain(self) -> None:
        """Make the calls that were posted. Loop thread only."""
        try:
            self._reader.recv(_MAILBOX_READ_BYTES)
        except BlockingIOError:
            pass
        self._awake = False  # before looking: whoever posts from here on wakes the loop again
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()

    def close(self) -> None:
        """Close the sockets; nothing may be posted any more."""
        self._reader.close()
        self._writer.close()


def _descriptor(source: Source) -> int:
    return source if isinstance(source, int) else int(source.getsockopt(zmq.FD))


def _has_input(socket: Socket) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
