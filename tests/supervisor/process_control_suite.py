"""One suite for both ports of process control: whatever the launcher relies on, each of them has to keep.

`test_process_control.py` runs it in an interpreter of its own: like the launcher, it forks, and so may have no thread.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity, boot_id, identity_of, start_time_of
from supervisor.port import ExitStatus, Launch, Process, ProcessControl, child_environment
from supervisor.portable import PortableControl
from tests.supervisor.supervised_dummy import open_files, told

linux = pytest.mark.skipif(sys.platform != "linux", reason="pidfds and /proc")
DUMMY = "tests.supervisor.supervised_dummy"
PATIENCE_S = 30.0


Told = TypeVar("Told")


def wait_for(look: Callable[[], Told | None], what: str) -> Told:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.005)


def posix_control(drop_inherited: Callable[[], None] = lambda: None) -> ProcessControl:
    from supervisor.posix import PosixControl

    control = PosixControl(drop_inherited)
    assert control.prepare([DUMMY]) == {}
    return control


class WithSpare:
    """A control whose every start finds a spare."""

    def __init__(self, control: ProcessControl) -> None:
        self._control = control
        self.prepare, self.provide, self.dismiss = control.prepare, control.provide, control.dismiss
        self.adopt, self.copy_durably = control.adopt, control.copy_durably

    def spawn(self, launch: Launch) -> Process:
        self._control.provide()
        return self._control.spawn(launch)


@pytest.fixture(
    params=[
        pytest.param("posix", marks=linux),
        pytest.param("spare", marks=linux),
        pytest.param("portable", marks=pytest.mark.portable),
    ]
)
def control(request: pytest.FixtureRequest) -> Iterator[ProcessControl]:
    if request.param == "portable":
        control: ProcessControl = PortableControl()
    else:
        control = posix_control() if request.param == "posix" else WithSpare(posix_control())
    yield control
    dismiss(control)


def dismiss(control: ProcessControl) -> None:
    """Have no spare left, nor any descriptor of one."""

    def over() -> bool:
        control.dismiss()
        return not psutil.Process().children()

    wait_for(over, "the spare is gone")


def only_child() -> ProcessIdentity:
    """The spare, where nothing else was started; once it waits."""

    def look() -> ProcessIdentity | None:
        children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        assert len(children) == 1
        return identity_of(children[0].pid) if children[0].status() == psutil.STATUS_SLEEPING else None

    return wait_for(look, "the spare waits")


class Nursery:
    """Starts dummies and sees to it that none is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[Process] = []

    def launch(self, behaviour: str, module: str = DUMMY) -> Launch:
        arguments = ProcessArguments(behaviour, 5, 1, str(self.directory), str(self.directory))
        return Launch(module, arguments, str(self.directory / "stderr"))

    def start(self, control: ProcessControl, behaviour: str) -> Process:
        process = control.spawn(self.launch(behaviour))
        self._processes.append(process)
        process.release()
        return process

    def fact(self, name: str) -> dict[str, object]:
        return wait_for(lambda: told(self.directory, name), f"{name} tells")

    def identity(self, name: str) -> ProcessIdentity:
        pid = self.fact(name)["pid"]
        assert isinstance(pid, int)
        identity = identity_of(pid)
        assert identity is not None
        return identity

    def end(self) -> None:
        for process in self._processes:
            if process.poll_exit() is None:
                process.kill()
                wait_for(process.poll_exit, "killed")
            process.close()


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path)
    yield nursery
    nursery.end()


def ended(process: Process) -> ExitStatus:
    return wait_for(process.poll_exit, "its exit is seen")


def gone(identity: ProcessIdentity) -> None:
    wait_for(lambda: not identity.is_running(), f"{identity} is gone")


def test_an_exit_code_is_reported(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "exit")
    assert ended(process) == ExitStatus(exit_code=3)
    assert start_time_of(process.identity.pid) != process.identity.start_time, "it was reaped"


def test_sys_exit_is_an_exit_code_too(control: ProcessControl, nursery: Nursery) -> None:
    assert ended(nursery.start(control, "leave")) == ExitStatus(exit_code=7)


def test_a_child_begins_with_clean_signals_and_a_session_of_its_own(control: ProcessControl, nursery: Nursery) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        process = nursery.start(control, "exit")
    finally:
        signal.signal(signal.SIGTERM, before)
    facts = nursery.fact("exit")
    assert facts["session"] == facts["group"] == facts["pid"] == process.identity.pid
    assert facts["masked"] == []
    assert facts["default"] is True
    ended(process)


def test_an_exit_is_not_reported_while_it_lives(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "wait")
    nursery.fact("wait")
    assert process.poll_exit() is None
    process.kill()
    assert ended(process) == ExitStatus(signal=int(signal.SIGKILL))


def test_terminate_is_heard(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "wait")
    nursery.fact("wait")
    process.terminate(thaw=False)
    assert ended(process) == ExitStatus(signal=int(signal.SIGTERM))


