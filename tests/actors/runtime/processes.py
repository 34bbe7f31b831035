"""Real small processes on a real board, for tests of what one process does to another."""

import os
import pathlib
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity, identity_of
from actors.runtime.liveness import Board, LauncherRecord, ProcessKind, ProcessState
from actors.runtime.paths import BOARD_FILE, EVIDENCE_DIR, JOURNAL_DIR, STACKS_DIR
from actors.runtime.process import ProcessRuntime, run_process


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for `condition`, and fail when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s")
        time.sleep(0.005)


def state_letter(pid: int) -> str:
    """R, S, D, T, Z as the system says, or X for a process that is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def record(
    name: str,
    identity: ProcessIdentity | None = None,
    *,
    kind: str = ProcessKind.ACTOR,
    incarnation: int = 1,
    state: str = ProcessState.READY,
    hang_timeout_ms: int = 500,
    retry_at_ms: int = 0,
    started_ms: int | None = None,
    reason: str = "",
) -> LauncherRecord:
    """What a launcher would say of the process."""
    now_ms = time.monotonic_ns() // 1_000_000
    return LauncherRecord(
        name=name,
        kind=kind,
        pid=identity.pid if identity else 0,
        start_time=identity.start_time if identity else 0,
        incarnation=incarnation,
        state=state,
        since_ms=now_ms,
        started_ms=now_ms if started_ms is None else started_ms,
        restarts_in_period=0,
        restarts_left=3,
        retry_at_ms=retry_at_ms,
        hang_timeout_ms=hang_timeout_ms,
        start_timeout_ms=2000,
        reason=reason,
    )


@dataclass
class House:
    """A runtime directory with a board, and the processes that a test started in it."""

    runtime_dir: str
    data_dir: str
    board: Board
    pids: list[int] = field(default_factory=list)

    def arguments(self, name: str, slot: int, incarnation: int = 1) -> ProcessArguments:
        """Start arguments of a process in this house."""
        return ProcessArguments(name, slot, incarnation, self.data_dir, self.runtime_dir)

    def fork(self, function: Callable[[], int]) -> ProcessIdentity:
        """Run `function` in a child of its own session."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                code = function()
            finally:
                os._exit(code)
        self.pids.append(pid)
        identity = identity_of(pid)
        assert identity is not None
        return identity

    def start(
        self, name: str, slot: int, body: Callable[[ProcessRuntime], int], *, incarnation: int = 1, **fields: object
    ) -> ProcessIdentity:
        """Run a process of ours, as a launcher would, and wait until its own record is on the board."""
        arguments = self.arguments(name, slot, incarnation)
        identity = self.fork(lambda: run_process(arguments, body))
        self.board.slots[slot].launcher.write(record(name, identity, incarnation=incarnation, **fields))  # type: ignore[arg-type]

        def registered() -> bool:
            written = self.board.slots[slot].process.read()
            return written is not None and written.pid == identity.pid

        wait_until(registered)
        return identity

    def exit_code(self, identity: ProcessIdentity, timeout_s: float = 10.0) -> int:
        """Wait for the child's end and reap it; negative for a signal."""
        descriptor = os.pidfd_open(identity.pid)
        try:
            ready, _, _ = select.select([descriptor], [], [], timeout_s)
            assert ready, f"pid {identity.pid} is still there after {timeout_s} s"
        finally:
            os.close(descriptor)
        self.pids.remove(identity.pid)
        return os.waitstatus_to_exitcode(os.waitpid(identity.pid, 0)[1])

    def end(self) -> None:
        """Kill and reap what is left."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextmanager
def house(data_dir: pathlib.Path) -> Iterator[House]:
    """Make a runtime directory with a board, and leave neither it nor a process behind."""
    shared_memory = "/dev/shm"
    runtime_dir = pathlib.Path(tempfile.mkdtemp(dir=shared_memory if os.path.isdir(shared_memory) else None))
    for folder in (EVIDENCE_DIR, STACKS_DIR, JOURNAL_DIR):
        (runtime_dir / folder).mkdir()
    made = House(str(runtime_dir), str(data_dir), Board.create(str(runtime_dir / BOARD_FILE)))
    try:
        yield made
    finally:
        made.end()
        made.board.close()
        shutil.rmtree(runtime_dir)
