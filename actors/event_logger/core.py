"""What event_logger decides: what is committed together, how far each journal has been read, what is published.

Pure: time is an argument (`now`, monotonic seconds). The actor holds one of each and performs what they say.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from actors.event_logger.records import Event
from protocol.limits import MIB

Waiter = TypeVar("Waiter")

BATCH_EVENTS_MAX: Final = 2000
BATCH_BYTES_MAX: Final = 2 * MIB
"""What one transaction takes: a fraction of the time that a transaction may last."""
PENDING_EVENTS_MAX: Final = 20_000
PENDING_BYTES_MAX: Final = 8 * MIB
ATTEMPT_PATIENCE_S: Final = 0.5
"""Patience of one attempt to write while somebody else holds the write lock; who has time left is tried again."""
ANSWER_MARGIN_S: Final = 0.1
"""What an error needs to reach its caller before the caller's deadline."""
RETRY_S: Final = 2 * ATTEMPT_PATIENCE_S + ANSWER_MARGIN_S
"""Time that one more attempt takes at most: a drain of the journals may come before it."""

CHECKPOINT_PAGES: Final = 1000
"""A backlog that is checkpointed at once."""
CHECKPOINT_INTERVAL_S: Final = 60.0
CHECKPOINT_PAUSE_S: Final = 1.0

TROUBLE_INTERVAL_S: Final = 60.0
"""Between two reports that the database cannot be used."""


@dataclass(frozen=True, slots=True)
class Pending(Generic[Waiter]):
    """One request's events on their way into the table: all in one transaction.

    Attributes:
        events: at least one.
        waiter: whom to tell.
        deadline: monotonic time at which that one gives up.
        size_bytes: of all its events.
    """

    events: Sequence[Event]
    waiter: Waiter
    deadline: float
    size_bytes: int


class GroupCommit(Generic[Waiter]):
    """Requests in their order, committed in groups: while one group is being committed, the next one gathers.

    A waiter is told exactly once: committed, failed or expired. Nothing expired is begun.
    """

    def __init__(self) -> None:
        """Start with nothing pending."""
        self._queue: deque[Pending[Waiter]] = deque()
        self._in_flight: list[Pending[Waiter]] = []
        self._events = 0
        self._bytes = 0

    @property
    def pending_events(self) -> int:
        """Events that are neither committed nor given up."""
        return self._events

    @property
    def in_flight(self) -> bool:
        """Whether a group has begun and not ended."""
        return bool(self._in_flight)

    def offer(self, events: Sequence[Event], waiter: Waiter, deadline: float) -> bool:
        """Queue one request; False if there is no room for it."""
        size_bytes = sum(event.size_bytes for event in events)
        if self._events + len(events) > PENDING_EVENTS_MAX or self._bytes + size_bytes > PENDING_BYTES_MAX:
            return False
        self._queue.append(Pending(events, waiter, deadline, size_bytes))
        self._events += len(events)
        self._bytes += size_bytes
        return True

    def begin(self, now: float) -> tuple[list[Pending[Waiter]], list[Pending[Waiter]]]:
        """Return the next group, which is in flight from now on, and the requests that expired before it.

        Both are empty while another group is in flight.
        """
        if self._in_flight:
            return [], []
        expired = []
        events = size_bytes = 0
        while self._queue:
            first = self._queue[0]
            if first.deadline <= now:
                expired.append(self._queue.popleft())
                continue
            events += len(first.events)
            size_bytes += first.size_bytes
            if self._in_flight and (events > BATCH_EVENTS_MAX or size_bytes > BATCH_BYTES_MAX):
                break
            self._in_flight.append(self._queue.popleft())
        self._discharge(expired)
        return list(self._in_flight), expired

    def committed(self) -> None:
        """The group in flight is committed; its waiters are told so by the caller."""
        self._discharge(self._in_flight)
        self._in_flight = []

    def failed(self, now: float, *, retry: bool) -> list[Pending[Waiter]]:
        """The group in flight was rolled back. Returns the requests to be told so.

        With `retry` those that have time for one more attempt are queued again, in their old place.
        """
        group, self._in_flight = self._in_flight, []
        again = [pending for pending in group if retry and pending.deadline > now + RETRY_S]
        told = [pending for pending in group if not (retry and pending.deadline > now + RETRY_S)]
        self._queue.extendleft(reversed(again))
        self._discharge(told)
        return told

    def _discharge(self, requests: Iterable[Pending[Waiter]]) -> None:
        for pending in requests:
            self._events -= len(pending.events)
            self._bytes -= pending.size_bytes


