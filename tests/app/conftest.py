"""What the tests of the application side share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime import paths
from tests.app.cli_fakes import Relctl
from tests.app.service_machine import Machine


@pytest.fixture
def relctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Relctl]:
    """relctl on an empty data directory, where nothing ever ran."""
    parent = tempfile.mkdtemp(prefix="rt-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    monkeypatch.setenv(paths.RUNTIME_DIR_VARIABLE, parent)
    monkeypatch.delenv(paths.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    yield Relctl(data_dir, Path(paths.runtime_directory(str(data_dir))), capsys)
    shutil.rmtree(parent)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with service managers that are fakes."""
    directory = tmp_path / "machine"
    directory.mkdir()
    made = Machine(directory)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("LOCALAPPDATA", str(directory / "local"))
    monkeypatch.setenv("USERDOMAIN", "HOME-PC")
    monkeypatch.setenv("USERNAME", "ann & bob")
    monkeypatch.delenv("RELCTL_RUNTIME_DIR", raising=False)
    return made
