"""The diagnostics bundle: whatever is dead, hung or damaged, there is one; and no secret is in it."""

import hashlib
import json
import os
import stat
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime import paths
from actors.runtime.database import Database
from actors.runtime.journal import Journal, new_entry
from actors.runtime.paths import Curve, RunInfo
from app.reliability import _diagnostics, _diagnostics_bundle
from app.reliability._diagnostics import create_bundle
from app.reliability._diagnostics_bundle import Document, Findings, Lines, Text
from app.reliability._diagnostics_sources import COLLECTORS, Collector, Place
from protocol.errors import LocalError
from protocol.severity import Severity
from tests.app.cli_fakes import Relctl

SECRETS = ("corr3ct horse battery", 'qu"oted \\ ünique', "s3rver-secret-key", "cl1ent-secret-key", "url p4ss")


def read(path: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def document(path: str, name: str) -> Any:
    return json.loads(read(path)[name])


def only(**sources: Any) -> list[Collector]:
    def collector(name: str, content: Any) -> Collector:
        def collect(_place: Place, found: Findings, _deadline: float) -> None:
            if isinstance(content, Exception):
                raise content
            found.add(f"{name}.x", content)

        return Collector(name, collect)

    return [collector(name, content) for name, content in sources.items()]


@pytest.fixture
def populated(relctl: Relctl) -> Relctl:
    """A system that has run: board, journals, evidence, events; secrets in many places."""
    relctl.place_all()
    curve = Curve("public-server", SECRETS[2], "public-client", SECRETS[3])
    info = RunInfo("ipc://a", "ipc://b", "ipc://c", "none", str(relctl.runtime_dir), os.getpid(), curve=curve)
    (relctl.data_dir / paths.RUN_FILE).write_text(info.to_json())
    settings = f'[x]\npassword = "{SECRETS[0]}"\nurl = "db://ada:{SECRETS[4]}@host"\n'
    (relctl.data_dir / paths.CONFIG_FILE).write_text(settings + f"[y]\ntoken = {json.dumps(SECRETS[1])}\n")
    journal = Journal(str(relctl.runtime_dir / paths.JOURNAL_DIR), "watchdog")
    for secret in SECRETS:
        journal.append(new_entry("event", message=f"it said {secret} twice: {secret}", attributes={"api_key": "k"}))
    (relctl.runtime_dir / paths.EVIDENCE_DIR / "broker-3.json").write_text(json.dumps({"stacks": SECRETS[1]}))
    (relctl.data_dir / "launcher.log").write_text("\n".join(f"--pw {secret} x" for secret in SECRETS))
    store = EventStore(Database(str(relctl.data_dir / paths.DATABASE_FILE), SCHEMA))
    attributes = json.dumps({"password": "whatever", "why": SECRETS[1]})
    store.append([Event(b"x" * 16, 1, Severity.INFO, "shop", "paid", SECRETS[0], attributes)], 1.0)
    store.database.close()
    return relctl


def test_everything_is_in_it_and_no_secret(populated: Relctl) -> None:
    result = populated("--json", "diagnostics")
    assert result.code == 0, result.err
    entries = read(result.json["path"])
    assert {
        "events.jsonl", "journal/watchdog.jsonl", "board.json", "processes.json", "machine.json", "mounts.txt",
        "disks.json", "configuration.json", "environment.json", "versions.json", "database.json", "services.json",
        "restarts.json", "evidence/broker-3.json", "files/data.json", "files/data-run.json", "launcher.log", "log.txt",
        "spool.json", "manifest.json",
    } <= entries.keys()  # fmt: skip
    assert result.json["entries"] == len(entries)
    assert result.json["bytes"] == os.path.getsize(result.json["path"])
    assert result.json["redactions"] >= 2 * len(SECRETS)
    everything = b"\n".join(entries.values()).decode()
    for secret in SECRETS:
        assert secret not in everything
        assert json.dumps(secret)[1:-1] not in everything
    assert "public-client" in everything
    event = json.loads(entries["events.jsonl"])
    assert event["attributes"] == {"password": "<redacted>", "why": "<redacted>"}
    assert event["message"] == "<redacted>"


def test_the_manifest_tells_every_entry_by_its_digest(populated: Relctl) -> None:
    path = populated("--json", "diagnostics").json["path"]
    entries = read(path)
    manifest = json.loads(entries.pop("manifest.json"))
    assert {entry["name"]: entry["sha256"] for entry in manifest["entries"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in entries.items()
    }
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_nothing_ever_ran(relctl: Relctl) -> None:
    result = relctl("--json", "diagnostics")
    assert result.code == 0, result.err
    assert {"board", "journals", "events"} <= {item["what"] for item in result.json["not_collected"]}
    log = read(result.json["path"])["log.txt"].decode()
    assert "board: FileNotFoundError" in log
    assert "machine: ok" in log
    assert "missing: board" in relctl("diagnostics").out


def test_a_damaged_database_is_an_entry_and_not_the_end(populated: Relctl) -> None:
    path = populated.data_dir / paths.DATABASE_FILE
    for leftover in populated.data_dir.glob(f"{paths.DATABASE_FILE}-*"):
        leftover.unlink()
    path.write_bytes(os.urandom(3 * 4096))
    result = populated("--json", "diagnostics")
    assert result.code == 0, result.err
    assert {"events", "database", "restarts"} <= {item["what"] for item in result.json["not_collected"]}
    assert "database.json" in read(result.json["path"]), "sizes can be told all the same"
    assert path.stat().st_size == 3 * 4096


def test_a_configuration_that_cannot_be_parsed_is_left_out(populated: Relctl) -> None:
    (populated.data_dir / paths.CONFIG_FILE).write_text('password = "only half of a fi')
    result = populated("--json", "diagnostics")
    assert b"only half" not in b"".join(read(result.json["path"]).values())
    assert any("reliability.toml" in item["why"] for item in result.json["not_collected"])


def test_a_source_that_hangs_or_fails_costs_its_own_deadline(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(_place: Place, found: Findings, _deadline: float) -> None:
        found.add("first.txt", Text("before it hung"))
        release.wait(30)
        found.add("late.txt", Text("too late"))

    others = only(good=Text("x"), bad=RuntimeError("a password: hunter2"))
    began = time.monotonic()
    try:
        result = create_bundle(str(tmp_path), collectors=[Collector("slow", hang, 0.2), *others])
    finally:
        release.set()
    assert time.monotonic() - began < 5
    entries = read(result.path)
    assert {"first.txt", "good.x", "log.txt", "manifest.json"} == entries.keys()
    missing = {failure["what"]: failure["why"] for failure in json.loads(entries["manifest.json"])["not_collected"]}
    assert missing == {"slow": "it had not finished in time", "bad": "RuntimeError: a password: <redacted>"}
    assert b"hunter2" not in b"".join(entries.values()), "its own log is redacted too"


def test_each_entry_and_the_whole_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_diagnostics_bundle, "ENTRY_BYTES_MAX", 100)
    monkeypatch.setattr(_diagnostics_bundle, "BUNDLE_BYTES_MAX", 10_000)
    sources = only(lines=Lines(list(range(1000))), text=Text("\n".join(map(str, range(1000)))), big=Document("x" * 200))
    result = create_bundle(str(tmp_path), collectors=sources)
    entries = read(result.path)
    assert entries["lines.x"].endswith(b"\n998\n999\n")
    assert entries["text.x"].endswith(b"\n998\n999")
    assert entries["text.x"].split(b"\n")[0].isdigit()
    assert len(entries["lines.x"]) <= 100
    assert len(entries["text.x"]) <= 100
    assert "big.x" not in entries
    assert {failure.what for failure in result.not_collected} >= {"lines.x", "text.x", "big.x"}


def test_it_fails_closed_when_a_secret_gets_past_the_redactor(
    populated: Relctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_diagnostics_bundle.Redactor, "text", lambda _self, text: text)
    result = populated("--json", "diagnostics", "--output", str(populated.data_dir / "out.zip"))
    assert result.code == 1
    assert result.error["code"] == "failed"
    assert not [name for name in os.listdir(populated.data_dir) if "out.zip" in name]


def test_output_may_be_a_file_or_a_directory_or_impossible(tmp_path: Path) -> None:
    sources = only(a=Text("x"))
    target = tmp_path / "b.zip"
    target.write_text("an older one")
    assert create_bundle(str(tmp_path), str(target), collectors=sources).path == str(target)
    assert "a.x" in read(str(target))
    assert Path(create_bundle(str(tmp_path), str(tmp_path), collectors=sources).path).parent == tmp_path
    with pytest.raises(LocalError, match="cannot be written"):
        create_bundle(str(tmp_path), str(tmp_path / "none" / "b.zip"), collectors=sources)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    target = tmp_path / "b.zip"
    os.symlink("/dev/full", tmp_path / f"b.zip.{os.getpid()}.tmp")
    with pytest.raises(LocalError, match="cannot be written"):
        create_bundle(str(tmp_path), str(target), collectors=only(a=Text("x")))


def test_few_bundles_are_kept_in_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_diagnostics, "BUNDLES_KEPT_MAX", 2)
    folder = tmp_path / _diagnostics.FOLDER
    folder.mkdir()
    for number in range(4):
        (folder / f"relctl-diagnostics-2020010{number}T000000Z-1.zip").write_text("")
    (folder / "mine.zip").write_text("not ours")
    result = create_bundle(str(tmp_path), collectors=only(a=Text("x")))
    assert sorted(os.listdir(folder)) == sorted(
        ["mine.zip", "relctl-diagnostics-20200103T000000Z-1.zip", os.path.basename(result.path)]
    )


def test_every_source_has_a_name_and_a_deadline_below_the_whole() -> None:
    assert len({collector.name for collector in COLLECTORS}) == len(COLLECTORS)
    assert all(0 < collector.limit_s < _diagnostics.COLLECT_S_MAX for collector in COLLECTORS)
