"""relctl db-stats and maintenance: with and without a system, for people and for programs."""

import time
from pathlib import Path
from typing import Any

from actors.runtime.database_report import last_repair
from protocol.errors import EXIT_INTEGRITY, ErrorCode, LocalError
from tests.actors.runtime.test_database_repair import ROWS, fill, leaf_of, repair, trash
from tests.app.cli_fakes import Relctl

LAST = {
    "kind": "whole", "by": "anna", "at_ms": 0, "took_s": 1.5, "ok": True,
    "steps": [
        {"step": "integrity", "took_s": 0.1, "result": {"ok": True, "messages": [], "check": "quick_check"}},
        {"step": "vacuum", "took_s": 0.1, "result": {"vacuumed": False, "reason": "does_not_pay"}},
        {"step": "checkpoint", "took_s": 0.1, "result": {"truncated": True}},
    ],
}  # fmt: skip


def path_of(relctl: Relctl) -> str:
    return str(relctl.data_dir / "reliability.db")


def test_stats_come_from_the_file_within_a_second_while_nobody_answers(relctl: Relctl) -> None:
    fill(path_of(relctl))
    began = time.monotonic()
    result = relctl("db-stats", "--json")
    assert time.monotonic() - began < 1.0
    stats = result.json
    assert (result.code, stats["offline"]) == (0, True)
    assert {table["name"]: table["rows"] for table in stats["tables"]}["notes"] == ROWS
    assert stats["schema_versions"] == {"notes": 1, "others": 2}
    assert stats["pragmas"]["journal_mode"] == "wal"
    assert stats["last_maintenance"] is None


def test_stats_for_people_tell_of_a_repair(relctl: Relctl) -> None:
    path = path_of(relctl)
    fill(path)
    trash(path, leaf_of(path, "notes")[2:4])
    repair(path)
    relctl.client.answers["event_logger", "status"] = {"database": {"wal_backlog_bytes": 8192}}
    result = relctl("db-stats")
    assert "repaired" in result.out
    report = last_repair(path)
    assert report is not None
    assert f"{report['lost']} rows lost" in result.out
    assert "8.0 KiB of it not yet in the file" in result.out
    assert "Offline" not in result.out


def test_without_a_database_the_reason_is_told(relctl: Relctl) -> None:
    result = relctl("db-stats", "--json")
    assert result.error["code"] == ErrorCode.BROKER_DOWN


def test_maintenance_is_begun_followed_and_reported(relctl: Relctl) -> None:
    looks: list[dict[str, Any]] = [
        {"run": 3, "running": True, "progress": {}, "last": None},
        {"run": 3, "running": True, "progress": {"step": "vacuum", "number": 3, "of": 4}, "last": None},
        {"run": 3, "running": False, "progress": {}, "last": LAST},
    ]
    relctl.client.answers["event_logger", "maintenance"] = {"run": 3}
    relctl.client.answers["event_logger", "maintenance_status"] = lambda **_: looks.pop(0)
    result = relctl("maintenance")
    assert result.code == 0
    assert "done in 1.5 s: integrity ok; no vacuum (does not pay); log emptied" in result.out
    (begun,) = [arguments for _, op, arguments in relctl.client.calls if op == "maintenance"]
    assert begun["kind"] == "whole"
    assert begun["by"]


def test_damage_found_by_maintenance_is_an_exit_code(relctl: Relctl) -> None:
    damaged = {"step": "integrity", "took_s": 0.1, "result": {"ok": False, "messages": ["bad page"]}}
    relctl.client.answers["event_logger", "maintenance"] = {"run": 1}
    last = LAST | {"ok": False, "steps": [damaged]}
    relctl.client.answers["event_logger", "maintenance_status"] = {"run": 1, "running": False, "last": last}
    result = relctl("maintenance", "--json")
    assert result.code == EXIT_INTEGRITY
    assert result.json["steps"] == [damaged]


def test_a_restart_of_event_logger_meanwhile_is_told(relctl: Relctl) -> None:
    relctl.client.answers["event_logger", "maintenance"] = {"run": 2}
    relctl.client.answers["event_logger", "maintenance_status"] = {"run": 0, "running": False, "last": None}
    assert "restarted" in relctl("maintenance", "--json").error["message"]


def test_while_one_runs_a_second_is_refused(relctl: Relctl) -> None:
    relctl.client.answers["event_logger", "maintenance"] = LocalError(
        ErrorCode.BUSY, "maintenance is under way already"
    )
    assert relctl("maintenance", "--json").error["code"] == ErrorCode.BUSY


def test_where_nothing_runs_relctl_does_it_itself(relctl: Relctl) -> None:
    fill(path_of(relctl), checkpointed=False)
    relctl.client.answers["event_logger", "maintenance"] = LocalError(ErrorCode.NOT_RUNNING, "nothing runs")
    result = relctl("maintenance", "--json")
    assert result.code == 0, result
    assert [step["step"] for step in result.json["steps"]] == ["integrity", "analyze", "vacuum", "checkpoint"]
    assert Path(path_of(relctl) + "-wal").stat().st_size == 0
    assert relctl("db-stats", "--json").json["last_maintenance"] == result.json
