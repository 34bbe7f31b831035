"""The launcher's small parts: durable copies, the console, what the board says, and the settings' order."""

import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher
from actors.runtime import config as runtime_config
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, ProcessKind, ProcessRecord, ProcessState, WatchdogRecord
from protocol.errors import LocalError
from supervisor import console
from supervisor.budget import Budget
from supervisor.copies import DurableCopies
from supervisor.core import Child, Ending
from supervisor.last_words import with_last_words
from supervisor.model import ChildSpec, Exit, State
from supervisor.options import Options, parse
from supervisor.port import SOURCE_ROOT, ExitStatus, Launch
from supervisor.settings import Settings
from supervisor.slots import found_in, how_it_ended, record_of, record_of_launcher

# --- durable copies ---------------------------------------------------------------------------------------------------


class FakeCopy:
    """A one-shot process that ends when the test says so."""

    identity = ProcessIdentity(1, 1, "boot")
    exit_fd = None

    def __init__(self) -> None:
        self.status: ExitStatus | None = None

    def poll_exit(self) -> ExitStatus | None:
        return self.status

    def release(self) -> None: ...
    def terminate(self, *, thaw: bool) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


class FakeControl:
    """Starts fakes, and remembers them."""

    def __init__(self) -> None:
        self.started: list[FakeCopy] = []
        self.full = False

    def copy_durably(self, source: str, target: str) -> FakeCopy:
        if self.full:
            raise BlockingIOError
        self.started.append(FakeCopy())
        return self.started[-1]

    def prepare(self, modules: object) -> dict[str, str]:
        return {}

    def provide(self) -> None: ...

    def dismiss(self) -> None: ...

    def spawn(self, launch: Launch) -> FakeCopy:
        raise NotImplementedError

    def adopt(self, identity: ProcessIdentity) -> FakeCopy | None:
        raise NotImplementedError


def copies() -> tuple[DurableCopies, FakeControl]:
    control = FakeControl()
    return DurableCopies(control, selectors.DefaultSelector()), control


def test_one_copy_at_a_time_and_what_is_asked_meanwhile_is_one_more() -> None:
    durable, control = copies()
    done: list[str] = []
    durable.request("s", "t", lambda ok: done.append(f"first {ok}"))
    durable.poll()
    for number in (2, 3):
        durable.request("s", "t", lambda ok, number=number: done.append(f"{number} {ok}"))
    durable.poll()
    assert len(control.started) == 1
    assert done == []
    control.started[0].status = ExitStatus(exit_code=0)
    durable.poll()
    assert done == ["first True"]
    assert len(control.started) == 2
    assert not durable.is_safe("t")
    control.started[1].status = ExitStatus(exit_code=0)
    durable.poll()
    assert done == ["first True", "2 True", "3 True"]
    assert durable.is_safe("t")
    assert not durable.busy


@pytest.mark.parametrize("status", [ExitStatus(exit_code=1), ExitStatus(signal=9), ExitStatus()])
def test_a_copy_that_failed_is_told_and_not_safe(status: ExitStatus) -> None:
    durable, control = copies()
    done: list[bool] = []
    durable.request("s", "t", done.append)
    durable.poll()
    control.started[0].status = status
    durable.poll()
    assert done == [False]
    assert not durable.is_safe("t")


def test_no_room_for_a_process_is_told_and_the_next_request_tries_again() -> None:
    durable, control = copies()
    done: list[bool] = []
    control.full = True
    durable.request("s", "t", done.append)
    durable.poll()
    assert done == [False]
    control.full = False
    durable.request("s", "t", done.append)
    durable.poll()
    control.started[0].status = ExitStatus(exit_code=0)
    durable.poll()
    assert done == [False, True]


def test_targets_do_not_wait_for_each_other() -> None:
    durable, control = copies()
    durable.request("s", "stalled")
    durable.poll()
    durable.request("s", "other")
    durable.poll()
    control.started[1].status = ExitStatus(exit_code=0)
    durable.poll()
    assert durable.is_safe("other")
    assert durable.busy


# --- the console ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="pipes that can be polled")
def test_a_full_pipe_does_not_hold_the_launcher_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as output, os.fdopen(reader, "rb") as pipe:
        monkeypatch.setattr(sys, "stdout", output)
        console.say("all is well")
        for _ in range(5000):  # many times what the pipe holds; it would wait for ever
            console.say("x" * 500)
        os.set_blocking(reader, False)
        lines = pipe.read().splitlines()
    assert lines[0] == b"relctl: all is well"
    assert 10 < len(lines) < 5000
    assert set(lines[1:]) == {b"relctl: " + b"x" * 500}


def test_no_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    console.say("to nobody")


# --- the board --------------------------------------------------------------------------------------------------------

BUDGET = Budget(3, 60.0)
SPEC = ChildSpec("one", BUDGET, 10.0, 5.0, 0)
ME = ProcessIdentity(77, 700, "boot")


