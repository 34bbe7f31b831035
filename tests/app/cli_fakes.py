"""relctl in this process, with fakes at its doors: a client, a launcher, and a board that a test fills in."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from actors.runtime import paths
from actors.runtime.identity import own_identity
from actors.runtime.liveness import Board, LauncherRecord, ProcessRecord
from actors.runtime.paths import RunInfo
from app.reliability._cli.session import Ports
from app.reliability.cli import run
from protocol.errors import ErrorCode, LocalError

Answer = dict[str, Any] | Exception | Callable[..., Any]


class FakeClient:
    """Answers as told; who was not told about does not answer."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answer] = {}
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.closed = False
        self.on_wait: Callable[[float], None] = lambda _timeout: None

    def call(self, service: str, op: str, timeout: float = 5.0, **arguments: Any) -> dict[str, Any]:
        self.calls.append((service, op, arguments))
        answer = self.answers.get((service, op), LocalError(ErrorCode.BROKER_DOWN, "the broker is down"))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, dict):
            return answer
        result: dict[str, Any] = answer(timeout=timeout, **arguments)
        return result

    def call_raw(
        self, service: str, op: str, raw: object, lane: object, request_id: bytes, **arguments: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        return self.call(service, op, **arguments), []

    def subscribe(self, *topic_prefixes: str) -> "FakeSubscription":
        return FakeSubscription(self.on_wait)

    def close(self) -> None:
        self.closed = True


class FakeSubscription:
    """Nothing is ever published."""

    def __init__(self, on_wait: Callable[[float], None]) -> None:
        self._on_wait = on_wait

    def receive(self, timeout: float) -> None:
        if timeout:
            self._on_wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class FakePorts(Ports):
    """Doors to fakes; time passes by `sleep` alone."""

    def __init__(self) -> None:
        self.fake_client = FakeClient()
        self.launcher: Callable[..., dict[str, Any]] = self.no_launcher
        self.now = 1000.0
        self.on_sleep: Callable[[float], None] = lambda _now: None

    def client(self, data_dir: str) -> FakeClient:  # type: ignore[override]
        return self.fake_client

    def call_launcher(self, run: RunInfo, op: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        return self.launcher(op, **arguments)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep(self.now)

    @staticmethod
    def no_launcher(_op: str, **_arguments: Any) -> dict[str, Any]:
        raise LocalError(ErrorCode.NOT_RUNNING, "no launcher listens")


@dataclass(frozen=True)
class Result:
    """What one run of relctl left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = json.loads(self.err)["error"]
        return error


@dataclass
class Relctl:
    """The command, its data directory, and its fakes."""

    data_dir: Path
    runtime_dir: Path
    capture: pytest.CaptureFixture[str]
    ports: FakePorts = field(default_factory=FakePorts)
    _board: Board | None = None

    def __call__(self, *arguments: str) -> Result:
        self.capture.readouterr()
        code = run(["--data-dir", str(self.data_dir), *arguments], self.ports)
        return Result(code, *self.capture.readouterr())

    @property
    def client(self) -> FakeClient:
        return self.ports.fake_client

    @property
    def board(self) -> Board:
        """A board, and the run.json that leads to it; made when first asked for."""
        if self._board is None:
            paths.make_private_directory(str(self.runtime_dir))
            for folder in (paths.JOURNAL_DIR, paths.EVIDENCE_DIR):
                (self.runtime_dir / folder).mkdir()
            self._board = Board.create(str(self.runtime_dir / paths.BOARD_FILE))
            info = RunInfo("ipc://none", "ipc://none", "ipc://none", "none", str(self.runtime_dir), os.getpid())
            (self.data_dir / paths.RUN_FILE).write_text(info.to_json())
        return self._board

    def place(self, number: int, name: str, state: str = "ready", **fields: Any) -> None:
        """Put a process on the board: it is this very one unless `pid` says otherwise (0 for none)."""
        identity = own_identity()
        now_ms = int(self.ports.now * 1000)
        kind = {0: "launcher", 1: "broker", 2: "watchdog"}.get(number, "actor")
        values: dict[str, Any] = {
            "name": name, "kind": kind, "pid": identity.pid, "start_time": identity.start_time, "incarnation": 1,
            "state": state, "since_ms": now_ms, "started_ms": now_ms - 90_000, "restarts_in_period": 0,
            "restarts_left": 3, "retry_at_ms": 0, "hang_timeout_ms": 5000, "start_timeout_ms": 15000,
        }  # fmt: skip
        record = LauncherRecord(**values | fields)
        slot = self.board.slots[number]
        slot.launcher.write(record)
        if record.pid:
            own_state = state if state in {"starting", "ready", "stopping"} else "ready"
            slot.process.write(ProcessRecord(record.pid, record.start_time, record.incarnation, own_state))
        slot.beat(now_ms)

    def place_all(self) -> None:
        """Put the whole system on the board, all ready."""
        for number, name in enumerate(("launcher", "broker", "watchdog", "event_logger", "health_monitor")):
            self.place(number, name)
