"""logs, search and emit: against the real database, by way of a fake client or of the files."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger import queries
from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database
from actors.runtime.paths import DATABASE_FILE
from actors.runtime.spool import SpoolReader
from app.reliability._cli import logs
from protocol.errors import ErrorCode, RemoteError
from protocol.severity import Severity
from tests.app.cli_fakes import Relctl

NOON_MS = 1795435200_000  # 2026-11-23 12:00 UTC
LEVELS = (Severity.DEBUG, Severity.INFO, Severity.WARN, Severity.ERROR)


class EventLog:
    """The event log's database, and an actor that answers from it."""

    def __init__(self, relctl: Relctl) -> None:
        self.relctl = relctl
        self.path = str(relctl.data_dir / DATABASE_FILE)
        self._store = EventStore(Database(self.path, SCHEMA))
        self._count = 0

    def add(
        self, message: str = "", component: str = "shop", severity: Severity = Severity.INFO, **fields: Any
    ) -> None:
        self._count += 1
        number = self._count.to_bytes(16)
        moment = NOON_MS + self._count * 60_000
        self._store.append([Event(number, moment, severity, component, "happened", message, **fields)], 1.0)

    def go_online(self) -> None:
        answer = lambda timeout, **arguments: queries.query(self.path, arguments)  # noqa: ARG005, E731
        self.relctl.client.answers["event_logger", "query"] = answer

    def close(self) -> None:
        self._store.database.close()


@pytest.fixture
def log(relctl: Relctl) -> Iterator[EventLog]:
    """An event log with ten events, one a minute from noon on, of four levels in turn."""
    log = EventLog(relctl)
    for number in range(1, 11):
        log.add(f"event {number}", severity=LEVELS[number % 4], component="shop" if number % 2 else "till")
    yield log
    log.close()


