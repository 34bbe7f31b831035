"""The frame of all commands: global options, exit codes, errors for people and for programs, pipes and interrupts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from app.reliability._cli.commands import COMMANDS, command_name
from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError, RemoteError
from tests.app.cli_fakes import Relctl

ROOT = Path(__file__).parents[2]
GROUPS = {"checkpoint": ("save", "show"), "service": ("install", "uninstall", "status")}
EMIT = ("emit", "INFO", "shop", "order_paid", "order 7")


def test_every_command_explains_itself(relctl: Relctl) -> None:
    listing = relctl("--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in listing
        for command in ([name, verb] for verb in GROUPS[name]) if name in GROUPS else ([name],):
            result = relctl(*command, "--help")
            assert result.code == 0
            assert "--data-dir" in result.out


@pytest.mark.parametrize("before", [True, False])
def test_global_options_stand_before_or_after_the_command(relctl: Relctl, before: bool) -> None:
    seen: list[float] = []

    def answer(timeout: float, **_arguments: Any) -> dict[str, Any]:
        seen.append(timeout)
        return {"id": "00", "seq": 1}

    relctl.client.answers["event_logger", "emit"] = answer
    options = ("--json", "--timeout", "2.5")
    result = relctl(*options, *EMIT) if before else relctl(*EMIT, *options)
    assert result.code == 0
    assert result.json["seq"] == 1
    assert seen == [pytest.approx(1.0, abs=0.1)], "the owner of a durable call gets half of it, at most a second"


def test_the_option_nearer_to_the_end_wins(relctl: Relctl, tmp_path: Path) -> None:
    result = relctl("--timeout", "1", "ps", "--json", "--data-dir", str(tmp_path / "other"))
    assert str(tmp_path / "other") in result.error["message"]


def test_quiet_leaves_only_the_exit_code(relctl: Relctl) -> None:
    relctl.client.answers["event_logger", "emit"] = {"id": "00", "seq": 1}
    assert relctl("-q", *EMIT).out == ""
    assert relctl("-q", "ps").err != "", "errors are still said"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (ErrorCode.BROKER_DOWN, 10),
        (ErrorCode.BROKER_HUNG, 10),
        (ErrorCode.NOT_RUNNING, 10),
        (ErrorCode.LOCKED, 11),
        (ErrorCode.INTEGRITY, 12),
        (ErrorCode.SERVICE_MISSING, 1),
        (ErrorCode.SERVICE_UNKNOWN, 1),
        (ErrorCode.BUSY, 1),
        (ErrorCode.DEADLINE_PASSED, 1),
        (ErrorCode.FAILED, 1),
    ],
)
def test_every_error_keeps_its_code_and_has_its_exit_code(
    relctl: Relctl, code: ErrorCode, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_session: Session, _service: str) -> NoReturn:
        raise RemoteError(code, "it went wrong", "do this")

    monkeypatch.setattr(Session, "durable", fail)
    told = relctl(*EMIT)
    assert told.code == exit_code
    assert told.err == "relctl: it went wrong\n        do this\n"
    assert relctl("--json", *EMIT).error == {"code": code, "message": "it went wrong", "hint": "do this"}


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("--nonsense",), ("ps", "--nonsense"), ("--timeout", "soon", "ps"), ("--timeout", "0", "ps"), ()],
)
def test_usage_errors_exit_2(relctl: Relctl, arguments: tuple[str, ...]) -> None:
    result = relctl("--json", *arguments)
    assert result.code == 2
    assert result.error["code"] == "usage"
    assert "--help" in result.error["hint"]


@pytest.mark.parametrize(
    "arguments",
    [("health", "--nonsense"), ("--nonsense", "health"), ("--timeout", "x", "health"), ("health", "a", "b")],
)
def test_usage_errors_of_health_exit_3(relctl: Relctl, arguments: tuple[str, ...]) -> None:
    assert relctl(*arguments).code == 3


def test_a_misspelt_command_is_answered_with_the_nearest(relctl: Relctl) -> None:
    assert "Did you mean 'health'?" in relctl("helth").err


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (["health"], "health"),
        (["--data-dir", "ps", "health"], "health"),
        (["--data-dir=x", "-q", "health", "ps"], "health"),
        (["--json"], None),
        (["--timeout"], None),
    ],
)
def test_the_command_of_a_line_is_known_even_if_the_line_is_wrong(line: list[str], name: str | None) -> None:
    assert command_name(line) == name


@pytest.mark.parametrize(("arguments", "code"), [(EMIT, 130), (("health",), 3)])
def test_an_interrupt_ends_quietly(relctl: Relctl, arguments: tuple[str, ...], code: int) -> None:
    def interrupt(**_arguments: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    relctl.client.answers["event_logger", "emit"] = interrupt
    relctl.client.answers["health_monitor", "health"] = interrupt
    result = relctl(*arguments)
    assert result.code == code
    assert "Traceback" not in result.err
    assert relctl.client.closed


def test_an_error_of_the_system_is_told_without_a_traceback(relctl: Relctl) -> None:
    relctl.client.answers["event_logger", "emit"] = OSError(28, "No space left on device")
    result = relctl(*EMIT)
    assert result.code == 1
    assert "No space left on device" in result.err


def test_a_defect_in_health_is_unknown_and_not_a_warning(relctl: Relctl) -> None:
    relctl.client.answers["health_monitor", "health"] = ZeroDivisionError("a defect")
    result = relctl("health")
    assert result.code == 3
    assert "ZeroDivisionError" in result.err
    relctl.client.answers["event_logger", "emit"] = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        relctl(*EMIT)


def test_nothing_ever_ran_here(relctl: Relctl) -> None:
    relctl.client.answers["broker", "ping"] = LocalError(ErrorCode.NOT_RUNNING, "nothing runs")
    result = relctl("--json", "ps")
    assert result.code == 10
    assert result.error["code"] == "not_running"
    assert "relctl up" in result.error["hint"]


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "app.reliability.cli", "--help"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=30, check=False)
    os.close(writer)
    assert result.returncode == 0
    assert result.stderr == b""


def test_health_imports_nothing_heavy(tmp_path: Path) -> None:
    """Its start is what a monitoring system pays every minute: 1.6 times the start of click, zmq and msgpack."""
    script = (
        "import sys; from app.reliability.cli import run; run(['--data-dir', sys.argv[1], 'health']);"
        "print(*sorted({'apsw', 'asyncio', 'psutil', 'difflib', 'subprocess', 'tomllib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=True)
    assert result.stdout.splitlines()[-1] == ""
