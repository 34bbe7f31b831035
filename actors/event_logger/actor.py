"""event_logger at work: requests in, groups committed, journals drained, the WAL checkpointed, events published.

Three threads besides the loop, so that none waits for another's disk: the worker commits, the reader answers queries,
the checkpointer moves the WAL into the database.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from actors.event_logger.config import EventLoggerConfig
from actors.event_logger.core import (
    ATTEMPT_PATIENCE_S,
    GroupCommit,
    Pending,
    PublishBudget,
    Trouble,
    TroubleReport,
    Wal,
)
from actors.event_logger.journals import Drained, JournalDrain
from actors.event_logger.queries import query, read_restarts, restart_status
from actors.event_logger.records import (
    Event,
    derived_id,
    event_document,
    parse_event,
    parse_events,
    topic_of,
)
from actors.event_logger.store import SCHEMA, EventStore, Stored
from actors.runtime.actor import Actor, Context
from actors.runtime.database import DISK_LEASE_S, PAGE_BYTES, Database, WalState
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.liveness import Board
from actors.runtime.operations import DEFERRED, Operation, Request
from actors.runtime.side_worker import side_worker
from protocol.errors import ErrorCode, ProtocolError, ReliabilityError
from protocol.limits import MIB
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

STATE_TOPIC: Final = "state.events"
"""``{"last_seq"}``: tells a follower that missed events how far to fetch them."""
PUBLISH_BURST_S: Final = 2.0
READS_QUEUED_MAX: Final = 64
CHECKPOINTS_QUEUED_MAX: Final = 2
DRAIN_RETRY_S: Final = 1.0

_RETRIED: Final = frozenset({Problem.LOCKED, Problem.REPLACED})
"""Troubles that pass by themselves within a caller's patience."""
_CONTAINED: Final = "contained in message, component, type or attributes, in any case"
_FILTERS: Final = {
    "text": f"str? {_CONTAINED}",
    "component": "str?",
    "since": "str? RFC 3339",
    "until": "str? RFC 3339",
    "level": "str? LEVEL (and worse) or A..B",
    "grep": "str? regular expression on the message",
    "limit": "int? events, the newest",
    "reverse": "bool? newest first",
    "after_seq": "int? only later ones, the oldest of them",
    "before_seq": "int? only earlier ones",
}
_EVENT: Final = {
    "severity": "any name or number",
    "component": "str",
    "event_type": "str",
    "message": "str",
    "attributes": "map?",
    "id": "str? 32 hexadecimal digits; written once per id",
    "timestamp": "str? RFC 3339",
}


