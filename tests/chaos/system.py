"""The real system under test: a launcher of its own data directory, watched from outside, and nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from actors.runtime import paths
from actors.runtime.control_client import call_launcher
from actors.runtime.identity import ProcessIdentity, boot_id, start_time_of
from actors.runtime.liveness import Board, BoardError
from actors.runtime.programs import PROGRAM_VARIABLE
from app.reliability.client import Client
from launcher import definitions
from protocol.errors import ReliabilityError

ROOT = Path(__file__).parents[2]
PROCESSES = ("launcher", *(definition.name for definition in definitions()))
SERVICES = PROCESSES[1:]
MANY_RESTARTS = "restart_max = 10000\n"
START_TIMEOUT_S = 20.0
_PROGRAM = f"{PROGRAM_VARIABLE}=".encode()


class Timeout(AssertionError):
    """A condition did not come true in time."""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, interval_s: float = 0.01) -> float:
    """Wait until `condition` holds; return how long that took, or raise `Timeout` naming `what`."""
    start = time.monotonic()
    while True:
        if condition():
            return time.monotonic() - start
        if time.monotonic() - start > timeout_s:
            raise Timeout(f"not within {timeout_s:g} s: {what}")
        time.sleep(interval_s)


@dataclass
class System:
    """One running system; see `running`."""

    data_dir: Path
    runtime_parent: Path
    portable: bool
    environment: dict[str, str]
    client: Client = field(init=False)
    launcher: subprocess.Popen[bytes] | None = None
    command: tuple[str, ...] = ()
    _board: Board | None = None

    def start(self) -> None:
        """Start `python launcher.py` and wait until everything is ready."""
        command = [sys.executable, str(ROOT / "launcher.py"), "--data-dir", str(self.data_dir)]
        if (self.data_dir / paths.CONFIG_FILE).exists():
            command += ["--config", str(self.data_dir / paths.CONFIG_FILE)]
        if self.portable:
            command.append("--portable")
        if self.command:
            command += ["--", *self.command]
        if self.launcher is not None:
            self.launcher.wait()
        with open(self.data_dir / "launcher.out", "ab") as output:
            self.launcher = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/"
            )
        self.wait_whole(START_TIMEOUT_S)

    @property
    def runtime_dir(self) -> Path:
        """The runtime directory of the running (or last) system."""
        run = paths.read_run_info(str(self.data_dir))
        assert run is not None, "no run.json"
        return Path(run.runtime_dir)

    @property
    def board(self) -> Board:
        """The liveness board as it is now (a fresh start makes a new one)."""
        path = str(self.runtime_dir / paths.BOARD_FILE)
        if self._board is None or self._inode != os.stat(path).st_ino:
            self._board = Board(path, writable=False)
            self._inode = os.stat(path).st_ino
        return self._board

    def identity(self, name: str) -> ProcessIdentity | None:
        """Who runs as `name` now, by the launcher's record; None if nobody does."""
        found = self.board.find(name)
        identity = found[0].current_identity() if found else None
        return identity if identity is not None and identity.is_running() else None

    def identities(self) -> dict[str, ProcessIdentity]:
        """Everybody who runs now, by name."""
        found = {name: self.identity(name) for name in PROCESSES}
        return {name: identity for name, identity in found.items() if identity is not None}

    def pid(self, name: str) -> int:
        """The pid of the process that runs as `name` now; 0 if nobody does."""
        identity = self.identity(name)
        return identity.pid if identity is not None else 0

    def state(self, name: str) -> str:
        """The launcher's word on `name`."""
        found = self.board.find(name)
        return found[1].state if found else "absent"

    def signal(self, name: str, number: int) -> None:
        """Signal the process that runs as `name`."""
        pid = self.pid(name)
        assert pid, f"{name} does not run"
        os.kill(pid, number)

    def answers(self, name: str, timeout_s: float = 1.0) -> bool:
        """Ask `name` for a ping: services through the broker, the launcher on its own socket."""
        try:
            if name == "launcher":
                run = paths.read_run_info(str(self.data_dir))
                assert run is not None
                call_launcher(run, "ping", timeout_s)
            else:
                self.client.call(name, "ping", timeout=timeout_s)
        except (ReliabilityError, OSError):
            return False
        return True

    def ready(self, name: str) -> bool:
        """Whether the launcher holds `name` ready and its process runs."""
        try:
            return self.state(name) == "ready" and self.identity(name) is not None
        except (OSError, BoardError, AssertionError):
            return False

    def replaced(self, name: str, pid: int) -> bool:
        """Whether another process than `pid`, which may be about to die, is ready as `name`."""
        return self.ready(name) and self.pid(name) not in (0, pid)

    def wait_whole(self, timeout_s: float) -> float:
        """Wait until every process is ready and answers; return how long that took."""
        start = time.monotonic()
        for name in PROCESSES:
            left = timeout_s - (time.monotonic() - start)
            wait_until(lambda name=name: self.ready(name) and self.answers(name, 0.3), left, f"{name} ready")
        return time.monotonic() - start

    def relctl(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run relctl as a user would."""
        command = [sys.executable, "-m", "app.reliability.cli", "--data-dir", str(self.data_dir), *arguments]
        # libfaketime breaks the sleep of the Python that asks; whom it is to mislead are the processes asked.
        environment = {key: value for key, value in self.environment.items() if key != "LD_PRELOAD"}
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def processes(self) -> list[int]:
        """Every process that has this system's board mapped, and its programs: none can hide by its name or parent."""
        board = str(self.runtime_parent).encode()
        told = f"{paths.DATA_DIR_VARIABLE}={os.path.realpath(self.data_dir)}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    maps = Path("/proc", entry, "maps").read_bytes()
                    variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                is_program = told in variables and any(item.startswith(_PROGRAM) for item in variables)
                if board in maps or is_program:
                    found.append(int(entry))
        return found

    def _on_board(self) -> list[ProcessIdentity]:
        """Whoever the board tells of: a program that writes its title over its environment shows there alone."""
        if paths.read_run_info(str(self.data_dir)) is None:
            return []  # never came up
        try:
            found = [slot.current_identity() for slot, _ in self.board.occupied()]
        except (OSError, BoardError, ReliabilityError):
            return []
        return [identity for identity in found if identity is not None]

    def destroy(self) -> list[int]:
        """End whatever still runs, remove the directories; return the pids that had to be killed."""
        self.client.close()
        left = []
        known = self._on_board()
        for _ in range(50):
            remaining = list(dict.fromkeys(self.processes() + [who.pid for who in known if not gone(who)]))
            if not remaining:
                break
            left += [pid for pid in remaining if pid not in left]
            for pid in remaining:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        if self.launcher is not None:
            self.launcher.wait()
        shutil.rmtree(self.runtime_parent, ignore_errors=True)
        return left

    def stop(self, timeout_s: float = 30.0) -> None:
        """Stop gracefully and check that nothing is left."""
        result = self.relctl("down", timeout_s=timeout_s)
        assert result.returncode == 0, result.stderr
        wait_until(lambda: not self.processes(), 30, f"no process left, have {self.processes()}")

    def complaint(self) -> str:
        """What a person needs to understand a failure."""
        lines = [self.relctl("ps").stdout]
        for journal in sorted((self.runtime_dir / paths.JOURNAL_DIR).glob("*.jsonl")):
            lines.append(f"--- {journal.name}")
            lines += journal.read_text(errors="replace").splitlines()[-25:]
        lines.append((self.data_dir / "launcher.out").read_text(errors="replace")[-2000:])
        return "\n".join(lines)


@contextmanager
def running(
    *, portable: bool = False, config: str = MANY_RESTARTS, data_dir: Path | None = None, start: bool = True,
    environment: dict[str, str] | None = None,
) -> Iterator[System]:  # fmt: skip
    """Run a system of its own, and end it whatever happens; `config` is what stands below `[supervision]`."""
    before = os.environ.get(paths.RUNTIME_DIR_VARIABLE)
    runtime_parent = Path(
        tempfile.mkdtemp(prefix="rt-", dir=before or ("/dev/shm" if os.path.isdir("/dev/shm") else None))
    )
    own_data = data_dir is None
    data = data_dir or Path(tempfile.mkdtemp(prefix="relctl-data-"))
    (data / paths.CONFIG_FILE).write_text(f"[supervision]\n{config}")
    variables = os.environ | {paths.RUNTIME_DIR_VARIABLE: str(runtime_parent)} | (environment or {})
    variables.pop(paths.DATA_DIR_VARIABLE, None)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles everything anew at every start
    os.environ[paths.RUNTIME_DIR_VARIABLE] = str(runtime_parent)
    system = System(data, runtime_parent, portable, variables)
    system.client = Client(data_dir=str(data))
    try:
        if start:
            system.start()
        yield system
    except BaseException as error:
        try:
            error.add_note(system.complaint())
        except Exception as trouble:  # noqa: BLE001 - the report must not replace the failure it is about
            error.add_note(f"(no report: {trouble!r})")
        raise
    finally:
        system.destroy()
        if before is None:
            del os.environ[paths.RUNTIME_DIR_VARIABLE]
        else:
            os.environ[paths.RUNTIME_DIR_VARIABLE] = before
        if own_data:
            shutil.rmtree(data, ignore_errors=True)


class Pinger:
    """Asks every service for a ping all the while, and remembers the longest time each one was silent."""

    INTERVAL_S = 0.05

    def __init__(self, system: System, services: tuple[str, ...] = SERVICES) -> None:
        self._system = system
        self._stop = threading.Event()
        self._last = dict.fromkeys(services, time.monotonic())
        self._gap = dict.fromkeys(services, 0.0)
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in services]

    def __enter__(self) -> "Pinger":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def gap_s(self, name: str) -> float:
        """The longest silence of `name` so far, the present one included."""
        return max(self._gap[name], time.monotonic() - self._last[name])

    def _ask(self, name: str) -> None:
        while not self._stop.is_set():
            if self._system.answers(name, 1.0):
                now = time.monotonic()
                self._gap[name] = max(self._gap[name], now - self._last[name])
                self._last[name] = now
            self._stop.wait(self.INTERVAL_S)


def is_stopped(pid: int) -> bool:
    """Whether the process is frozen by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


def gone(identity: ProcessIdentity) -> bool:
    """Whether exactly this process is no more."""
    return identity.boot_id != boot_id() or start_time_of(identity.pid) != identity.start_time
