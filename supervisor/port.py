"""Process control: what the launcher needs from an operating system, and nothing more.

Two implementations: `posix` (fork, pidfd, sessions; Linux) and `portable` (exec, psutil; anywhere). Both hold to:

- every process leads a session (where there are sessions) of its own, so that it can be ended with all its descendants;
- nothing is signalled whose identity is not certain: a reused pid is somebody else;
- a death is reported once, after the last stragglers of the session have been killed; only then may a successor start.
"""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity
from actors.runtime.programs import ProgramSpec

SOURCE_ROOT: Final = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
"""Where `protocol`, `broker`, `actors` and `supervisor` lie; a child by exec finds them through PYTHONPATH."""
DURABLE_MODULE: Final = "supervisor.durable"


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start.

    Attributes:
        module: has ``main(ProcessArguments) -> int``, and runs the same by ``python -m``.
        arguments: what it is told.
        stderr_path: where its standard error goes, a file made anew, until it takes that over itself
            (`actors.runtime.process.run_process` does so first thing): an import that fails is told there.
    """

    module: str
    arguments: ProcessArguments
    stderr_path: str

    def command(self) -> list[str]:
        """Return the command that starts it by exec; -P keeps a host's own modules from shadowing ours."""
        return [sys.executable, "-P", "-m", self.module, *self.arguments.to_argv()]


@dataclass(frozen=True, slots=True)
class ProgramLaunch:
    """A program to start.

    Attributes:
        spec: how it is run.
        environment: its whole environment.
        output_path: where its output goes; that of former lives is kept beside it.
        error_path: a file made anew that says why it could not be run, if it could not.
    """

    spec: ProgramSpec
    environment: Mapping[str, str]
    output_path: str
    error_path: str


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended; both None where the system does not tell (it was no child of ours)."""

    exit_code: int | None = None
    signal: int | None = None


class Process(Protocol):
    """One process under supervision."""

    @property
    def identity(self) -> ProcessIdentity:
        """Who it is."""

    @property
    def exit_fd(self) -> int | None:
        """A descriptor that becomes readable when it ends; None where `poll_exit` has to be asked on every turn."""

    def release(self) -> None:
        """Let a spawned process begin: it is on record now, so that a successor of ours would find it."""

    def runs_command(self) -> bool:
        """Tell whether a program's command has taken the process over, as far as the system tells."""

    def poll_exit(self) -> ExitStatus | None:
        """Return how it ended, after killing what is left of its tree and reaping it; None while it lives."""

    def let_go(self) -> None:
        """Kill nothing when it ends: another process has taken its place, and holds what there is of its tree."""

    def terminate(self, *, thaw: bool) -> None:
        """Ask it and its group to leave; `thaw` wakes stopped members up to hear it. Remembers the tree first."""

    def kill(self) -> None:
        """Kill it with its whole tree."""

    def close(self) -> None:
        """Give its descriptors back; the process itself is not touched."""


class ProcessControl(Protocol):
    """Starts and adopts processes."""

    def prepare(self, modules: Sequence[str]) -> dict[str, str]:
        """Do ahead what makes starts fast; returns for each module that cannot be loaded the reason."""

    def provide(self) -> None:
        """Do ahead what makes the next start fast, if that is used up. Called whenever nothing else is to be done."""

    def dismiss(self) -> None:
        """Let go of what `provide` has made; whoever waits there leaves."""

    def spawn(self, launch: Launch | ProgramLaunch) -> Process:
        """Start a process; it does nothing before `Process.release`, where that can be held back.

        Raises:
            OSError: the system has no room for it.
        """

    def adopt(self, identity: ProcessIdentity, invocation: str = "") -> Process | None:
        """Take over a running process that somebody else started; None if it is gone.

        Whoever carries `invocation`, the id of a program's life, in its environment ends with it.
        """

    @property
    def sees_orphans(self) -> bool:
        """Whether who loses its parent below this launcher becomes its child, so that `orphans` finds it."""

    @property
    def held(self) -> Collection[int]:
        """The pids of those that were started or adopted, and are not closed."""

    def orphans(self, known: Sequence[ProcessIdentity]) -> list[ProcessIdentity]:
        """Return whoever has lost its parent and was neither started nor adopted; reaps the dead among them.

        Of those `known`, whoever still runs is among them, even if another launcher was their parent.
        """

    def copy_durably(self, source: str, target: str) -> Process:
        """Start a one-shot process that makes `target` a copy of `source` that survives a power cut.

        So it is not the launcher that waits for the disk.

        Raises:
            OSError: the system has no room for it.
        """


def open_stderr(path: str) -> int:
    """Return a descriptor to write a child's standard error to: a fresh file, or nowhere if there is no room."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def child_environment() -> dict[str, str]:
    """Return the environment of a child by exec: ours, with the source root to import from."""
    environment = dict(os.environ)
    paths = [SOURCE_ROOT, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment
