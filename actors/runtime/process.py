"""What every child of the launcher runs on, the broker included: signals, title, board, journal, one catch-all.

`run_process` prepares the process, runs its body and turns whatever happens into an exit code. The body gets a
`ProcessRuntime`, through which its own loop shows that it moves (`beat`), declares long work (`begin_lease`), learns
that it has to leave (`stop_requested`, `replaced`) and says what it did (`log`).
"""

import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any, Final

from actors.runtime.arguments import ProcessArguments
from actors.runtime.config import ConfigFile, SupervisionConfig
from actors.runtime.identity import own_identity
from actors.runtime.journal import Journal, new_entry
from actors.runtime.liveness import LAUNCHER_SLOT, Board, ProcessRecord, ProcessState, Slot
from actors.runtime.paths import BOARD_FILE, JOURNAL_DIR, STACKS_DIR
from actors.runtime.signalling import tells_exits
from actors.runtime.version import VERSION
from protocol.errors import EXIT_FAILED, ReliabilityError

try:
    from setproctitle import setproctitle as _set_title
except ImportError:  # only cosmetic

    def _set_title(title: str) -> None:
        """Do without a title."""


TITLE_PREFIX: Final = "relctl: "
LAUNCHER_LOOK_INTERVAL_S: Final = 0.25
"""How often a process looks, during a deliberate stop, whether somebody is left to stop it."""
STOP_STAGES_MAX: Final = 8
"""Stop timeouts after which a process leaves a deliberate stop by itself: by then all others had their turn."""
MESSAGE_CHARACTERS_MAX: Final = 2000
TRACEBACK_CHARACTERS_MAX: Final = 8000


