"""What clients put into their spools while nobody took it: brought in once, in its order. Worker thread only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from actors.checkpointer.core import Save, parse_holder, parse_name, parse_run, parse_save
from actors.checkpointer.outcomes import Outcome, RunChange
from actors.checkpointer.queries import OP_BEGIN, OP_END, OP_SAVE
from actors.checkpointer.store import CheckpointStore
from protocol.errors import ReliabilityError
from protocol.limits import MIB

BATCH_BYTES_MAX: Final = 16 * MIB
"""Read at once, and committed together."""


class Entry(Protocol):
    """One call in a spool: `actors.runtime.spool.SpoolEntry`."""

    @property
    def op(self) -> str:
        """The operation."""

    @property
    def id(self) -> bytes:
        """The request's id."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The operation's."""

    @property
    def raw(self) -> Sequence[bytes]:
        """The frames behind them."""


@dataclass(slots=True)
class Drained:
    """What one drain brought in.

    Attributes:
        saved: states that were kept.
        repeated: those that were kept before under the same id, or were unchanged.
        refused: what was wrong with others.
    """

    saved: int = 0
    repeated: int = 0
    refused: list[str] | None = None

    def refuse(self, error: ReliabilityError) -> None:
        """Note one that cannot be kept."""
        self.refused = [*(self.refused or []), error.message]


def take_in(store: CheckpointStore, entries: Sequence[Entry], now_ms: int, drained: Drained) -> None:
    """Bring calls into the store, in their order; calls that are wrong are noted and passed over.

    Raises:
        DatabaseError, LocalError: not all of them are in; they may be brought again.
    """
    waiting: list[Save] = []
    for entry in entries:
        try:
            if entry.op == OP_SAVE:
                waiting.append(parse_save(entry.id, entry.arguments, entry.raw, now_ms, acknowledged=True))
                continue
            change = parse_run_change(entry.op, entry.arguments)
        except ReliabilityError as error:
            drained.refuse(error)
            continue
        _save(store, waiting, drained)
        waiting = []
        store.change_run(change, acknowledged=True)
    _save(store, waiting, drained)


def parse_run_change(op: str, arguments: dict[str, Any]) -> RunChange:
    """Parse the arguments of `begin_run` and `end_run`.

    Raises:
        ReliabilityError: naming what is wrong.
    """
    run = parse_run(arguments.get("run"))
    if run is None or op not in {OP_BEGIN, OP_END}:
        raise ReliabilityError("bad_request", f"{op!r} without a run")
    return RunChange(parse_name(arguments.get("name")), run, parse_holder(arguments), ends=op == OP_END)


def _save(store: CheckpointStore, saves: Sequence[Save], drained: Drained) -> None:
    if not saves:
        return
    for outcome in store.save(saves):
        if not isinstance(outcome, Outcome):
            drained.refuse(outcome)
        elif outcome.repeated or outcome.unchanged:
            drained.repeated += 1
        else:
            drained.saved += 1