def runs(*identities: ProcessIdentity) -> Callable[[ProcessIdentity], bool]:
    return lambda identity: identity in identities


def record(state: str = "ready", pid: int = 77, incarnation: int = 5, **fields: object) -> LauncherRecord:
    values: dict[str, object] = {
        "name": "one", "kind": "actor", "pid": pid, "start_time": 700 if pid else 0, "incarnation": incarnation,
        "state": state, "since_ms": 9000, "started_ms": 8000, "restarts_in_period": 0, "restarts_left": 3,
        "retry_at_ms": 0, "hang_timeout_ms": 5000, "start_timeout_ms": 10000,
    }  # fmt: skip
    return LauncherRecord(**(values | fields))  # type: ignore[arg-type]


def test_what_runs_is_found_with_its_identity() -> None:
    found, identity = found_in(record(), None, None, "boot", runs(ME))
    assert identity == ME
    assert (found.state, found.alive, found.had_process, found.incarnation) == (State.READY, True, True, 5)
    assert (found.since, found.started_at) == (9.0, 8.0)


def test_a_pid_of_somebody_else_is_a_dead_process() -> None:
    found, identity = found_in(record(), None, None, "boot", runs(ProcessIdentity(77, 701, "boot")))
    assert identity is None
    assert (found.alive, found.had_process) == (False, True)


def test_one_that_was_started_and_not_yet_on_record_is_found_by_its_own_word() -> None:
    own = ProcessRecord(77, 700, 5, "starting")
    found, identity = found_in(record("starting", pid=0), own, None, "boot", runs(ME))
    assert identity == ME
    assert found.alive
    found, identity = found_in(record("starting", pid=0), own, None, "boot", runs())
    assert identity is None
    assert not found.had_process, "it never was on record, so nobody has lost anything"
    stale = ProcessRecord(77, 700, 4, "ready")
    assert found_in(record("starting", pid=0), stale, None, "boot", runs(ME))[1] is None


def test_the_process_s_own_word_that_it_leaves_counts_for_its_life_only() -> None:
    assert found_in(record(), ProcessRecord(77, 700, 5, "stopping"), None, "boot", runs(ME))[0].leaving
    assert not found_in(record(), ProcessRecord(77, 700, 4, "stopping"), None, "boot", runs(ME))[0].leaving


def test_one_that_was_being_killed_for_a_failure_has_failed() -> None:
    found, _ = found_in(record("hung", reason="hung: frozen"), None, None, "boot", runs())
    assert (found.state, found.leaving, found.exit.reason) == (State.READY, False, "hung: frozen")


def test_a_word_of_a_newer_release_is_no_error() -> None:
    assert found_in(record("levitating", pid=0), None, None, "boot", runs())[0].state is State.STOPPED


@pytest.mark.parametrize(
    ("verdict", "status", "expected"),
    [
        (None, ExitStatus(exit_code=3), Exit("exited with code 3", 3)),
        (None, ExitStatus(signal=9), Exit("killed by signal 9 (SIGKILL)", None, 9)),
        (None, ExitStatus(signal=250), Exit("killed by signal 250 (unknown)", None, 250)),
        (
            WatchdogRecord(5, "hung", "frozen", 1, "one-5.json"),
            ExitStatus(signal=9),
            Exit("hung: frozen", None, 9, "one-5.json"),
        ),
        (WatchdogRecord(4, "hung", "frozen", 1), ExitStatus(signal=9), Exit("killed by signal 9 (SIGKILL)", None, 9)),
        (WatchdogRecord(5, "suspect", "", 1), ExitStatus(signal=9), Exit("killed by signal 9 (SIGKILL)", None, 9)),
        (None, None, Exit("ended: while no launcher ran")),
    ],
)
def test_how_a_life_ended(verdict: WatchdogRecord | None, status: ExitStatus | None, expected: Exit) -> None:
    assert how_it_ended(verdict, 5, status) == expected


def test_the_last_words_of_one_that_failed_are_told(tmp_path: Path) -> None:
    words = tmp_path / "stderr"
    words.write_text("Traceback ...\n" + "x" * 5000 + "\nImportError: no module named zmq\n\n")
    failed = Exit("exited with code 1", 1)
    expected = "exited with code 1: ImportError: no module named zmq"
    assert with_last_words(failed, str(words)).reason == expected
    assert with_last_words(Exit("exited with code 0", 0), str(words)).reason == "exited with code 0"
    assert with_last_words(failed, str(tmp_path / "none")) == failed
    words.write_text("\n")
    assert with_last_words(failed, str(words)) == failed


