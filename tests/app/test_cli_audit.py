"""What relctl does by itself is in the audit trail with the user who did it, also while nobody answers."""

import os
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import spool_writer
from actors.runtime.paths import DATABASE_FILE
from app.reliability._cli import audit
from app.reliability._cli.output import Output
from app.reliability._cli.session import Session
from tests.app.cli_fakes import Relctl


def entries(relctl: Relctl) -> list[dict[str, Any]]:
    return relctl("--json", "logs", "-u", audit.COMPONENT).lines


def test_a_bundle_is_told_of(relctl: Relctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("USER", "ada")
    (relctl.data_dir / DATABASE_FILE).touch()
    path = relctl("--json", "diagnostics").json["path"]
    (relctl.data_dir / DATABASE_FILE).unlink()
    (entry,) = entries(relctl)
    assert (entry["event_type"], entry["severity_text"]) == ("diagnostics_created", "NOTICE")
    assert entry["attributes"] == {"user": "ada", "path": path}
    assert entry["message"].endswith("by ada")


def test_a_checkpoint_that_is_saved_by_hand_is_told_of(
    relctl: Relctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"n": 1}')
    real = relctl.client.call_raw

    def call_raw(service: str, *arguments: Any, **more: Any) -> Any:
        if service == "checkpointer":
            return {"id": b"x" * 16, "seq": 3, "unchanged": False}, ()
        return real(service, *arguments, **more)

    monkeypatch.setattr(relctl.client, "call_raw", call_raw)
    result = relctl("--json", "checkpoint", "save", "shop", str(state))
    assert result.code == 0, result.err
    (entry,) = entries(relctl)
    assert entry["event_type"] == "checkpoint_saved"
    assert (entry["attributes"]["name"], entry["attributes"]["id"]) == ("shop", (b"x" * 16).hex())


def test_a_trail_that_takes_nothing_does_not_fail_the_command(
    relctl: Relctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spool_writer, "SPOOL_BYTES_MAX", 0)
    (relctl.data_dir / "spool").touch()  # no directory can be made there
    session = Session(str(relctl.data_dir), None, Output(), relctl.ports)
    audit.record(session, "tested", "a test was run")
    session.close()
    assert "not in the audit trail" in capsys.readouterr().err
    assert os.path.isfile(relctl.data_dir / "spool")