@dataclass(frozen=True, slots=True)
class JournalFile:
    """One file of a journal, as found.

    Attributes:
        journal: name of the process that writes it.
        head: digest of how the file begins, which tells it from every other file, whatever its name is by now.
        turned_over: whether it is the elder of two, to which nobody appends any more.
        size: in bytes.
    """

    journal: str
    head: bytes
    turned_over: bool
    size: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far one file of a journal has been drained; stored in the same transaction as what was drained.

    Attributes:
        journal: as in `JournalFile`.
        head: as in `JournalFile`.
        offset: bytes whose entries are in the tables.
        complete: whether the file was seen turned over and drained to its end.
        boot_id: the boot in which it was written; journals do not outlive one.
    """

    journal: str
    head: bytes
    offset: int
    complete: bool
    boot_id: str


class JournalBook:
    """Where every journal has been drained to.

    `advance` and `gone` only say what becomes of a position; `keep` and `drop` make it so, after the commit.
    """

    def __init__(self, positions: Iterable[Position], boot_id: str) -> None:
        """Go on from stored positions; `boot_id` is the present boot's."""
        self._boot_id = boot_id
        self._positions = {(position.journal, position.head): position for position in positions}

    def offset(self, file: JournalFile) -> int:
        """Return from where to read `file`."""
        position = self._positions.get((file.journal, file.head))
        return position.offset if position else 0

    def advance(self, file: JournalFile, offset: int) -> Position | None:
        """Return the new position of `file` once it is drained up to `offset`; None if that changes nothing."""
        complete = file.turned_over and offset >= file.size
        position = Position(file.journal, file.head, offset, complete, self._boot_id)
        return position if self._positions.get((file.journal, file.head)) != position else None

    def gone(self, files: Iterable[JournalFile]) -> list[Position]:
        """Return the positions of files that are not there any more."""
        present = {(file.journal, file.head) for file in files}
        return [position for key, position in self._positions.items() if key not in present]

    def is_lossy(self, position: Position) -> bool:
        """Tell whether a file that is gone may have held entries that were never drained."""
        return not position.complete and position.boot_id == self._boot_id

    def keep(self, positions: Iterable[Position]) -> None:
        """Take note of positions that are stored now."""
        self._positions.update({(position.journal, position.head): position for position in positions})

    def drop(self, positions: Iterable[Position]) -> None:
        """Take note of positions that are deleted now."""
        for position in positions:
            self._positions.pop((position.journal, position.head), None)


class PublishBudget:
    """How many events may be published: a bucket that refills. Followers fetch the rest by `after_seq`."""

    def __init__(self, per_second_max: float, burst_max: int) -> None:
        """Start with a full bucket."""
        self._per_second_max = per_second_max
        self._burst_max = burst_max
        self._tokens = float(burst_max)
        self._filled_at: float | None = None

    def take(self, wanted: int, now: float) -> int:
        """Return how many of `wanted` events may be published now."""
        if self._filled_at is not None:
            self._tokens = min(self._burst_max, self._tokens + (now - self._filled_at) * self._per_second_max)
        self._filled_at = now
        allowed = min(wanted, int(self._tokens))
        self._tokens -= allowed
        return allowed


class Wal:
    """The write-ahead log as this process sees it, and when to checkpoint it; no other process does.

    Attributes:
        pages: in the log.
    """

    def __init__(self, now: float) -> None:
        """Count from `now`."""
        self.pages = 0
        self._checkpointed_pages = 0
        self._checkpointed_at = now

    @property
    def backlog_pages(self) -> int:
        """Pages that the database file does not have yet."""
        return self.pages - self._checkpointed_pages

    def committed(self, pages: int) -> None:
        """Take in how many pages the log had after a commit: fewer than before means that it began anew."""
        if pages < self.pages:
            self._checkpointed_pages = 0
        self.pages = pages

    def checkpointed(self, pages: int, checkpointed_pages: int) -> None:
        """Take in what a checkpoint found and did."""
        self.pages = pages
        self._checkpointed_pages = checkpointed_pages

    def is_due(self, now: float) -> bool:
        """Tell whether to checkpoint now, which then counts as tried: one that is held up is not repeated in a loop."""
        interval_s = CHECKPOINT_PAUSE_S if self.backlog_pages >= CHECKPOINT_PAGES else CHECKPOINT_INTERVAL_S
        if now - self._checkpointed_at < interval_s:
            return False
        self._checkpointed_at = now
        return True


class Trouble(StrEnum):
    """A change in how the database fares that is worth an event."""

    BEGAN = "began"
    ENDED = "ended"


class TroubleReport:
    """Turns a stream of failures and successes into few reports: a trouble that comes and goes is told once a while."""

    def __init__(self) -> None:
        """Begin without trouble."""
        self._reported = False
        self._reported_at: float | None = None

    def note(self, *, failed: bool, now: float) -> Trouble | None:
        """Take in one outcome; returns what to report."""
        if failed == self._reported:
            return None
        if failed and self._reported_at is not None and now - self._reported_at < TROUBLE_INTERVAL_S:
            return None
        self._reported = failed
        if failed:
            self._reported_at = now
            return Trouble.BEGAN
        return Trouble.ENDED