@pytest.mark.parametrize("thaw", [False, True])
def test_a_stopped_one_hears_terminate_only_if_it_is_thawed(
    control: ProcessControl, nursery: Nursery, thaw: bool
) -> None:
    process = nursery.start(control, "wait")
    nursery.fact("wait")
    os.kill(process.identity.pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(process.identity.pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    process.terminate(thaw=thaw)
    if thaw:
        assert ended(process) == ExitStatus(signal=int(signal.SIGTERM))
    else:
        assert process.poll_exit() is None
        process.kill()
        assert ended(process) == ExitStatus(signal=int(signal.SIGKILL))


def test_kill_takes_the_whole_tree(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "family")
    nursery.fact("family")
    family = [nursery.identity(name) for name in ("same", "group", "session")]
    process.kill()
    assert ended(process) == ExitStatus(signal=int(signal.SIGKILL))
    for member in family:
        gone(member)


def test_who_does_not_leave_with_its_leader_is_killed(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "family")
    nursery.fact("family")
    family = [nursery.identity(name) for name in ("same", "group", "session")]
    process.terminate(thaw=False)
    assert ended(process) == ExitStatus(signal=int(signal.SIGTERM))
    for member in family:
        gone(member)


def test_stragglers_of_one_that_ended_by_itself_are_killed(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "orphans")
    nursery.fact("family")
    names = ["same", "group"] if control.__class__.__name__ == "PosixControl" else ["same"]
    stragglers = [nursery.identity(name) for name in names]
    escaped = [nursery.identity(name) for name in ("group", "session") if name not in names]
    try:
        assert ended(process) == ExitStatus(exit_code=3)
        for straggler in stragglers:
            gone(straggler)
    finally:
        for identity in escaped:
            os.kill(identity.pid, signal.SIGKILL)


def test_a_child_of_somebody_else_is_adopted(control: ProcessControl, nursery: Nursery) -> None:
    argv = nursery.launch("wait").command()
    starter = "import os, subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    subprocess.run([sys.executable, "-c", starter, *argv], check=True, env=child_environment())
    identity = nursery.identity("wait")
    process = control.adopt(identity)
    assert process is not None
    assert process.identity == identity
    assert process.poll_exit() is None
    process.kill()
    assert ended(process) == ExitStatus()
    process.close()
    assert control.adopt(identity) is None


def test_who_has_the_pid_of_another_is_neither_adopted_nor_touched(control: ProcessControl, nursery: Nursery) -> None:
    innocent = nursery.start(control, "wait")
    nursery.fact("wait")
    identity = innocent.identity
    assert control.adopt(ProcessIdentity(identity.pid, identity.start_time - 100, boot_id())) is None
    assert control.adopt(ProcessIdentity(identity.pid, identity.start_time, "another boot")) is None
    assert innocent.poll_exit() is None


def test_a_process_that_is_over_signals_nobody(control: ProcessControl, nursery: Nursery) -> None:
    process = nursery.start(control, "exit")
    ended(process)
    process.terminate(thaw=True)
    process.kill()


def test_an_import_that_fails_is_told(control: ProcessControl, nursery: Nursery) -> None:
    process = control.spawn(nursery.launch("exit", "tests.supervisor.there_is_no_such_module"))
    process.release()
    assert ended(process) == ExitStatus(exit_code=1)
    assert "there_is_no_such_module" in (nursery.directory / "stderr").read_text()
    process.close()


def test_a_durable_copy_is_made(control: ProcessControl, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"what has to last")
    process = control.copy_durably(str(tmp_path / "source"), str(tmp_path / "target"))
    assert ended(process) == ExitStatus(exit_code=0)
    process.close()
    assert (tmp_path / "target").read_bytes() == b"what has to last"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["source", "target"]


def test_a_copy_that_cannot_be_made_is_an_exit_code(control: ProcessControl, tmp_path: Path) -> None:
    process = control.copy_durably(str(tmp_path / "missing"), str(tmp_path / "target"))
    assert ended(process) == ExitStatus(exit_code=1)
    process.close()


# --- fork alone -------------------------------------------------------------------------------------------------------


@linux
def test_a_forked_child_holds_no_descriptor_of_the_launcher(nursery: Nursery) -> None:
    inherited = open_files()  # what pytest itself holds
    lock = os.open(nursery.directory / "lock", os.O_RDWR | os.O_CREAT)
    first = nursery.start(posix_control(lambda: os.close(lock)), "wait")
    nursery.fact("wait")

    def drop_inherited() -> None:
        os.close(lock)
        first.close()

    second = nursery.start(posix_control(drop_inherited), "exit")
    held = nursery.fact("exit")["open"]
    assert isinstance(held, list)
    assert set(held) <= {*inherited, os.devnull, str(nursery.directory / "stderr")}
    assert "anon_inode:[pidfd]" not in held
    ended(second)
    os.close(lock)


@linux
def test_a_child_waits_at_the_gate_and_leaves_if_the_launcher_is_gone(nursery: Nursery) -> None:
    process = posix_control().spawn(nursery.launch("exit"))
    assert process.exit_fd is not None
    time.sleep(0.05)  # it may not do anything, however long one waits
    assert process.poll_exit() is None
    assert told(nursery.directory, "exit") is None
    pid = process.identity.pid
    process.close()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert told(nursery.directory, "exit") is None


@linux
def test_an_exit_makes_its_descriptor_readable(nursery: Nursery) -> None:
    import select

    process = nursery.start(posix_control(), "exit")
    assert process.exit_fd is not None
    poller = select.poll()
    poller.register(process.exit_fd, select.POLLIN)
    assert poller.poll(PATIENCE_S * 1000)
    assert ended(process) == ExitStatus(exit_code=3)


@linux
def test_a_child_that_raises_ends_with_70_and_says_why(nursery: Nursery) -> None:
    assert ended(nursery.start(posix_control(), "crash")) == ExitStatus(exit_code=70)
    assert "as it was told to" in (nursery.directory / "stderr").read_text()


@linux
def test_a_module_that_cannot_be_imported_is_named_and_the_others_are_forked(nursery: Nursery) -> None:
    from supervisor.posix import PosixControl

    control = PosixControl(lambda: None)
    problems = control.prepare([DUMMY, "tests.supervisor.there_is_no_such_module"])
    assert list(problems) == ["tests.supervisor.there_is_no_such_module"]
    assert "ModuleNotFoundError" in problems["tests.supervisor.there_is_no_such_module"]
    process = nursery.start(control, "exit")
    assert nursery.fact("exit")["title"] == sys.argv[0], "forked, not executed"
    ended(process)


@linux
def test_after_an_import_that_starts_a_thread_children_are_executed(nursery: Nursery, tmp_path: Path) -> None:
    script = f"""
import sys, threading, types
from supervisor.posix import PosixControl
from tests.supervisor.process_control_suite import DUMMY, Nursery, ended, Path
threading.Thread(target=threading.Event().wait, daemon=True).start()
control = PosixControl(lambda: None)
assert list(control.prepare([DUMMY])) == ["*"]
nursery = Nursery(Path({str(tmp_path)!r}))
process = nursery.start(control, "exit")
assert nursery.fact("exit")["title"] != sys.argv[0], "executed"
assert ended(process).exit_code == 3
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2], timeout=30)


@linux
def test_a_zombie_counts_as_dead(nursery: Nursery) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    fields_before = identity_of(child.pid)
    wait_for(lambda: start_time_of(child.pid) is None, "a zombie")
    try:
        assert fields_before is not None
        assert posix_control().adopt(fields_before) is None
    finally:
        child.wait()


@linux
def test_the_spare_becomes_what_is_started(nursery: Nursery) -> None:
    control = posix_control()
    control.provide()
    spare = only_child()
    process = nursery.start(control, "exit")
    assert process.identity == spare
    assert ended(process) == ExitStatus(exit_code=3)


@linux
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_spare_that_would_not_hear_is_passed_over_and_replaced(nursery: Nursery, number: signal.Signals) -> None:
    control = posix_control()
    control.provide()
    spare = only_child()
    os.kill(spare.pid, number)
    deaf = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    wait_for(lambda: psutil.Process(spare.pid).status() in deaf, "it is stopped or dead")
    process = nursery.start(control, "exit")
    assert process.identity != spare
    assert ended(process) == ExitStatus(exit_code=3)
    gone(spare)

    def look() -> list[psutil.Process]:
        control.provide()
        return psutil.Process().children()

    wait_for(look, "there is a new one")
    assert only_child() not in (spare, process.identity)
    dismiss(control)


@linux
def test_a_spare_leaves_with_its_launcher_whoever_was_started_since(nursery: Nursery) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-P", "-c", LAUNCHER_WITH_SPARE, str(nursery.directory)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    spare, other = (identity_of(int(pid)) for pid in launcher.stdout.readline().split())
    assert spare is not None
    assert other is not None
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    gone(spare)
    assert other.is_running()
    os.kill(other.pid, signal.SIGKILL)
    gone(other)


LAUNCHER_WITH_SPARE = """
import sys, time
import psutil
from supervisor.posix import PosixControl

control = PosixControl(lambda: None)
control.prepare(["supervisor.durable"])
control._entries = {"supervisor.durable": lambda arguments: 0}
control.provide()
spare = psutil.Process().children()[0].pid
other = control._fork(lambda order: time.sleep(60) or 0, "/dev/null")
other.release()
print(spare, other.identity.pid, flush=True)
time.sleep(60)
"""


@linux
def test_the_spare_goes_when_it_is_dismissed() -> None:
    control = posix_control()
    control.provide()
    spare = only_child()
    dismiss(control)
    gone(spare)
