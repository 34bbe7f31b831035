"""Signals to exactly one process: never to another one that has inherited its pid.

Two implementations of one port. With a pidfd the order decides: open it, then check that the process which it now holds
is the one that was meant; from then on the pid may be reused as it likes. The portable one asks psutil, which compares
the start time just before it signals.
"""

import os
import select
import signal
import time
from collections.abc import Collection
from typing import Final, Protocol

from actors.runtime.identity import ProcessIdentity

HAS_PIDFD: Final = hasattr(os, "pidfd_open")
KILL: Final[int] = getattr(signal, "SIGKILL", signal.SIGTERM)
SHOW_STACKS: Final[int | None] = getattr(signal, "SIGUSR1", None)
"""Answered by `actors.runtime.process.register_stacks`; None where there is no such signal."""
_LOOK_INTERVAL_S: Final = 0.005


class Signaller(Protocol):
    """Sends signals to identities, and waits for their end."""

    def send(self, identity: ProcessIdentity, number: int) -> bool:
        """Signal exactly this process; False if it is gone (a zombie is gone), whoever has its pid now."""

    def wait_gone(self, identity: ProcessIdentity, timeout_s: float) -> bool:
        """Wait until the process is gone; False if it is not after `timeout_s`. Blocks: not for a message loop."""


class PidfdSignaller:
    """Linux."""

    def send(self, identity: ProcessIdentity, number: int) -> bool:
        """See `Signaller`."""
        descriptor = open_pidfd(identity)
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)  # type: ignore[attr-defined,unused-ignore]
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait_gone(self, identity: ProcessIdentity, timeout_s: float) -> bool:
        """See `Signaller`."""
        descriptor = open_pidfd(identity)
        if descriptor is None:
            return True
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)


class PortableSignaller:
    """Anywhere, by psutil. On Windows, where there are no signals, `KILL` ends the process."""

    def __init__(self) -> None:
        """Import psutil now, not when the first signal is due on a message loop."""
        import psutil  # noqa: PLC0415 - Linux does without it

        self._psutil = psutil

    def send(self, identity: ProcessIdentity, number: int) -> bool:
        """See `Signaller`."""
        try:
            process = self._psutil.Process(identity.pid)
            if not identity.is_running():
                return False
            process.send_signal(number)
        except self._psutil.NoSuchProcess:
            return False
        return True

    def wait_gone(self, identity: ProcessIdentity, timeout_s: float) -> bool:
        """See `Signaller`. By looking again and again: waiting through psutil would reap a child of ours."""
        deadline = time.monotonic() + timeout_s
        while identity.is_running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_INTERVAL_S)
        return True


class Presence:
    """Tells again and again, at little cost, whether processes are still there: by a pidfd for each, if possible.

    Processes are asked for by a key of the caller's (a slot), under which one is held at a time. Who asks for many of
    them takes in exits once (`take_exits`): a system call for each would cost more than all the rest.
    """

    def __init__(self, *, portable: bool) -> None:
        """Hold nobody yet."""
        self._by_pidfd = tells_exits(portable=portable)
        self._exits: select.epoll | None = None
        self._held: dict[int, tuple[ProcessIdentity, int | None]] = {}

    def fileno(self) -> int | None:
        """Return a descriptor that is readable once one of those held has ended and nobody has asked since.

        It is the same for good; None where exits tell nobody.
        """
        return self._epoll().fileno() if self._by_pidfd else None

    def is_running(self, key: int, identity: ProcessIdentity) -> bool:
        """Tell whether exactly this process existed and was no zombie at the last `take_exits`, or exists now."""
        if not self._by_pidfd:
            return identity.is_running()
        held, descriptor = self._held.get(key, (None, None))
        if held is not identity and held != identity:
            self.forget(key)
            descriptor = open_pidfd(identity)
            if descriptor is not None:
                self._epoll().register(descriptor, select.EPOLLIN)
            self._held[key] = identity, descriptor
            self.take_exits()  # it may have ended since
        return self._held[key][1] is not None

    def take_exits(self) -> None:
        """Take in who has ended."""
        ended = {descriptor for descriptor, _ in self._exits.poll(0)} if self._exits is not None else ()
        if ended:
            for key, (identity, descriptor) in list(self._held.items()):
                if descriptor in ended:
                    self.forget(key)
                    self._held[key] = identity, None

    def forget(self, key: int) -> None:
        """Let go of whoever is held under `key`."""
        _, descriptor = self._held.pop(key, (None, None))
        if descriptor is not None:
            self._epoll().unregister(descriptor)
            os.close(descriptor)

    def retain(self, keys: Collection[int]) -> None:
        """Let go of all but those held under `keys`."""
        for key in [key for key in self._held if key not in keys]:
            self.forget(key)

    def close(self) -> None:
        """Let go of everybody, for good."""
        self.retain(())
        if self._exits is not None:
            self._exits.close()
            self._exits = None

    def _epoll(self) -> "select.epoll":
        if self._exits is None:
            self._exits = select.epoll()
        return self._exits


def tells_exits(*, portable: bool) -> bool:
    """Tell whether a process can wait for another's exit, on this system and in this mode."""
    return HAS_PIDFD and not portable


def signaller(*, portable: bool) -> Signaller:
    """Return the port's implementation for this system and mode."""
    return PidfdSignaller() if tells_exits(portable=portable) else PortableSignaller()


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """Return a descriptor that is readable once this process has ended; None if it has already (a zombie has)."""
    try:
        descriptor = os.pidfd_open(identity.pid)  # type: ignore[attr-defined,unused-ignore]
    except (ProcessLookupError, ValueError):
        return None
    if identity.is_running():
        return int(descriptor)
    os.close(descriptor)
    return None
