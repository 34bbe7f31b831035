"""Durable copies in DATA of files on tmpfs, made by one-shot processes: the launcher never waits for a disk.

One process per target at a time; what is asked for meanwhile is one more copy after it. A copy has the content that
its source has when the process reads it, so the last one is always the latest.
"""

import selectors
from collections.abc import Callable
from dataclasses import dataclass, field

from supervisor.port import ExitStatus, Process, ProcessControl

Done = Callable[[bool], None]


@dataclass(slots=True)
class _Copy:
    """One target: whether it is to be copied, who waits for that, and the process that does it now."""

    source: str
    wanted: bool = False
    wanted_by: list[Done] = field(default_factory=list)
    process: Process | None = None
    process_for: list[Done] = field(default_factory=list)
    is_safe: bool = False


class DurableCopies:
    """Makes durable copies; they are begun and finished in `poll`, to be called on every turn."""

    def __init__(self, control: ProcessControl, selector: selectors.BaseSelector) -> None:
        """Start processes through `control`, and wake up by `selector` when they end."""
        self._control = control
        self._selector = selector
        self._copies: dict[str, _Copy] = {}

    @property
    def busy(self) -> bool:
        """Whether a copy is under way or about to be."""
        return any(copy.wanted or copy.process is not None for copy in self._copies.values())

    def is_safe(self, target: str) -> bool:
        """Tell whether `target` is on disk as it was last asked for."""
        copy = self._copies.get(target)
        return copy is not None and copy.is_safe and not copy.wanted and copy.process is None

    def request(self, source: str, target: str, done: Done | None = None) -> None:
        """Have `target` made a durable copy of `source`; `done` is told, in `poll`, whether that worked."""
        copy = self._copies.setdefault(target, _Copy(source))
        copy.wanted = True
        if done is not None:
            copy.wanted_by.append(done)

    def poll(self, *, hurried: bool = False) -> None:
        """Finish the copies that have ended and begin those that are wanted.

        While the caller is `hurried` (it is bringing a process back), only those begin whose outcome somebody awaits.
        """
        for target, copy in self._copies.items():
            status = copy.process.poll_exit() if copy.process is not None else None
            if status is not None:
                self._finish(copy, status)
            if copy.wanted and copy.process is None and (copy.wanted_by or not hurried):
                self._begin(target, copy)

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptors of the copies under way."""
        for copy in self._copies.values():
            if copy.process is not None:
                copy.process.close()

    def _begin(self, target: str, copy: _Copy) -> None:
        copy.wanted = False
        copy.process_for, copy.wanted_by = copy.wanted_by, []
        try:
            copy.process = self._control.copy_durably(copy.source, target)
        except OSError:  # no room for a process; the next request tries again
            self._tell(copy, is_safe=False)
            return
        if copy.process.exit_fd is not None:
            self._selector.register(copy.process.exit_fd, selectors.EVENT_READ, _ignore)

    def _finish(self, copy: _Copy, status: ExitStatus) -> None:
        process, copy.process = copy.process, None
        if process is not None:
            if process.exit_fd is not None:
                self._selector.unregister(process.exit_fd)
            process.close()
        self._tell(copy, is_safe=status.exit_code == 0)

    def _tell(self, copy: _Copy, *, is_safe: bool) -> None:
        copy.is_safe = is_safe
        waiting, copy.process_for = copy.process_for, []
        for done in waiting:
            done(is_safe)


def _ignore(_mask: int, _now: float) -> None:
    """Waking up is enough: the turn polls."""
