"""A pool of threads for what would hold up the event loop, with a bounded queue before it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class BusyError(Exception):
    """There is too much to do; try again later."""


class WorkerPool:
    """So many workers, and so many who may wait for them.

    Attributes:
        under_way: calls that run or wait.
    """

    def __init__(self, workers: int = 4, waiting_max: int = 16) -> None:
        """Start no thread yet."""
        self.under_way = 0
        self._calls_max = workers + waiting_max
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker")

    async def run(self, function: Callable[..., Result], *arguments: object, timeout_s: float) -> Result:
        """Call a function on a worker.

        Raises:
            BusyError: too many wait.
            TimeoutError: it took too long; its worker goes on with it.
        """
        if self.under_way >= self._calls_max:
            raise BusyError
        self.under_way += 1
        call = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        call.add_done_callback(self._ended)
        return await asyncio.wait_for(asyncio.shield(call), timeout_s)

    def close(self) -> None:
        """Wait for nobody, and take nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, call: "asyncio.Future[Result]") -> None:
        self.under_way -= 1
        if not call.cancelled():
            call.exception()  # whoever waited has been told; nobody else needs to be
