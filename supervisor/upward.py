"""What the launcher says of itself to whoever started it: systemd's sd_notify, in the other direction.

| when | what |
| --- | --- |
| a successor takes over | MAINPID=, so that the service manager follows it |
| all its processes are ready, or rest in quarantine | READY=1 |
| their number changes | STATUS= |
| half of WATCHDOG_USEC has passed | WATCHDOG=1, from the launcher's own loop |
| a stop begins | STOPPING=1 |

Survivors keep the variables for the successor that one of them starts; programs never get them.
"""

import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
PERIOD_VARIABLE: Final = "WATCHDOG_USEC"
PID_VARIABLE: Final = "WATCHDOG_PID"
RETRY_S: Final = 1.0
"""When what could not be sent is tried again: the manager's queue is full, or it is just being replaced."""
_USEC: Final = 1_000_000
_DIGITS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """How the system stands.

    Attributes:
        whole: nothing is on its way any more.
        stopping: a stop has begun.
        status: the same for people, in one line.
    """

    whole: bool
    stopping: bool
    status: str


class Upward:
    """Tells the service manager how the system stands, and never waits for it.

    Attributes:
        due_at: when `turn` has to be called, even if nothing happens.
    """

    def __init__(self, address: str, period_s: float | None, main_pid: int | None) -> None:
        """Say nothing yet.

        Args:
            address: of the manager's socket: a path, or an abstract name behind an @.
            period_s: how often it wants to hear from us; None if it does not.
            main_pid: ours, if the manager takes another process for the main one.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._beat_s = period_s / 2 if period_s else math.inf
        self._next_beat = -math.inf if period_s else math.inf
        self._main_pid = main_pid
        self._ready = self._stopping = False
        self._status = ""
        self.due_at = -math.inf

    def turn(self, now: float, standing: Standing) -> None:
        """Say what is new, and that the loop turns; to be called by that loop."""
        beat = now >= self._next_beat
        lines = [] if self._main_pid is None else [f"MAINPID={self._main_pid}"]
        if standing.whole and not self._ready and not standing.stopping:
            lines.append("READY=1")
        if standing.stopping and not self._stopping:
            lines.append("STOPPING=1")
        if standing.status != self._status:
            lines.append(f"STATUS={standing.status}")
        if beat:
            lines.append("WATCHDOG=1")
        if not lines:
            self.due_at = self._next_beat
        elif self._send("\n".join(lines)):
            self._main_pid = None
            self._ready |= "READY=1" in lines
            self._stopping |= standing.stopping
            self._status = standing.status
            if beat:
                self._next_beat = now + self._beat_s
            self.due_at = self._next_beat
        else:
            self.due_at = now + RETRY_S

    def _send(self, text: str) -> bool:
        # A socket for each message: none that forks would inherit, and none that a restarted manager leaves deaf.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.setblocking(False)
                speaker.sendto(text.encode(), self._address)
        except OSError:
            return False
        return True


def upward_of(environment: Mapping[str, str], pid: int, *, successor: bool) -> Upward | None:
    """Return who speaks to the service manager that `environment` names; None if there is none.

    Args:
        environment: the launcher's.
        pid: the launcher's.
        successor: it was started by a survivor, so WATCHDOG_PID names a launcher before it, whose place it takes.
    """
    address = environment.get(SOCKET_VARIABLE, "")
    if address[:1] not in {"/", "@"} or len(address) < 2 or not hasattr(socket, "AF_UNIX"):
        return None
    for_us = successor or environment.get(PID_VARIABLE, str(pid)) == str(pid)
    usec = environment.get(PERIOD_VARIABLE, "")
    wanted = for_us and usec.isascii() and usec.isdigit() and len(usec) <= _DIGITS_MAX
    return Upward(address, (int(usec) / _USEC if wanted else 0.0) or None, pid if successor else None)