class ProcessRuntime:
    """One process's side of the system.

    The message loop's thread calls everything here; other threads may call `begin_lease`, `end_lease` and `log`.

    Attributes:
        arguments: the process's place in the system.
        board: the liveness board.
        slot: its own slot there.
        config: the configuration file; each part takes its own section.
        supervision: the `[supervision]` section.
        tick_s: how often its loop ticks, unless it has reasons of its own.
        journal: its own journal on tmpfs.
        wakeup_fd: readable once a signal has arrived; for any poller. `drain_wakeup` empties it.
    """

    def __init__(self, arguments: ProcessArguments, journal: Journal) -> None:
        """Open the board, and say there that this incarnation is starting.

        Raises:
            LocalError: the configuration is wrong.
            OSError, BoardError: there is no board to work with.
        """
        self.arguments = arguments
        self.journal = journal
        self.config = ConfigFile.load(arguments.config_path)
        self.supervision = self.config.section("supervision", SupervisionConfig)
        self.tick_s = self.supervision.survivor_tick_s(told_of_exits=tells_exits(portable=arguments.portable))
        self.board = Board(os.path.join(arguments.runtime_dir, BOARD_FILE), writable=True)
        self.slot: Slot = self.board.slots[arguments.slot]
        self._board_file = _file_identity(self.board.path)
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self.wakeup_fd = self._wakeup_reader.fileno()
        # Each is held for one write to tmpfs by a thread of this process: no longer than the loop's own write takes.
        self._record_lock = threading.Lock()
        self._journal_lock = threading.Lock()
        self._terminated = False
        self._stopping_since: float | None = None
        self._launcher_gone = False
        self._launcher_looked_at = 0.0
        identity = own_identity()
        self._record = ProcessRecord(
            pid=identity.pid,
            start_time=identity.start_time,
            incarnation=arguments.incarnation,
            state=ProcessState.STARTING,
            version=VERSION,
        )
        self.slot.process.write(self._record)
        self.beat()

    def beat(self) -> None:
        """Count one turn of the process's own loop."""
        self.slot.beat(time.monotonic_ns() // 1_000_000)

    def set_state(self, state: ProcessState) -> None:
        """Say on the board that the process is `STARTING`, `READY` or `STOPPING`."""
        self._update(state=state)

    def begin_lease(self, what: str, cap_s: float, *, holds_loop: bool = False) -> None:
        """Declare long work; without the matching `end_lease` within `cap_s` the process counts as stuck.

        A process has one lease; another `begin_lease` replaces it. With `holds_loop` the message loop itself does the
        work and does not beat meanwhile.
        """
        until_ms = time.monotonic_ns() // 1_000_000 + int(cap_s * 1000)
        self._update(lease_what=what[:64], lease_until_ms=until_ms, lease_holds_loop=holds_loop)

    def end_lease(self) -> None:
        """Declare the long work done."""
        self._update(lease_what="", lease_until_ms=0, lease_holds_loop=False)

    @property
    def stop_requested(self) -> bool:
        """Whether this process has to drain and leave.

        So it is after SIGTERM. In a deliberate stop the launcher sends that to one process after the other; where no
        launcher is left to do so, or none has for `STOP_STAGES_MAX` stop timeouts, the process leaves unasked.
        """
        return self._terminated or (self.board.stopping and self._abandoned_in_stop(time.monotonic()))

    def replaced(self) -> bool:
        """Whether another process has this one's place; then it leaves at once, touching nothing.

        So it is if the launcher has recorded a later incarnation or another pid in the slot, or if the board itself has
        been replaced.
        """
        record = self.slot.launcher.read()
        if record is not None:
            own = self.arguments.incarnation
            if record.incarnation > own:
                return True
            if record.incarnation == own and record.pid not in (0, self._record.pid):
                return True
        return _file_identity(self.board.path) != self._board_file

    def log(self, severity: str, event_type: str, message: str, **attributes: Any) -> None:
        """Append an event to the journal, from where event_logger takes it. Never waits for a disk, never raises."""
        with self._journal_lock:
            log_event(self.journal, self.arguments.name, severity, event_type, message, attributes)

    def drain_wakeup(self) -> None:
        """Empty `wakeup_fd`."""
        try:
            while self._wakeup_reader.recv(512):
                pass
        except BlockingIOError:
            return

    def install_wakeup(self) -> None:
        """Have every signal make `wakeup_fd` readable. Main thread only."""
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)

    def note_termination(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Take note of SIGTERM."""
        self._terminated = True

    def close(self) -> None:
        """Give the wake-up sockets back. The board stays mapped: threads may still look at it."""
        signal.set_wakeup_fd(-1)
        self._wakeup_reader.close()
        self._wakeup_writer.close()

    def _update(self, **changes: Any) -> None:
        with self._record_lock:
            self._record = replace(self._record, **changes)
            self.slot.process.write(self._record)

    def _abandoned_in_stop(self, now: float) -> bool:
        if self._stopping_since is None:
            self._stopping_since = now
        if now >= self._launcher_looked_at + LAUNCHER_LOOK_INTERVAL_S:
            self._launcher_looked_at = now
            launcher = self.board.slots[LAUNCHER_SLOT].current_identity()
            self._launcher_gone = launcher is None or not launcher.is_running()
        return self._launcher_gone or now - self._stopping_since > self.supervision.stop_timeout_s * STOP_STAGES_MAX


def run_process(arguments: ProcessArguments, body: Callable[[ProcessRuntime], int]) -> int:
    """Run one process of ours and return its exit code.

    Called once per process, in the main thread, first thing after fork or exec: it takes over signals, umask and the
    standard streams (nothing may wait for a terminal that somebody stopped).
    """
    os.umask(0o077)
    _leave_standard_streams()
    _set_title(TITLE_PREFIX + arguments.name)
    gc.freeze()
    journal = Journal(os.path.join(arguments.runtime_dir, JOURNAL_DIR), arguments.name)
    try:
        _reset_signals()
        register_stacks(arguments.runtime_dir, arguments.slot)
        runtime = ProcessRuntime(arguments, journal)
        try:
            signal.signal(signal.SIGTERM, runtime.note_termination)
            runtime.install_wakeup()
            threading.excepthook = _thread_hook(runtime)
            return body(runtime)
        finally:
            runtime.close()
    except Exception as error:  # noqa: BLE001 - the one catch-all
        return _failed(journal, arguments.name, error)


def register_stacks(runtime_dir: str, slot: int) -> None:
    """Have SIGUSR1, and any fatal signal, write the stacks of all threads to `stacks_path`.

    For the launcher and every child. The file is made anew rather than emptied: a replaced process may still have the
    old one open.
    """
    path = stacks_path(runtime_dir, slot)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    file = open(path, "ab", buffering=0, opener=_open_private)  # noqa: SIM115 - faulthandler keeps it open
    faulthandler.enable(file, all_threads=True)
    if sys.platform != "win32":
        faulthandler.register(signal.SIGUSR1, file, all_threads=True, chain=False)


def stacks_path(runtime_dir: str, slot: int) -> str:
    """Return the file into which the process in `slot` writes its threads' stacks."""
    return os.path.join(runtime_dir, STACKS_DIR, f"{slot}.txt")


def log_event(
    journal: Journal, component: str, severity: str, event_type: str, message: str, attributes: dict[str, Any]
) -> None:
    """Append an entry of kind "event"; an entry that cannot be written is given up, for want of a place to say so."""
    try:
        journal.append(
            new_entry(
                "event",
                severity=severity,
                component=component,
                event_type=event_type,
                message=message[:MESSAGE_CHARACTERS_MAX],
                attributes=attributes,
            )
        )
    except (OSError, TypeError, ValueError):
        return


def _failed(journal: Journal, name: str, error: Exception) -> int:
    if isinstance(error, ReliabilityError):
        log_event(journal, name, "ERROR", "failed", error.message, {"code": error.code, "hint": error.hint})
        return error.exit_code
    log_event(
        journal, name, "CRITICAL", "crashed", f"{type(error).__name__}: {error}", {"traceback": _traceback(error)}
    )
    return EXIT_FAILED


def _thread_hook(runtime: ProcessRuntime) -> Callable[[threading.ExceptHookArgs], None]:
    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if error is not None:
            thread = arguments.thread.name if arguments.thread else "?"
            text = f"thread {thread}: {type(error).__name__}: {error}"
            runtime.log("ERROR", "thread_crashed", text, traceback=_traceback(error))

    return hook


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS_MAX:]


def _reset_signals() -> None:
    """Undo what a fork inherits, and leave Ctrl-C at the terminal to the launcher."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _leave_standard_streams() -> None:
    descriptor = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(descriptor, standard)
    if descriptor > 2:
        os.close(descriptor)


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
