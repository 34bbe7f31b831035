"""One part of the system in its surroundings: directories, board, run.json, and a broker's end to speak from."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from actors.runtime import paths
from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import identity_of
from actors.runtime.journal import Journal
from actors.runtime.liveness import (
    BROKER_SLOT,
    FIRST_ACTOR_SLOT,
    LAUNCHER_SLOT,
    Board,
    LauncherRecord,
    ProcessKind,
    ProcessRecord,
    ProcessState,
)
from actors.runtime.paths import Curve, RunInfo
from actors.runtime.transport import Lane, Transport, local_endpoints, new_curve_keys

ROOT = Path(__file__).parents[1]
PATIENCE_S = 30.0
"""How long a test waits for something that should come at once."""
PORT_ATTEMPTS = 5
"""Between looking for a free port and binding to it others may take it."""
SHOP = ("-m", "tests.shop")
"""What Python runs to be the actor of `tests.shop`."""


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds."""
    give_up = monotonic() + patience_s
    while not condition():
        assert monotonic() < give_up, f"not within {patience_s:g} s: {what}"
        sleep(0.002)


@dataclass
class Place:
    """An installation without processes."""

    data_dir: Path
    runtime_dir: str
    board: Board
    curve: Curve | None = None

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.data_dir / paths.CONFIG_FILE

    @property
    def transport(self) -> Transport:
        """What run.json says."""
        run = paths.read_run_file(os.path.join(self.runtime_dir, paths.RUN_FILE))
        assert run is not None
        return Transport.for_run(run)

    def write_run(self, endpoints: dict[Lane, str]) -> None:
        """Write run.json, in both places as the launcher does."""
        run = RunInfo(
            endpoint=endpoints[Lane.CONTROL],
            bulk=endpoints[Lane.BULK],
            events=endpoints[Lane.EVENTS],
            control=os.path.join(self.runtime_dir, paths.CONTROL_SOCKET),
            runtime_dir=self.runtime_dir,
            pid=os.getpid(),
            portable=self.curve is not None,
            curve=self.curve,
        )
        for directory in (self.runtime_dir, str(self.data_dir)):
            paths.write_atomically(os.path.join(directory, paths.RUN_FILE), run.to_json().encode(), sync=False)

    def journal(self, name: str) -> Journal:
        """A process's journal here."""
        return Journal(os.path.join(self.runtime_dir, paths.JOURNAL_DIR), name)

    def arguments(self, name: str, slot: int, incarnation: int = 1) -> ProcessArguments:
        """A process's place here."""
        return ProcessArguments(
            name, slot, incarnation, str(self.data_dir), self.runtime_dir, str(self.config), self.curve is not None
        )


class System:
    """Processes in a `Place`, started and entered on the board as the launcher would."""

    def __init__(self, where: Place) -> None:
        self.where = where
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._incarnations: dict[str, int] = {}
        self._enter(LAUNCHER_SLOT, "launcher", ProcessKind.LAUNCHER, os.getpid(), 1)

    def start(self, name: str, *program: str) -> None:
        """Start the next life of `name`; `program` is what Python is told to run, by default the broker."""
        slot = {"broker": BROKER_SLOT}.get(name, FIRST_ACTOR_SLOT)
        kind = ProcessKind.BROKER if name == "broker" else ProcessKind.ACTOR
        incarnation = self._incarnations[name] = self._incarnations.get(name, 0) + 1
        arguments = self.where.arguments(name, slot, incarnation).to_argv()
        command = [sys.executable, *(program or ("-m", "broker.__main__")), *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = self._processes[name] = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
        self._started.append(process)
        self._enter(slot, name, kind, process.pid, incarnation)

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """The present life of `name`."""
        return self._processes[name]

    def signal(self, name: str, number: int) -> None:
        """Signal `name`, and wait for its end if that ends it."""
        self._processes[name].send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._processes[name].wait(PATIENCE_S)

    def kill(self, name: str) -> None:
        """Kill `name`."""
        self.signal(name, signal.SIGKILL)

    def state(self, name: str) -> str:
        """What `name` says of itself."""
        for slot, record in self.where.board.occupied():
            said = slot.process.read()
            if record.name == name and said is not None and said.incarnation == record.incarnation:
                return said.state
        return "absent"

    def has_ended(self, name: str) -> bool:
        """Whether the present life of `name` is over."""
        return self._processes[name].poll() is not None

    def forget_launcher(self) -> None:
        """Have the board show a launcher that is dead."""
        self._enter(LAUNCHER_SLOT, "launcher", ProcessKind.LAUNCHER, 0, 1)

    def end(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            process.kill()
            process.wait()

    def _enter(self, slot: int, name: str, kind: ProcessKind, pid: int, incarnation: int) -> None:
        identity = identity_of(pid)
        self.where.board.slots[slot].launcher.write(
            LauncherRecord(
                name=name,
                kind=kind,
                pid=pid,
                start_time=identity.start_time if identity else 0,
                incarnation=incarnation,
                state=ProcessState.STARTING,
                since_ms=0,
                started_ms=0,
                restarts_in_period=0,
                restarts_left=3,
                retry_at_ms=0,
                hang_timeout_ms=600_000,
                start_timeout_ms=600_000,
            )
        )
        if slot == LAUNCHER_SLOT and identity:
            self.where.board.slots[slot].process.write(
                ProcessRecord(identity.pid, identity.start_time, incarnation, ProcessState.READY)
            )


def free_ports() -> dict[Lane, str]:
    """Endpoints on TCP ports that nobody uses now."""
    with ExitStack() as stack:
        probes = {lane: stack.enter_context(socket.socket()) for lane in Lane}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        return {lane: f"tcp://127.0.0.1:{probe.getsockname()[1]}" for lane, probe in probes.items()}


@contextmanager
def place(*, portable: bool = False, supervision: str = "tick_s = 0.02\n") -> Iterator[Place]:
    """Make an installation of its own, and remove it; `supervision` is what its configuration says."""
    data = Path(tempfile.mkdtemp(prefix="data-"))
    runtime_dir = paths.prepare_runtime_directory(str(data))
    paths.read_or_make_token(runtime_dir)  # before anybody else does, as the launcher
    try:
        with Board.create(os.path.join(runtime_dir, paths.BOARD_FILE)) as board:
            made = Place(data, runtime_dir, board, new_curve_keys() if portable else None)
            made.config.write_text(f"[supervision]\n{supervision}")
            made.write_run(free_ports() if portable else local_endpoints(runtime_dir))
            yield made
    finally:
        shutil.rmtree(runtime_dir, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def _start_broker(system: System) -> None:
    """Start the broker; on other ports if somebody else has taken one of these in the meantime."""
    for _ in range(PORT_ATTEMPTS):
        system.start("broker")
        until(lambda: system.state("broker") == ProcessState.READY or system.has_ended("broker"), "the broker ready")
        if not system.has_ended("broker"):
            return
        assert system.where.curve is not None, "the broker has ended, and it was no port that it lacked"
        system.where.write_run(free_ports())
    raise AssertionError(f"the broker found no ports in {PORT_ATTEMPTS} attempts")


@contextmanager
def shop_running(*, portable: bool = False) -> Iterator[System]:
    """Run a broker and the actor of `tests.shop`, and end them."""
    with place(portable=portable, supervision="") as where:
        system = System(where)
        try:
            _start_broker(system)
            system.start("shop", *SHOP)
            until(lambda: system.state("shop") == ProcessState.READY, "the shop ready")
            yield system
        finally:
            system.end()
