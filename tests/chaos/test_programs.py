"""Programs of a user: kept running through everything that can happen to them, and to those who supervise them."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import paths
from actors.runtime.control_client import call_launcher
from actors.runtime.identity import ProcessIdentity, boot_id, start_time_of
from actors.runtime.programs import invocation_id
from protocol.errors import ReliabilityError
from tests.chaos.system import System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]
PATIENCE_S = 30.0
MANY = "restart_max = 10000\n"
FOREVER = "exec sleep 3600"


def program(name: str, script: str, **settings: Any) -> str:
    """Return the table of a program that a shell runs."""
    values = {"command": ["sh", "-c", script], **settings}
    return f"[program.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


@contextmanager
def programs(config: str = "", *, command: tuple[str, ...] = (), data_dir: Path | None = None) -> Iterator[System]:
    """Run a system with programs, and end those as well whatever happens."""
    found: System | None = None
    try:
        with running(config=MANY + config, start=False, data_dir=data_dir) as system:
            found = system
            system.command = command
            system.start()
            yield system
    finally:
        for pid in left(found) if found is not None else []:  # now that nobody brings them back
            os.kill(pid, signal.SIGKILL)


def belongs(pid: int, system: System) -> bool:
    """Whether a process was started as, or by, a program of this system."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    ours = f"{paths.DATA_DIR_VARIABLE}={system.data_dir}".encode() in environment
    return ours and any(item.startswith(b"RELIABILITY_PROGRAM=") for item in environment)


