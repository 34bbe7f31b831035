"""The configuration in the audit trail: what is in force, what has changed, and no secret of it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.config import SupervisionConfig
from actors.runtime.journal import Journal
from actors.runtime.paths import JOURNAL_DIR
from supervisor.configuration import A_SECRET, CONFIGURATION_FILE, changes, tell_configuration
from supervisor.records import Records
from supervisor.settings import Settings


@dataclass(frozen=True)
class Account:
    """A section with a secret."""

    user: str = "ada"
    password: str = "hunter2 and more"
    note: str = "written on hunter2 and more"


class Start:
    """One data directory, started again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / JOURNAL_DIR).mkdir()

    def __call__(self, config: bytes | None = b"x", **sections: Any) -> list[dict[str, Any]]:
        """Start with these sections; return what was told of them."""
        supervision = SupervisionConfig()
        settings = Settings(str(self.path), config, "/etc/r.toml", False, False, supervision, 1, (), 0.0, sections)
        journal = Journal(str(self.path / JOURNAL_DIR), "launcher")
        before = len(list(journal.entries()))
        tell_configuration(settings, Records(str(self.path)))
        return list(journal.entries())[before:]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return Start(tmp_path)


def test_the_first_start_tells_what_is_in_force(start: Start) -> None:
    (entry,) = start(supervision=SupervisionConfig(restart_max=7))
    assert entry["event_type"] == "configuration_in_force"
    assert entry["attributes"]["path"] == "/etc/r.toml"
    assert entry["attributes"]["settings"]["supervision"]["restart_max"] == 7
    assert entry["attributes"]["settings"]["supervision"]["hang_timeout_s"] == 5.0, "the defaults as well"


def test_a_later_start_tells_what_has_changed(start: Start) -> None:
    start(supervision=SupervisionConfig())
    assert [entry["event_type"] for entry in start(supervision=SupervisionConfig())] == ["configuration_in_force"]
    _, changed = start(supervision=SupervisionConfig(restart_max=7))
    assert changed["event_type"] == "configuration_changed"
    assert changed["severity"] == "NOTICE"
    assert changed["attributes"]["changes"] == {"supervision.restart_max": {"from": 3, "to": 7}}
    assert len(start(supervision=SupervisionConfig(restart_max=7))) == 1, "it is told once"


def test_secrets_are_in_neither_the_trail_nor_the_file_and_their_change_is_told(start: Start) -> None:
    start(account=Account())
    _, changed = start(account=Account(password="another one", note=""))
    assert changed["attributes"]["changes"].keys() == {"account.note"}
    _, changed = start(account=Account(password="a third one", note=""))
    assert changed["attributes"]["changes"] == {A_SECRET: {}}
    everything = "".join(path.read_text() for path in start.path.rglob("*.json*"))
    assert '"user": "ada"' in everything
    for secret in ("hunter2", "another one", "a third one"):
        assert secret not in everything
    assert os.stat(start.path / CONFIGURATION_FILE).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"salt":"xy","settings":{},"digest":""}', '{"salt":"","settings":3}']
)
def test_a_damaged_memory_is_as_none(start: Start, content: str) -> None:
    (start.path / CONFIGURATION_FILE).write_text(content)
    assert len(start(supervision=SupervisionConfig())) == 1
    assert json.loads((start.path / CONFIGURATION_FILE).read_text())["settings"]["supervision"]["restart_max"] == 3


def test_what_cannot_be_remembered_keeps_nobody_from_starting(start: Start) -> None:
    (start.path / CONFIGURATION_FILE).mkdir()
    assert len(start(supervision=SupervisionConfig())) == 1


def test_sections_and_keys_may_come_and_go() -> None:
    assert changes({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}, "b": {"z": 3}}) == {
        "a.y": {"from": 2, "to": None},
        "b.z": {"from": None, "to": 3},
    }
