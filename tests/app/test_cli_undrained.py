"""Offline, relctl logs tells what event_logger has not taken over yet: the last lines before everybody died."""

import os
from typing import Any

import pytest

from actors.event_logger import queries
from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database
from actors.runtime.journal import Journal, new_entry
from actors.runtime.paths import DATABASE_FILE, JOURNAL_DIR
from actors.runtime.spool import SpoolWriter
from app.reliability._cli import logs
from protocol.severity import Severity
from tests.app.cli_fakes import Relctl

PAST_MS = 1_700_000_000_000


class Dead:
    """A system of which nobody lives: three events in the table, four in journals, one in the spool."""

    def __init__(self, relctl: Relctl) -> None:
        relctl.place(0, "launcher", pid=0)
        self.relctl = relctl
        self.path = str(relctl.data_dir / DATABASE_FILE)
        self.journals = str(relctl.runtime_dir / JOURNAL_DIR)

    def store(self, *events: Event) -> None:
        store = EventStore(Database(self.path, SCHEMA))
        store.append(events, 1.0)
        store.database.close()

    def note(self, journal: str, message: str, **fields: Any) -> dict[str, Any]:
        values = {"severity": "WARN", "component": journal, "event_type": "noted", "message": message, "attributes": {}}
        entry = new_entry("event", **values | fields)
        Journal(self.journals, journal).append(entry)
        return entry


@pytest.fixture
def dead(relctl: Relctl) -> Dead:
    dead = Dead(relctl)
    dead.store(*(Event(bytes([n]) * 16, PAST_MS + n, Severity.INFO, "shop", "paid", f"stored {n}") for n in (1, 2, 3)))
    dead.note("watchdog", "event_logger hangs", severity="ERROR")
    restart = new_entry("restart", id="ab" * 16, name="event_logger", incarnation=2, reason="hung", charged=True)
    Journal(dead.journals, "launcher").append(restart)
    Journal(dead.journals, "launcher").append(new_entry("recovery", restart_id="ab" * 16, recovery_ms=7))
    dead.note("launcher", "the last line")
    spooled = {"severity": "INFO", "component": "shop", "event_type": "paid", "message": "spooled"}
    SpoolWriter(str(relctl.data_dir), "event_logger").append("emit", os.urandom(16), spooled)
    return dead


def told(dead: Dead, *arguments: str) -> list[str]:
    result = dead.relctl("--json", *arguments)
    assert result.code == 0, result.err
    return [line["message"] for line in result.lines]


STORED = ["stored 1", "stored 2", "stored 3"]
UNDRAINED = {"event_logger hangs", "event_logger: hung", "ready again after 7 ms", "the last line", "spooled"}


def test_they_come_after_what_the_table_has_and_have_no_number(dead: Dead) -> None:
    lines = dead.relctl("--json", "logs").lines
    assert [line["message"] for line in lines[:3]] == STORED
    assert {line["message"] for line in lines[3:]} == UNDRAINED
    assert [line["seq"] for line in lines] == [1, 2, 3, None, None, None, None, None]
    assert all(line["offline"] for line in lines)
    assert {line["component"] for line in lines if line["event_type"] == "recovery"} == {"event_logger"}


@pytest.mark.parametrize("arguments", [("-n", "all"), ("-S", "2001-01-01")])
def test_all_of_them_in_either_order(dead: Dead, arguments: tuple[str, ...]) -> None:
    forward = told(dead, "logs", *arguments)
    assert (forward[:3], set(forward[3:])) == (STORED, UNDRAINED)
    assert told(dead, "logs", *arguments, "-r") == forward[::-1]


def test_limits_count_them_first(dead: Dead) -> None:
    everything = told(dead, "logs", "-n", "all")
    for count in range(10):
        assert (
            told(dead, "logs", "-n", str(count)) == everything[-count:] if count else not told(dead, "logs", "-n", "0")
        )
        assert told(dead, "logs", "-n", str(count), "-r") == everything[::-1][:count]


def test_pages_do_not_repeat_them(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = told(dead, "logs", "-n", "all")
    monkeypatch.setattr(logs, "PAGE_EVENTS_MAX", 2)
    assert told(dead, "logs", "-n", "all") == everything
    assert told(dead, "logs", "-n", "7") == everything[-7:]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("logs", "shop"), {*STORED, "spooled"}),
        (("logs", "-p", "ERROR"), {"event_logger hangs"}),
        (("logs", "-g", "^event_logger"), {"event_logger hangs", "event_logger: hung"}),
        (("logs", "-U", "2023-12-31"), set(STORED)),
        (("search", "LAST LINE"), {"the last line"}),
    ],
)
def test_filters_hold_for_them_too(dead: Dead, arguments: tuple[str, ...], expected: set[str]) -> None:
    assert set(told(dead, *arguments)) == expected


def test_what_the_table_has_already_is_told_once(dead: Dead) -> None:
    entry = dead.note("watchdog", "drained, and still in the journal")
    message = entry["message"]
    dead.store(Event(bytes.fromhex(entry["id"]), PAST_MS + 9, Severity.WARN, "watchdog", "noted", message))
    assert told(dead, "logs").count(message) == 1


def test_without_any_table_they_are_all_there_is(dead: Dead) -> None:
    for file in dead.relctl.data_dir.glob(f"{DATABASE_FILE}*"):
        file.unlink()
    assert set(told(dead, "logs")) == UNDRAINED


def test_damaged_lines_and_unknown_kinds_cost_themselves_alone(dead: Dead) -> None:
    with open(os.path.join(dead.journals, "launcher.jsonl"), "ab") as file:
        file.write(b'{"torn": \n{"kind":"unheard of"}\nnull\n{"half')
    assert set(told(dead, "logs")) == UNDRAINED | set(STORED)


def test_who_follows_sees_each_once(dead: Dead) -> None:
    turns = 0

    def next_turn(_timeout: float) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:  # event_logger is back, drains, and writes
            entries = [*Journal(dead.journals, "watchdog").entries(), *Journal(dead.journals, "launcher").entries()]
            noted = [entry for entry in entries if entry["kind"] == "event"]
            events = [(bytes.fromhex(entry["id"]), entry["message"]) for entry in noted]
            events.append((b"n" * 16, "new"))
            dead.store(*(Event(id_, PAST_MS + 9, Severity.INFO, "shop", "paid", text) for id_, text in events))
            answer = lambda timeout, **arguments: queries.query(dead.path, arguments)  # noqa: ARG005, E731
            dead.relctl.client.answers["event_logger", "query"] = answer
        elif turns == 3:
            raise KeyboardInterrupt

    dead.relctl.client.on_wait = next_turn
    messages = [line["message"] for line in dead.relctl("--json", "logs", "-f", "-n", "all").lines]
    assert messages[:3] == STORED
    assert set(messages[3:-1]) == UNDRAINED
    assert messages[-1] == "new"
    assert len(messages) == len(set(messages))
