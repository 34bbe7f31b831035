"""What every command works with: the global options, and the doors to the running system.

The doors are `Ports`, so that tests put fakes there. Everything behind them is imported when it is used: a command pays
for what it needs only.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ErrorCode, LocalError, ReliabilityError

if TYPE_CHECKING:
    from actors.runtime.liveness import Board
    from actors.runtime.paths import RunInfo
    from app.reliability._cli.output import Output
    from app.reliability._durable import DurableCaller
    from app.reliability.client import Client

QUERY_TIMEOUT_S: Final = 5.0
FIRST_TRY_S: Final = 0.6
"""A question is given this long before the board is asked whether waiting is of any use: a little more than a tick of
every loop, and little enough that the offline view still comes within a second."""

ABSENT: Final = frozenset(
    {
        ErrorCode.BROKER_DOWN,
        ErrorCode.BROKER_HUNG,
        ErrorCode.NOT_RUNNING,
        ErrorCode.SERVICE_MISSING,
        ErrorCode.BUSY,
        ErrorCode.DEADLINE_PASSED,
        ErrorCode.DRAINING,
    }
)
"""Errors that say that nobody answered, so that files may answer instead."""


class Ports:
    """The doors to the running system; the real ones."""

    def client(self, data_dir: str) -> "Client":
        """Return a client of the system in `data_dir`."""
        from app.reliability.client import Client

        return Client(data_dir)

    def call_launcher(self, run: "RunInfo", op: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Ask the launcher on its own socket."""
        from actors.runtime.control_client import call_launcher

        return call_launcher(run, op, timeout_s, **arguments)

    def monotonic(self) -> float:
        """Return the clock that durations and the board are measured by, in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Session:
    """One run of relctl.

    Attributes:
        data_dir: absolute data directory.
        output: where words go.
        ports: the doors.
    """

    def __init__(self, data_dir: str, timeout_given_s: float | None, output: "Output", ports: Ports) -> None:
        """Hold the global options; `timeout_given_s` is what --timeout said."""
        self.data_dir = data_dir
        self.output = output
        self.ports = ports
        self._timeout_given_s = timeout_given_s
        self._client: Client | None = None

    def timeout_s(self, default_s: float = QUERY_TIMEOUT_S) -> float:
        """Return --timeout, or the command's default."""
        return default_s if self._timeout_given_s is None else self._timeout_given_s

    def now_ms(self) -> int:
        """Return the board's time."""
        return int(self.ports.monotonic() * 1000)

    def run_info(self) -> "RunInfo | None":
        """Return what the running or last launcher wrote, or None if there never was one."""
        from actors.runtime.paths import read_run_info

        return read_run_info(self.data_dir)

    def running_info(self) -> "RunInfo":
        """Return what the launcher wrote.

        Raises:
            LocalError: nothing was ever started on this data directory.
        """
        run = self.run_info()
        if run is None:
            raise not_running(self.data_dir)
        return run

    def runtime_dir(self) -> str:
        """Return the runtime directory of the running or last system, or the one that a start would make."""
        from actors.runtime.paths import runtime_directory

        run = self.run_info()
        return run.runtime_dir if run else runtime_directory(self.data_dir)

    def board(self, *, writable: bool = False) -> "Board | None":
        """Return the liveness board as it is now, or None if there is none of this boot."""
        from actors.runtime.liveness import Board, BoardError
        from actors.runtime.paths import BOARD_FILE

        try:
            return Board(os.path.join(self.runtime_dir(), BOARD_FILE), writable=writable)
        except (OSError, BoardError):
            return None

    def client(self) -> "Client":
        """Return the one client of this run."""
        if self._client is None:
            self._client = self.ports.client(self.data_dir)
        return self._client

    def durable(self, service: str) -> "DurableCaller":
        """Return a durable caller of `service`, over the one client."""
        from app.reliability._durable import DurableCaller

        return DurableCaller(service, self.data_dir, client=self.client())

    def close(self) -> None:
        """Close what was opened."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def ask(self, service: str, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask a service something that may be asked twice, and do not wait for one that the board shows standing still.

        Raises:
            ReliabilityError: as `Client.call`; with a code in `ABSENT` within a second if broker or service hang.
        """
        timeout_s = self.timeout_s()
        asked_ms = self.now_ms()
        try:
            return self.client().call(service, op, timeout=min(FIRST_TRY_S, timeout_s), **arguments)
        except ReliabilityError as error:
            if error.code not in ABSENT or timeout_s <= FIRST_TRY_S:
                raise
            if (still := self._standing_still(service, asked_ms)) is not None:
                raise (still if error.code == ErrorCode.DEADLINE_PASSED else error) from None
        return self.client().call(service, op, timeout=timeout_s - FIRST_TRY_S, **arguments)

    def ask_or_absent(self, service: str, op: str, **arguments: Any) -> dict[str, Any] | ReliabilityError:
        """Ask as `ask`; return the answer, or the error that says why nobody answered.

        Raises:
            ReliabilityError: somebody answered with an error.
        """
        try:
            return self.ask(service, op, **arguments)
        except ReliabilityError as error:
            if error.code not in ABSENT:
                raise
            return error

    def wait_until(self, done: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> bool:
        """Wait for a condition; tell whether it came true in time."""
        end = self.ports.monotonic() + timeout_s
        while not done():
            if self.ports.monotonic() >= end:
                return False
            self.ports.sleep(interval_s)
        return True

    def _standing_still(self, service: str, since_ms: int) -> LocalError | None:
        """Return the error that the broker or `service` has not turned its loop since then; None if both have."""
        board = self.board()
        if board is None:
            return not_running(self.data_dir)
        with board:
            for name in dict.fromkeys(("broker", service)):
                found = board.find(name)
                if found is None or found[0].read_beat().tick_ms < since_ms:
                    code = ErrorCode.BROKER_HUNG if name == "broker" else ErrorCode.DEADLINE_PASSED
                    return LocalError(code, f"{name} stands still")
        return None


def not_running(data_dir: str) -> LocalError:
    """Return the error that nothing runs on `data_dir`."""
    return LocalError(ErrorCode.NOT_RUNNING, f"nothing runs on {data_dir}")
