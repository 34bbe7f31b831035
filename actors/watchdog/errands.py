"""Work that may wait - for a program, a device, another process's memory map - on short-lived threads of its own.

One errand per key at a time and a bounded number in all; one that is stuck holds up nobody but its own key.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final

ERRANDS_MAX: Final = 128
"""Threads at once: a probe and a look for each of the programs that there can be, and some."""


class Errands:
    """Runs functions on daemon threads. Loop thread only, unless it says otherwise."""

    def __init__(self, most: int = ERRANDS_MAX) -> None:
        """Run at most `most` at once."""
        self.wake: Callable[[], None] | None = None
        self._most = most
        self._under_way: set[Hashable] = set()
        self._outcomes: deque[tuple[Hashable, Any]] = deque()

    def begin(self, key: Hashable, function: Callable[..., Any], *arguments: Any) -> bool:
        """Run ``function(*arguments)``; False if one with this `key` is under way, or too many are."""
        if key in self._under_way or len(self._under_way) >= self._most:
            return False
        thread = threading.Thread(target=self._run, args=(key, function, arguments), name="errand", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            return False
        self._under_way.add(key)
        return True

    def take(self) -> list[tuple[Hashable, Any]]:
        """Return the key and the result (or exception) of everything that has ended since."""
        ended = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        self._under_way.difference_update(key for key, _ in ended)
        return ended

    def _run(self, key: Hashable, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """On a thread of its own."""
        outcome: Any
        try:
            outcome = function(*arguments)
        except Exception as error:  # noqa: BLE001 - handed to the loop, which knows what to do with it
            outcome = error
        self._outcomes.append((key, outcome))
        if self.wake is not None:
            self.wake()
