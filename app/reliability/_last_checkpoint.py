"""The last checkpoint of a host that hangs: taken about a second before it is judged.

The watchdog publishes then that it is about to judge (`program.hung`), to which the thread here listens; and as a
message may be late, or its broker dead, the thread looks itself how long the last beat is ago. The host's loop stands
still by then, so the state is taken from this thread: by the host's own callback, which has a moment for it, else it is
the last state that was handed over.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from app.reliability.client import Client
from app.reliability.crash_recovery import CrashRecoveryManager
from app.reliability.event_logger import EventLogger
from app.reliability.watchdog import WatchdogService
from protocol.errors import NotDurable, ReliabilityError

HUNG_TOPIC: Final = "program.hung"
CALLBACK_S: Final = 0.4
"""What the host's callback may take: it may wait for a lock that whoever hangs holds."""
KEEP_S: Final = 5.0
AHEAD_S: Final = 1.0
"""So long before its time is over the state is taken, whoever else says so."""
_LOOK_S: Final = 2.0
_LOOK_S_MIN: Final = 0.05


class LastCheckpoint:
    """Listens on behalf of one program until `close`."""

    def __init__(
        self,
        watchdog: WatchdogService,
        data_dir: str,
        recovery: CrashRecoveryManager,
        events: EventLogger,
        callback: Callable[[], Callable[[], Any] | None],
    ) -> None:
        """Listen for the program of `watchdog`; `callback` returns what returns its state, if anything does."""
        self._program = watchdog.name or recovery.name
        self._watchdog = watchdog
        self._data_dir = data_dir
        self._recovery = recovery
        self._events = events
        self._callback = callback
        self._closed = threading.Event()
        self._kept_of: float | None = None
        threading.Thread(target=self._listen, name="relctl-last-checkpoint", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._closed.set()

    def _listen(self) -> None:
        client = Client(self._data_dir)
        while not self._closed.is_set():
            try:
                with client.subscribe(HUNG_TOPIC) as subscription:
                    while not self._closed.is_set():
                        heard = subscription.receive(self._pause_s())
                        self._step(heard[1] if heard is not None else None)
            except ReliabilityError:  # nothing was ever started here
                self._closed.wait(self._pause_s())
                self._step(None)

    def _pause_s(self) -> float:
        return min(_LOOK_S, max(_LOOK_S_MIN, self._watchdog.silence_left_s - AHEAD_S))

    def _step(self, heard: Any) -> None:
        """Keep the state if that is due, once in a silence."""
        named = isinstance(heard, dict) and heard.get("name") == self._program
        if (named or self._watchdog.silence_left_s <= AHEAD_S) and self._kept_of != self._watchdog.beat_at:
            self._kept_of = self._watchdog.beat_at
            self.keep()

    def keep(self) -> None:
        """Keep the state as well as it can be had now, and tell of it."""
        callback = self._callback()
        taken = _take(callback) if callback is not None else None
        try:
            if taken is not None:
                kept = self._recovery.keep_apart(state=taken[0], timeout=KEEP_S)
            else:
                kept = self._recovery.keep_apart(timeout=KEEP_S)
        except ReliabilityError as error:
            self._tell("WARN", f"{self._program} hangs, and its state cannot be kept: {error.message}")
            return
        if kept:
            which = "its present state" if taken is not None else "the state it handed over last"
            self._tell("NOTICE", f"{self._program} hangs, and is about to be ended; {which} is kept")

    def _tell(self, level: str, message: str) -> None:
        try:
            self._events.log(level, self._program, "last_checkpoint", message, {"at_monotonic_s": time.monotonic()})
        except NotDurable:
            return


def _take(callback: Callable[[], Any]) -> tuple[Any] | None:
    """Return what the host's callback returns; None if it fails, or takes too long."""
    found: list[tuple[Any]] = []
    done = threading.Event()

    def take() -> None:
        try:
            found.append((callback(),))
        except Exception:  # noqa: BLE001 - the host's code; what was handed over last is kept instead
            return
        finally:
            done.set()

    threading.Thread(target=take, name="relctl-state", daemon=True).start()
    done.wait(CALLBACK_S)
    return found[0] if found else None
