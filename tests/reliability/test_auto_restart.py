"""AutoRestartService, as a host uses it: with the system up, restarting, hung and down."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.reliability.auto_restart import AutoRestartService, own_name
from protocol.errors import ErrorCode, ProtocolError, ReliabilityError
from tests.chaos.system import System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]
CONFIG = "restart_max = 10000\nhang_timeout_s = 2\n"
PATIENCE_S = 20.0
CALL_S_MAX = 2.5


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """One system for all tests here; each leaves it whole."""
    with running(config=CONFIG) as system:
        yield system
        system.stop()


def history(service: AutoRestartService, name: str) -> list[dict[str, Any]]:
    """The restarts of a program, newest first."""
    try:
        processes = service.get_restart_status()["processes"]
    except ReliabilityError:
        return []
    found: list[dict[str, Any]] = next((item["history"] for item in processes if item["name"] == name), [])
    return found


def reasons_once(service: AutoRestartService, name: str, wanted: list[str]) -> None:
    """Wait until every reason is in the history, and none twice."""

    def reasons() -> list[str]:
        return [item["reason"] for item in history(service, name)]

    wait_until(lambda: set(wanted) <= set(reasons()), PATIENCE_S, f"{wanted} in {reasons()}", 0.1)
    assert Counter(reasons()) == Counter(wanted)


def test_a_restart_is_recorded_and_shown(system: System) -> None:
    service = AutoRestartService(system.data_dir, program="assistant")
    told = service.record_restart("process_failure", exit_code=1)
    assert told["spooled"] is False
    assert told["seq"] > 0
    (entry,) = history(service, "assistant")
    assert {key: entry[key] for key in ("reason", "exit_code", "signal", "recovery_ms")} == {
        "reason": "process_failure", "exit_code": 1, "signal": None, "recovery_ms": None,
    }  # fmt: skip
    names = [item["name"] for item in service.get_restart_status()["processes"]]
    assert {"launcher", "event_logger", "assistant"} <= set(names)
    assert "process_failure" in system.relctl("restart-status", "assistant").stdout
    assert "process_failure" in system.relctl("logs", "assistant").stdout
    service.close()


def test_the_programs_name_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for argument, name in (
        ("/opt/host/main.py", "main"),
        ("/opt/host/__main__.py", "host"),
        ("", "application"),
        ("serve", "serve"),
    ):
        monkeypatch.setattr("sys.argv", [argument])
        assert own_name() == name


@pytest.mark.parametrize(("reason", "code"), [("", 1), ("r", "1"), ("r", True), ("r", 2**70)])
def test_what_is_no_restart_is_refused(tmp_path: Path, reason: str, code: Any) -> None:
    with pytest.raises(ProtocolError):
        AutoRestartService(tmp_path / "data").record_restart(reason, exit_code=code)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("victim", ["event_logger", "broker"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_while_somebody_restarts_or_hangs_nothing_is_lost_or_doubled(
    system: System, victim: str, how: signal.Signals
) -> None:
    name = f"host-{victim}-{how.name}"
    service = AutoRestartService(system.data_dir, program=name)
    system.signal(victim, how)
    wanted = []
    for number in range(20):
        start = time.monotonic()
        service.record_restart(f"reason {number}", exit_code=number)
        assert time.monotonic() - start < CALL_S_MAX
        wanted.append(f"reason {number}")
    start = time.monotonic()
    assert service.get_restart_status()["processes"]
    assert time.monotonic() - start < 4, "from files, if nobody answers"
    system.wait_whole(PATIENCE_S)
    reasons_once(service, name, wanted)
    service.close()


def test_with_the_system_down_it_is_kept_and_shown_from_files() -> None:
    with running(config=CONFIG) as system:
        service = AutoRestartService(system.data_dir, program="host")
        service.record_restart("while up")
        system.stop()
        assert service.record_restart("while down", exit_code=-9)["spooled"] is True
        status = service.get_restart_status()
        assert status["offline"] is True
        assert [entry["reason"] for entry in history(service, "host")] == ["while up"]
        system.start()
        reasons_once(service, "host", ["while up", "while down"])
        service.close()
        system.stop()


def test_where_no_system_was_ever_started(tmp_path: Path) -> None:
    service = AutoRestartService(tmp_path / "data")
    assert service.record_restart("first", exit_code=1)["spooled"] is True
    with pytest.raises(ReliabilityError) as caught:
        service.get_restart_status()
    assert caught.value.code == ErrorCode.NOT_RUNNING
    service.close()
