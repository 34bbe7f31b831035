"""Events on their way into the table: requests and journals in, groups committed, answers and publications out.

The loop's half: what it submits runs on the worker thread, in the order of submission. A request is answered once its
events are committed, never before.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from actors.event_logger.core import ATTEMPT_PATIENCE_S, GroupCommit, Pending, PublishBudget
from actors.event_logger.journals import Drained, JournalDrain
from actors.event_logger.records import Event, JournalEntry, event_document, topic_of
from actors.event_logger.store import DrainBatch, EventStore, Stored
from actors.runtime.actor import Context
from actors.runtime.database import DISK_LEASE_S
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.operations import DEFERRED, Request
from protocol.errors import ErrorCode, ProtocolError, ReliabilityError

STATE_TOPIC: Final = "state.events"
"""``{"last_seq"}``: tells a follower that missed events how far to fetch them."""
DRAIN_RETRY_S: Final = 1.0

_RETRIED: Final = frozenset({Problem.LOCKED, Problem.REPAIRING, Problem.REPLACED})
"""Troubles that pass by themselves within a caller's patience."""


class Writing:
    """Takes in events and sees to it that they are committed.

    Attributes:
        last_seq: the newest place in the log as far as this life has committed; 0 if it has not.
        refused_entries: journal entries that could not be understood.
    """

    def __init__(
        self,
        store: EventStore,
        journals: JournalDrain,
        budget: PublishBudget,
        wall_ms: Callable[[], int],
        note: Callable[[Any], None],
        on_commit: Callable[[], None],
    ) -> None:
        """Write into `store`; `note` is told how each write ended, `on_commit` of each that made the log longer."""
        self.last_seq = 0
        self.refused_entries = 0
        self._store = store
        self._journals = journals
        self._budget = budget
        self._wall_ms = wall_ms
        self._note = note
        self._on_commit = on_commit
        self._commit: GroupCommit[Request] = GroupCommit()
        self._published_seq = 0
        self._drained_sizes: dict[str, int] | None = None
        self._draining = False
        self._drain_again_at = 0.0

    def start(self, context: Context) -> None:
        """Begin; the first drain opens the database."""
        self._context = context

    @property
    def pending_events(self) -> int:
        """Events that are neither committed nor given up."""
        return self._commit.pending_events

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._commit.pending_events == 0 and not self._draining

    def accept(self, events: Sequence[Event], request: Request) -> object:
        """Queue a request's events; it is answered when they are committed.

        Raises:
            ReliabilityError: `busy`, there is no room for them.
        """
        if not self._commit.offer(events, request, request.deadline):
            raise ReliabilityError(ErrorCode.BUSY, f"{self._commit.pending_events} events wait to be committed")
        self._pump()
        return DEFERRED

    def tick(self, now: float) -> None:
        """Begin what is due: a group, a drain of the journals; tell followers where the log ends."""
        self._pump()
        self._drain_journals(now)
        if self.last_seq != self._published_seq:
            self._published_seq = self.last_seq
            self._context.publish(STATE_TOPIC, {"last_seq": self.last_seq})

    def record(self, entry: JournalEntry, request: Request) -> object:
        """Write an entry that is more than an event; `request` is answered when it is committed."""
        done = partial(self._on_recorded, request)
        batch = DrainBatch([entry], (), ())
        self.submit("commit a record", done, self._store.drain, batch, ATTEMPT_PATIENCE_S)
        return DEFERRED

    def drain(self) -> None:
        """Take in what the journals have, whether or not they have grown."""
        self._submit_drain({})

    # --- requests ---

    def _pump(self) -> None:
        """Begin the next group, if none is in flight."""
        group, expired = self._commit.begin(self._context.now())
        for pending in expired:
            pending.waiter.fail(ErrorCode.DEADLINE_PASSED, "the event was not written before the request's deadline")
        if group:
            events = [event for pending in group for event in pending.events]
            done = partial(self._on_committed, group)
            self.submit("commit events", done, self._store.append, events, ATTEMPT_PATIENCE_S)

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
            self.on_stored(outcome)
        self._pump()

    def submit(self, what: str, on_done: Callable[[Any], None], function: Callable[..., Any], *arguments: Any) -> None:
        """Run ``function(*arguments)`` on the thread that writes, behind what was submitted before."""
        self._context.submit(function, *arguments, what=what, on_done=on_done, lease_cap_s=DISK_LEASE_S)

    def _on_recorded(self, request: Request, outcome: Any) -> None:
        self._note(outcome)
        if isinstance(outcome, DatabaseError):
            request.fail(outcome.code, outcome.message, outcome.hint)
        else:
            _acknowledge(request, outcome)
            self.on_stored(outcome)

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
        self.submit("drain journals", done, self._journals.drain, self._wall_ms())

    def _on_drained(self, sizes: dict[str, int], outcome: Any) -> None:
        self._draining = False
        self._drain_again_at = self._context.now() + DRAIN_RETRY_S
        if isinstance(outcome, OSError):  # of the journals' own file system
            return
        self._note(outcome)
        if isinstance(outcome, Drained):
            self._drain_again_at = 0.0
            self._drained_sizes = None if outcome.more else sizes
            self.refused_entries += outcome.refused
            self.on_stored(outcome.stored)

    # --- followers ---

    def on_stored(self, stored: Sequence[Stored]) -> None:
        """Take in a commit: how far the log goes now, and what followers may be sent."""
        new = [(item.seq, item.event) for item in stored if item.new and item.seq is not None]
        if not new:
            return
        self.last_seq = new[-1][0]
        self._on_commit()
        for seq, event in new[: self._budget.take(len(new), self._context.now())]:
            try:
                self._context.publish(topic_of(event.component), event_document(seq, event))
            except ProtocolError:  # too large to be published: followers fetch it
                continue


def _acknowledge(request: Request, stored: list[Stored]) -> None:
    """Answer a request whose events are committed."""
    if request.op == "emit_rows":
        request.reply({"seqs": [item.seq for item in stored]})
        return
    if request.op == "emit_many":
        request.reply({"events": [{"id": item.event.id.hex(), "seq": item.seq} for item in stored]})
        return
    (item,) = stored
    if item.seq is None:
        request.fail(ErrorCode.ID_CONFLICT, f"id {item.event.id.hex()} is that of another event")
    else:
        request.reply({"id": item.event.id.hex(), "seq": item.seq})