class EventLogger(Actor):
    """The event log's owner."""

    def __init__(
        self, path: str, journal_dir: str, board: Board, config: EventLoggerConfig, wall_ms: Callable[[], int]
    ) -> None:
        """Wire an event log at `path`; `wall_ms` is the wall clock for what has no time of its own."""
        self._path = path
        self._board = board
        self._wall_ms = wall_ms
        self._wal_warning_bytes = config.wal_warning_mib * MIB
        self._store = EventStore(Database(path, SCHEMA))
        self._checkpoint_database = Database(path, SCHEMA)
        self._journals = JournalDrain(journal_dir, self._store)
        self._commit: GroupCommit[Request] = GroupCommit()
        per_second_max = config.publish_per_second_max
        self._budget = PublishBudget(per_second_max, int(per_second_max * PUBLISH_BURST_S))
        self._trouble = TroubleReport()
        self._wal_trouble = TroubleReport()
        self._problem: DatabaseError | None = None
        self._last_seq = self._published_seq = 0
        self._refused_entries = 0
        self._drained_sizes: dict[str, int] | None = None
        self._draining = False
        self._drain_again_at = 0.0
        self._early_reads: list[Callable[[], None]] | None = []
        self._stop_steps = self._stop()

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        search = _FILTERS | {"text": f"str {_CONTAINED}"}
        return (
            Operation("emit", "Write one event; answered once it is committed.", _EVENT, self._emit),
            Operation(
                "emit_many", "Write events, all of them at once.", {"events": "list of maps as emit"}, self._emit_many
            ),
            Operation("query", "Return events.", _FILTERS, self._query),
            Operation("search", "Return events that contain a text.", search, self._query),
            Operation("restart_status", "Return restarts and budgets.", {"name": "str?"}, self._restart_status),
        )

    def on_start(self, context: Context) -> None:
        """Begin; the first drain opens the database."""
        self._context = context
        self._wal = Wal(context.now())
        self._reader = side_worker(context, f"{EVENT_LOGGER}-reader", READS_QUEUED_MAX)
        self._checkpointer = side_worker(context, f"{EVENT_LOGGER}-checkpointer", CHECKPOINTS_QUEUED_MAX)

    def on_tick(self, context: Context, now: float) -> None:
        """Drain what the journals have, checkpoint when it is due, tell followers where the log ends."""
        self._pump()
        self._drain_journals(now)
        self._watch_wal(now)
        if self._last_seq != self._published_seq:
            self._published_seq = self._last_seq
            context.publish(STATE_TOPIC, {"last_seq": self._last_seq})

    def on_drain(self, context: Context) -> bool:
        """Commit what was accepted, take in the journals once more, leave the WAL empty."""
        return next(self._stop_steps, True)

    def status(self) -> Mapping[str, Any]:
        """Return how the database and the queues are."""
        problem = self._problem
        return {
            "database": {
                "path": self._path,
                "problem": problem and {"code": problem.code, "message": problem.message, "hint": problem.hint},
                "wal_bytes": self._wal.pages * PAGE_BYTES,
                "wal_backlog_bytes": self._wal.backlog_pages * PAGE_BYTES,
            },
            "events": {"last_seq": self._last_seq or None, "pending": self._commit.pending_events},
            "reads": {"queued": self._reader.queued_count, "capacity": self._reader.capacity},
            "journal_entries_refused": self._refused_entries,
        }

    # --- writing ---

    def _emit(self, request: Request) -> object:
        event = parse_event(request.arguments, derived_id(request.id), self._wall_ms())
        return self._accept([event], request)

    def _emit_many(self, request: Request) -> object:
        return self._accept(parse_events(request.arguments, request.id, self._wall_ms()), request)

    def _accept(self, events: list[Event], request: Request) -> object:
        if not self._commit.offer(events, request, request.deadline):
            raise ReliabilityError(ErrorCode.BUSY, f"{self._commit.pending_events} events wait to be committed")
        self._pump()
        return DEFERRED

    def _pump(self) -> None:
        """Begin the next group, if none is in flight."""
        group, expired = self._commit.begin(self._context.now())
        for pending in expired:
            pending.waiter.fail(ErrorCode.DEADLINE_PASSED, "the event was not written before the request's deadline")
        if group:
            events = [event for pending in group for event in pending.events]
            done = partial(self._on_committed, group)
            self._write("commit events", done, self._store.append, events, ATTEMPT_PATIENCE_S)

    def _on_committed(self, group: list[Pending[Request]], outcome: Any) -> None:
        self._note(outcome)
        if isinstance(outcome, DatabaseError):
            for pending in self._commit.failed(self._context.now(), retry=outcome.problem in _RETRIED):
                pending.waiter.fail(outcome.code, outcome.message, outcome.hint)
        else:
            self._commit.committed()
            results = iter(outcome)
            for pending in group:
                _acknowledge(pending.waiter, list(islice(results, len(pending.events))))
            self._on_stored(outcome)
        self._pump()

    def _write(self, what: str, on_done: Callable[[Any], None], function: Callable[..., Any], *arguments: Any) -> None:
        self._context.submit(function, *arguments, what=what, on_done=on_done, lease_cap_s=DISK_LEASE_S)

    # --- journals ---

    def _drain_journals(self, now: float) -> None:
        if self._draining or now < self._drain_again_at:
            return
        sizes = self._journals.sizes()
        if sizes != self._drained_sizes:
            self._submit_drain(sizes)

    def _submit_drain(self, sizes: dict[str, int]) -> None:
        self._draining = True
        done = partial(self._on_drained, sizes)
        self._write("drain journals", done, self._journals.drain, self._wall_ms())

    def _on_drained(self, sizes: dict[str, int], outcome: Any) -> None:
        self._draining = False
        self._drain_again_at = self._context.now() + DRAIN_RETRY_S
        if isinstance(outcome, OSError):  # of the journals' own file system
            return
        self._note(outcome)
        if isinstance(outcome, Drained):
            self._drain_again_at = 0.0
            self._drained_sizes = None if outcome.more else sizes
            self._refused_entries += outcome.refused
            self._on_stored(outcome.stored)

    # --- reading ---

    def _query(self, request: Request) -> object:
        return self._read(request, query, request.arguments)

    def _restart_status(self, request: Request) -> object:
        name = request.arguments.get("name")
        records = [record for _, record in self._board.occupied()]
        return self._read(request, read_restarts, name, then=lambda history: restart_status(records, history, name))

    def _read(
        self,
        request: Request,
        function: Callable[..., Any],
        *arguments: object,
        then: Callable[[Any], dict[str, Any]] = dict,
    ) -> object:
        """Answer from the reader thread; before the first write is over there may be no tables to read."""
        done = partial(_answer, request, then)
        read = partial(
            self._reader.submit,
            function,
            self._path,
            *arguments,
            on_done=done,
            what=request.op,
            deadline=request.deadline,
        )
        if self._early_reads is None:
            read()
        else:
            self._early_reads.append(read)
        return DEFERRED

    # --- the database ---

    def _note(self, outcome: Any) -> None:
        """Take in how a write ended, and tell of a change; a fault that is not the world's ends the process."""
        if isinstance(outcome, Exception) and not isinstance(outcome, DatabaseError):
            raise outcome
        early, self._early_reads = self._early_reads, None
        for read in early or ():
            read()
        self._problem = outcome if isinstance(outcome, DatabaseError) else None
        match self._trouble.note(failed=self._problem is not None, now=self._context.now()):
            case Trouble.BEGAN if self._problem is not None:
                message = f"events cannot be written: {self._problem.message}"
                self._context.log(Severity.ERROR, "database_unavailable", message, problem=self._problem.problem)
            case Trouble.ENDED:
                self._context.log(Severity.NOTICE, "database_available", "events can be written again")

    def _watch_wal(self, now: float) -> None:
        if self._checkpointer.idle and self._wal.is_due(now):
            self._submit_checkpoint(truncate=False)
            self._context.submit(self._store.database.release_memory, what="release memory")
        size_bytes = self._wal.pages * PAGE_BYTES
        if self._wal_trouble.note(failed=size_bytes > self._wal_warning_bytes, now=now) is Trouble.BEGAN:
            message = f"the write-ahead log has grown to {size_bytes // MIB} MiB: a reader or a slow disk holds it up"
            self._context.log(Severity.WARN, "wal_large", message, wal_bytes=size_bytes)

    def _submit_checkpoint(self, *, truncate: bool) -> None:
        checkpoint = partial(self._checkpoint_database.checkpoint, truncate=truncate)
        self._checkpointer.submit(checkpoint, on_done=self._on_checkpointed, what="checkpoint")

    def _on_checkpointed(self, outcome: Any) -> None:
        if isinstance(outcome, WalState):
            self._wal.checkpointed(outcome.pages, outcome.checkpointed_pages)
        elif isinstance(outcome, Exception) and not isinstance(outcome, DatabaseError):
            raise outcome

    def _stop(self) -> Iterator[bool]:
        """The steps of a stop; each turn of the loop looks whether the present one is over."""
        while self._is_working():
            yield False
        self._submit_drain({})
        while self._is_working():
            yield False
        self._submit_checkpoint(truncate=True)
        while self._is_working():
            yield False

    def _is_working(self) -> bool:
        return self._commit.pending_events > 0 or self._draining or not self._checkpointer.idle

    # --- followers ---

    def _on_stored(self, stored: Sequence[Stored]) -> None:
        """Take in a commit: how far the log and the WAL go now, and what followers may be sent."""
        new = [(item.seq, item.event) for item in stored if item.new and item.seq is not None]
        if not new:
            return
        self._wal.committed(self._store.database.wal_pages)
        self._last_seq = new[-1][0]
        for seq, event in new[: self._budget.take(len(new), self._context.now())]:
            try:
                self._context.publish(topic_of(event.component), event_document(seq, event))
            except ProtocolError:  # too large to be published: followers fetch it
                continue


def _acknowledge(request: Request, stored: list[Stored]) -> None:
    """Answer a request whose events are committed."""
    if request.op == "emit_many":
        request.reply({"events": [{"id": item.event.id.hex(), "seq": item.seq} for item in stored]})
        return
    (item,) = stored
    if item.seq is None:
        request.fail(ErrorCode.ID_CONFLICT, f"id {item.event.id.hex()} is that of another event")
    else:
        request.reply({"id": item.event.id.hex(), "seq": item.seq})


def _answer(request: Request, then: Callable[[Any], dict[str, Any]], outcome: Any) -> None:
    """Answer a request that the reader has read for."""
    if isinstance(outcome, ReliabilityError):
        request.fail(outcome.code, outcome.message, outcome.hint)
    elif isinstance(outcome, Exception):
        raise outcome
    else:
        request.reply(then(outcome))
