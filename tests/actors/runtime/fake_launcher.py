"""A launcher that only rules: it signs the board and beats until it is killed, or the board is taken away.

    python -m tests.actors.runtime.fake_launcher RUNTIME_DIR [EXIT_CODE]

With EXIT_CODE it leaves with that code instead; with "mute" it neither signs nor leaves.
"""

import os
import sys
import time

from actors.runtime.identity import own_identity
from actors.runtime.liveness import LAUNCHER_SLOT, Board, LauncherRecord, ProcessKind, ProcessRecord, ProcessState

SPAWNED_FILE = "spawned"


def main(runtime_dir: str, role: str = "") -> int:
    """Rule, or do what `role` says."""
    with open(os.path.join(runtime_dir, SPAWNED_FILE), "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    if role and role != "mute":
        return int(role)
    board = Board(os.path.join(runtime_dir, "board"), writable=True)
    if role != "mute":
        sign(board)
    while os.path.exists(board.path):
        if role != "mute":
            board.slots[LAUNCHER_SLOT].beat(time.monotonic_ns() // 1_000_000)
        time.sleep(0.02)
    return 0


def sign(board: Board) -> None:
    """Become the launcher on record."""
    slot, identity, now_ms = board.slots[LAUNCHER_SLOT], own_identity(), time.monotonic_ns() // 1_000_000
    before = slot.launcher.read()
    incarnation = before.incarnation + 1 if before else 1
    slot.process.write(ProcessRecord(identity.pid, identity.start_time, incarnation, ProcessState.READY))
    slot.launcher.write(
        LauncherRecord(
            name="launcher",
            kind=ProcessKind.LAUNCHER,
            pid=identity.pid,
            start_time=identity.start_time,
            incarnation=incarnation,
            state=ProcessState.READY,
            since_ms=now_ms,
            started_ms=now_ms,
            restarts_in_period=0,
            restarts_left=3,
            retry_at_ms=0,
            hang_timeout_ms=500,
            start_timeout_ms=2000,
        )
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
