"""How relctl starts a launcher that outlives it."""

import sys
from pathlib import Path

import pytest

from app.reliability._cli.up import _spawn

TELLS = "import os; print([name for name in os.environ if name.startswith(('NOTIFY_', 'WATCHDOG_', 'OTHER_'))])"


def test_a_detached_launcher_is_not_told_what_a_service_manager_has_told_its_starter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "OTHER_VARIABLE"):
        monkeypatch.setenv(name, "1")
    with (tmp_path / "output").open("wb") as output:
        assert _spawn([sys.executable, "-c", TELLS], output).wait(30) == 0
    assert (tmp_path / "output").read_text() == "['OTHER_VARIABLE']\n"
