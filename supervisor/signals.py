"""The launcher's signals: noted by handlers, waited for with everything else, taken by the loop."""

import os
import signal
import socket
import sys
from collections import deque
from types import FrameType


class Signals:
    """Catches the signals that ask for a stop, and lets the others only wake the loop up.

    Attributes:
        descriptor: readable once a signal has arrived.
    """

    def __init__(self) -> None:
        """Take over the process's signals. Main thread only."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.descriptor = self._reader.fileno()
        self._arrived: deque[int] = deque(maxlen=16)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)
        if sys.platform == "win32":
            signal.signal(signal.SIGBREAK, self._note)
            return
        signal.signal(signal.SIGCHLD, _wake_up)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._note if _has_terminal() else signal.SIG_IGN)

    def take(self) -> list[str]:
        """Return the names of the signals that ask for a stop and have arrived since the last call."""
        try:
            while self._reader.recv(512):
                pass
        except BlockingIOError:
            pass
        taken = []
        while self._arrived:
            taken.append(signal.Signals(self._arrived.popleft()).name)
        return taken

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptors; the handlers are the child's business."""
        self._reader.close()
        self._writer.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._arrived.append(number)


def _wake_up(_number: int, _frame: FrameType | None) -> None:
    """A handler has to exist for the signal to be written to the wake-up descriptor."""


def _has_terminal() -> bool:
    """Tell whether there is a terminal whose closing would hang us up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
