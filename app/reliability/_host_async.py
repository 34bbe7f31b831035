"""Runs a host's coroutine function; everything happens on its event loop, which beats by itself."""

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

from app.reliability._host import CALL_S, Host, said
from app.reliability._host_core import End, Outcome, outcome_of
from protocol.errors import ReliabilityError

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class AsyncRun:
    """One run.

    Attributes:
        loop: the event loop.
    """

    def __init__(self, host: Host) -> None:
        """Nothing runs yet."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._host = host
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._watching: asyncio.Task[None] | None = None

    async def run(self, main: Callable[[], Any]) -> Outcome:
        """Run `main` from recovery to the last checkpoint."""
        host = self._host
        loop = self.loop = asyncio.get_running_loop()
        host.stopping = asyncio.Event()
        if host.state is not None:
            host.recovery.register_callback(host.state)
        self._hear_signals(loop)
        await host.begin()
        await self._watch()
        host.join_later(self._watch_later)
        listener = host.listen()
        end, result = await self._main(main)
        listener.close()
        outcome = outcome_of(end, result, host.signal_number)
        if outcome.leaves:
            await host.watchdog.stop()
        await asyncio.to_thread(host.tell_failure)
        ends_run = outcome.ends_run
        if outcome.checkpoint and host.recovery.has_state:
            ends_run &= await self._keep_last()
        await host.finish(ends_run=ends_run)
        host.watchdog.fall_silent()
        return outcome

    async def _watch(self) -> None:
        try:
            await self._host.watchdog.start()
        except ReliabilityError:  # told of when it was to be registered
            return

    def _watch_later(self) -> None:
        """From another thread."""

        def watch() -> None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

        if self.loop is not None:
            self.loop.call_soon_threadsafe(watch)

    async def _main(self, main: Callable[[], Any]) -> tuple[End, Any]:
        host = self._host
        if host.stopping.is_set():
            return End.CANCELLED, None
        self._task = asyncio.get_running_loop().create_task(_guarded(main), name=host.name)
        try:
            return End.RETURNED, await self._task
        except asyncio.CancelledError as error:
            if self._cancelled:
                return End.CANCELLED, None
            host.error = error
        except Exception as error:  # noqa: BLE001 - the host's code raises what it likes
            host.error = error
        return End.RAISED, None

    async def _keep_last(self) -> bool:
        try:
            await self._host.recovery.create_checkpoint(timeout=CALL_S)
        except Exception as error:  # noqa: BLE001 - the host's own callback raises what it likes
            self._host.tell_unkept(error)
            return False
        return True

    def _hear_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            try:
                loop.add_signal_handler(number, self._stop, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda which, _frame: loop.call_soon_threadsafe(self._stop, which))

    def _stop(self, number: int) -> None:
        """Ask main to end; at the second time, have it end."""
        host = self._host
        host.stopping.set()
        if host.signal_number:
            self._cancel()
            return
        host.signal_number = number
        asyncio.get_running_loop().call_later(host.stop_timeout_s / 2, self._cancel)

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


async def _guarded(main: Callable[[], Any]) -> Any:
    """Await `main`; what it would end the process with is its result."""
    try:
        result = main()
        return await result if inspect.isawaitable(result) else result
    except SystemExit as request:
        return said(request)
