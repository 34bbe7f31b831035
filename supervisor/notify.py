"""The sockets on which programs speak sd_notify: one for each, and only its own processes are heard there."""

import array
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from actors.runtime.identity import stat_fields
from actors.runtime.programs import NOTIFY_DIR, notify_path
from supervisor.notify_core import DATAGRAM_BYTES_MAX, Message, parse
from supervisor.tree import carries

HAS_CREDENTIALS: Final = hasattr(socket, "SO_PASSCRED") and hasattr(socket, "SCM_CREDENTIALS")
"""Whether the system tells who has sent a datagram; without it, nobody is heard."""
MESSAGES_PER_TURN: Final = 64
"""So many of one program are taken at a time, so that a flood of one keeps no other waiting."""
ANCESTORS_MAX: Final = 64
_PPID, _SESSION = 1, 3
"""Places in /proc/PID/stat, counted from the state (field 3) on."""
_DESCRIPTORS_MAX: Final = 253
"""The kernel's SCM_MAX_FD."""
_CREDENTIALS_BYTES: Final = 12
_REFUSED_TOLD_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Life:
    """The present life of a program: its main process, which life it is, and the id in its environment."""

    pid: int
    incarnation: int
    invocation: str


class Notifications:
    """Hears programs.

    Attributes:
        refused: what was not heard: of strangers, or no message.
        revision: how often `sockets` has changed.
    """

    def __init__(
        self,
        runtime_dir: str,
        selector: selectors.BaseSelector,
        life_of: Callable[[str], Life | None],
        heard: Callable[[str, int, Message, float], None],
    ) -> None:
        """Hear nobody yet.

        Args:
            runtime_dir: where the sockets are made.
            selector: wakes up for them.
            life_of: returns a program's present life.
            heard: is told name, life, message and time, in the order in which the messages came.
        """
        self.refused = 0
        self.revision = 0
        self._runtime_dir = runtime_dir
        self._selector = selector
        self._life_of = life_of
        self._heard = heard
        self._sockets: dict[str, socket.socket] = {}
        self._inherited: dict[str, socket.socket] = {}
        self._told, self._told_at = 0, 0.0

    def open(self, name: str) -> str | None:
        """Listen to a program, if that is not so already; return where, or None where that cannot be."""
        path = notify_path(self._runtime_dir, name)
        if name in self._sockets:
            return path
        if not HAS_CREDENTIALS:
            return None
        if name in self._inherited:
            self._listen(name, self._inherited.pop(name))
            return path
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            os.makedirs(os.path.join(self._runtime_dir, NOTIFY_DIR), mode=0o700, exist_ok=True)
            if os.path.lexists(path):
                os.unlink(path)  # a predecessor's; who is connected to that has to connect anew
            listener.bind(path)
            os.chmod(path, 0o600)
        except OSError:
            listener.close()
            return None
        self._listen(name, listener)
        return path

    @property
    def sockets(self) -> Mapping[str, socket.socket]:
        """Where programs are heard, by name."""
        return self._sockets

    def inherit(self, sockets: Mapping[str, socket.socket]) -> None:
        """Have `open` take these, of a launcher before, instead of new ones; what it has not taken so far is closed."""
        for listener in self._inherited.values():
            listener.close()
        self._inherited = dict(sockets)

    def _listen(self, name: str, listener: socket.socket) -> None:
        self._sockets[name] = listener
        self.revision += 1
        self._selector.register(listener, selectors.EVENT_READ, lambda _mask, now: self._drain(name, now))

    def close(self, name: str) -> None:
        """Listen to a program no more."""
        listener = self._sockets.pop(name, None)
        if listener is not None:
            self.revision += 1
            self._selector.unregister(listener)
            listener.close()
            try:
                os.unlink(notify_path(self._runtime_dir, name))
            except OSError:
                return

    def drain(self, name: str, now: float) -> None:
        """Take what a program has said by now; to be called before its end is judged."""
        if name in self._sockets:
            self._drain(name, now)

    def refused_since(self, now: float) -> int:
        """Return how many were refused since this was last told, at most once in a minute; 0 if there is no news."""
        if self.refused == self._told or (self._told and now < self._told_at + _REFUSED_TOLD_S):
            return 0
        count, self._told, self._told_at = self.refused - self._told, self.refused, now
        return count

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptors; the sockets stay the launcher's."""
        for listener in self._sockets.values():
            listener.close()

    def _drain(self, name: str, now: float) -> None:
        listener = self._sockets[name]
        for _ in range(MESSAGES_PER_TURN):
            try:
                data, ancillary, flags, _ = listener.recvmsg(DATAGRAM_BYTES_MAX, _ancillary_bytes())
            except OSError:  # nothing more
                return
            pid, uid, descriptors = _sender(ancillary)
            try:
                truncated = flags & socket.MSG_TRUNC
                life = self._life_of(name)
                message = None if truncated else parse(data)
                if message is None or life is None or uid != os.geteuid() or not belongs(pid, life):
                    self.refused += 1
                else:
                    self._heard(name, life.incarnation, message, now)
            finally:
                for descriptor in descriptors:  # of BARRIER=1 too, whose sender waits for just that
                    os.close(descriptor)


def belongs(pid: int, life: Life) -> bool:
    """Tell whether a process is the program's: main process, in its session, below it, or with its life's id."""
    if pid <= 1 or life.pid <= 1:
        return False
    seen = pid
    for _ in range(ANCESTORS_MAX):
        if seen == life.pid:
            return True
        fields = stat_fields(seen)
        if fields is None:
            break
        if seen == pid and int(fields[_SESSION]) == life.pid:
            return True
        seen = int(fields[_PPID])
        if seen <= 1 or seen == os.getpid():
            break
    return carries(pid, life.invocation)


def _ancillary_bytes() -> int:
    integer = array.array("i").itemsize
    return socket.CMSG_SPACE(_CREDENTIALS_BYTES) + socket.CMSG_SPACE(_DESCRIPTORS_MAX * integer)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int, list[int]]:
    """Return pid and uid of the sender, 0 and -1 if the system does not tell, and the descriptors that came along."""
    pid, uid = 0, -1
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        elif level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
            values = array.array("i", data[:_CREDENTIALS_BYTES])
            pid, uid = values[0], values[1]
    return pid, uid, descriptors.tolist()
