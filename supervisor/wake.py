"""A socket on which the watchdog says that there is a verdict on the board, so that none waits for a tick."""

import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from actors.runtime.programs import wake_path

_TAKEN_MAX: Final = 64


class Wake:
    """Listens, where the system has local datagram sockets; else verdicts are found at the next tick."""

    def __init__(self, runtime_dir: str, selector: selectors.BaseSelector, woken: Callable[[float], None]) -> None:
        """Call `woken` with the time whenever somebody says that there is something to see."""
        self._selector = selector
        self._woken = woken
        self._listener: socket.socket | None = None
        if not hasattr(socket, "AF_UNIX"):
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        path = wake_path(runtime_dir)
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(path)
            os.chmod(path, 0o600)
        except OSError:
            listener.close()
            return
        self._listener = listener
        selector.register(listener, selectors.EVENT_READ, lambda _mask, now: self._take(listener, now))

    def close(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptor, and leave the socket to the launcher."""
        if self._listener is not None:
            self._listener.close()

    def _take(self, listener: socket.socket, now: float) -> None:
        with suppress(OSError):
            for _ in range(_TAKEN_MAX):
                listener.recv(1)
        self._woken(now)
