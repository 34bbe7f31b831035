"""Every process's part in bringing launcher and watchdog back: what `succession_core` decides, done.

`Guardian.step` is called once per tick by the loop of every process but the launcher, as soon as `descriptor` says that
launcher or watchdog has ended, and while there is trouble at `wake_at`. It looks at two slots of the board, and almost
always that is all. A successor is started by a thread: its exec may have to wait for a disk, and no
loop does. It is nobody's child: whoever ends this process with all its descendants must not end the launcher as well.
"""

import math
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Final

from actors.runtime.arguments import ProcessArguments
from actors.runtime.examine import Observer
from actors.runtime.filelock import FileLock
from actors.runtime.helpers import as_helper
from actors.runtime.identity import ProcessIdentity, boot_id, identity_of
from actors.runtime.liveness import LAUNCHER_SLOT, WATCHDOG_SLOT
from actors.runtime.paths import STOP_MARKER_FILE, SUCCESSION_LOCK_FILE
from actors.runtime.process import ProcessRuntime
from actors.runtime.signalling import KILL, Presence, Signaller, signaller
from actors.runtime.succession_core import Effect, Phase, Scene, Seen, Succession
from actors.runtime.verdict import HangDetector, Stage

SOURCE_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAUNCHER_FILE: Final = os.path.join(SOURCE_ROOT, "launcher.py")
DEATH_WAIT_S: Final = 2.0
"""How long the start of a successor waits for a killed launcher to be gone with its lock."""


class Guardian:
    """Looks after launcher and watchdog on behalf of one process.

    Attributes:
        descriptor: readable once launcher or watchdog has ended, until `step` has seen it; None where nothing tells.
        wake_at: when `step` has to be called, if that is before the loop's tick; infinity if not.
    """

    def __init__(self, runtime: ProcessRuntime, command: list[str] | None = None) -> None:
        """Guard the system that `runtime` belongs to; `command` starts a successor."""
        arguments = runtime.arguments
        is_watchdog = arguments.slot == WATCHDOG_SLOT
        self._runtime = runtime
        self._boot = boot_id()
        self._core = Succession(is_watchdog=is_watchdog)
        # A launcher that hangs is the watchdog's business anyway, and judged elsewhere in it.
        self._detector = None if is_watchdog else HangDetector(runtime.tick_s)
        self._watched = (LAUNCHER_SLOT,) if is_watchdog else (LAUNCHER_SLOT, WATCHDOG_SLOT)
        self._lock = FileLock(os.path.join(arguments.runtime_dir, SUCCESSION_LOCK_FILE))
        self._stop_markers = [
            os.path.join(directory, STOP_MARKER_FILE) for directory in (arguments.runtime_dir, arguments.data_dir)
        ]
        self._signals = signaller(portable=arguments.portable)
        self._presence = Presence(portable=arguments.portable)
        self._observer = Observer(self._boot, self._presence)
        self.descriptor = self._presence.fileno()
        self.wake_at = math.inf
        self._command = command or successor_command(arguments)
        self._attempt: _Attempt | None = None

    def step(self, now: float) -> None:
        """Look after launcher and watchdog."""
        peers = self._look(now)
        launcher, watchdog = peers[LAUNCHER_SLOT], peers.get(WATCHDOG_SLOT)
        scene = Scene(
            launcher=launcher.seen,
            watchdog=watchdog.seen if watchdog else Seen.WELL,
            stopping=self._runtime.board.stopping
            or (launcher.seen is not Seen.WELL and os.path.exists(self._stop_markers[0])),
            retry_at_s=launcher.retry_at_s,
            attempt_ended=self._attempt is not None and self._attempt.ended(),
        )
        self._act(now, self._core.step(now, scene), launcher, watchdog)
        self.wake_at = self._core.wake_at

    def _act(self, now: float, effect: Effect | None, launcher: "_Peer", watchdog: "_Peer | None") -> None:
        if effect is Effect.ASK_LOCK:
            if self._runtime.replaced():
                return
            effect = self._core.lock_answered(now, taken=self._lock.acquire())
        if effect is Effect.LAUNCH:
            self._launch(launcher, watchdog)
        elif effect is not None:
            self._finish(abandon=effect is Effect.ABANDON)

    def _look(self, now: float) -> "dict[int, _Peer]":
        self._presence.take_exits()  # also of whoever is on record no more
        records = {slot: self._runtime.board.slots[slot].launcher.read() for slot in self._watched}
        seen = {
            slot: self._observer.observe(self._runtime.board.slots[slot], record)
            for slot, record in records.items()
            if record is not None
        }
        if self._detector is not None:
            self._detector.tick(now, seen.values())
        peers = {}
        for slot, record in records.items():
            if record is None:
                # A board that no launcher has signed is just being made; a watchdog that it never started is none.
                peers[slot] = _Peer(Seen.WELL if slot == LAUNCHER_SLOT else Seen.GONE)
            elif not seen[slot].running:
                peers[slot] = _Peer(Seen.GONE, retry_at_s=record.retry_at_ms / 1000)
            else:
                silent = self._detector is not None and self._detector.stage_of(seen[slot]) is Stage.HUNG
                identity = ProcessIdentity(record.pid, record.start_time, self._boot)
                peers[slot] = _Peer(Seen.SILENT if silent else Seen.WELL, identity, record.retry_at_ms / 1000)
        return peers

    def _launch(self, launcher: "_Peer", watchdog: "_Peer | None") -> None:
        hung = [peer.identity for peer in (launcher, watchdog) if peer and peer.identity and peer.seen is Seen.SILENT]
        killed = [identity for identity in hung if self._signals.send(identity, KILL)]
        text = "launcher and watchdog hang" if launcher.seen is Seen.SILENT else "the launcher is gone"
        self._runtime.log(
            "WARN", "succession", f"{text}: starting a launcher", killed=[identity.pid for identity in killed]
        )
        self._attempt = _Attempt(self._command, self._stop_markers, killed, self._signals)

    def _finish(self, *, abandon: bool) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None and self._core.phase is Phase.BACKING_OFF:
            self._runtime.log("ERROR", "succession_failed", f"no launcher rules yet: {attempt.outcome()}")
        if attempt is not None and abandon:
            attempt.abandon()
        self._lock.release()


