"""Handing large states over as files, so that only a name travels: see `actors.runtime.handover`.

A thread writes the file and flushes it while the request is on its way, so that the owner finds most of that done.
Nobody waits for a disk that stands still: then the bytes are sent.
"""

import _thread
import os
import sys
import threading
import time
from typing import Final

from actors.runtime.handover import HANDED_BYTES_MIN, new_state_name, states_directory

REST_S: Final = 60.0
"""How long states are sent after one could not be written."""
_OPEN_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Offer:
    """A file with a state in it, for its owner to take.

    Attributes:
        file: its name.
        size_bytes: of the state.
        under_way: its thread is still at work.
        failed: the file cannot be written.
    """

    def __init__(self, directory: str, payload: bytes) -> None:
        """Describe it; nothing is written yet."""
        self.file = new_state_name()
        self.size_bytes = len(payload)
        self._path = os.path.join(directory, self.file)
        self._payload = payload
        self._withdrawn = False
        self.under_way = False
        self.failed = False

    def write(self) -> None:
        """Begin to write the file; nobody waits for it."""
        self.under_way = True
        try:
            _thread.start_new_thread(self._work, ())  # `Thread.start` would wait until it runs
        except RuntimeError:  # no more threads
            self.under_way, self.failed = False, True

    def withdraw(self) -> None:
        """Have the file removed, which the owner has not taken."""
        self._withdrawn = True
        if not self.under_way:
            threading.Thread(target=self._remove, name="checkpoint-withdrawal", daemon=True).start()

    def _work(self) -> None:
        try:
            self._write()
        except OSError:  # a full disk, no such directory: the owner has its own word on that
            self.failed = self._withdrawn = True
        finally:
            if self._withdrawn:
                self._remove()
            self.under_way = False

    def _write(self) -> None:
        descriptor = os.open(self._path, _OPEN_FLAGS, 0o600)
        try:
            view = memoryview(self._payload)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove(self) -> None:
        try:
            os.unlink(self._path)
        except OSError:
            return


class HandOver:
    """Hands states over to the checkpointer of one data directory, one at a time."""

    def __init__(self, data_dir: str) -> None:
        """Name the data directory; nothing is opened."""
        self._directory = states_directory(data_dir)
        self._last: Offer | None = None
        self._rests_until = float("-inf")

    def offer(self, payload: bytes) -> Offer | None:
        """Begin to write a state where its owner may take it; None if that is not worth it or not possible."""
        last, now = self._last, time.monotonic()
        if len(payload) < HANDED_BYTES_MIN or sys.platform == "win32":
            return None
        if last is not None and last.failed:
            self._last, self._rests_until = None, now + REST_S
        if now < self._rests_until or (last is not None and last.under_way):
            return None  # a disk that stands still: one thread waits for it, and no more
        self._last = offer = Offer(self._directory, payload)
        offer.write()
        return offer
