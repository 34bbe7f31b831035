"""What every command works with: the global options, and the doors to the running system.

The doors are `Ports`, so that tests put fakes there. Everything behind them is imported when it is used: a command pays
for what it needs only.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from app.reliability._cli.output import Output
from protocol.errors import ErrorCode, LocalError, ReliabilityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actors.runtime.liveness import Board
    from actors.runtime.paths import RunInfo

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


class ClientPort(Protocol):
    """What relctl uses of `app.reliability.client.Client`."""

    def call(self, service: str, op: str, timeout: float = ..., **arguments: Any) -> dict[str, Any]:
        """Ask a service."""

    def subscribe(self, *topic_prefixes: str) -> "Iterator[tuple[str, Any]]":
        """Yield what is published."""

    def close(self) -> None:
        """Let go of the sockets."""


class Ports:
    """The doors to the running system; the real ones."""

    def client(self, data_dir: str) -> ClientPort:
        """Return a client of the system in `data_dir`."""
        from app.reliability.client import Client

        return Client(data_dir=data_dir)

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


@dataclass(slots=True)
class Session:
    """One run of relctl.

    Attributes:
        data_dir: absolute data directory.
        timeout_given_s: what --timeout said, or None.
        output: where words go.
        ports: the doors.
    """

    data_dir: str
    timeout_given_s: float | None
    output: Output
    ports: Ports
    _client: ClientPort | None = None

    def timeout_s(self, default_s: float = QUERY_TIMEOUT_S) -> float:
        """Return --timeout, or the command's default."""
        return default_s if self.timeout_given_s is None else self.timeout_given_s

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

    def client(self) -> ClientPort:
        """Return the one client of this run."""
        if self._client is None:
            self._client = self.ports.client(self.data_dir)
        return self._client

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
        before = self._ticks(service)
        try:
            return self.client().call(service, op, timeout=min(FIRST_TRY_S, timeout_s), **arguments)
        except ReliabilityError as error:
            rest_s = timeout_s - FIRST_TRY_S
            standing_still = any(now == then for now, then in zip(self._ticks(service), before, strict=True))
            if error.code not in ABSENT or rest_s <= 0 or standing_still:
                raise
        return self.client().call(service, op, timeout=rest_s, **arguments)

    def ask_or_absent(
        self, service: str, op: str, **arguments: Any
    ) -> tuple[dict[str, Any], None] | tuple[None, ReliabilityError]:
        """Ask as `ask`; return the answer, or why nobody answered.

        Raises:
            ReliabilityError: somebody answered with an error.
        """
        try:
            return self.ask(service, op, **arguments), None
        except ReliabilityError as error:
            if error.code not in ABSENT:
                raise
            return None, error

    def wait_until(self, done: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> bool:
        """Wait for a condition; tell whether it came true in time."""
        end = self.ports.monotonic() + timeout_s
        while not done():
            if self.ports.monotonic() >= end:
                return False
            self.ports.sleep(interval_s)
        return True

    def _ticks(self, service: str) -> tuple[int, int]:
        """Return the tick counters of broker and `service`; 0 for one that the board does not show."""
        board = self.board()
        if board is None:
            return 0, 0
        with board:
            found = [board.find(name) for name in ("broker", service)]
            broker, asked = (0 if item is None else item[0].read_beat().tick for item in found)
            return broker, asked


def not_running(data_dir: str) -> LocalError:
    """Return the error that nothing runs on `data_dir`."""
    return LocalError(ErrorCode.NOT_RUNNING, f"nothing runs on {data_dir}")