@dataclass(frozen=True, slots=True)
class _Peer:
    seen: Seen
    identity: ProcessIdentity | None = None
    retry_at_s: float = 0.0


class _Attempt:
    """One start of a successor, on a thread of its own, begun at once."""

    def __init__(
        self, command: list[str], stop_markers: list[str], killed: list[ProcessIdentity], signals: Signaller
    ) -> None:
        """Run `command` once `killed` are gone with their locks, unless a stop is marked by then."""
        self._command = command
        self._stop_markers = stop_markers
        self._killed = killed
        self._signals = signals
        self._successor: ProcessIdentity | None = None
        self._problem = ""
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="succession", daemon=True)
        self._thread.start()

    def ended(self) -> bool:
        """Tell whether nothing of it is left."""
        return not self._thread.is_alive() and (self._successor is None or not self._successor.is_running())

    def abandon(self) -> None:
        """Kill the successor, now or as soon as there is one."""
        self._abandoned = True
        if self._successor is not None:
            self._signals.send(self._successor, KILL)

    def outcome(self) -> str:
        """Say what came of it."""
        return self._problem or ("the successor has left" if self.ended() else "the successor is slow")

    def _run(self) -> None:
        for identity in self._killed:
            self._signals.wait_gone(identity, DEATH_WAIT_S)
        if any(os.path.exists(path) for path in self._stop_markers):
            self._problem = "a deliberate stop is marked"
            return
        try:
            self._successor = identity_of(start_detached(self._command))
        except (OSError, ValueError) as error:
            self._problem = f"a successor cannot be started: {error}"
            return
        if self._abandoned:
            self.abandon()


def successor_command(arguments: ProcessArguments) -> list[str]:
    """Return the command that starts a launcher for the system that `arguments` belong to."""
    command = [sys.executable, "-P", LAUNCHER_FILE, "--successor", "--data-dir", arguments.data_dir]
    if arguments.config_path is not None:
        command += ["--config", arguments.config_path]
    return [*command, "--portable"] if arguments.portable else command


def start_detached(command: list[str]) -> int:
    """Start `command` as nobody's child, without a terminal, able to import us. May wait for a disk.

    Returns:
        Its process id.

    Raises:
        OSError, ValueError: it cannot be started.
    """
    # With vfork the interpreter's lock is held until the exec is through: every thread would wait for the disk.
    subprocess._USE_VFORK = False  # type: ignore[misc]
    paths = [SOURCE_ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = as_helper({**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))})
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(command, env=environment, creationflags=flags).pid
    # The shell leaves at once, so what it has started is nobody's child.
    shell = ["/bin/sh", "-c", '"$@" </dev/null >/dev/null 2>&1 & echo $!', "sh", *command]
    started = subprocess.run(
        shell,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,
        check=False,
    )
    return int(started.stdout)
