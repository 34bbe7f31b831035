"""A program's own start, in the child, so that the launcher waits for no disk: output file, directory, command."""

import os
import signal
from typing import Final, NoReturn

from actors.runtime.programs import OUTPUTS_KEPT
from supervisor.port import ProgramLaunch

EXIT_NOT_FOUND: Final = 127
EXIT_NOT_RUN: Final = 126
"""Exit codes of a command that is not there, and of one that cannot be run, as shells have them."""
UMASK: Final = 0o022
"""The launcher's own is closer than a user's program expects."""


def open_output(path: str) -> int:
    """Make room for a new life's output, and return a descriptor that appends to it, or to nowhere if there is none."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        _rotate(path)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def become(launch: ProgramLaunch) -> NoReturn:
    """In a forked child that leads a session, standard error at `error_path`: run the program, or say why not.

    Raises:
        SystemExit: it could not be run.
    """
    spec = launch.spec
    errors = os.dup(2)  # not inherited by the program
    output = open_output(launch.output_path)
    for standard in (1, 2):
        os.dup2(output, standard)
    for descriptor in _open_descriptors():
        if descriptor > 2 and descriptor != errors:
            _close(descriptor)
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:  # SIGKILL and SIGSTOP have no other
            continue
    os.umask(UMASK)
    problem = f"cannot enter {spec.directory}"
    try:
        os.chdir(spec.directory)
        problem = f"cannot run {spec.command[0]}"
        os.execvpe(spec.command[0], list(spec.command), dict(launch.environment))  # noqa: S606 - a list, and no shell
    except OSError as error:
        line = f"{problem}: {error.strerror}\n".encode(errors="replace")
        for descriptor in (errors, 1):
            _write(descriptor, line)
        raise SystemExit(EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_RUN) from None


def _rotate(path: str) -> None:
    if not os.path.exists(path):
        return
    for number in range(OUTPUTS_KEPT - 1, 0, -1):
        try:
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")
        except FileNotFoundError:
            continue
    os.replace(path, f"{path}.1")


def _open_descriptors() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc/self/fd")]


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:  # the one that listed them
        return


def _write(descriptor: int, line: bytes) -> None:
    try:
        os.write(descriptor, line)
    except OSError:  # no room
        return