def messages(relctl: Relctl, *arguments: str) -> list[int]:
    result = relctl("--json", *arguments)
    assert result.code == 0, result.err
    return [int(line["message"].removeprefix("event ")) for line in result.lines]


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (("-r",), [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (("-n", "3"), [8, 9, 10]),
        (("-n", "3", "-r"), [10, 9, 8]),
        (("-n", "0"), []),
        (("-n", "all", "-r"), [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (("shop", "-n", "2"), [7, 9]),
        (("-p", "WARN"), [2, 3, 6, 7, 10]),
        (("-p", "debug..info"), [1, 4, 5, 8, 9]),
        (("-S", "2026-11-23T12:08:00Z"), [8, 9, 10]),
        (("-U", "2026-11-23T12:02:30Z"), [1, 2]),
        (("-S", "2026-11-23T12:03:00Z", "-n", "2"), [9, 10]),
        (("-g", "event [19]$"), [1, 9]),
    ],
)
def test_filters_order_and_limits(
    relctl: Relctl, log: EventLog, arguments: tuple[str, ...], expected: list[int], online: bool
) -> None:
    if online:
        log.go_online()
    assert messages(relctl, "logs", *arguments) == expected


@pytest.mark.parametrize("arguments", [("-n", "all"), ("-n", "all", "-r"), ("-n", "9"), ("-n", "9", "-r")])
def test_a_long_log_comes_in_pages(
    relctl: Relctl, log: EventLog, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.go_online()
    in_one = messages(relctl, "logs", *arguments)
    monkeypatch.setattr(logs, "PAGE_EVENTS_MAX", 2)
    relctl.client.calls.clear()
    assert messages(relctl, "logs", *arguments) == in_one
    assert len(relctl.client.calls) == 5


def test_search_finds_text_anywhere(relctl: Relctl, log: EventLog) -> None:
    log.add("event 11", attributes='{"customer":"Ada 100%"}')
    for online in (False, True):
        if online:
            log.go_online()
        assert messages(relctl, "search", "ada 100%") == [11]
        assert messages(relctl, "search", "TILL", "-n", "2") == [8, 10]
        assert messages(relctl, "search", "nowhere") == []


def test_files_answer_for_an_absent_actor_and_are_labelled(relctl: Relctl, log: EventLog) -> None:
    event = relctl("--json", "logs", "-n", "1").lines[0]
    assert event["offline"] is True
    assert event["age_s"] >= 0
    text = relctl("logs", "-n", "1").out.splitlines()
    assert text[0].startswith("Offline view from the event log's database, ")
    assert text[0].endswith("the broker is down")
    log.go_online()
    assert "offline" not in relctl("--json", "logs", "-n", "1").lines[0]


def test_without_a_log_the_reason_is_the_broker(relctl: Relctl) -> None:
    result = relctl("--json", "logs")
    assert result.code == 10
    assert result.error["code"] == "broker_down"


def test_an_answer_that_is_an_error_is_not_papered_over_by_files(relctl: Relctl, log: EventLog) -> None:
    relctl.client.answers["event_logger", "query"] = RemoteError(ErrorCode.INTEGRITY, "the log is damaged")
    assert relctl("logs").code == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-S", "soon"), "is no time"),
        (("-p", "LOUD"), "is no level"),
        (("-n", "some"), "neither a number nor 'all'"),
        (("-g", "("), "no regular expression"),
        (("-f", "-r"), "cannot be combined"),
    ],
)
def test_wrong_filters_are_usage_errors(relctl: Relctl, log: EventLog, arguments: tuple[str, ...], said: str) -> None:
    result = relctl("logs", *arguments)
    assert result.code == 2
    assert said in result.err


def test_follow_shows_each_new_event_once_online_and_offline(relctl: Relctl, log: EventLog) -> None:
    turns = 0

    def next_turn(_timeout: float) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            log.add("event 11")
            log.add("event 12", component="till")
        elif turns == 2:
            log.go_online()
            log.add("event 13")
        elif turns == 4:
            raise KeyboardInterrupt

    relctl.client.on_wait = next_turn
    result = relctl("--json", "logs", "shop", "-f", "-n", "2")
    assert result.code == 130
    assert [line["message"] for line in result.lines] == ["event 7", "event 9", "event 11", "event 13"]
    assert [line.get("offline", False) for line in result.lines] == [True, True, True, False]


def test_lines_for_people(relctl: Relctl, log: EventLog) -> None:
    log.go_online()
    log.add("first line\nsecond \x1b[31mline", severity=Severity.CRITICAL)
    out = relctl("logs", "-n", "1").out
    head, second = out.splitlines()
    assert "CRITICAL  shop  happened: first line" in head
    assert second.strip() == r"second \x1b[31mline", "a message cannot drive the terminal"


def test_emit_says_where_the_event_went(relctl: Relctl) -> None:
    relctl.client.answers["event_logger", "emit"] = {"id": "ab", "seq": 7}
    result = relctl(
        "--json", "emit", "warning", "shop", "low", "running out", "--detail", "item=tea", "--detail", "n=a=b"
    )
    assert result.json == {"id": "ab", "seq": 7, "spooled": False}
    asked = relctl.client.calls[-1][2]
    assert abs(asked.pop("timestamp_ms") - time.time() * 1000) < 60_000
    assert asked == {
        "severity": "WARN", "component": "shop", "event_type": "low", "message": "running out",
        "attributes": {"item": "tea", "n": "a=b"},
    }  # fmt: skip
    assert relctl("emit", "INFO", "shop", "low", "x").out == "Event 7 is written.\n"


@pytest.mark.parametrize("arguments", [("LOUD", "shop", "low", "x"), ("INFO", "shop", "low", "x", "--detail", "item")])
def test_a_wrong_event_is_a_usage_error(relctl: Relctl, arguments: tuple[str, ...]) -> None:
    assert relctl("emit", *arguments).code == 2
    assert relctl.client.calls == []


def test_emit_with_nobody_there_goes_to_the_spool(relctl: Relctl) -> None:
    result = relctl("--json", "emit", "INFO", "shop", "low", "x")
    assert result.code == 0
    assert result.json == {"id": result.json["id"], "seq": None, "spooled": True}
    assert "kept in the spool" in relctl("emit", "INFO", "shop", "low", "y").out
    reader = SpoolReader(str(relctl.data_dir), "event_logger")
    waiting = reader.read(1 << 20)
    reader.close()
    assert [(entry.op, entry.arguments["message"]) for entry in waiting] == [("emit", "x"), ("emit", "y")]
    assert waiting[0].id.hex() == result.json["id"]
    assert not Path(relctl.data_dir, DATABASE_FILE).exists()
