"""What a launcher stands on before it supervises anything: instance lock, runtime directory, board, run.json.

All of it happens once, at the start, and may wait for the disk.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actors.runtime import paths
from actors.runtime.filelock import FileLock
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LAUNCHER_SLOT, Board, BoardError
from actors.runtime.paths import RunInfo
from actors.runtime.transport import Lane, local_endpoints, new_curve_keys
from actors.runtime.version import VERSION
from protocol.errors import ErrorCode, LocalError
from supervisor.settings import Settings

HISTORY: Final = frozenset({paths.JOURNAL_DIR, paths.EVIDENCE_DIR})
"""What stays in the runtime directory after a deliberate stop."""


class StoppedError(Exception):
    """A deliberate stop forbids a successor to start."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a launcher holds.

    Attributes:
        lock: the instance lock of the data directory, held.
        runtime_dir: the runtime directory.
        board: the liveness board: a predecessor's if `adopting`, else a fresh one.
        adopting: whether there are processes to take over, or a successor's duty to do so.
        stop_interrupted: whether those processes were being stopped, and their launcher died over it.
        portable: which ports are used; a running system keeps the ones it has.
        previous: what the last run.json said.
    """

    lock: FileLock
    runtime_dir: str
    board: Board
    adopting: bool
    stop_interrupted: bool
    portable: bool
    previous: RunInfo | None


def take(settings: Settings) -> Ground:
    """Take hold of the data directory.

    Raises:
        LocalError: another launcher has it (`LOCKED`), or a directory cannot be trusted.
        StoppedError: this is a successor and the system was stopped.
    """
    os.makedirs(settings.data_dir, mode=0o700, exist_ok=True)
    lock = FileLock(os.path.join(settings.data_dir, paths.INSTANCE_LOCK_FILE))
    previous = paths.read_run_info(settings.data_dir)
    if not lock.acquire():
        pid = f" (pid {previous.pid})" if previous else ""
        message = f"another launcher{pid} already runs the system in {settings.data_dir}"
        raise LocalError(ErrorCode.LOCKED, message, "Stop it with `relctl down`.")
    runtime_dir, board = _find_board(settings, previous)
    if settings.successor:
        markers = [os.path.join(directory, paths.STOP_MARKER_FILE) for directory in (runtime_dir, settings.data_dir)]
        if (board is not None and board.stopping) or any(map(os.path.exists, markers)):
            raise StoppedError
    else:
        _lift_stop_marker(settings.data_dir, runtime_dir)
    adopting = board is not None and (settings.successor or _anybody_runs(board))
    if board is None or not adopting:
        board = Board.create(os.path.join(runtime_dir, paths.BOARD_FILE))
    stop_interrupted, board.stopping = board.stopping, False
    portable = previous.portable if adopting and previous else settings.portable
    return Ground(lock, runtime_dir, board, adopting, stop_interrupted, portable, previous)


def run_info(ground: Ground, control: str) -> RunInfo:
    """Return what run.json shall say; on TCP, ports and keys of an earlier run are kept."""
    lanes = local_endpoints(ground.runtime_dir)
    curve = None
    if ground.portable:
        earlier = ground.previous if ground.previous and ground.previous.portable else None
        kept = [earlier.endpoint, earlier.bulk, earlier.events] if earlier else _free_endpoints(len(Lane))
        lanes = dict(zip((Lane.CONTROL, Lane.BULK, Lane.EVENTS), kept, strict=True))
        curve = (earlier.curve if earlier else None) or new_curve_keys()
    return RunInfo(
        endpoint=lanes[Lane.CONTROL],
        bulk=lanes[Lane.BULK],
        events=lanes[Lane.EVENTS],
        control=control,
        runtime_dir=ground.runtime_dir,
        pid=os.getpid(),
        portable=ground.portable,
        version=VERSION,
        curve=curve,
    )


def clear(runtime_dir: str, keep: frozenset[str]) -> None:
    """Remove from the runtime directory, after a stop, whatever is neither history nor in `keep`."""
    for entry in os.scandir(runtime_dir):
        if entry.name in HISTORY | keep:
            continue
        if entry.is_dir(follow_symlinks=False):
            import shutil  # noqa: PLC0415 - loads three compressors, and is needed once, at the very end

            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _find_board(settings: Settings, previous: RunInfo | None) -> tuple[str, Board | None]:
    """Return the runtime directory to use, and the board of this boot that is in it, if any.

    The directory that the last run.json names comes first if anybody runs there: the environment that chooses it (who
    is logged in, and how) may have been another one then.
    """
    chosen = paths.prepare_runtime_directory(settings.data_dir)
    if previous is not None and previous.runtime_dir != chosen:
        board = _open_board(previous.runtime_dir)
        if board is not None and _anybody_runs(board):
            paths.make_private_directory(previous.runtime_dir)
            return previous.runtime_dir, board
    return chosen, _open_board(chosen)


def _open_board(runtime_dir: str) -> Board | None:
    try:
        return Board(os.path.join(runtime_dir, paths.BOARD_FILE), writable=True)
    except (OSError, BoardError):
        return None


def _anybody_runs(board: Board) -> bool:
    return any(identity.is_running() for identity in _identities(board))


def _identities(board: Board) -> Iterator[ProcessIdentity]:
    """Yield every process that the board names, but the launcher: the instance lock says that there is none."""
    for slot in board.slots:
        if slot.number != LAUNCHER_SLOT:
            for record in (slot.launcher.read(), slot.process.read()):
                if record is not None and record.pid:
                    yield ProcessIdentity(record.pid, record.start_time, board.boot_id)


def _lift_stop_marker(data_dir: str, runtime_dir: str) -> None:
    for directory in (runtime_dir, data_dir):
        try:
            os.unlink(os.path.join(directory, paths.STOP_MARKER_FILE))
        except FileNotFoundError:
            continue
        if directory == data_dir and os.name == "posix":
            paths.sync_directory(directory)


def _free_endpoints(count: int) -> list[str]:
    """Return endpoints on the loopback that are free now; the broker binds others if they are taken by then."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{item.getsockname()[1]}" for item in sockets]
    finally:
        for item in sockets:
            item.close()
