"""Process control anywhere: exec, psutil, and one more look at every turn.

What the system does not offer is done without: no gate (a child that no board knows leaves by itself once it sees its
slot given to another), no descriptor that tells of an exit (SIGCHLD wakes the launcher where there is one, and it looks
on every turn), no session on Windows (the tree is found by parents).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from typing import Final

import psutil

from actors.runtime.identity import ProcessIdentity, boot_id, identity_of
from actors.runtime.programs import INVOCATION_VARIABLE
from actors.runtime.signalling import PortableSignaller
from supervisor.port import DURABLE_MODULE, ExitStatus, Launch, ProgramLaunch, child_environment, open_stderr
from supervisor.program_launch import open_output
from supervisor.tree import end_carriers

_ON_WINDOWS: Final = sys.platform == "win32"
_CREATION_FLAGS: Final[int] = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(
    subprocess, "CREATE_NO_WINDOW", 0
)


class PortableProcess:
    """See `supervisor.port.Process`."""

    def __init__(
        self, identity: ProcessIdentity, child: "subprocess.Popen[bytes] | None", invocation: str = ""
    ) -> None:
        """Hold a process; `child` if we started it ourselves; whoever carries `invocation` ends with it."""
        self.identity = identity
        self._invocation = invocation
        self._let_go = False
        self._child = child
        self._tree: list[psutil.Process] = []

    @property
    def exit_fd(self) -> int | None:
        """See `Process`."""
        return None

    def release(self) -> None:
        """See `Process`: nothing holds it back."""

    def runs_command(self) -> bool:
        """See `Process`: it was executed, or there would be no process."""
        return True

    def poll_exit(self) -> ExitStatus | None:
        """See `Process`."""
        if self.identity.is_running():
            return None
        # Before a child is reaped, its number is still nobody else's: the last moment to end its group.
        self._kill_rest()
        if self._child is None:
            return ExitStatus()
        code = self._child.poll()
        if code is None:  # not yet a child that can be waited for: look again
            return None
        return ExitStatus(signal=-code) if code < 0 else ExitStatus(exit_code=code)

    def let_go(self) -> None:
        """See `Process`."""
        self._let_go = True

    def terminate(self, *, thaw: bool) -> None:
        """See `Process`. On Windows the group gets CTRL_BREAK, which Python programs see as SIGBREAK."""
        self._remember_tree()
        if not self.identity.is_running():
            return
        if sys.platform == "win32":
            os.kill(self.identity.pid, signal.CTRL_BREAK_EVENT)
        else:
            self._signal_group(signal.SIGTERM)
            if thaw:
                self._signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """See `Process`."""
        self._remember_tree()
        if self.identity.is_running():
            try:
                psutil.Process(self.identity.pid).kill()
            except psutil.Error:
                pass
        self._kill_rest()

    def close(self) -> None:
        """See `Process`."""

    def _remember_tree(self) -> None:
        if not self.identity.is_running():
            return
        try:
            found = _descendants(psutil.Process(self.identity.pid))
        except psutil.Error:
            return
        self._tree += [process for process in found if process not in self._tree]

    def _kill_rest(self) -> None:
        """Kill what is left of the group and of the remembered tree; on Windows, of the orphans too."""
        if self._let_go:
            return
        if sys.platform == "win32":
            self._tree += _orphans(self.identity)
        elif self._owns_number():
            self._signal_group(signal.SIGKILL)
        for process in self._tree:
            try:
                process.kill()  # psutil compares start times first
            except psutil.Error:
                continue
        if self._invocation:
            end_carriers(self._invocation, PortableSignaller(), self.identity)

    def _owns_number(self) -> bool:
        """Whether the number, as that of a group, is certainly not somebody else's.

        A child's is its own until it is reaped. The number of a group that has members is given to no new process: so
        if there is no such process, a group of that number is the old one.
        """
        unreaped = self._child is not None and self._child.returncode is None
        return unreaped or self.identity.is_running() or not psutil.pid_exists(self.identity.pid)

    def _signal_group(self, number: int) -> None:
        if sys.platform != "win32":
            try:
                os.killpg(self.identity.pid, number)
            except (ProcessLookupError, PermissionError):
                return


class PortableControl:
    """See `supervisor.port.ProcessControl`."""

    def prepare(self, modules: Sequence[str]) -> dict[str, str]:
        """See `ProcessControl`: nothing can be done ahead, each child imports for itself."""
        return {}

    def provide(self) -> None:
        """See `ProcessControl`: nothing."""

    def dismiss(self) -> None:
        """See `ProcessControl`: there is nothing."""

    def spawn(self, launch: Launch | ProgramLaunch) -> PortableProcess:
        """See `ProcessControl`."""
        if isinstance(launch, ProgramLaunch):
            return _started_program(launch)
        return _started(launch.command(), launch.stderr_path)

    def adopt(self, identity: ProcessIdentity, invocation: str = "") -> PortableProcess | None:
        """See `ProcessControl`."""
        return PortableProcess(identity, None, invocation) if identity.is_running() else None

    sees_orphans = False
    held: Collection[int] = ()

    def orphans(self, known: Sequence[ProcessIdentity]) -> list[ProcessIdentity]:
        """See `ProcessControl`: nobody."""
        return []

    def copy_durably(self, source: str, target: str) -> PortableProcess:
        """See `ProcessControl`."""
        return _started([sys.executable, "-P", "-m", DURABLE_MODULE, source, target], os.devnull)


def _started(command: list[str], stderr_path: str) -> PortableProcess:
    stderr = open_stderr(stderr_path)
    try:
        child = subprocess.Popen(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=not _ON_WINDOWS,
            creationflags=_CREATION_FLAGS,
        )
    finally:
        os.close(stderr)
    return PortableProcess(identity_of(child.pid) or ProcessIdentity(child.pid, 0, boot_id()), child)


def _started_program(launch: ProgramLaunch) -> PortableProcess:
    output = open_output(launch.output_path)
    try:
        child = subprocess.Popen(
            launch.spec.command,
            env=dict(launch.environment),
            cwd=launch.spec.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=not _ON_WINDOWS,
            creationflags=_CREATION_FLAGS,
        )
    finally:
        os.close(output)
    identity = identity_of(child.pid) or ProcessIdentity(child.pid, 0, boot_id())
    return PortableProcess(identity, child, launch.environment.get(INVOCATION_VARIABLE, ""))


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    """Return who descends from `root`, without this launcher and its own: a survivor that started it is its parent."""
    found: list[psutil.Process] = root.children(recursive=True)
    launcher = psutil.Process()
    if launcher not in found:
        return found
    spared = [launcher, *launcher.children(recursive=True)]
    return [process for process in found if process not in spared]


def _orphans(parent: ProcessIdentity) -> list[psutil.Process]:
    """Return who names `parent` as parent and is not older: Windows keeps the number after the parent's end."""
    return [
        process
        for process in psutil.process_iter(["ppid", "create_time"])
        if process.info["ppid"] == parent.pid
        and process.pid != os.getpid()
        and round(process.info["create_time"] * 100) >= parent.start_time
    ]
