"""`relctl why`: the story in plain sentences, and no connection that is not there."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime import paths
from actors.runtime.database import Database
from actors.runtime.journal import Journal, new_entry
from app.reliability._cli.output import duration
from app.reliability._cli.why_core import Facts, Story, stands_at, tell
from protocol.severity import Severity
from tests.app.cli_fakes import Relctl

NOW = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
AT = NOW - timedelta(minutes=3)
STACKS = """Current thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/home/ann/assistant/pool.py", line 42 in take
  File "/home/ann/assistant/main.py", line 9 in <module>

Thread 0x00007f02 (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 468 in select
  File "/usr/lib/python3.11/asyncio/base_events.py", line 1871 in _run_once

Thread 0x00007f03 (most recent call first):
  File "/home/ann/assistant/llm.py", line 7 in answer
"""


def event(before_s: float, component: str, event_type: str, message: str, level: Severity, **attributes: Any) -> Any:
    timestamp = (AT - timedelta(seconds=before_s)).isoformat().replace("+00:00", "Z")
    return {
        "id": f"{component}{before_s}{message}", "timestamp": timestamp, "severity_number": int(level),
        "component": component, "event_type": event_type, "message": message, "attributes": attributes,
    }  # fmt: skip


def story(reason_given: str, *events: Any, manual: bool = False, recovery_ms: int | None = 66, **facts: Any) -> Story:
    restart = {"timestamp": AT.isoformat(), "reason": reason_given, "manual": manual, "recovery_ms": recovery_ms}
    values: dict[str, Any] = {"state": "ready", "restarts_in_period": 1, "restarts_left": 2} | facts
    return tell(Facts("api", NOW, restart=restart, events=events, **values), duration)


def test_a_kill_for_want_of_memory() -> None:
    told = story(
        "killed by signal 9 (SIGKILL)",
        event(
            20, "health_monitor", "health_changed", "memory is critical: 60 MB left", Severity.CRITICAL, check="memory"
        ),
    )
    assert told.what == "api ended 3 min ago (killed by signal 9 (SIGKILL))."
    assert [item["message"] for item in told.before] == ["memory is critical: 60 MB left"]
    assert told.why == [
        "That means: something outside killed it: a person, a script, or the kernel when memory ran out.",
        "Memory was short just before, so it was probably the kernel that killed it.",
    ]
    assert told.done == [
        "It was started again and was ready 66 ms after its end.",
        "It runs and is ready.",
        "2 of 3 restarts of the period are left.",
    ]


def test_a_hang_says_where_its_threads_stood() -> None:
    evidence = {"silent_s": 30.2, "hang_timeout_s": 30.0, "stacks": STACKS}
    told = story("hung: stuck in a loop", evidence=evidence, last_words=["", "asking the model ..."])
    assert told.why == [
        "It made no progress: stuck in a loop.",
        "It had been silent for 30.2 s; after 30.0 s it counts as hung.",
    ]
    assert told.doing == [
        "A thread stood in wait (/usr/lib/python3.11/threading.py, line 320),"
        " called from take (/home/ann/assistant/pool.py, line 42).",
        "A thread stood in answer (/home/ann/assistant/llm.py, line 7).",
        "A thread stood in select (/usr/lib/python3.11/selectors.py, line 468).",
        "Its last words: asking the model ...",
    ]
    assert told.done[0] == "The watchdog named the cause, and it was ended."


@pytest.mark.parametrize("stacks", ["", "nonsense", "Thread 0x1 (most recent call first):\n  <no Python frame>\n"])
def test_a_dump_that_says_nothing_is_not_told(stacks: str) -> None:
    assert stands_at(stacks) == []


def test_a_program_without_python_stacks_shows_what_its_threads_did() -> None:
    threads = [{"state": "S", "waits_in": "futex_do_wait"}] * 3 + [{"state": "R", "waits_in": ""}]
    told = story("hung: stuck in a loop", evidence={"threads": threads, "threads_count": 4, "stacks": ""})
    assert told.doing == ["Of its 4 threads: 3 asleep in futex_do_wait, 1 busy."]


def test_what_cannot_have_led_to_it_is_not_connected_with_it() -> None:
    told = story(
        "exited with code 2",
        event(61, "health_monitor", "health_changed", "disk is critical: 1 MB free", Severity.CRITICAL, check="disk"),
        event(-5, "broker", "restart", "broker: exited", Severity.WARN),
        event(5, "api", "restart", "api: exited with code 2", Severity.WARN),
        event(5, "watchdog", "process_hung", "api hangs", Severity.ERROR, name="api"),
        event(5, "api", "output", "error: no such table", Severity.ERROR),
        event(5, "shop", "order_paid", "order 7", Severity.NOTICE),
        event(10, "health_monitor", "health_changed", "memory is warning: 300 MB", Severity.WARN, check="memory"),
    )
    assert [item["message"] for item in told.before] == ["memory is warning: 300 MB"]
    assert told.why == ["It ended by itself with an error; the code is its own."]


def test_those_it_comes_after_the_disk_the_broker_and_the_clock_are_connected() -> None:
    told = story(
        "exited with code 1",
        event(30, "health_monitor", "health_changed", "disk is critical: 1 MB free", Severity.CRITICAL, check="disk"),
        event(20, "watchdog", "clock_jumped", "the wall clock was set by +3600.0 s", Severity.NOTICE),
        event(10, "broker", "restart", "broker: killed", Severity.WARN),
        event(2, "db", "restart", "db: exited with code 5", Severity.WARN),
        event(1, "cache", "restart", "cache: exited with code 5", Severity.WARN),
        after=("db", "queue"),
    )
    assert told.why[1:] == [
        "The disk was nearly full just before, which may be why it failed.",
        "The wall clock was set just before, which programs that measure time by it do not expect.",
        "db, which it comes after, had ended just before.",
        "The broker had ended just before.",
    ]
    assert [item["component"] for item in told.before] == ["health_monitor", "watchdog", "broker", "db", "cache"]


def test_much_that_went_wrong_is_told_in_few_lines_the_worst_of_it() -> None:
    crowd = [event(50 - number, "sh", "restart", "sh: exited with code 7", Severity.WARN) for number in range(30)]
    others = [event(55, f"c{number}", "t", "something", Severity.WARN) for number in range(20)]
    worst = event(59, "launcher", "process_quarantined", "sh is quarantined", Severity.CRITICAL)
    told = story("exited with code 1", worst, *others, *crowd)
    assert len(told.before) == 8
    assert told.before[0]["message"] == "sh is quarantined"
    assert told.before[-1]["times"] == 30


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"state": "quarantined", "retry_in_s": 600.0}, "It failed too often and is quarantined: it is tried again in"),
        ({"state": "backoff", "retry_in_s": 0.5}, "It does not run; it is tried again in 500 ms."),
        (
            {"state": "stopped", "reason": "requested by ann"},
            "It is stopped (requested by ann) and stays so until `relctl start api`.",
        ),
        ({"state": "stopped", "reason": "waits for db"}, "It is not started yet: it waits for db."),
        ({"state": ""}, "It is not on the liveness board: the system does not run."),
    ],
)
def test_where_it_is_now(facts: dict[str, Any], sentence: str) -> None:
    told = story("exited with code 127: cannot run x", recovery_ms=None, **facts)
    assert told.why == ["That means: its command was not found."]
    assert told.done[0].startswith(sentence)


def test_who_was_never_restarted_has_a_short_story() -> None:
    assert tell(Facts("api", NOW, state="ready"), duration).what == "api was never restarted."
    ended = tell(Facts("api", NOW, state="stopped", reason="exited with code 0"), duration)
    assert ended.what == "api was never restarted; it does not run: exited with code 0."


def test_a_restart_by_hand_is_told_as_such() -> None:
    told = story("requested by ann", manual=True)
    assert told.what == "api was restarted on request 3 min ago (requested by ann)."
    assert told.why == []


# --- the command ---


def enter(relctl: Relctl, **fields: Any) -> None:
    Journal(str(relctl.runtime_dir / paths.JOURNAL_DIR), "launcher").append(new_entry(**fields))


def test_it_tells_from_files_alone_when_nobody_answers(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.place(16, "api", incarnation=2, kind="program", restarts_in_period=1, restarts_left=2)
    output = relctl.data_dir / "programs" / "api"
    output.mkdir(parents=True)
    (output / "output.log").write_text("a new life\n")
    (output / "output.log.1").write_text("working\nPanic: \x1b[31mno model\n")
    evidence = {"silent_s": 30.0, "hang_timeout_s": 30.0, "stacks": STACKS}
    (relctl.runtime_dir / paths.EVIDENCE_DIR / "api-1.json").write_text(json.dumps(evidence))
    enter(relctl, kind="event", severity="NOTICE", component="watchdog", event_type="clock_jumped",
          message="the wall clock was set by +3600.0 s", attributes={})  # fmt: skip
    enter(relctl, kind="restart", name="api", incarnation=1, reason="hung: blocked", exit_code=None, signal=9,
          charged=True, manual=False, evidence="api-1.json")  # fmt: skip
    database = Database(str(relctl.data_dir / paths.DATABASE_FILE), SCHEMA)
    EventStore(database).positions(5.0)
    database.close()
    done = relctl("why", "api")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("Offline view from the event log's database")
    assert lines[1] == "In the minute before:"
    assert lines[2].endswith("watchdog  the wall clock was set by +3600.0 s")
    assert lines[4].startswith("api ended ")
    assert lines[5] == "It made no progress: blocked."
    assert "The wall clock was set just before" in done.out
    assert "called from take (/home/ann/assistant/pool.py, line 42)" in done.out
    assert "Its last words: working / Panic: \\x1b[31mno model" in done.out
    assert lines[-1] == f"Evidence: {relctl.runtime_dir}/evidence/api-1.json"
    report = relctl("--json", "why", "api").json
    assert (report["name"], report["state"], report["offline"]) == ("api", "ready", True)
    assert report["restart"]["signal"] == 9
    assert report["before"][0]["event_type"] == "clock_jumped"


def test_an_unknown_name_is_one_clear_error(relctl: Relctl) -> None:
    relctl.place_all()
    relctl.client.answers["event_logger", "restart_status"] = {"processes": []}
    missing = relctl("why", "nope")
    assert missing.code == 1
    assert "nothing is known of 'nope'" in missing.err
    assert "Known: launcher, broker" in missing.err
