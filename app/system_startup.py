"""An application that survives: `SystemApplication(main).run()` starts what keeps it alive, and then the application.

    from app.system_startup import SystemApplication

    async def main(app):
        state = app.recovered or {"visits": 0}
        app.recovery.register_callback(lambda: state)      # kept every 30 s, and at the end
        while not app.stopping.is_set():
            state["visits"] += 1
            await asyncio.sleep(1)

    SystemApplication(main, name="counter").run()

`main` may be a coroutine function, whose event loop then beats by itself, or a plain function, which calls `app.beat()`
wherever its own loop turns: ``while app.beat(): work()``. What `run` does, in its order:

1. joins the system of the data directory, or starts it; has this process supervised: found when it hangs, started again
   when it dies. Without a system the application runs all the same: events and checkpoints wait in the spool.
2. leads the host's logging into the event log, beside wherever else it goes.
3. begins a run: after a crash `app.recovered` is the last state that was kept.
4. says that it is ready, and runs `main`. SIGTERM and Ctrl-C set `app.stopping`; who has not ended after half of the
   time that a stop may take, or at a second signal, is cancelled.
5. takes the last checkpoint, unless an exception has ended it: that is told with its traceback. Then the process ends,
   as the table of `app.reliability._host_core` says.

The state callback is called between two steps of the application: on its event loop, or in `app.beat()`. Only when
the application hangs it is called from another thread. A state that must not be seen in the middle of a change is
guarded by a lock: then the state before is kept.
"""

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from actors.runtime.paths import data_directory
from actors.runtime.programs import NAME_LENGTH_MAX, is_program_name
from app.reliability._adoption import own_program_name
from app.reliability._host import Host
from app.reliability._host_async import AsyncRun
from app.reliability._host_core import Outcome
from app.reliability._host_plain import PlainRun
from app.reliability._states import encode
from app.reliability.crash_recovery import Checkpoint, CrashRecoveryManager
from app.reliability.event_logger import EventLogger
from app.reliability.watchdog import WatchdogService
from protocol.errors import ErrorCode, LocalError

__all__ = ["SystemApplication"]

Main = Callable[["SystemApplication"], Awaitable[Any] | Any]


class SystemApplication:
    """One application; `run` is called once, in the main thread."""

    def __init__(
        self,
        main: Main | None = None,
        *,
        name: str | None = None,
        state: Callable[[], Any] | None = None,
        hang_timeout_s: float | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Name the application; nothing is opened or started.

        Args:
            main: is called with this object; what it returns, if it is a number, is the exit code. A subclass may have
                a method `main` instead.
            name: of the program and its checkpoints: up to 32 of a-z, 0-9, _ and -. By default the launcher's word for
                it, else the script's name: give one if it is started in both ways.
            state: returns the state, for every checkpoint.
            hang_timeout_s: silence of its loop that counts as a hang; by default 30, or what its table says.
            data_dir: of the system; else RELCTL_DATA_DIR, else ./data.

        Raises:
            LocalError: `usage`, `name` is none.
        """
        if name is not None and not is_program_name(name):
            hint = (
                f"1 to {NAME_LENGTH_MAX} of a-z, 0-9, _ and -, beginning with a letter or digit, and no name of ours."
            )
            raise LocalError(ErrorCode.USAGE, f"no application may be called {name!r}", hint)
        where = data_directory(None if data_dir is None else os.fspath(data_dir))
        self._host = Host(name or own_program_name(), where, state, hang_timeout_s)
        self._main = main
        self._run: AsyncRun | PlainRun | None = None

    @property
    def name(self) -> str:
        """Name of the program, and of its checkpoints."""
        return self._host.name

    @property
    def recovered(self) -> Any:
        """The state that a crash has left; None at the first start and after a clean stop."""
        return self._host.recovered

    @property
    def stopping(self) -> Any:
        """Set when the application is to end: an `asyncio.Event`, or for plain functions a `threading.Event`."""
        return self._host.stopping

    @property
    def recovery(self) -> CrashRecoveryManager:
        """The application's checkpoints."""
        return self._host.recovery

    @property
    def events(self) -> EventLogger:
        """The event log."""
        return self._host.events

    @property
    def watchdog(self) -> WatchdogService:
        """The application's heartbeat."""
        return self._host.watchdog

    async def main(self) -> Any:
        """Be the application; a subclass has its own here. This one waits for the end."""
        sys.stderr.write(f"{self.name}: no application was given; waiting for SIGTERM or Ctrl-C\n")
        await self.stopping.wait()

    def last_state(self) -> Any:
        """Return the state that the last run has left, however it ended; None if there never was one."""
        return self._host.last_state

    def beat(self) -> bool:
        """Say that the application's loop turns, and have its state kept if that is due; False once it is to end.

        For plain functions: call it as often as you like, from the thread that does the work, at least once in a
        quarter of the hang timeout. An event loop beats by itself.
        """
        if isinstance(self._run, PlainRun):
            self._run.turn()
        return not self.stopping.is_set()

    def checkpoint(self, state: Any = None) -> Checkpoint:
        """Keep a state now, without one the callback's, and return once it is durable. For all but coroutines.

        Raises:
            LocalError: `usage`, there is no state, or this is the event loop, which would wait for itself.
            ReliabilityError: as `CrashRecoveryManager.create_checkpoint`.
        """
        loop = self._run.loop if self._run is not None else None
        if loop is None:
            raise LocalError(ErrorCode.USAGE, "the application does not run", "Call it from main.")
        if _running_loop() is loop:
            hint = "Write `await app.recovery.create_checkpoint(state)`."
            raise LocalError(ErrorCode.USAGE, "checkpoint() would hold up the event loop", hint)
        if state is None:
            if self._host.state is None:
                raise LocalError(ErrorCode.USAGE, "there is no state to keep", "Hand one over, or give a callback.")
            state = self._host.state()
        return asyncio.run_coroutine_threadsafe(self.recovery.keep(encode(state)), loop).result()

    def run(self) -> NoReturn:
        """Run the application, and end the process with its exit code.

        Raises:
            SystemExit: always.
        """
        try:
            handler = self._host.lead_logging()
            try:
                self._host.join()
                code = self._run_main().code
            finally:
                logging.getLogger().removeHandler(handler)
                handler.close()
        except LocalError as error:  # another process is this application already
            sys.stderr.write(f"{self.name}: {error.message}. {error.hint}\n")
            code = error.exit_code
        raise SystemExit(code)

    def _run_main(self) -> Outcome:
        given = self._main
        if _is_async(self.main if given is None else given):
            self._run = run = AsyncRun(self._host)
            return asyncio.run(run.run(self._begin_main))
        self._run = plain = PlainRun(self._host)
        return plain.run(self._begin_main)

    def _begin_main(self) -> Any:
        return self.main() if self._main is None else self._main(self)


def _is_async(main: Callable[..., Any]) -> bool:
    called = getattr(main, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
    return inspect.iscoroutinefunction(main) or inspect.iscoroutinefunction(called)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
