"""`relctl logs verify`: exit codes, words, and what it must not be mistaken for."""

from typing import Any

import pytest

from actors.event_logger import queries
from actors.event_logger.store import SCHEMA
from actors.runtime.database import Database
from actors.runtime.paths import DATABASE_FILE
from app.reliability._cli.verify import verdict_of
from tests.actors.event_logger.filing import Log
from tests.app.cli_fakes import Relctl


@pytest.fixture
def log(relctl: Relctl) -> Log:
    """An event log of ten events, nobody at work."""
    log = Log(relctl.data_dir)
    log.write(10)
    log.file()
    log.store.database.close()
    return log


def sql(relctl: Relctl, statement: str) -> None:
    database = Database(str(relctl.data_dir / DATABASE_FILE), SCHEMA)
    database.write(lambda connection: connection.execute(statement).fetchall())
    database.close()


def test_an_intact_log_is_intact(relctl: Relctl, log: Log) -> None:
    result = relctl("--json", "logs", "verify")
    assert result.code == 0, result.err
    assert (result.json["verdict"], result.json["checked"], result.json["findings"]) == ("intact", 10, [])
    text = relctl("logs", "verify").out
    assert text.startswith("INTACT - 10 events are as they were written.")
    assert "It cannot tell" in text


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE events SET message = 'never was' WHERE seq = 4", "changed"),
        ("DELETE FROM events WHERE seq = 4", "removed"),
        ("DELETE FROM events WHERE seq > 7", "truncated"),
    ],
)
def test_a_violated_log_exits_12(relctl: Relctl, log: Log, statement: str, kind: str) -> None:
    sql(relctl, statement)
    result = relctl("--json", "logs", "verify")
    assert result.code == 12
    assert result.json["verdict"] == "violated"
    assert kind in {finding["kind"] for finding in result.json["findings"]}
    text = relctl("logs", "verify")
    assert text.code == 12
    assert text.out.startswith("VIOLATED - ")
    assert kind in text.out


def test_it_works_beside_a_running_event_logger_without_asking_it(relctl: Relctl, log: Log) -> None:
    assert relctl("logs", "verify").code == 0
    assert relctl.client.calls == []


def test_no_log_and_a_log_that_is_gone_are_told_apart(relctl: Relctl) -> None:
    assert relctl("logs", "verify").code == 1
    (relctl.data_dir / "events").mkdir()
    (relctl.data_dir / "events" / "roots.jsonl").touch()
    assert relctl("logs", "verify").code == 12


def test_files_that_are_to_come_are_waited_for_once(relctl: Relctl, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"kind": "missing", "seq": None, "where": "head", "message": "the head is missing"}
    intact: dict[str, Any] = {"complete": True, "checked": 3, "finding_count": 0, "findings": [], "spoilt_days": []}
    young = intact | {"finding_count": 1, "findings": [missing]}
    for reports, code in (([young, intact], 0), ([young, young], 12)):
        looks = iter(reports)
        monkeypatch.setattr(queries, "verify_log", lambda _data_dir, _stop, looks=looks: next(looks))
        assert relctl("logs", "verify").code == code
        assert next(looks, None) is None


def test_too_little_time_is_no_verdict(relctl: Relctl, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"complete": False, "checked": 3, "finding_count": 0, "findings": [], "spoilt_days": []}
    monkeypatch.setattr(queries, "verify_log", lambda _data_dir, _stop: given)
    result = relctl("logs", "verify")
    assert result.code == 1
    assert result.out.startswith("UNFINISHED - ")


def test_only_what_a_power_cut_took_leaves_a_log_intact() -> None:
    def report(*kinds: str, more: int = 0, complete: bool = True) -> dict[str, Any]:
        findings = [{"kind": kind} for kind in kinds]
        return {"complete": complete, "findings": findings, "finding_count": len(kinds) + more}

    assert verdict_of(report()) == "intact"
    assert verdict_of(report("lost", "lost")) == "intact"
    assert verdict_of(report("lost", more=1)) == "violated"
    assert verdict_of(report("lost", "changed")) == "violated"
    assert verdict_of(report("missing", complete=False)) == "violated"
    assert verdict_of(report(complete=False)) == "unfinished"


def test_a_component_called_verify_can_be_listed(relctl: Relctl, log: Log) -> None:
    sql(relctl, "UPDATE events SET component = 'verify' WHERE seq = 4")
    (event,) = relctl("--json", "logs", "-u", "verify").lines
    assert event["seq"] == 4
    assert [event["seq"] for event in relctl("--json", "logs", "-u", "c", "-n", "2").lines] == [9, 10]
    assert "logs -u verify" in relctl("logs", "verify", "-n", "3").err
    assert relctl("logs", "verify", "-r").code == 2
    assert relctl("logs", "c", "-u", "c").code == 2


def test_the_form_may_be_chosen_as_with_journalctl(relctl: Relctl, log: Log) -> None:
    assert relctl("logs", "-n", "1", "-o", "json").lines[0]["seq"] == 10
    assert relctl("search", "event 3", "-o", "json").lines[0]["seq"] == 3
    assert "event 10" in relctl("--json", "logs", "-n", "1", "-o", "short").out
    assert relctl("logs", "-o", "xml").code == 2
