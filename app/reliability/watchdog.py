"""A host's heartbeat: it beats from the loop that does the host's work, and whoever stops beating is replaced.

    watchdog = WatchdogService(os.getpid())
    await watchdog.start()            # from now on the event loop beats by itself
    watchdog.get_watchdog_status()

A host without asyncio calls `start_here`, and then `beat` from its own loop, as often as it likes.

================================ =====================================================================================
the process                      what `start` does
================================ =====================================================================================
was started by the launcher      beats there
was started by hand              has the launcher take it in as a program: it is found when it hangs or dies, and
                                 started again by its own command line, in its directory, with its environment
is started by a program          nothing: it is judged with that program
is another one than this         has the launcher take it in; it is judged by its state, as nobody beats for it
================================ =====================================================================================

A beat says that the loop turns. So it is never sent from another thread: one that beats while the work stands still
would hide just what is looked for.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from typing import IO, Any, Final

from actors.runtime.control_client import call_launcher
from actors.runtime.identity import identity_of
from actors.runtime.paths import DATA_DIR_VARIABLE, RunInfo, data_directory, read_run_info
from actors.runtime.process import stacks_path
from actors.runtime.programs import PROGRAM_VARIABLE, load, notify_path
from app.reliability._adoption import HANG_TIMEOUT_DEFAULT_S, describe_other, describe_self, own_program_name
from app.reliability._notify import AVAILABLE, SOCKET_VARIABLE, Notifier, timeout_told_s
from app.reliability._start import open_board, runtime_directory_of
from protocol.errors import ErrorCode, LocalError, ReliabilityError

__all__ = ["WatchdogService"]

BEATS_PER_TIMEOUT: Final = 4
STOP_TIMEOUT_DEFAULT_S: Final = 10.0
LAUNCHER_TIMEOUT_S: Final = 5.0
_USEC: Final = 1_000_000
_NOTHING: Final[dict[str, Any]] = {
    "pid": None,
    "state": "unknown",
    "judged_by": "",
    "hang_timeout_s": None,
    "last_beat_age_s": None,
    "restarts_in_period": None,
    "restarts_left": None,
    "supervised": False,
}
_stacks_files: Final[list[IO[bytes]]] = []
"""What faulthandler writes to stays open."""


class WatchdogService:
    """Has one process watched.

    Attributes:
        name: of the program; None until `start` for another process that was given none.
        beat_at: monotonic time of the last beat; minus infinity before the first.
        is_told: the launcher has started it, or one of its parents, as a program.
    """

    def __init__(
        self,
        main_process_pid: int,
        *,
        name: str | None = None,
        hang_timeout_s: float | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Name the process and its system; nothing is opened.

        Args:
            main_process_pid: the process to be watched: `os.getpid()`, or another one of the same user.
            name: of the program: up to 32 of a-z, 0-9, _ and -; after its script by default. A program that the
                launcher has started keeps the name that it has there.
            hang_timeout_s: silence that counts as a hang, 1 s to a day; by default its table's, or 30.
            data_dir: of the system; else RELCTL_DATA_DIR, else ./data.
        """
        self._pid = main_process_pid
        self._own = main_process_pid == os.getpid()
        told = os.environ.get(PROGRAM_VARIABLE) if self._own else None
        where = os.environ.get(DATA_DIR_VARIABLE) if told else None
        self._data_dir = data_directory(where or (None if data_dir is None else os.fspath(data_dir)))
        self.name = told or name or (own_program_name() if self._own else None)
        self.is_told = bool(told)
        self._told_s = timeout_told_s() if told else None
        self._socket = os.environ.get(SOCKET_VARIABLE, "") if told else ""
        self._hang_timeout_s = hang_timeout_s
        self._registered = self._stopped = False
        self._notifier: Notifier | None = None
        self._message: tuple[str, ...] = ()
        self._beat_every_s = 0.0
        self.beat_at = float("-inf")
        self._thread: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def stop_timeout_s(self) -> float:
        """How long the program has to leave after SIGTERM before it is killed."""
        spec = load(runtime_directory_of(self._data_dir)).get(self.name or "")
        return spec.stop_timeout_s if spec is not None else STOP_TIMEOUT_DEFAULT_S

    @property
    def silence_left_s(self) -> float:
        """How long the process may still be silent before it is judged hung; infinite if it is not judged by beats."""
        if self._notifier is None or self._stopped or self.beat_at == float("-inf"):
            return float("inf")
        return self.beat_at + self._beat_every_s * BEATS_PER_TIMEOUT - time.monotonic()

    async def start(self) -> None:
        """Have the process watched, and say that it is ready; this event loop beats from now on.

        Raises:
            LocalError: `not_running`, there is no system; `locked`, another process has this name; `usage`, the
                process cannot be started again, or is no process of this user.
        """
        await asyncio.to_thread(self.register)
        self._begin()
        if self._notifier is not None:
            self._turn(asyncio.get_running_loop())

    def start_here(self) -> None:
        """Do the same for a host without asyncio; from now on it calls `beat` from this thread.

        Raises:
            LocalError: as `start`.
        """
        self.register()
        self._begin()
        self.beat()

    def register(self) -> None:
        """Have the launcher supervise the process, if it does not; nothing is said of it yet. May wait some seconds.

        Raises:
            LocalError: as `start`.
        """
        if self._registered:
            return
        path = self._socket_told() if self._own else ""
        if path is None:
            path = self._adopt()
        elif not self._own:
            self._adopt()
        if path and AVAILABLE:
            self._notifier = Notifier(path)
        self._registered, self._stopped = True, False

    def beat(self) -> None:
        """Say that the loop turns; most calls cost nothing but a look at the clock. Only from the thread of `start`.

        Raises:
            RuntimeError: it is another thread.
        """
        if self._notifier is None or self._stopped or os.getpid() != self._pid:
            return  # a forked child has another life, and another loop
        if threading.get_ident() != self._thread:
            raise RuntimeError("beat() belongs to the thread that does the work, which called start() or start_here()")
        if time.monotonic() >= self.beat_at + self._beat_every_s:
            self._beat()

    def _beat(self) -> None:
        if self._notifier is not None:
            self.beat_at = time.monotonic()
            self._notifier.say(*self._message)

    async def stop(self) -> None:
        """Say that the process leaves by itself: an exit that follows is a clean one. It is judged no more."""
        self.stop_here()

    def stop_here(self) -> None:
        """Do the same for a host without asyncio."""
        self.fall_silent()
        if self._notifier is not None:
            self._notifier.say("STOPPING=1")
            self._notifier.close()
            self._notifier = None
        self._registered = False

    def fall_silent(self) -> None:
        """Beat no more, and say nothing of it: who ends now has failed."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def get_watchdog_status(self) -> dict[str, Any]:
        """Return how the process stands on the liveness board; never waits for anybody.

        Returns:
            ``{"name", "pid", "state", "judged_by" ("beats", "probe", "state"), "hang_timeout_s", "last_beat_age_s",
            "restarts_in_period", "restarts_left", "supervised"}``. `last_beat_age_s` is None of who is not judged by
            beats; everything but the name is, or says, unknown of who is not supervised.
        """
        from actors.runtime.board_view import snapshot

        board = open_board(runtime_directory_of(self._data_dir))
        if board is None:
            return {"name": self.name} | _NOTHING
        with board:
            found = board.find(self.name) if self.name else None
            if found is None:
                return {"name": self.name} | _NOTHING
            said = found[0].process.read()
            view = next(view for view in snapshot(board, int(time.monotonic() * 1000)) if view.name == self.name)
        return {
            "name": view.name,
            "pid": view.pid or None,
            "state": view.state,
            "judged_by": said.judged_by if said is not None else "",
            "hang_timeout_s": view.hang_timeout_s,
            "last_beat_age_s": view.progress_age_s,
            "restarts_in_period": view.restarts_in_period,
            "restarts_left": view.restarts_left,
            "supervised": view.pid != 0,
        }

    # --- how it is registered -----------------------------------------------------------------------------------------

    def _socket_told(self) -> str | None:
        """Return where a program of the launcher's is heard; empty if it is nowhere; None if this is no program."""
        if not self.is_told:
            return None
        if self._socket or self._place() is None:
            return self._socket  # a child of a program is judged with it
        path = notify_path(runtime_directory_of(self._data_dir), self.name or "")
        return path if os.path.exists(path) else ""

    def _place(self) -> int | None:
        """Return the slot that names this process as the program's; None if none does."""
        board = open_board(runtime_directory_of(self._data_dir))
        if board is None:
            return None
        with board:
            found = board.find(self.name or "")
            return found[0].number if found is not None and found[1].pid == self._pid else None

    def _adopt(self) -> str:
        """Have the launcher take the process in; returns where it hears it, empty if nowhere.

        Raises:
            LocalError: as `start`.
        """
        run, identity = self._run(), identity_of(self._pid)
        if identity is None:
            raise LocalError(ErrorCode.USAGE, f"there is no process {self._pid}", "")
        if self._own:
            program = describe_self(
                self.name or "", self._hang_timeout_s, run.pid, notifies=AVAILABLE and not run.portable
            )
        else:
            program = describe_other(self._pid, self.name, self._hang_timeout_s, run.pid)
        self.name = program["name"]
        try:
            answer = call_launcher(
                run, "adopt", LAUNCHER_TIMEOUT_S, program=program, pid=identity.pid, start_time=identity.start_time
            )
        except ReliabilityError as error:
            if error.code == ErrorCode.LOCKED and self._place() is not None:
                return notify_path(run.runtime_dir, self.name or "")  # by this very process, before
            raise LocalError(error.code, error.message, error.hint) from None
        return str(answer.get("notify_socket", ""))

    def _run(self) -> RunInfo:
        run = read_run_info(self._data_dir)
        if run is None:
            hint = "Start it with `relctl up --detach` or `python launcher.py`."
            raise LocalError(ErrorCode.NOT_RUNNING, f"nothing runs on {self._data_dir}", hint)
        return run

    # --- how it beats -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Prepare what every beat says: all that is to be known, as one launcher may take over from another."""
        self._thread = threading.get_ident()
        timeout_s = self._hang_timeout_s or self._told_s or HANG_TIMEOUT_DEFAULT_S
        self._beat_every_s = timeout_s / BEATS_PER_TIMEOUT
        self.beat_at = float("-inf")
        words = ["READY=1", "WATCHDOG=1"]
        if self._hang_timeout_s is not None:
            words.append(f"WATCHDOG_USEC={int(self._hang_timeout_s * _USEC)}")
        stacks_signal = self._register_stacks() if self._notifier is not None else 0
        if stacks_signal:
            words.append(f"X_RELIABILITY_STACKS={stacks_signal}")
        self._message = tuple(words)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat()
        if not self._stopped:
            self._timer = loop.call_later(self._beat_every_s, self._turn, loop)

    def _register_stacks(self) -> int:
        """Have a signal that nobody uses write the stacks of all threads for the watchdog; returns it, 0 without."""
        slot = self._place()
        number = getattr(signal, "SIGUSR2", None)
        if slot is None or number is None or sys.platform == "win32":
            return 0
        if _stacks_files:
            return int(number)
        if signal.getsignal(number) is not signal.SIG_DFL:
            return 0
        path = stacks_path(runtime_directory_of(self._data_dir), slot)
        try:
            if os.path.lexists(path):
                os.unlink(path)  # of a life before, which may still have it open
            file = open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
        except OSError:
            return 0
        faulthandler.register(number, file, all_threads=True, chain=False)
        _stacks_files.append(file)
        return int(number)
