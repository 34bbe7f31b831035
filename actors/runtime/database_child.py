"""Running `actors.runtime.database_tool` as a child: the only way in which anybody but an owner touches a database.

Opens no database itself and imports no SQLite: it may be used in a host's process. The child lives as long as the pipe
to its standard input: when this process dies, or closes it, the child rolls back and leaves.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from protocol.errors import ErrorCode, LocalError

MODULE: Final = "actors.runtime.database_tool"
LEAVE_S: Final = 1.0
"""What a child gets to roll back in; then it is killed, and the next to open the file rolls back."""
_LINE_BYTES_MAX: Final = 4 * 1024 * 1024
REPAIR_S_MAX: Final = 700.0
"""All bounds of a repair together."""
REPEAT_S: Final = 60.0
PAUSE_S: Final = 1.0
PAUSE_AFTER_FAILURE_S: Final = 10.0

OnProgress = Callable[[dict[str, Any]], None]
"""Called with what the child says on its way: ``{"phase": ...}``; on a thread of its own."""


def source_root() -> str:
    """Return the directory from which this very package was imported."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def start(path: str, operation: str, options: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    """Start the tool on `path`.

    Raises:
        OSError: it cannot be started.
    """
    # vfork would stop every thread of this process until the interpreter is loaded from what may be a stalled disk.
    subprocess._USE_VFORK = False  # type: ignore[misc]
    command = [sys.executable, "-P", "-m", MODULE, os.path.abspath(path), operation, "--attached", *options]
    environment = os.environ | {"PYTHONPATH": source_root(), "PYTHONDONTWRITEBYTECODE": "1"}
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        creationflags=flags,
        cwd=os.path.abspath(os.sep),
    )


class Child:
    """One run of the tool. Started where it may block; `stop` from any thread."""

    def __init__(self, path: str, operation: str, options: Sequence[str] = (), on_progress: OnProgress | None = None):
        """Start it.

        Raises:
            LocalError: it cannot be started.
        """
        self._on_progress = on_progress
        self._outcome: dict[str, Any] = {}
        self._stopped = False
        self._lock = threading.Lock()
        try:
            self._process = start(path, operation, options)
        except OSError as error:
            raise LocalError(ErrorCode.FAILED, f"the database tool cannot be started: {error}", "") from None
        self._reader = threading.Thread(target=self._read, name="database-child", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's pid."""
        return self._process.pid

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the result and return it.

        Raises:
            LocalError: the tool's own error; or `deadline_passed`, and it was ended; or it was killed.
        """
        try:
            code = self._process.wait(timeout_s)
            late = False
        except subprocess.TimeoutExpired:
            self.stop()
            code, late = self._end(), True
        self._reader.join(LEAVE_S)
        outcome = self._outcome
        if "result" in outcome:
            result: dict[str, Any] = outcome["result"]
            return result
        if late:
            message = f"the work on the database took longer than {timeout_s:g} s and was given up"
            raise LocalError(ErrorCode.DEADLINE_PASSED, message, "Give it more time, or look at the disk.")
        if "error" in outcome:
            error = outcome["error"]
            raise LocalError(str(error["code"]), str(error["message"]), str(error["hint"]))
        why = "was stopped" if self._stopped else f"ended with {code}"
        raise LocalError(ErrorCode.FAILED, f"the database tool {why} before it had a result", "")

    def stop(self) -> None:
        """Have the child roll back and leave."""
        with self._lock:
            self._stopped = True
            if self._process.stdin is not None and not self._process.stdin.closed:
                self._process.stdin.close()

    def close(self) -> None:
        """End the child if it still runs, and give back what it used."""
        self.stop()
        self._end()
        self._reader.join(LEAVE_S)

    def _end(self) -> int:
        until = time.monotonic() + LEAVE_S
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()

    def _read(self) -> None:
        output = self._process.stdout
        if output is None:
            return
        with output:
            while line := output.readline(_LINE_BYTES_MAX):
                try:
                    said = json.loads(line)
                except ValueError:
                    continue
                if "progress" in said:
                    if self._on_progress is not None:
                        self._on_progress(said["progress"])
                else:
                    self._outcome = said


def run(
    path: str,
    operation: str,
    options: Sequence[str] = (),
    *,
    timeout_s: float,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run one operation on the database at `path` to its end.

    Raises:
        LocalError: as `Child.wait`.
    """
    child = Child(path, operation, options, on_progress)
    try:
        return child.wait(timeout_s)
    finally:
        child.close()


class Repairs:
    """Has damaged databases repaired: one child at a time, started by whoever meets the damage. For any thread."""

    def __init__(self, journal_dir: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Have the child write its event into `journal_dir`."""
        self._journal_dir = journal_dir
        self._clock = clock
        self._lock = threading.Lock()
        self._running = False
        self._not_before = 0.0
        self._found_sound_at: dict[str, float] = {}

    def __call__(self, path: str, reason: str) -> None:
        """Begin a repair of `path`, unless one is under way or has just been tried."""
        now = self._clock()
        with self._lock:
            if self._running or now < self._not_before:
                return
            self._running = True
            # What a check found sound, and is met as damaged again soon, is damaged.
            again = now - self._found_sound_at.get(path, -math.inf) < REPEAT_S
        options = ["--reason", reason[:200]] + (["--certain"] if again else [])
        if self._journal_dir is not None:
            options += ["--journal", self._journal_dir]
        threading.Thread(target=self._run, args=(path, options), name="database-repair", daemon=True).start()

    def _run(self, path: str, options: list[str]) -> None:
        pause_s = PAUSE_S
        sound = False
        try:
            sound = not run(path, "repair", options, timeout_s=REPAIR_S_MAX)["repaired"]
        except LocalError:
            pause_s = PAUSE_AFTER_FAILURE_S
        finally:
            with self._lock:
                self._running = False
                self._not_before = self._clock() + pause_s
                if sound:
                    self._found_sound_at[path] = self._clock()
