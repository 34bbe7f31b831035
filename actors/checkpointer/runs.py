"""Whose checkpoints are, and which one answers after a crash. Pure.

**Runs.** A run is one life of an application under a name, begun by `CrashRecoveryManager.start` and, if it ends well,
ended by `stop`. The name belongs to the run that began last, as long as its process lives and has not ended it. An
older run whose process still saves is refused meanwhile (`taken_over`), and takes the name back afterwards:

============================ =========================== ==============================================
the run that saves is        the newest run              then
============================ =========================== ==============================================
none (a shell script)        any                         counts as the newest run's
unknown                      any                         begins now, as the newest
the newest                   itself                      saved
older                        ended, or its process dead  becomes the newest again
older                        lives                       refused; from the spool (already acknowledged)
                                                         kept in the history, below the newest run's
============================ =========================== ==============================================

**Recovery.** Of the asking run its own newest state; before it has saved one, and for who asks without a run: nothing
if the last run was ended, else the newest state there is. The newest is that of the highest run, therein of the highest
`seq`; damaged ones are passed over.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from actors.checkpointer.core import Holder
from protocol.errors import ErrorCode, ReliabilityError

RUNS_KEPT_MAX: Final = 50
"""Runs of a name that are remembered, the newest."""


@dataclass(frozen=True, slots=True)
class Run:
    """One life of an application.

    Attributes:
        id: chosen by its client.
        number: place among the runs of its name, from 1.
        ended: whether it ended in a recorded clean stop.
        holder: its process, as far as that is known.
    """

    id: bytes
    number: int
    ended: bool = False
    holder: Holder | None = None


class TakenOver(ReliabilityError):
    """A run saves while a later one has its name."""

    def __init__(self, name: str, holder: Holder | None) -> None:
        """Say who has it."""
        who = f"pid {holder.pid}" if holder else "a process"
        hint = "Give every application, and every worker process of one, a name of its own."
        super().__init__(ErrorCode.REFUSED, f"checkpoints of {name!r} now belong to {who}, which began later", hint)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a recovery may return.

    Attributes:
        reason: `crash`, `same_run`, `clean_stop` or `nothing`.
        run_max: states of this run and earlier ones.
    """

    reason: str
    run_max: int = 0

    @property
    def returns(self) -> bool:
        """Whether there is a state to be returned."""
        return self.reason in {"crash", "same_run"}


class Runs:
    """The runs of one name."""

    def __init__(self, name: str, runs: Iterable[Run], is_alive: Callable[[Holder], bool]) -> None:
        """Begin with what is stored; `is_alive` tells whether a process still runs."""
        self._name = name
        self._by_id = {run.id: run for run in runs}
        self._is_alive = is_alive
        self.changed: dict[bytes, Run] = {}

    @property
    def newest(self) -> Run | None:
        """The run that began last."""
        return max(self._by_id.values(), key=lambda run: run.number, default=None)

    @property
    def newest_number(self) -> int:
        """Its number; 0 if there never was one."""
        newest = self.newest
        return newest.number if newest else 0

    def is_newest(self, run_id: bytes | None) -> bool:
        """Tell whether a run is the newest; none counts as it."""
        newest = self.newest
        return run_id is None or (newest is not None and newest.id == run_id)

    def begin(self, run_id: bytes, holder: Holder | None) -> int:
        """Have a run begin, unless it has; returns its number."""
        known = self._by_id.get(run_id)
        if known is not None:
            if known.holder is None and holder is not None:
                self._put(replace(known, holder=holder))
            return known.number
        self._put(Run(run_id, self.newest_number + 1, holder=holder))
        return self.newest_number

    def end(self, run_id: bytes) -> None:
        """Take in that a run has ended well."""
        self.begin(run_id, None)
        self._put(replace(self._by_id[run_id], ended=True))

    def saves(self, run_id: bytes | None, *, acknowledged: bool) -> int:
        """Return the number under which a run may save.

        Args:
            run_id: the run, None for none.
            acknowledged: its client was told already that the state is kept: it comes from the spool.

        Raises:
            TakenOver: the name belongs to a later run, and the client can be told.
        """
        if run_id is None:
            return self.newest_number
        number = self.begin(run_id, None)
        newest = self.newest
        if newest is None or newest.id == run_id:
            return number
        if acknowledged:
            return number
        if not newest.ended and newest.holder is not None and self._is_alive(newest.holder):
            raise TakenOver(self._name, newest.holder)
        self._put(replace(self._by_id[run_id], number=newest.number + 1))
        return newest.number + 1

    def bound(self, run_id: bytes | None) -> int:
        """Return the highest run whose states concern a recovery asked for by `run_id`."""
        asking = self._by_id.get(run_id) if run_id is not None else None
        return self.newest_number if asking is None else asking.number

    def decide(self, run_id: bytes | None, run_of_newest: int | None) -> Decision:
        """Decide what a recovery returns; `run_of_newest` is that of the newest state within `bound`, None if none."""
        if run_of_newest is None:
            return Decision("nothing")
        asking = self._by_id.get(run_id) if run_id is not None else None
        if asking is not None and run_of_newest == asking.number:
            return Decision("same_run", run_of_newest)
        before = [run for run in self._by_id.values() if asking is None or run.number < asking.number]
        last = max(before, key=lambda run: run.number, default=None)
        if last is not None and last.ended:
            return Decision("clean_stop")
        return Decision("crash", run_of_newest)

    def _put(self, run: Run) -> None:
        self._by_id[run.id] = self.changed[run.id] = run