def test_the_board_says_hung_of_one_that_is_being_killed_for_a_failure() -> None:
    child = Child(SPEC, State.STOPPING, incarnation=5, ending=Ending("hung: frozen", failed=True), reason="before")
    shown = record_of(child, ProcessKind.ACTOR, ME, 5.0, 100.0)
    assert (shown.state, shown.reason, shown.pid) == (ProcessState.HUNG, "hung: frozen", 77)
    child.ending = Ending("restart requested by me", failed=False)
    shown = record_of(child, ProcessKind.ACTOR, None, 5.0, 100.0)
    assert (shown.state, shown.reason, shown.pid) == (ProcessState.STOPPING, "before", 0)


def test_every_state_of_the_core_is_one_of_the_board() -> None:
    assert {str(state) for state in State} <= {str(state) for state in ProcessState}


def test_survivors_are_told_when_the_launcher_may_be_replaced() -> None:
    own = Child(ChildSpec("launcher", BUDGET, 1.0, 1.0, 0), charges=(50.0, 60.0))
    assert record_of_launcher(own, ME, 5.0, 70.0).retry_at_ms == 0
    own.charges = (50.0, 60.0, 65.0)
    assert record_of_launcher(own, ME, 5.0, 70.0).retry_at_ms == 110_000
    never = Child(ChildSpec("launcher", Budget(0, 60.0), 1.0, 1.0, 0))
    assert record_of_launcher(never, ME, 5.0, 70.0).retry_at_ms == 130_000


# --- the composition root ---------------------------------------------------------------------------------------------


def test_a_stop_takes_the_actors_from_the_end_then_the_watchdog_then_the_broker() -> None:
    order = sorted(launcher.definitions(), key=lambda definition: definition.stop_rank)
    assert [definition.name for definition in order] == [*reversed(launcher.ACTORS), "watchdog", "broker"]
    assert launcher.ACTORS[0] == "event_logger", "it takes in what the others still have to tell"
    slots = [definition.slot for definition in launcher.definitions()]
    assert slots == sorted(set(slots)), "nobody shares a slot"


def test_the_default_configuration_lies_in_or_beside_the_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert launcher._config_path(None, str(data)) is None
    (tmp_path / "reliability.toml").write_text("")
    assert launcher._config_path(None, str(data)) == str(tmp_path / "reliability.toml")
    (data / "reliability.toml").write_text("")
    assert launcher._config_path(None, str(data)) == str(data / "reliability.toml")
    assert launcher._config_path(str(tmp_path / "other"), str(data)) == str(tmp_path / "other")


def settings_for(*argv: str) -> Settings:
    return launcher._settings(parse(argv))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[supervision]\nrestart_maximum = 3\n", "restart_maximum"),
        ("[broker]\nrestart_max = 3\n", "restart_max"),
        ("[nonsense]\n", "nonsense"),
        ("[program.web]\ncommand = ['x']\ncolour = 1\n", "colour"),
    ],
)
def test_a_configuration_that_is_wrong_is_named_before_anything_starts(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "reliability.toml"
    path.write_text(text)
    with pytest.raises(LocalError, match=problem) as caught:
        settings_for("--config", str(path))
    assert caught.value.exit_code == 2


def test_the_configuration_of_every_part_is_known() -> None:
    assert settings_for("--data-dir", "/nonexistent/data").supervision == runtime_config.SupervisionConfig()


def test_a_command_is_the_program_main_and_starts_where_the_launcher_did(tmp_path: Path) -> None:
    path = tmp_path / "reliability.toml"
    path.write_text("[program.web]\ncommand = ['x']\n")
    web, main = settings_for("--config", str(path), "--", "my", "program").programs
    assert (web.name, web.directory) == ("web", str(tmp_path))
    assert (main.name, main.command, main.directory) == ("main", ("my", "program"), os.getcwd())


def test_two_programs_cannot_both_be_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reliability.toml"
    path.write_text("[program.main]\ncommand = ['x']\n")
    assert launcher.main(["--config", str(path), "--data-dir", str(tmp_path), "--", "my", "program"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        ([], Options()),
        (["--data-dir", "d", "--successor", "--config", "c", "--portable"], Options("c", "d", True, True)),
        (["--data-dir=d", "--conf", "c"], Options("c", "d", command=[])),
        (["--portable", "--", "program", "--flag"], Options(portable=True, command=["program", "--flag"])),
    ],
)
def test_the_command_line_is_understood(argv: list[str], meant: Options) -> None:
    assert parse(argv) == meant


@pytest.mark.parametrize(
    ("argv", "code"), [(["--data-dir"], 2), (["--data-dir", "--portable"], 2), (["--no"], 2), (["-h"], 0)]
)
def test_argparse_has_the_last_word(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(argv)
    assert left.value.code == code
    told = capsys.readouterr()
    assert "launcher.py" in told.out + told.err


def test_what_is_usual_needs_no_argparse() -> None:
    code = (
        "import importlib, sys, launcher, supervisor.posix, supervisor.options\n"
        "supervisor.options.parse(['--data-dir', 'd'])\n"
        "for definition in launcher.definitions(): importlib.import_module(definition.module)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not {"argparse", "pathlib"} & set(loaded.split())
