"""Whether a system runs, and having one run: for `relctl ensure`, and for hosts that start before it."""

import os
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LAUNCHER_SLOT, Board, BoardError, ProcessKind
from actors.runtime.paths import BOARD_FILE, STOP_MARKER_FILE, RunInfo, read_run_info, runtime_directory
from protocol.errors import ErrorCode, LocalError, ReliabilityError

START_TIMEOUT_S: Final = 60.0
"""What a host waits for a system that it starts."""
_HANG_TIMEOUT_S: Final = 5.0


class Condition(StrEnum):
    """How a system stands; `app.reliability._cli.ensure` says what follows from it."""

    RUNNING = "running"
    STOPPED = "stopped"
    RECOVERING = "recovering"
    FROZEN = "frozen"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        condition: how the system stands.
        launcher: who it is, if it exists.
        tick: turns of its loop.
        hang_timeout_s: its own.
        retry_in_s: until its own budget allows a launcher that died to be started again; 0 if it does.
    """

    condition: Condition
    launcher: ProcessIdentity | None = None
    tick: int = 0
    hang_timeout_s: float = _HANG_TIMEOUT_S
    retry_in_s: float = 0.0


def runtime_directory_of(data_dir: str) -> str:
    """Return the runtime directory of the running or last system, or the one that a start would make."""
    run = read_run_info(data_dir)
    return run.runtime_dir if run else runtime_directory(data_dir)


def open_board(runtime_dir: str) -> Board | None:
    """Return the liveness board as it is now, or None if there is none of this boot."""
    try:
        return Board(os.path.join(runtime_dir, BOARD_FILE), writable=False)
    except (OSError, BoardError):
        return None


def look_at(data_dir: str, runtime_dir: str, now_ms: int) -> Finding:
    """Return how the system stands at monotonic time `now_ms`."""
    board = open_board(runtime_dir)
    marked = any(os.path.exists(os.path.join(directory, STOP_MARKER_FILE)) for directory in (runtime_dir, data_dir))
    if board is None:
        return Finding(Condition.STOPPED if marked else Condition.MISSING)
    launcher, tick, hang_timeout_s, retry_in_s, turning = None, 0, _HANG_TIMEOUT_S, 0.0, False
    with board:
        stopping = board.stopping
        for slot, record in board.occupied():
            if slot.number == LAUNCHER_SLOT:
                retry_in_s = max(0, record.retry_at_ms - now_ms) / 1000
            identity = ProcessIdentity(record.pid, record.start_time, board.boot_id)
            if not record.pid or record.kind == ProcessKind.PROGRAM or not identity.is_running():
                continue
            beat = slot.read_beat()
            turns = now_ms - beat.tick_ms <= record.hang_timeout_ms
            if slot.number == LAUNCHER_SLOT:
                launcher, tick, hang_timeout_s = identity, beat.tick, record.hang_timeout_ms / 1000
                if turns and not stopping:
                    return Finding(Condition.RUNNING, identity)
            else:
                turning |= turns
    if stopping or marked:
        condition = Condition.STOPPED
    elif turning:
        condition = Condition.RECOVERING
    else:
        condition = Condition.FROZEN if launcher else Condition.MISSING
    return Finding(condition, launcher, tick, hang_timeout_s, retry_in_s)


def look(data_dir: str) -> Finding:
    """Return how the system of `data_dir` stands."""
    return look_at(data_dir, runtime_directory_of(data_dir), int(time.monotonic() * 1000))


def join_or_start(data_dir: str, timeout_s: float = START_TIMEOUT_S) -> RunInfo:
    """Return where the system of `data_dir` is, which runs when this returns.

    One that a person has stopped is started, as by any start of a person; a stop that is under way is waited for.

    Raises:
        LocalError: it does not run, and why.
    """
    from app.reliability._child import run_relctl

    condition = look(data_dir).condition
    if condition is not Condition.RUNNING:
        command = ("up", "--detach") if condition is Condition.STOPPED else ("ensure",)
        try:
            run_relctl(data_dir, *command, timeout_s=timeout_s)
        except ReliabilityError:
            if look(data_dir).condition is not Condition.RUNNING:
                raise
    run = read_run_info(data_dir)
    if run is None:
        raise LocalError(ErrorCode.NOT_RUNNING, f"nothing runs on {data_dir}")
    return run
