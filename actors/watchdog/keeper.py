"""Keeps duplicates of the sockets that programs notify, so that they outlive the launcher, with all that waits in them.

Datagrams on RUNTIME/keeper, whose descriptors and credentials come along:

| JSON list | descriptors | what happens |
| --- | --- | --- |
| ``["keep", NAME, ...]`` | one socket for each name | these are kept, and none else |
| ``["give"]`` | one end of a pair | ``[NAME, ...]`` and the sockets are sent there |

Without a launcher nobody empties them, and a program that sends on a full one waits: so they are closed then, after
`ALONE_S`, and it is told that nobody listens.
"""

import array
import json
import os
import socket
import sys
from contextlib import suppress
from typing import Final

from actors.runtime.programs import keeper_path

ALONE_S: Final = 10.0
"""How long the sockets are kept while the launcher does not move: twice the time in which it is found and replaced."""
MESSAGES_PER_TURN: Final = 8
DESCRIPTORS_MAX: Final = 253
"""The kernel's SCM_MAX_FD."""
_BYTES_MAX: Final = 64 * 1024
_CREDENTIALS_BYTES: Final = 12


class Keeper:
    """Holds the sockets. Loop thread only."""

    def __init__(self, runtime_dir: str) -> None:
        """Hold none yet."""
        self.kept: dict[str, int] = {}
        self._path = keeper_path(runtime_dir)
        self._listener: socket.socket | None = None
        self._turns = -1
        self._moved_at = 0.0

    def open(self) -> int | None:
        """Listen; return the descriptor to call `take` for, or None where the system cannot hand descriptors over."""
        if sys.platform != "linux":
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
        except OSError:
            listener.close()
            return None
        self._listener = listener
        return listener.fileno()

    def take(self) -> None:
        """Do what the launcher asks for."""
        listener = self._listener
        if listener is None:
            return
        for _ in range(MESSAGES_PER_TURN):
            try:
                data, ancillary, _, _ = listener.recvmsg(_BYTES_MAX, _ancillary_bytes(), _cloexec())
            except OSError:  # nothing more
                return
            uid, descriptors = _unpacked(ancillary)
            if uid != os.geteuid() or not self._obey(data, descriptors):
                _close(descriptors)

    def tick(self, now: float, launcher_turns: int) -> None:
        """Let go of everything if the launcher has not moved for too long."""
        if launcher_turns != self._turns:
            self._turns, self._moved_at = launcher_turns, now
        elif self.kept and now - self._moved_at > ALONE_S:
            self._replace({})

    def close(self) -> None:
        """Let go of everything, and listen no more."""
        self._replace({})
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _obey(self, data: bytes, descriptors: list[int]) -> bool:
        """Return whether the descriptors are taken care of."""
        try:
            words = json.loads(data)
        except ValueError:
            return False
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return False
        match words:
            case ["keep", *names] if len(names) == len(descriptors) == len(set(names)):
                self._replace(dict(zip(names, descriptors, strict=True)))
                return True
            case ["give"] if len(descriptors) == 1:
                with socket.socket(fileno=descriptors[0]) as end, suppress(OSError):
                    end.setblocking(False)
                    socket.send_fds(end, [json.dumps(list(self.kept)).encode()], list(self.kept.values()))
                return True
        return False

    def _replace(self, kept: dict[str, int]) -> None:
        before, self.kept = self.kept, kept
        _close(list(before.values()))


def _ancillary_bytes() -> int:
    return socket.CMSG_SPACE(_CREDENTIALS_BYTES) + socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)


def _cloexec() -> int:
    return int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))


def _unpacked(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, list[int]]:
    """Return the sender's uid, -1 if the system does not tell, and the descriptors that came along."""
    uid, descriptors = -1, array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        elif level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
            uid = array.array("i", data[:_CREDENTIALS_BYTES])[1]
    return uid, descriptors.tolist()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
