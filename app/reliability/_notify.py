"""A program's side of sd_notify: what it tells its launcher, one datagram for each message, and nothing to wait for."""

import os
import socket
from collections.abc import Mapping
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
TIMEOUT_VARIABLE: Final = "WATCHDOG_USEC"
VARIABLES: Final = (SOCKET_VARIABLE, TIMEOUT_VARIABLE, "WATCHDOG_PID")
"""What a service manager tells its program, and means none of the program's children."""
AVAILABLE: Final = hasattr(socket, "AF_UNIX")
_USEC: Final = 1_000_000
_DIGITS_MAX: Final = 20


class Notifier:
    """Speaks to one socket. For any thread; whoever listens there tells senders apart by the kernel's word."""

    def __init__(self, path: str) -> None:
        """Speak to `path`; as systemd has it, one that begins with ``@`` is an abstract one."""
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        # Not connected: whoever succeeds a launcher makes the socket anew under the same path.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0))
        self._socket.setblocking(False)

    def say(self, *fields: str) -> bool:
        """Send fields such as ``READY=1`` as one message; False if nobody listens, or not fast enough."""
        try:
            self._socket.sendto("\n".join(fields).encode(), self._address)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Say no more."""
        self._socket.close()


def timeout_told_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return how long the program may be silent, as it was told at its start; None if it was not."""
    text = environment.get(TIMEOUT_VARIABLE, "")
    if not text.isdecimal() or len(text) > _DIGITS_MAX or not int(text):
        return None
    return int(text) / _USEC
