"""Taking in what was spooled while event_logger did not answer: each call once, whoever dies when.

A spooled call carries the id under which it was asked for, and its events derive theirs from it as in a request: one
that was executed after all, though its caller had given up, finds its rows there already.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from actors.event_logger.core import ATTEMPT_PATIENCE_S
from actors.event_logger.records import JournalEntry, derived_id, parse_event, parse_events, parse_restart
from actors.event_logger.rows import parse_rows
from actors.event_logger.store import DrainBatch, EventStore, Stored
from actors.runtime.actor import Context
from actors.runtime.database_problem import DatabaseError
from actors.runtime.spool import SpoolEntry, SpoolReader, hint_path
from protocol.errors import ErrorCode, ProtocolError
from protocol.limits import MIB
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

BATCH_BYTES_MAX: Final = MIB
"""What one transaction takes: a fraction of the time that a transaction may last."""
RETRY_S: Final = 1.0
LOOK_INTERVAL_S: Final = 30.0
"""How often to look without having been given a hint: whoever spooled may not have known where to leave one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one drain of the spool did.

    Attributes:
        stored: every event of it.
        calls: how many calls it was.
        refused: why some of them, or events of theirs, are not written; they are given up.
        damaged: damaged stretches that this life has found.
        unreadable: files that the disk did not let read.
        pending_bytes: what is left.
    """

    stored: list[Stored]
    calls: int
    refused: list[str]
    damaged: int
    unreadable: int
    pending_bytes: int


class SpoolDrain:
    """Reads the spool and commits it. For the worker thread."""

    def __init__(self, store: EventStore, reader: SpoolReader, wall_ms: Callable[[], int]) -> None:
        """Drain what `reader` finds into `store`; `wall_ms` is for events without a time of their own."""
        self._store = store
        self._reader = reader
        self._wall_ms = wall_ms

    def drain(self) -> Taken:
        """Commit the next part of what waits.

        Raises:
            DatabaseError, OSError: nothing of it is stored; the next drain begins at the same place.
        """
        calls = self._reader.read(BATCH_BYTES_MAX)
        entries: list[JournalEntry] = []
        refused: list[str] = []
        for call in calls:
            try:
                entries += parse_spooled(call, self._wall_ms())
            except ProtocolError as error:
                refused.append(f"{call.op[:40]} {call.id.hex()}: {error.message}")
        stored = self._store.drain(DrainBatch(entries, (), ()), ATTEMPT_PATIENCE_S) if entries else []
        refused += [f"event {item.event.id.hex()}: another one has its id" for item in stored if item.seq is None]
        self._reader.done(calls)
        reader = self._reader
        return Taken(stored, len(calls), refused, reader.damaged, reader.unreadable, reader.pending_bytes())


def parse_spooled(call: SpoolEntry, now_ms: int) -> list[JournalEntry]:
    """Return what a spooled call writes.

    Raises:
        ProtocolError: it would have been refused when it was asked for as well.
    """
    match call.op:
        case "emit":
            return [JournalEntry(parse_event(call.arguments, derived_id(call.id), now_ms))]
        case "emit_many":
            return [JournalEntry(event) for event in parse_events(call.arguments, call.id, now_ms)]
        case "emit_rows" if len(call.raw) == 1:
            return [JournalEntry(event) for event in parse_rows(call.raw[0])]
        case "record_restart":
            return [parse_restart(call.arguments, derived_id(call.id), now_ms)]
    raise ProtocolError("no such operation is spooled", ErrorCode.UNKNOWN_OPERATION)


class Submit(Protocol):
    """Runs a function on the worker thread."""

    def __call__(
        self, what: str, on_done: Callable[[Any], None], function: Callable[..., Any], *arguments: Any
    ) -> None:
        """Call `on_done` on the loop with its outcome."""


class Spooled:
    """The loop's half: when to look, and what to tell of it."""

    def __init__(
        self,
        store: EventStore,
        data_dir: str,
        runtime_dir: str,
        wall_ms: Callable[[], int],
        submit: Submit,
        note: Callable[[Any], None],
        on_stored: Callable[[Sequence[Stored]], None],
    ) -> None:
        """Drain the spool of `data_dir` by `submit`; `note` is told how each write ended, `on_stored` what of."""
        self._drain = SpoolDrain(store, SpoolReader(data_dir, EVENT_LOGGER), wall_ms)
        self._hint_path = hint_path(runtime_dir, EVENT_LOGGER)
        self._submit = submit
        self._note = note
        self._on_stored = on_stored
        self._hint_ns = 0
        self._look_at = 0.0
        self._draining = self._stopped = False
        self._pending_bytes = self._drained_calls = self._refused_calls = self._damaged = self._unreadable = 0

    def start(self, context: Context) -> None:
        """Begin."""
        self._context = context

    def stop(self) -> None:
        """Begin no further drain: what is left waits for the next life."""
        self._stopped = True

    @property
    def idle(self) -> bool:
        """Whether no drain is under way."""
        return not self._draining

    def status(self) -> dict[str, int]:
        """Return what waits, and what became of what did."""
        return {
            "pending_bytes": self._pending_bytes,
            "drained_calls": self._drained_calls,
            "refused_calls": self._refused_calls,
            "damaged_records": self._damaged,
            "unreadable_files": self._unreadable,
        }

    def tick(self, now: float) -> None:
        """Drain if it is time to look, or somebody has left a hint. Looks at tmpfs only."""
        if self._draining or self._stopped:
            return
        hint_ns = self._hint()
        if now >= self._look_at or hint_ns != self._hint_ns:
            self._hint_ns = hint_ns
            self._draining = True
            self._submit("drain the spool", self._on_drained, self._drain.drain)

    def _on_drained(self, outcome: Any) -> None:
        self._draining = False
        now = self._context.now()
        self._look_at = now + RETRY_S
        if isinstance(outcome, OSError):  # of the spool's own files
            self._unreadable = max(1, self._unreadable)
            return
        if isinstance(outcome, (DatabaseError, Taken)):
            if isinstance(outcome, DatabaseError) or outcome.stored:
                self._note(outcome)
        else:
            raise outcome
        if isinstance(outcome, DatabaseError):
            return
        self._take_in(outcome)
        if outcome.calls:
            self._look_at = now
            self.tick(now)
        elif not outcome.pending_bytes:
            self._look_at = now + LOOK_INTERVAL_S

    def _take_in(self, taken: Taken) -> None:
        log = self._context.log
        if taken.refused:
            message = f"{len(taken.refused)} spooled calls or events were refused; the first: {taken.refused[0]}"
            log(Severity.WARN, "spool_refused", message, refused=taken.refused[:10])
        if taken.damaged > self._damaged:
            message = f"{taken.damaged - self._damaged} damaged records in the spool; their files are kept as *.damaged"
            log(Severity.ERROR, "spool_damaged", message, damaged=taken.damaged - self._damaged)
        if taken.stored and not self._drained_calls:
            log(Severity.NOTICE, "spool_drained", "what was spooled while nobody answered is being taken in")
        self._pending_bytes = taken.pending_bytes
        self._drained_calls += taken.calls
        self._refused_calls += len(taken.refused)
        self._damaged = taken.damaged
        self._unreadable = taken.unreadable
        self._on_stored(taken.stored)

    def _hint(self) -> int:
        try:
            return os.stat(self._hint_path).st_mtime_ns
        except OSError:
            return 0
