"""The launcher's side of `actors.watchdog.keeper`: it has the programs' sockets kept, and gets them again."""

import json
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from actors.runtime.programs import keeper_path, notify_path

GIVE_S: Final = 0.5
"""How long a successor waits for the sockets; a watchdog that is frozen does not hold it up longer."""
_BYTES_MAX: Final = 64 * 1024
_SOCKETS_MAX: Final = 253


def keep(runtime_dir: str, sockets: Mapping[str, socket.socket]) -> bool:
    """Have the watchdog keep these, and none else; False if it cannot be told now."""
    try:
        with _speaker() as speaker:
            speaker.connect(keeper_path(runtime_dir))
            words = json.dumps(["keep", *sockets]).encode()
            socket.send_fds(speaker, [words], [listener.fileno() for listener in sockets.values()])
    except OSError:
        return False
    return True


def kept(runtime_dir: str) -> dict[str, socket.socket]:
    """Return what the watchdog keeps and programs still reach; empty if it does not answer within `GIVE_S`."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        near.setblocking(False)
        try:
            with _speaker() as speaker:
                speaker.connect(keeper_path(runtime_dir))
                socket.send_fds(speaker, [b'["give"]'], [far.fileno()])
        except OSError:
            return {}
        far.close()  # so that a watchdog that dies over it is noticed
        if not select.select([near], [], [], GIVE_S)[0]:
            return {}
        try:
            data, descriptors, _, _ = socket.recv_fds(near, _BYTES_MAX, _SOCKETS_MAX, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return {}
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    names = json.loads(data) if data else []
    found = {}
    for name, listener in zip(names, sockets, strict=True):
        if _reaches(notify_path(runtime_dir, name)):
            listener.setblocking(False)
            found[name] = listener
        else:  # another launcher has listened there since, and its socket died with it
            listener.close()
    return found


def _reaches(path: str) -> bool:
    with _speaker() as speaker, suppress(OSError):
        speaker.connect(path)
        return True
    return False


def _speaker() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
