"""M11: hosts that survive. Real ones, on a real system: killed, hung, stopped, and without a system at all."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import paths
from actors.runtime.paths import EVIDENCE_DIR
from app.reliability._host_core import End, Outcome, outcome_of
from app.reliability.event_logger import EventLogger
from app.system_startup import SystemApplication
from protocol.errors import LocalError, ReliabilityError
from tests.chaos.system import MANY_RESTARTS, ROOT, System, running, wait_until
from tests.reliability.hosts import HANG_TIMEOUT_S, PATIENCE_S, SCRIPTS, UNSAVED, Host, host, launcher, output_of, start

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="programs that notify, and states in /proc"),
]

KINDS = pytest.mark.parametrize("kind", ["async", "plain"])


@pytest.fixture(name="system", scope="module")
def _system() -> Iterator[System]:
    with running(config=MANY_RESTARTS) as system:
        yield system
        system.stop()


@pytest.fixture(name="by_hand", params=[True, False], ids=["by hand", "by the launcher"])
def _by_hand(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(name="name")
def _name(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test, as the names of programs are."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name.lower().removeprefix("test_"))[-32:].strip("-")


def events_of(system: System, component: str) -> list[dict[str, Any]]:
    """The events of a component, oldest first."""

    async def ask() -> list[dict[str, Any]]:
        logger = EventLogger(system.data_dir)
        try:
            return await logger.get_events(component=component)
        finally:
            await logger.close()

    return asyncio.run(ask())


def event(system: System, component: str, event_type: str) -> dict[str, Any]:
    """Wait for an event."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [item for item in events_of(system, component) if item["event_type"] == event_type]
        return bool(found)

    wait_until(there, PATIENCE_S, f"the event {event_type} of {component}", 0.1)
    return found[-1]


@KINDS
def test_a_killed_host_is_back_with_its_last_state(
    system: System, tmp_path: Path, name: str, kind: str, by_hand: bool
) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=by_hand) as made:
        assert made.began()[0][2:] == [None, None]
        for life in (2, 3):
            pid, kept = made.pid(), made.kept()
            os.kill(pid, signal.SIGKILL)
            made.wait_working(life)
            recovered = made.began()[-1][2]
            assert recovered["count"] >= kept
            assert recovered == made.began()[-1][3]


@KINDS
def test_a_hung_host_is_replaced_although_a_thread_of_it_runs_on(
    system: System, tmp_path: Path, name: str, kind: str, by_hand: bool
) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=by_hand) as made:
        made.wait_judged()
        pid = made.pid()
        made.order("hang")
        wait_until(lambda: system.replaced(name, pid), PATIENCE_S, "it is replaced")
        made.wait_working(2)
        assert made.began()[1][2] == {"count": UNSAVED}, f"what only it had is lost: {events_of(system, name)[-5:]}"
        assert event(system, name, "last_checkpoint")["severity_text"] == "NOTICE"
        evidence = json.loads((system.runtime_dir / EVIDENCE_DIR / f"{name}-1.json").read_text())
        assert (evidence["pid"], evidence["judged_by"]) == (pid, "beats")
        (began_s,) = [item[2] for item in made.said() if item[1] == "hangs"]
        found_s = evidence["mono_ms"] / 1000 - began_s  # its last beat is up to a quarter of the timeout older
        assert HANG_TIMEOUT_S / 2 <= found_s <= HANG_TIMEOUT_S + 3.0
        print(f"hang found after {found_s:.2f} s of {HANG_TIMEOUT_S} s")
        assert "in hang_here" in evidence["stacks"]
        assert "in helper" in evidence["stacks"], "all threads, not only the one that hangs"


@KINDS
def test_a_stopped_host_begins_anew_and_knows_what_it_left(
    system: System, tmp_path: Path, name: str, kind: str, by_hand: bool
) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=by_hand) as made:
        launcher(system, "stop", name=name)
        wait_until(lambda: system.state(name) == "stopped" and not made.pid(), PATIENCE_S, "it stops")
        launcher(system, "start", name=name)
        made.wait_working(2)
        _, _, recovered, last_state = made.began()[1]
        assert recovered is None
        assert last_state["count"] > 1000, "what it did while it stopped is in the last checkpoint"


@KINDS
def test_an_exception_ends_it_with_1_and_is_told(system: System, tmp_path: Path, name: str, kind: str) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=True) as made:
        made.order("raise")
        assert made.process is not None
        assert made.process.wait(PATIENCE_S) == 1
        assert "ValueError: as it was told" in output_of(made)
        failed = event(system, name, "application_failed")
        assert failed["severity_text"] == "CRITICAL"
        assert "in main" in failed["attributes"]["exception"]["traceback"]
        made.wait_working(2)
        assert made.began()[1][2]["count"] >= 1, "that was a crash"


