"""Runs `dummy_launcher.py` on a data directory of its own, watches it from outside, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.runtime import paths
from actors.runtime.control_client import call_launcher
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import Board, BoardError, LauncherRecord
from actors.runtime.signalling import signaller
from supervisor.port import child_environment

NAMES = ("one", "two")
PATIENCE_S = 30.0
CONFIG = "[supervision]\nhang_timeout_s = 1.0\nstart_timeout_s = 3.0\nstop_timeout_s = 1.0\ntick_s = 0.1\n"
NOT_THERE = (OSError, BoardError, AssertionError)


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.005)


class DummySystem:
    """One data directory, and whatever launchers were started on it."""

    def __init__(self, data_dir: Path, portable: bool) -> None:
        self.data_dir = data_dir
        self.portable = portable
        self.launchers: list[subprocess.Popen[bytes]] = []
        self.output = data_dir / "output"

    # --- starting and ending --------------------------------------------------------------------------------------

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start a launcher, without waiting for anything."""
        command = [sys.executable, "-P", "-m", "tests.supervisor.dummy_launcher", "--data-dir", str(self.data_dir)]
        with open(self.output, "ab") as output:
            process = subprocess.Popen(
                [*command, *(["--portable"] if self.portable else []), *options],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.launchers.append(process)
        return process

    def start_whole(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start a launcher and wait until it holds everything ready."""
        process = self.start(*options)
        wait_until(lambda: self.is_whole(process.pid), f"whole: {self.said()}")
        return process

    def stop(self) -> None:
        """Have the launcher stop everything, and wait for it."""
        self.call("down")
        code = self.launchers[-1].wait(PATIENCE_S)
        assert code == 0, f"the launcher left with {code}: {self.said()}"

    def destroy(self) -> None:
        """Kill whatever is left."""
        for process in self.launchers:
            process.kill()
            process.wait()
        try:
            with self.board() as board:
                for slot in board.slots:
                    for record in (slot.launcher.read(), slot.process.read()):
                        if record is not None and record.pid:
                            identity = ProcessIdentity(record.pid, record.start_time, board.boot_id)
                            signaller(portable=False).send(identity, signal.SIGKILL)
        except NOT_THERE:
            return

    # --- looking --------------------------------------------------------------------------------------------------

    @property
    def runtime_dir(self) -> Path:
        """The runtime directory."""
        return Path(paths.runtime_directory(str(self.data_dir)))

    def board(self) -> Board:
        """The board as it is now."""
        return Board(str(self.runtime_dir / paths.BOARD_FILE), writable=True)

    def record(self, name: str) -> LauncherRecord:
        """What the launcher says of `name`."""
        with self.board() as board:
            found = board.find(name)
        assert found is not None, f"{name} is not on the board"
        return found[1]

    def pid(self, name: str) -> int:
        """The pid on record; 0 if there is none."""
        return self.record(name).pid

    def state(self, name: str) -> str:
        """The state on record; "absent" while there is none."""
        try:
            return self.record(name).state
        except NOT_THERE:
            return "absent"

    def is_whole(self, launcher_pid: int) -> bool:
        """Whether that launcher rules and holds everything ready."""
        try:
            records = [self.record(name) for name in ("launcher", *NAMES)]
        except NOT_THERE:
            return False
        return records[0].pid == launcher_pid and all(record.state == "ready" for record in records)

    def journal(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        """The launcher's journal entries of `kind` with such fields."""
        path = self.runtime_dir / paths.JOURNAL_DIR / "launcher.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [entry for entry in entries if entry["kind"] == kind and fields.items() <= entry.items()]

    def said(self) -> str:
        """What the launchers have printed."""
        return self.output.read_text() if self.output.exists() else ""

    # --- acting ---------------------------------------------------------------------------------------------------

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask the launcher."""
        run = paths.read_run_info(str(self.data_dir))
        assert run is not None
        return call_launcher(run, op, PATIENCE_S, **arguments)

    def behave(self, name: str, behaviour: str) -> None:
        """Say how the next life of `name` behaves."""
        (self.data_dir / f"{name}.behaviour").write_text(behaviour)

    def kill(self, name: str) -> int:
        """Kill a process; returns its pid."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_and_await(self, name: str) -> int:
        """Kill a process and wait until another is ready in its place; returns the new pid."""
        old = self.kill(name)
        wait_until(lambda: self.state(name) == "ready" and self.pid(name) not in (0, old), f"{name} back")
        return self.pid(name)

    def kill_launcher(self) -> None:
        """Kill the launcher that was started last, and reap it."""
        self.launchers[-1].kill()
        self.launchers[-1].wait()

    def own_slot_epoch(self) -> int:
        """Who rules."""
        with self.board() as board:
            return board.epoch


@contextmanager
def dummy_system(data_dir: Path, *, portable: bool = False, config: str = CONFIG) -> Iterator[DummySystem]:
    """A system that is not started yet, and is gone afterwards."""
    system = DummySystem(data_dir, portable)
    (data_dir / paths.CONFIG_FILE).write_text(config)
    try:
        yield system
    except BaseException as error:
        error.add_note(system.said())
        error.add_note("\n".join(map(str, system.journal("event") + system.journal("restart"))))
        raise
    finally:
        system.destroy()
