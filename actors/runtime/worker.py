"""The worker thread: blocking work behind a bounded queue, so that no message loop ever waits for a disk.

Jobs run one after another in the order of their submission. While one runs, a lease on the liveness board says what it
is and when it counts as stuck; the watchdog judges by that. The outcome comes back to the loop through its mailbox.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from actors.runtime.operations import LEASE_CAP_DEFAULT_S
from actors.runtime.reactor import Mailbox
from protocol.errors import ErrorCode, ReliabilityError

QUEUED_JOBS_MAX: Final = 256
"""More than the default windows of both lanes together, so that requests alone do not fill it."""

OnDone = Callable[[Any], None]
"""Called on the loop with the job's result, or with the exception that it raised."""


class LeaseHolder(Protocol):
    """Who puts a lease on the board: `ProcessRuntime`."""

    def begin_lease(self, what: str, cap_s: float) -> None:
        """Declare long work."""

    def end_lease(self) -> None:
        """Declare it done."""


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    on_done: OnDone
    what: str
    lease_cap_s: float
    deadline: float | None


class Worker:
    """One thread, started with the first job; a daemon, so that a stuck job never keeps the process from leaving.

    Attributes:
        capacity: jobs that may wait.
        expired_count: jobs whose deadline had passed when their turn came; they were not run.
    """

    def __init__(self, name: str, leases: LeaseHolder, mailbox: Mailbox, capacity: int = QUEUED_JOBS_MAX) -> None:
        """Name the thread and bound its queue."""
        self.capacity = capacity
        self.expired_count = 0
        self._name = name
        self._leases = leases
        self._mailbox = mailbox
        self._jobs: queue.Queue[_Job] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self._unfinished = 0
        self._busy_since: float | None = None

    def submit(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        on_done: OnDone,
        what: str,
        lease_cap_s: float = LEASE_CAP_DEFAULT_S,
        deadline: float | None = None,
    ) -> None:
        """Queue ``function(*arguments)``. Loop thread only.

        It is not run if `deadline` (monotonic seconds) has passed when its turn comes.

        Raises:
            ReliabilityError: `busy`, the queue is full.
        """
        job = _Job(function, arguments, on_done, what, lease_cap_s, deadline)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            message = f"{self.capacity} jobs wait for the worker thread of {self._name}"
            raise ReliabilityError(ErrorCode.BUSY, message) from None
        self._unfinished += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"{self._name}-worker", daemon=True)
            self._thread.start()

    @property
    def queued_count(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    @property
    def idle(self) -> bool:
        """Whether every job is done and its outcome was taken in by the loop."""
        return self._unfinished == 0

    def busy_s(self, now: float) -> float:
        """Return how long the present job has been running; 0 if none is."""
        since = self._busy_since
        return 0.0 if since is None else max(0.0, now - since)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            self._mailbox.post(partial(self._done, job.on_done, self._outcome(job)))

    def _outcome(self, job: _Job) -> Any:
        """Return the job's result, or what it raised."""
        now = time.monotonic()
        if job.deadline is not None and now >= job.deadline:
            self.expired_count += 1
            return ReliabilityError(
                ErrorCode.DEADLINE_PASSED, f"{job.what} was still waiting at its deadline; it was not run"
            )
        self._busy_since = now
        self._leases.begin_lease(job.what, job.lease_cap_s)
        try:
            return job.function(*job.arguments)
        except Exception as error:  # noqa: BLE001 - handed to the loop, which knows what to do with it
            return error
        finally:
            self._leases.end_lease()
            self._busy_since = None

    def _done(self, on_done: OnDone, outcome: Any) -> None:
        self._unfinished -= 1
        on_done(outcome)