@KINDS
def test_a_result_is_the_exit_code_and_a_failure(system: System, tmp_path: Path, name: str, kind: str) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=False) as made:
        made.order("exit")
        made.wait_working(2)
        wait_until(lambda: "exited with code 7" in system.relctl("restart-status", name).stdout, PATIENCE_S, "told")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@KINDS
def test_a_signal_ends_it_well(system: System, tmp_path: Path, name: str, kind: str, number: int) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=True) as made:
        assert made.process is not None
        made.process.send_signal(number)
        assert made.process.wait(PATIENCE_S) == 128 + number
        wait_until(lambda: system.state(name) == "stopped", PATIENCE_S, "it stays down")


@KINDS
def test_who_does_not_look_at_stopping_is_interrupted(system: System, tmp_path: Path, name: str, kind: str) -> None:
    with host(system, name, tmp_path, SCRIPTS[kind], by_hand=True) as made:
        assert made.process is not None
        made.order("rest")
        wait_until(lambda: made.said()[-1][1] == "rests", PATIENCE_S, "it rests")
        since = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        if kind == "plain":
            time.sleep(0.5)  # the second signal is told from the first
            made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert kind == "plain" or time.monotonic() - since >= 4.0, "half of the time that a stop may take"


def test_a_second_one_of_the_same_name_does_not_run(system: System, tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    with host(system, name, tmp_path, SCRIPTS["async"], by_hand=True) as made:
        other = start(system, name, tmp_path / "other", SCRIPTS["async"])
        assert other.wait(PATIENCE_S) == 11
        assert f"{name} runs already" in (tmp_path / "other/output").read_text()
        assert not (tmp_path / "other/said").exists()
        made.wait_working()


@pytest.mark.portable
@KINDS
def test_it_survives_on_the_portable_ports_too(tmp_path: Path, kind: str) -> None:
    with running(portable=True) as system, host(system, "ported", tmp_path, SCRIPTS[kind], by_hand=True) as made:
        pid, kept = made.pid(), made.kept()
        os.kill(pid, signal.SIGKILL)
        made.wait_working(2)
        assert made.began()[1][2]["count"] >= kept
        pid = made.pid()
        made.wait_judged()
        made.order("hang")
        wait_until(lambda: system.replaced("ported", pid), PATIENCE_S, "it is replaced")
        made.wait_working(3)
        assert made.began()[2][2] == {"count": UNSAVED}
        system.stop()


def test_two_that_find_no_system_start_one(tmp_path: Path) -> None:
    with running(start=False) as system:
        hosts = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            hosts.append(Host(system, name, tmp_path / name, start(system, name, tmp_path / name, SCRIPTS["plain"])))
        try:
            for made in hosts:
                wait_until(lambda made=made: made.kept() > 0, PATIENCE_S, f"{made.name}: {output_of(made)}")
                made.wait_working()
            system.stop()
        finally:
            for made in hosts:
                if made.process is not None:
                    made.process.kill()
                    made.process.wait()


def test_a_host_starts_the_system_if_there_is_none(tmp_path: Path) -> None:
    with running(start=False) as system, host(system, "alone", tmp_path, SCRIPTS["async"], by_hand=True) as made:
        assert system.ready("checkpointer")
        assert made.process is not None
        system.stop()
        assert made.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        again = start(system, "alone", tmp_path, SCRIPTS["async"])  # a start by a person always works
        try:
            made.wait_working(2)
            assert made.began()[1][2] is None
            assert made.began()[1][3]["count"] > 1000
            system.stop()
        finally:
            again.kill()
            again.wait()


@KINDS
def test_without_a_system_it_runs_all_the_same_and_joins_it_later(tmp_path: Path, kind: str) -> None:
    with running(start=False, config="no_such_key = 1\n") as system:
        first = start(system, "lonely", tmp_path, SCRIPTS[kind])
        made = Host(system, "lonely", tmp_path, first)
        try:
            wait_until(lambda: made.kept() > 3, PATIENCE_S, "it works")
            said = (tmp_path / "output").read_text()
            assert said.count("runs without supervision") == 1
            assert "no_such_key" in said
            first.kill()
            first.wait()
            second = made.process = start(system, "lonely", tmp_path, SCRIPTS[kind])
            wait_until(lambda: len(made.began()) == 2, PATIENCE_S, "it is back")
            assert made.began()[1][2]["count"] >= 4
            (system.data_dir / paths.CONFIG_FILE).write_text("")
            system.start()
            wait_until(lambda: made.pid() == second.pid, PATIENCE_S, "it is supervised")
            made.wait_judged()
            told = "runs without supervision"
            wait_until(lambda: told in str(events_of(system, "app.system_startup")), PATIENCE_S, "told of", 0.2)
            made.order("hang")
            wait_until(lambda: system.replaced("lonely", second.pid), PATIENCE_S, "it is replaced")
            made.wait_working(3)
            assert made.began()[2][2] == {"count": UNSAVED}
            system.stop()
        finally:
            for process in (first, made.process):
                if process is not None:
                    process.kill()
                    process.wait()


NOTHING = "import os; os.environ['PYTHONUNBUFFERED'] = '1'\nfrom app.system_startup import SystemApplication\n"


def test_without_an_application_it_says_so_and_waits(system: System, tmp_path: Path) -> None:
    process = start(system, "nothing", tmp_path, NOTHING + "SystemApplication().run()")
    try:
        wait_until(lambda: system.pid("nothing") == process.pid, PATIENCE_S, "it is supervised")
        wait_until(lambda: "no application was given" in (tmp_path / "output").read_text(), PATIENCE_S, "it says so")
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_a_subclass_has_its_own_main(system: System, tmp_path: Path) -> None:
    script = NOTHING + "class Mine(SystemApplication):\n    def main(self):\n        return 5\nMine().run()"
    process = start(system, "mine", tmp_path, script)
    assert process.wait(PATIENCE_S) == 5
    wait_until(lambda: not system.pid("mine") or system.state("mine") == "quarantined", PATIENCE_S, "its end is seen")
    launcher(system, "stop", name="mine")


def test_a_coroutine_from_a_plain_function_is_refused(system: System, tmp_path: Path) -> None:
    script = NOTHING + "async def main(app): pass\nSystemApplication(lambda app: main(app)).run()"
    process = start(system, "lambda", tmp_path, script)
    try:
        assert process.wait(PATIENCE_S) == 1
        assert "hand over the coroutine function itself" in (tmp_path / "output").read_text()
    finally:
        launcher(system, "stop", name="lambda")


def test_names_are_checked_where_they_are_given() -> None:
    with pytest.raises(LocalError, match="no application may be called"):
        SystemApplication(name="My App")
    with pytest.raises(LocalError, match="watchdog"):
        SystemApplication(name="watchdog")
    app = SystemApplication(name="mine")
    with pytest.raises(ReliabilityError, match="does not run"):
        app.checkpoint({})


@pytest.mark.parametrize(
    ("end", "result", "number", "outcome"),
    [
        (End.RETURNED, None, 0, Outcome(0, checkpoint=True, ends_run=True, leaves=True)),
        (End.RETURNED, {"any": "thing"}, 0, Outcome(0, checkpoint=True, ends_run=True, leaves=True)),
        (End.RETURNED, None, 15, Outcome(143, checkpoint=True, ends_run=True, leaves=True)),
        (End.RETURNED, 3, 0, Outcome(3, checkpoint=True, ends_run=False, leaves=False)),
        (End.RETURNED, 3, 15, Outcome(3, checkpoint=True, ends_run=False, leaves=False)),
        (End.RETURNED, "no such file", 0, Outcome(1, checkpoint=True, ends_run=False, leaves=False)),
        (End.CANCELLED, None, 2, Outcome(130, checkpoint=True, ends_run=True, leaves=True)),
        (End.TORN, None, 15, Outcome(143, checkpoint=False, ends_run=False, leaves=True)),
        (End.TORN, None, 0, Outcome(130, checkpoint=False, ends_run=False, leaves=True)),
        (End.RAISED, None, 15, Outcome(1, checkpoint=False, ends_run=False, leaves=False)),
    ],
)
def test_what_follows_from_the_end_of_main(end: End, result: object, number: int, outcome: Outcome) -> None:
    assert outcome_of(end, result, number) == outcome


def test_the_example_of_the_readme_does_what_it_says(system: System, tmp_path: Path) -> None:
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    (example,) = [block.split("```")[0] for block in blocks if "SystemApplication" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10

    def count() -> int:
        shown = system.relctl("--json", "checkpoint", "show", "notes")
        return int(json.loads(shown.stdout)["state"]["count"]) if shown.returncode == 0 else 0

    process = start(system, "notes", tmp_path, example)
    try:
        wait_until(lambda: system.pid("notes") == process.pid and count() >= 2, PATIENCE_S, "it counts", 0.1)
        before = count()
        process.kill()
        process.wait()
        wait_until(lambda: system.ready("notes") and count() > before, PATIENCE_S, "it goes on", 0.1)
        launcher(system, "stop", name="notes")
        wait_until(lambda: system.state("notes") == "stopped", PATIENCE_S, "it stops")
        before = count()
        launcher(system, "start", name="notes")
        wait_until(lambda: system.ready("notes") and count() > before, PATIENCE_S, "it goes on after a stop", 0.1)
    finally:
        launcher(system, "stop", name="notes")
        process.kill()
        process.wait()
