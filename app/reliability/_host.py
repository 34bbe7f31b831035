"""What a host goes through around its main function, whichever kind that is: joining, recovering, and leaving."""

import inspect
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

from app.reliability._last_checkpoint import LastCheckpoint
from app.reliability._notify import VARIABLES
from app.reliability._start import Condition, join_or_start, look
from app.reliability.crash_recovery import CrashRecoveryManager
from app.reliability.event_logger import EventLogger, ReliabilityHandler
from app.reliability.watchdog import WatchdogService
from protocol.errors import ErrorCode, LocalError, ReliabilityError

CALL_S: Final = 10.0
SHORT_CALL_S: Final = 5.0
JOIN_INTERVAL_S: Final = 10.0
"""Between two looks for a system of a host that found none."""
_TRACEBACK_CHARACTERS_MAX: Final = 8 * 1024
_log: Final = logging.getLogger("app.system_startup")

State = Callable[[], Any]


class Host:
    """One application, as far as it is the same for coroutines and plain functions.

    Attributes:
        name: of its checkpoints.
        recovery: its checkpoints.
        events: its event log.
        watchdog: its heartbeat.
        state: returns its state; None if it has not said how.
        stopping: set when it is to end; which kind of event, says who runs it.
        recovered: the state that a crash has left.
        last_state: the state that the last run has left.
        signal_number: which signal asked it to end; 0 without one.
        stop_timeout_s: what a stop may take.
        error: the exception that ended main.
    """

    def __init__(self, name: str, data_dir: str, state: State | None, hang_timeout_s: float | None) -> None:
        """Nothing is opened or started."""
        self.name = name
        self.events = EventLogger(data_dir)
        self.recovery = CrashRecoveryManager(name, data_dir)
        self.watchdog = WatchdogService(os.getpid(), name=name, hang_timeout_s=hang_timeout_s, data_dir=data_dir)
        self.state = state
        self.stopping: Any = None
        self.recovered: Any = None
        self.last_state: Any = None
        self.signal_number = 0
        self.stop_timeout_s = 0.0
        self.error: BaseException | None = None
        self._data_dir = data_dir
        self._alone = False
        self._closed = threading.Event()

    def lead_logging(self) -> logging.Handler:
        """Have the host's records become events; where they go now they still go."""
        root = logging.getLogger()
        if not root.handlers:  # what Python does by itself for who has none
            console = logging.StreamHandler()
            console.setLevel(logging.WARNING)
            console.setFormatter(logging.Formatter("%(message)s"))
            root.addHandler(console)
        handler = ReliabilityHandler(self._data_dir)
        root.addHandler(handler)
        return handler

    def join(self) -> None:
        """Start the system, or join it, and be supervised.

        Raises:
            LocalError: `locked`, another process is this application.
        """
        try:
            if not self.watchdog.is_told:  # whoever has started it brings itself back
                join_or_start(self._data_dir)
            self.watchdog.register()
        except ReliabilityError as error:
            if error.code == ErrorCode.LOCKED:
                name = self.watchdog.name
                hint = f"`relctl attach {name}` shows its output, `relctl stop {name}` ends it."
                raise LocalError(ErrorCode.LOCKED, error.message, hint) from None
            self._alone = True
            said = f"{error.message}. {error.hint}".strip()
            _log.warning("%s runs without supervision; events and checkpoints are spooled: %s", self.name, said)
        self.stop_timeout_s = self.watchdog.stop_timeout_s
        for variable in VARIABLES:  # meant for this process alone: a child's word would be taken for its own
            os.environ.pop(variable, None)

    def join_later(self, beat: Callable[[], None]) -> None:
        """If there was no system, look for one all the while; once it supervises this process, call `beat`.

        That is called from a thread, and has the host's own loop begin to beat.
        """
        if self._alone:
            threading.Thread(target=self._join_later, args=(beat,), name="relctl-join", daemon=True).start()

    def _join_later(self, beat: Callable[[], None]) -> None:
        while not self._closed.wait(JOIN_INTERVAL_S):
            try:
                if look(self._data_dir).condition is not Condition.RUNNING:
                    continue
                self.watchdog.register()
                beat()
            except ReliabilityError as error:
                if error.code != ErrorCode.LOCKED:
                    continue
                _log.warning("%s stays without supervision: %s", self.name, error.message)
            except RuntimeError:  # its loop is closed: it has ended meanwhile
                return
            else:
                _log.warning("%s is supervised from now on", self.name)
            return

    async def begin(self) -> None:
        """Begin a run, and find out what the last one has left."""
        try:
            await self.recovery.start(timeout=CALL_S)
            self.recovered = self.last_state = await self.recovery.recover_from_crash(timeout=CALL_S)
            found = self.recovery.last_recovery
            if found is not None and found.reason == "clean_stop":
                self.last_state = await self.recovery.newest_state(timeout=CALL_S)
        except ReliabilityError as error:
            _log.error("%s begins without its last state: %s. %s", self.name, error.message, error.hint)

    def listen(self) -> LastCheckpoint:
        """Have the last checkpoint taken when the application hangs."""

        def callback() -> State | None:
            found = self.state if self.state is not None else self.recovery.callback
            return None if inspect.iscoroutinefunction(found) else found

        return LastCheckpoint(self.watchdog, self._data_dir, self.recovery, self.events, callback)

    async def finish(self, *, ends_run: bool) -> None:
        """Let go of everything; with `ends_run` there will be nothing to recover from."""
        self._closed.set()
        try:
            await (self.recovery.stop(timeout=SHORT_CALL_S) if ends_run else self.recovery.close())
            await self.events.close()
        except ReliabilityError as error:
            _log.warning("at the end of %s: %s", self.name, error.message)

    def tell_unkept(self, error: BaseException) -> None:
        """Write that the last state could not be kept."""
        _log.error("the last state of %s is not kept: %s", self.name, error)

    def tell_failure(self) -> None:
        """Write of the exception that has ended the application, here and in the event log."""
        error = self.error
        if error is None:
            return
        text = "".join(traceback.format_exception(error))
        sys.stderr.write(text)
        kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        details = {"exception": {"type": kind, "message": str(error), "traceback": text[-_TRACEBACK_CHARACTERS_MAX:]}}
        summary = f"{self.name} ends by an exception: {kind}: {error}"
        try:
            self.events.log("CRITICAL", self.name, "application_failed", summary, details)
        except ReliabilityError:
            return


def said(request: SystemExit) -> Any:
    """Return what `sys.exit` was called with, having written what was meant to be read."""
    if isinstance(request.code, str):
        sys.stderr.write(f"{request.code}\n")
    return request.code
