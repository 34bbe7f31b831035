"""The port to a service manager, and what all of them share: running its command line tool."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final, Protocol

from app.reliability._service.model import Release, Service
from protocol.errors import ErrorCode, LocalError

TOOL_TIMEOUT_S: Final = 30.0
_SAID_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class State:
    """How the service manager sees the service; None where it cannot be asked.

    Attributes:
        enabled: whether it starts by itself.
        running: whether it runs now.
        at_boot: whether it starts at boot, and not only once the user logs in.
        detail: the manager's own words.
    """

    enabled: bool | None = None
    running: bool | None = None
    at_boot: bool | None = None
    detail: str = ""


class Manager(Protocol):
    """A service manager of this machine."""

    platform: str

    def refuse_absent(self) -> None:
        """Raise a LocalError where it cannot be used."""

    def paths(self, name: str) -> list[str]:
        """Return the paths of a service's files."""

    def render(self, service: Service, release: Release) -> dict[str, str]:
        """Return the text of each of them, by path."""

    def changed_outside(self, name: str) -> str:
        """Return what a person has changed in the manager itself, past the files; nothing if there is no such thing."""

    def enable(self, service: Service) -> None:
        """Have it read the files, and start the service by itself from now on.

        Raises:
            LocalError: it does not.
        """

    def reload(self, name: str) -> None:
        """Have it forget what its files said; whatever comes of that."""

    def start(self, service: Service, timeout_s: float) -> None:
        """Start the service now, and wait until it is ready where the manager can tell.

        Raises:
            LocalError: it does not start.
        """

    def start_again(self, name: str) -> None:
        """Start the service, forgetting how often that failed; does not wait.

        Raises:
            LocalError: it does not.
        """

    def start_at_boot(self) -> str:
        """Have services of this user start at boot; returns why that cannot be had, or nothing."""

    def disable(self, name: str) -> None:
        """Have the service start no more, and stop what it has started where the manager can.

        Raises:
            LocalError: it does not.
        """

    def state(self, name: str) -> State:
        """Return how it sees the service."""

    def advice(self, name: str) -> str:
        """Return how a person asks it about the service."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a tool said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last of it in one line."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return " ".join(lines[-3:])[-_SAID_CHARACTERS_MAX:] or f"exit code {self.code}"


def tool(name: str) -> str | None:
    """Return the path of a command line tool."""
    return shutil.which(name)


def run_tool(words: list[str], timeout_s: float = TOOL_TIMEOUT_S) -> Said:
    """Run a tool and return what it said.

    Raises:
        LocalError: it cannot be started, or does not end in time.
    """
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=os.environ | {"LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        )
    except subprocess.TimeoutExpired:
        message = f"`{' '.join(words)}` has not ended after {timeout_s:g} s"
        raise LocalError(ErrorCode.DEADLINE_PASSED, message, "") from None
    except OSError as error:
        raise LocalError(ErrorCode.FAILED, f"{words[0]} cannot be started: {error.strerror}", "") from error
    return Said(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def insist(words: list[str], timeout_s: float = TOOL_TIMEOUT_S, hint: str = "") -> Said:
    """Run a tool that has to succeed.

    Raises:
        LocalError: it failed, and what it said.
    """
    said = run_tool(words, timeout_s)
    if said.code:
        raise LocalError(ErrorCode.FAILED, f"`{os.path.basename(words[0])} {' '.join(words[1:])}`: {said.reason}", hint)
    return said
