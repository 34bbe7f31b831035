"""`relctl run`: what is asked of the launcher, and how it is waited for."""

import os
from typing import Any

import pytest

from actors.runtime.programs import from_fields, output_path
from app.reliability._cli.run import exit_code_of, free_name
from protocol.errors import ErrorCode, LocalError, RemoteError
from tests.app.cli_fakes import Relctl

SLOT = 16


class Launcher:
    """Answers `run`, and has the program end by itself after a while."""

    def __init__(self, relctl: Relctl, ends: dict[str, Any] | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.taken: set[str] = set()
        self._relctl = relctl
        self._ends = ends

    def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
        assert op == "run"
        program = arguments["program"]
        name = from_fields(program).name
        if name in self.taken:
            raise RemoteError(ErrorCode.USAGE, f"{name} is there already", "")
        self.asked.append(program)
        self._relctl.place(SLOT, name, "starting", kind="program")
        if self._ends is not None:
            ends = self._ends
            self._relctl.ports.on_sleep = lambda now: now > 1001 and self._relctl.place(SLOT, name, pid=0, **ends)
        return {"name": name, "state": "starting", "incarnation": 1, "notify_socket": ""}


def test_nothing_is_started_where_the_system_is_down(relctl: Relctl) -> None:
    refused = relctl("run", "--", "sleep", "1")
    assert refused.code == 10
    assert "relctl up" in refused.err
    relctl.place_all()  # its run.json is there, and nobody listens
    assert relctl("--json", "run", "--", "sleep", "1").error == {
        "code": "not_running",
        "message": f"nothing runs on {relctl.data_dir}",
        "hint": "Start it with `relctl up --detach`.",
    }


def test_the_program_is_asked_for_as_it_was_given(relctl: Relctl) -> None:
    relctl.place_all()
    launcher = relctl.ports.launcher = Launcher(relctl)
    done = relctl("run", "--name", "api", "--restart", "always", "--ready", "notify", "--after", "db", "--after", "q",
                  "--directory", "/", "--env", "A=b=c", "--env", "D=", "--", "sleep", "--json", "-n", "5")  # fmt: skip
    assert (done.code, done.out) == (0, "api is starting. `relctl attach api` shows its output.\n")
    spec = from_fields(launcher.asked[0])
    assert spec.command[1:] == ("--json", "-n", "5")
    assert os.path.isabs(spec.command[0])
    assert (spec.directory, spec.environment, spec.after) == ("/", {"A": "b=c", "D": ""}, ("db", "q"))
    assert (spec.restart, spec.ready, spec.transient) == ("always", "notify", True)
    assert relctl("--json", "run", "./a b", "-x").json == {"name": "a-b", "state": "starting"}
    spec = from_fields(launcher.asked[1])
    assert (spec.command, spec.directory) == (("./a b", "-x"), os.getcwd())


def test_a_name_is_chosen_that_is_free_also_if_somebody_takes_it_meanwhile(relctl: Relctl) -> None:
    relctl.place_all()
    launcher = relctl.ports.launcher = Launcher(relctl)
    os.makedirs(os.path.dirname(output_path(str(relctl.data_dir), "sleep")))
    assert relctl("run", "sleep", "1").out.startswith("sleep-2 is")
    launcher.taken.add("sleep-2")
    assert relctl("run", "sleep", "1").out.startswith("sleep-2-2 is")
    launcher.taken.add("api")
    assert "is there already" in relctl("run", "--name", "api", "sleep", "1").err
    assert free_name("/usr/bin/Python3.11", []) == "python3-11"
    assert free_name("___", []) == "program"
    assert free_name("watchdog", []) == "watchdog-2"  # one of our own names
    assert len(free_name("x" * 300, ["x" * 28])) <= 32


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "--restart", "sometimes", "x"),
        ("run", "--env", "A", "x"),
        ("run", "--env", "=b", "x"),
        ("run", "--name", "Not A Name", "x"),
        ("run", "--name", "broker", "x"),
        ("run", "--directory", "/no/such/place", "x"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(relctl: Relctl, arguments: tuple[str, ...]) -> None:
    relctl.place_all()
    relctl.ports.launcher = Launcher(relctl)
    assert relctl(*arguments).code == 2


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({"state": "stopped", "reason": "exited with code 0"}, 0),
        ({"state": "stopped", "reason": "exited with code 7: it said"}, 7),
        ({"state": "quarantined", "reason": "killed by signal 9 (SIGKILL)"}, 137),
        ({"state": "stopped", "reason": "requested by ann"}, 1),
    ],
)
def test_waiting_ends_with_the_exit_code_of_the_program(relctl: Relctl, ends: dict[str, Any], code: int) -> None:
    relctl.place_all()
    relctl.ports.launcher = Launcher(relctl, ends)
    path = output_path(str(relctl.data_dir), "api")
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"of yesterday\n")

    def end(now: float) -> None:
        if now > 1000.5 and os.path.getsize(path) < 20:
            with open(path, "ab") as file:
                file.write(b"hello\nlast word")
        if now > 1001:
            relctl.place(SLOT, "api", pid=0, **ends)

    class Ending(Launcher):
        def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
            answer = super().__call__(op, **arguments)
            relctl.ports.on_sleep = end
            return answer

    relctl.ports.launcher = Ending(relctl, ends)
    done = relctl("run", "--name", "api", "--wait", "--", "x")
    assert (done.code, done.out) == (code, "hello\nlast word")


def test_waiting_goes_on_while_it_waits_for_others(relctl: Relctl) -> None:
    relctl.place_all()

    def launcher(op: str, **arguments: Any) -> dict[str, Any]:
        relctl.place(SLOT, "api", "stopped", kind="program", pid=0, incarnation=0, reason="waits for db")
        relctl.ports.on_sleep = lambda now: (
            relctl.place(SLOT, "api", "stopped", kind="program", pid=0, reason="exited with code 3")
            if now > 1010
            else None
        )
        return {"name": "api", "state": "stopped", "incarnation": 0}

    relctl.ports.launcher = launcher
    assert relctl("run", "--name", "api", "--wait", "--", "x").code == 3
    assert relctl.ports.now > 1010


def test_an_exit_is_called_as_a_shell_calls_it() -> None:
    assert exit_code_of("exited with code 126: cannot run it") == 126
    assert exit_code_of("killed by signal 15 (SIGTERM)") == 143
    assert exit_code_of("hung: frozen") == 1


def test_a_launcher_that_does_not_answer_is_told_as_it_is(relctl: Relctl) -> None:
    relctl.place_all()

    def launcher(op: str, **arguments: Any) -> dict[str, Any]:
        raise LocalError(ErrorCode.DEADLINE_PASSED, "the launcher has not answered", "")

    relctl.ports.launcher = launcher
    assert relctl("--json", "run", "x").error["code"] == "deadline_passed"