def left(system: System) -> list[int]:
    """The processes of this system's programs."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and belongs(int(entry), system)]


def said(system: System) -> str:
    """What the console has told."""
    return (system.data_dir / "launcher.out").read_text()


def ready(system: System, name: str) -> int:
    """Wait until a program is ready; return its pid."""
    wait_until(lambda: system.ready(name), PATIENCE_S, f"{name} ready: {said(system)}")
    return system.pid(name)


def record(system: System, name: str) -> Any:
    """What the launcher says of a program."""
    found = system.board.find(name)
    assert found is not None
    return found[1]


def launcher(system: System, op: str, **arguments: Any) -> dict[str, Any]:
    """Ask the launcher."""
    run = paths.read_run_info(str(system.data_dir))
    assert run is not None
    return call_launcher(run, op, 5.0, **arguments)


def restarts(system: System, name: str) -> list[dict[str, Any]]:
    """The restarts of a program that event_logger has recorded."""
    told = system.relctl("--json", "restart-status", name)
    found = json.loads(told.stdout)["processes"] if told.returncode == 0 else []
    return [entry for process in found for entry in process["history"]]


def test_a_command_and_a_configured_program_run_and_come_back() -> None:
    with programs(program("web", f"echo web runs; {FOREVER}"), command=("sh", "-c", FOREVER)) as system:
        main, web = ready(system, "main"), ready(system, "web")
        assert f"main is ready (pid {main})" in said(system)
        rows = json.loads(system.relctl("--json", "ps").stdout)
        assert {row["name"]: row["kind"] for row in rows["processes"]}.items() >= {
            "main": "program",
            "web": "program",
        }.items()
        for name, pid in (("main", main), ("web", web)):
            wait_until(lambda pid=pid: start_time_of(pid) is not None, 30, "it runs")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda name=name, pid=pid: system.replaced(name, pid), PATIENCE_S, f"{name} back")
        assert "web: killed by signal 9 (SIGKILL)" in said(system)
        outputs = [system.data_dir / "programs/web" / name for name in ("output.log", "output.log.1")]
        wait_until(lambda: [file.read_text() for file in outputs] == ["web runs\n"] * 2, PATIENCE_S, "outputs")
        wait_until(lambda: bool(restarts(system, "web")), PATIENCE_S, "the restart is recorded")
        system.stop()
        assert left(system) == []


def test_a_program_outlives_everybody_who_supervises_it() -> None:
    with programs(program("web", FOREVER)) as system:
        pid = ready(system, "web")
        for round_ in range(3):
            launcher_pid = system.pid("launcher")
            for name in ("launcher", "broker", "watchdog"):
                system.signal(name, signal.SIGKILL)
            wait_until(lambda old=launcher_pid: system.replaced("launcher", old), PATIENCE_S, f"launcher {round_}")
            system.wait_whole(PATIENCE_S)
            assert system.pid("web") == pid
            assert record(system, "web").incarnation == 1
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: system.replaced("web", pid), PATIENCE_S, "its successor restarts it")
        system.stop()
        assert left(system) == []


def test_a_crash_loop_ends_in_quarantine_with_one_clear_line() -> None:
    with programs(program("web", "exit 3", restart_max=1)) as system:
        wait_until(lambda: system.state("web") == "quarantined", PATIENCE_S, "quarantined")
        lines = [line for line in said(system).splitlines() if "quarantined" in line]
        assert len(lines) == 1, lines
        assert "web: exited with code 3; after 1 restarts in 3600 s it is quarantined" in lines[0]
        system.stop()


def test_what_cannot_be_run_says_why() -> None:
    missing = '[program.web]\ncommand = ["/nonexistent/program"]\nrestart_max = 0\n'
    astray = '[program.job]\ncommand = ["true"]\ndirectory = "/nonexistent"\nrestart_max = 0\n'
    with programs(missing + astray) as system:
        for name, why in (("web", "cannot run /nonexistent/program"), ("job", "cannot enter /nonexistent")):
            wait_until(lambda name=name: system.state(name) == "quarantined", PATIENCE_S, f"{name} quarantined")
            assert f"{name}: exited with code 127: {why}: No such file or directory" in said(system)
            assert f"{name} is ready" not in said(system)
        system.stop()


@pytest.mark.parametrize(
    ("restart", "code", "again"),
    [("never", 1, False), ("on-failure", 0, False), ("on-failure", 1, True), ("always", 0, True)],
)
def test_the_policy_holds(tmp_path: Path, restart: str, code: int, again: bool) -> None:
    once = f"test -e {tmp_path}/been && {FOREVER}; touch {tmp_path}/been; sleep 0.1; exit {code}"
    with programs(program("web", once, restart=restart)) as system:
        if again:
            wait_until(lambda: system.ready("web") and record(system, "web").incarnation == 2, PATIENCE_S, "again")
        else:
            wait_until(lambda: system.state("web") == "stopped", PATIENCE_S, "it stays down")
            wait_until(lambda: record(system, "web").reason == f"exited with code {code}", PATIENCE_S, "and says why")
            launcher_pid = system.pid("launcher")
            system.signal("launcher", signal.SIGKILL)
            wait_until(lambda: system.replaced("launcher", launcher_pid), PATIENCE_S, "a successor")
            assert system.state("web") == "stopped"
            launcher(system, "start", name="web")
            ready(system, "web")
        system.stop()


def test_programs_start_in_order_and_say_whom_they_wait_for(tmp_path: Path) -> None:
    config = program("web", FOREVER, after=["job"]) + program("job", FOREVER, ready="probe", probe={"command": ["x"]})
    config = config.replace(
        '{"command": ["x"]}', '{command = ["test", "-e", "%s"], interval_s = 0.2}' % (tmp_path / "up")
    )
    with programs(config) as system:
        wait_until(lambda: system.state("job") == "starting", PATIENCE_S, "job starts")
        assert (system.state("web"), record(system, "web").reason) == ("stopped", "waits for job")
        (tmp_path / "up").touch()
        ready(system, "web")
        assert system.state("job") == "ready"
        system.stop()


def test_one_that_ignores_sigterm_is_killed_with_its_grandchildren() -> None:
    stubborn = "trap '' TERM; setsid sleep 3600 & while :; do sleep 1; done"
    with programs(program("web", stubborn, stop_timeout_s=0.5)) as system:
        pid = ready(system, "web")
        wait_until(lambda: len(left(system)) >= 3, PATIENCE_S, "its children run")
        launcher(system, "restart", name="web")
        wait_until(lambda: system.replaced("web", pid), PATIENCE_S, "restarted")
        system.stop()
        wait_until(lambda: left(system) == [], 30, f"nobody left, have {left(system)}")


def test_relctl_stops_starts_and_restarts_a_program() -> None:
    with programs(program("web", FOREVER)) as system:
        pid = ready(system, "web")
        assert system.relctl("restart", "web").returncode == 0
        assert system.pid("web") not in (0, pid)
        assert system.relctl("stop", "web").returncode == 0
        assert left(system) == []
        assert system.relctl("start", "web").returncode == 0
        assert record(system, "web").restarts_in_period == 0, "what a person asks for is not charged"
        system.stop()


def test_programs_are_added_taken_in_and_forgotten_while_the_system_runs() -> None:
    with programs() as system:
        spec = {"name": "extra", "command": ["sleep", "3600"], "directory": "/"}
        assert launcher(system, "run", program=spec)["name"] == "extra"
        pid = ready(system, "extra")
        with pytest.raises(ReliabilityError, match="already"):
            launcher(system, "run", program=spec)
        with pytest.raises(ReliabilityError, match="runs"):
            launcher(system, "forget", name="extra")
        old = system.pid("launcher")
        system.signal("launcher", signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", old), PATIENCE_S, "a successor")
        assert system.pid("extra") == pid, "the successor knows what was added"
        launcher(system, "stop", name="extra")
        wait_until(lambda: system.state("extra") == "stopped", PATIENCE_S, "stopped")
        launcher(system, "forget", name="extra")
        assert system.board.find("extra") is None

        host = os.posix_spawn("/bin/sh", ["sh", "-c", "exec sleep 3600"], dict(os.environ))
        start_time = start_time_of(host)
        try:
            spec = {"name": "host", "command": ["sleep", "3600"], "directory": "/"}
            answer = launcher(system, "adopt", program=spec, pid=host, start_time=start_time)
            assert (answer["state"], system.pid("host")) == ("ready", host)
            with pytest.raises(ReliabilityError, match="runs already"):
                launcher(system, "adopt", program=spec, pid=host, start_time=start_time)
        finally:
            os.kill(host, signal.SIGKILL)
            os.waitpid(host, 0)
        wait_until(lambda: system.replaced("host", host), PATIENCE_S, "restarted by its command")
        assert not ProcessIdentity(host, start_time or 0, boot_id()).is_running()
        life = invocation_id(boot_id(), str(system.data_dir), "host", record(system, "host").incarnation)
        told = f"RELIABILITY_INVOCATION_ID={life}".encode()
        variables = Path(f"/proc/{system.pid('host')}/environ")  # the launcher's own until the program is executed
        wait_until(lambda: told in variables.read_bytes().split(b"\0"), PATIENCE_S, "it is told its life's id")
        system.stop()
        assert left(system) == []


def test_a_frozen_program_is_replaced() -> None:
    with programs(program("web", FOREVER, hang_timeout_s=1, stop_timeout_s=1)) as system:
        pid = ready(system, "web")
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: system.replaced("web", pid), PATIENCE_S, "replaced")
        assert "web: hung: frozen" in said(system)
        system.stop()
