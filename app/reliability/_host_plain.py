"""Runs a host's plain function in the main thread; its checkpoints are kept by an event loop on a thread beside it."""

import _thread
import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final, TypeVar

from app.reliability._host import CALL_S, SHORT_CALL_S, Host, said
from app.reliability._host_core import End, Outcome, outcome_of
from app.reliability._states import encode
from protocol.errors import ReliabilityError

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SIGNALLED: Final = 128

Result = TypeVar("Result")


class PlainRun:
    """One run.

    Attributes:
        loop: keeps the checkpoints.
    """

    def __init__(self, host: Host) -> None:
        """Nothing runs yet."""
        self.loop = asyncio.new_event_loop()
        self._host = host
        self._heard: SimpleQueue[int] = SimpleQueue()
        self._insisting = False
        self._ended = threading.Event()
        self._keeping: Future[None] | None = None
        self._keep_at = time.monotonic() + host.recovery.interval_s
        self._result: Any = None
        self._joined = False

    def run(self, main: Callable[[], Any]) -> Outcome:
        """Run `main` from recovery to the last checkpoint."""
        host = self._host
        host.stopping = threading.Event()
        thread = threading.Thread(target=self.loop.run_forever, name="relctl-checkpoints", daemon=True)
        thread.start()
        before = self._hear_signals()
        try:
            self._call(host.begin())
            self._watch()
            host.join_later(self._watch_later)
            listener = host.listen()
            end = self._main(main)
            self._ended.set()
            listener.close()
            outcome = outcome_of(end, self._result, host.signal_number)
            if outcome.leaves:
                host.watchdog.stop_here()
            host.tell_failure()
            ends_run = outcome.ends_run
            if outcome.checkpoint and host.state is not None:
                ends_run &= self._keep_last(host.state)
            self._call(host.finish(ends_run=ends_run))
            host.watchdog.fall_silent()
        finally:
            self._ended.set()
            for number, handler in before.items():
                signal.signal(number, handler)
            self.loop.call_soon_threadsafe(self.loop.stop)
            thread.join(SHORT_CALL_S)
        return outcome

    def turn(self) -> None:
        """Take in that the host's own loop turns: beat, and have its state kept beside the work if that is due."""
        host, now = self._host, time.monotonic()
        if self._joined:
            self._joined = False
            self._watch()
        host.watchdog.beat()
        if host.state is None or now < self._keep_at or (self._keeping is not None and not self._keeping.done()):
            return
        self._keep_at = now + host.recovery.interval_s
        try:
            payload = encode(host.state())
        except Exception as error:  # noqa: BLE001 - the host's callback raises what it likes; the next time it may do
            host.recovery.last_error = error
            return
        self._keeping = asyncio.run_coroutine_threadsafe(self._keep(payload), self.loop)

    async def _keep(self, payload: bytes) -> None:
        recovery = self._host.recovery
        try:
            await recovery.keep(payload)
            recovery.last_error = None
        except ReliabilityError as error:
            recovery.last_error = error

    def _watch(self) -> None:
        try:
            self._host.watchdog.start_here()
        except ReliabilityError:  # told of when it was to be registered
            return

    def _watch_later(self) -> None:
        self._joined = True

    def _main(self, main: Callable[[], Any]) -> End:
        host = self._host
        if host.stopping.is_set():
            return End.CANCELLED
        try:
            self._result = main()
            if inspect.iscoroutine(self._result):
                self._result.close()
                raise TypeError("main has returned a coroutine: hand over the coroutine function itself")
        except SystemExit as request:
            if self._insisting:
                return End.TORN
            self._result = said(request)
        except KeyboardInterrupt:
            return End.TORN
        except Exception as error:  # noqa: BLE001 - the host's code raises what it likes
            host.error = error
            return End.RAISED
        return End.RETURNED

    def _keep_last(self, state: Callable[[], Any]) -> bool:
        try:
            self._call(self._host.recovery.keep(encode(state()), timeout=CALL_S))
        except Exception as error:  # noqa: BLE001 - the host's own callback raises what it likes
            self._host.tell_unkept(error)
            return False
        return True

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    # --- signals ------------------------------------------------------------------------------------------------------

    def _hear_signals(self) -> dict[int, Any]:
        """Have signals ask main to end; returns who had them before."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        threading.Thread(target=self._take_signal, name="relctl-signals", daemon=True).start()
        return {int(number): signal.signal(number, self._on_signal) for number in SIGNALS}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """In the main thread, wherever that is: it may hold the lock of `stopping`, so another thread sets that."""
        if self._ended.is_set():
            return
        if self._insisting:
            raise SystemExit(_SIGNALLED + number)
        if self._host.signal_number:
            self._insisting = True
            raise KeyboardInterrupt
        self._host.signal_number = number
        self._heard.put(number)

    def _take_signal(self) -> None:
        number = self._heard.get()
        self._host.stopping.set()
        if not self._ended.wait(self._host.stop_timeout_s / 2):
            self._insisting = True
            if sys.platform == "win32":
                _thread.interrupt_main(number)
            else:
                os.kill(os.getpid(), number)  # wakes the main thread, whatever it waits for
