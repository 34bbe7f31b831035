"""The worker thread: order, bounds, leases, deadlines."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors.runtime.reactor import Mailbox, Reactor
from actors.runtime.worker import Worker
from protocol.errors import ErrorCode, ReliabilityError
from tests.spine import PATIENCE_S


class Leases:
    """Notes what is declared."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, float] | None] = []

    def begin_lease(self, what: str, cap_s: float) -> None:
        self.noted.append((what, cap_s))

    def end_lease(self) -> None:
        self.noted.append(None)


class Bench:
    """A worker with the loop that it reports to."""

    def __init__(self, capacity: int = 8) -> None:
        self.leases = Leases()
        self.outcomes: list[Any] = []
        self._reactor = Reactor()
        self._mailbox = Mailbox()
        self._reactor.register(self._mailbox.fileno(), self._mailbox.drain)
        self.worker = Worker("bench", self.leases, self._mailbox, capacity)
        self.release = threading.Event()

    def submit(self, function: Callable[..., Any], *arguments: Any, deadline: float | None = None) -> None:
        self.worker.submit(
            function, *arguments, on_done=self.outcomes.append, what="work", lease_cap_s=3.0, deadline=deadline
        )

    def occupy(self) -> None:
        """Have the thread at work until released."""
        begun = threading.Event()

        def wait() -> str:
            begun.set()
            assert self.release.wait(PATIENCE_S)
            return "released"

        self.submit(wait)
        assert begun.wait(PATIENCE_S)

    def finish(self) -> list[Any]:
        """Turn until every outcome is in."""
        self.release.set()
        while not self.worker.idle:
            ready = self._reactor.wait(PATIENCE_S)
            assert ready
            self._reactor.call(ready)
        return self.outcomes

    def close(self) -> None:
        self._mailbox.close()
        self._reactor.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_jobs_run_in_order_and_their_outcomes_come_back_to_the_loop(bench: Bench) -> None:
    for number in range(5):
        bench.submit(pow, number, 2)
    assert bench.outcomes == []
    assert bench.finish() == [0, 1, 4, 9, 16]


def test_what_a_job_raises_comes_back_and_the_next_one_runs(bench: Bench) -> None:
    bench.submit(int, "x")
    bench.submit(int, "7")
    failed, parsed = bench.finish()
    assert isinstance(failed, ValueError)
    assert parsed == 7


def test_every_job_has_its_lease(bench: Bench) -> None:
    bench.submit(int)
    bench.submit(int, "x")
    bench.finish()
    assert bench.leases.noted == [("work", 3.0), None, ("work", 3.0), None]


def test_a_full_queue_says_busy(bench: Bench) -> None:
    bench.occupy()
    for _ in range(bench.worker.capacity):
        bench.submit(int)
    with pytest.raises(ReliabilityError) as refused:
        bench.submit(int)
    assert refused.value.code == ErrorCode.BUSY
    assert bench.worker.queued_count == bench.worker.capacity
    assert bench.finish() == ["released", *[0] * bench.worker.capacity]


def test_a_job_whose_deadline_passes_in_the_queue_is_not_run(bench: Bench) -> None:
    ran: list[int] = []
    bench.occupy()
    bench.submit(ran.append, 1, deadline=time.monotonic() - 0.001)
    bench.submit(ran.append, 2, deadline=time.monotonic() + 60)
    _, expired, _ = bench.finish()
    assert expired.code == ErrorCode.DEADLINE_PASSED
    assert ran == [2]
    assert bench.worker.expired_count == 1
    assert len(bench.leases.noted) == 4


def test_it_says_how_long_the_present_job_has_run(bench: Bench) -> None:
    assert bench.worker.busy_s(time.monotonic()) == 0
    bench.occupy()
    assert bench.worker.busy_s(time.monotonic() + 5) == pytest.approx(5, abs=2)
    bench.finish()
    assert bench.worker.busy_s(time.monotonic()) == 0
