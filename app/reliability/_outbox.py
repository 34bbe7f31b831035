"""Events from threads that do not wait for them: a bounded queue, and one thread that sends it in batches.

The thread is started with the first event and leaves when there is nothing to do. A forked child begins with an empty
queue: what its parent had queued, its parent sends.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from app.reliability._batches import OP, Batch, Gatherer
from app.reliability._durable import DurableCaller
from app.reliability._event_rows import Row
from protocol.errors import ErrorCode, NotDurable, ReliabilityError
from protocol.limits import ID_BYTES

IDLE_S: Final = 5.0
"""How long the thread waits for more before it leaves."""
RETRY_S: Final = 1.0
"""Between two attempts to have kept what nobody could keep."""
EXIT_FLUSH_S: Final = 3.0
"""What a program's end waits for its last events at most."""

SPLIT_CODES: Final = frozenset({ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE})
"""Refusals of one row, for which the others must not suffer."""


class Outbox:
    """Rows on their way out.

    Attributes:
        dropped: rows that were given up because the queue was full, since the last report of it.
        refused: rows that event_logger does not take.
    """

    def __init__(self, caller: DurableCaller, timeout_s: float, report: Callable[[int], Row]) -> None:
        """Send through `caller`; `report` makes the event which tells that so many were dropped."""
        self._caller = caller
        self._timeout_s = timeout_s
        self._report = report
        self.leave_parent_behind()
        _outboxes.add(self)

    def leave_parent_behind(self) -> None:
        """Begin anew; in a forked child, where the thread and whatever lock was held are gone."""
        self.dropped = 0
        self.refused = 0
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._rows: Gatherer[None] = Gatherer()
        self._batch: tuple[Batch[None], bytes] | None = None
        self._queued = self._finished = 0
        self._problem: ReliabilityError | None = None
        self._thread: threading.Thread | None = None

    def put(self, row: Row, wait_s: float = 0.0) -> bool:
        """Queue a row, waiting for room at most so long; False (and counted) if there is none."""
        if threading.current_thread() is self._thread:
            return False  # it speaks of sending: that would never end
        with self._changed:
            if self._rows.full and not (wait_s and self._changed.wait_for(lambda: not self._rows.full, wait_s)):
                self.dropped += 1
                return False
            self._rows.add(row, None)
            self._queued += 1
            if self._thread is None:
                self._start()
            elif len(self._rows) == 1:
                self._changed.notify_all()
        return True

    def flush(self, timeout_s: float) -> None:
        """Wait until everything that was queued before is durable.

        Raises:
            NotDurable: it is not, within `timeout_s`; it stays queued, and is tried again.
        """
        give_up_at = time.monotonic() + timeout_s
        with self._changed:
            wanted = self._queued
            if self._finished < wanted and self._thread is None:
                self._start()
            alone = self._thread is None
        while alone and self._finished < wanted and time.monotonic() < give_up_at and self._send_next():
            pass
        with self._changed:
            self._changed.wait_for(lambda: self._finished >= wanted, max(0.0, give_up_at - time.monotonic()))
            left = wanted - self._finished
            problem = self._problem
        if left > 0:
            why = f": {problem.message}" if problem else f" within {timeout_s:g} s"
            raise NotDurable(f"{left} events are not kept yet{why}", problem.hint if problem else None)

    def _start(self) -> None:
        """Start the thread, unless the interpreter is ending: then whoever flushes sends."""
        thread = threading.Thread(target=self._run, name="relctl-events", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._batch is None and not self._changed.wait_for(lambda: len(self._rows) > 0, IDLE_S):
                    self._thread = None
                    return
            if not self._send_next():
                time.sleep(RETRY_S)

    def _send_next(self) -> bool:
        """Send one batch; False if nobody could keep it: it is the next one again."""
        with self._sending:
            with self._changed:
                if self._batch is None:
                    self._batch = (self._rows.take(), os.urandom(ID_BYTES))
                    self._changed.notify_all()  # there is room
                batch, request_id = self._batch
            try:
                self._deliver(batch, request_id)
            except ReliabilityError as error:
                self._problem = error
                return False
            self._problem = None
            with self._changed:
                self._batch = None
                self._finished += len(batch.rows)
                if self.dropped:
                    self._rows.add(self._report(self.dropped), None)
                    self._queued += 1
                    self.dropped = 0
                self._changed.notify_all()
        return True

    def _deliver(self, batch: Batch[None], request_id: bytes) -> None:
        """Have a batch kept, whole if possible; what is refused is counted.

        Raises:
            NotDurable: nobody keeps it now.
        """
        if not batch.rows:
            return
        try:
            answer = self._caller.call(OP, request_id, {}, [batch.frame()], timeout=self._timeout_s)
        except NotDurable:
            raise
        except ReliabilityError as error:
            if len(batch.rows) > 1 and error.code in SPLIT_CODES:
                for half in batch.halves():
                    self._deliver(half, os.urandom(ID_BYTES))
            else:
                self.refused += len(batch.rows)
            return
        self.refused += sum(isinstance(outcome, ReliabilityError) for outcome in batch.outcomes(answer))


_outboxes: Final[weakref.WeakSet[Outbox]] = weakref.WeakSet()


def _leave_parents_behind() -> None:
    for outbox in list(_outboxes):
        outbox.leave_parent_behind()


def _flush_all() -> None:
    give_up_at = time.monotonic() + EXIT_FLUSH_S
    for outbox in list(_outboxes):
        try:
            outbox.flush(max(0.1, give_up_at - time.monotonic()))
        except ReliabilityError as error:
            sys.stderr.write(f"relctl: at the end of this program, {error.message}\n")


def _at_exit(_: Any = None) -> None:
    _flush_all()


atexit.register(_at_exit)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_parents_behind)
