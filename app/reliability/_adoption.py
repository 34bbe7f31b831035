"""How a process that somebody started by hand is to be started again: what its launcher is told when it takes it in."""

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from actors.runtime.paths import DATA_DIR_VARIABLE, RUNTIME_DIR_VARIABLE
from actors.runtime.programs import (
    INVOCATION_VARIABLE,
    NAME_LENGTH_MAX,
    PROGRAM_VARIABLE,
    ProgramSpec,
    Ready,
    from_fields,
    is_program_name,
    to_fields,
)
from app.reliability import _notify
from protocol.errors import ErrorCode, LocalError

HANG_TIMEOUT_DEFAULT_S: Final = 30.0
REQUEST_BYTES_MAX: Final = 60 * 1024
"""What a launcher takes in one request, less what goes round it."""
_LIFES_OWN: Final = frozenset(
    {
        *_notify.VARIABLES,
        DATA_DIR_VARIABLE,
        RUNTIME_DIR_VARIABLE,
        PROGRAM_VARIABLE,
        INVOCATION_VARIABLE,
        "INVOCATION_ID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "SHLVL",
        "OLDPWD",
        "PWD",
        "_",
    }
)
"""Variables that belong to one life, or to the shell that began it."""


def program_name(text: str) -> str:
    """Return the name of a program that is called `text` elsewhere: one that a launcher takes."""
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:NAME_LENGTH_MAX]
    if is_program_name(name):
        return name
    return f"{name[: NAME_LENGTH_MAX - 4]}-app" if name else "application"


def own_program_name() -> str:
    """Return the name of this program: the launcher's word for it, else after its script; "main" if it has none."""
    told = os.environ.get(PROGRAM_VARIABLE)
    if told:
        return told
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return program_name(str(spec.name).removesuffix(".__main__").rpartition(".")[2])
    path = getattr(main, "__file__", None)
    return program_name(os.path.splitext(os.path.basename(path))[0]) if path else "main"


def describe_self(name: str, hang_timeout_s: float | None, launcher_pid: int, *, notifies: bool) -> dict[str, Any]:
    """Return this process as a program: its own command line, directory, and environment.

    Args:
        name: of the program.
        hang_timeout_s: silence that counts as a hang; None for the default.
        launcher_pid: whose environment it will inherit; only what differs is told.
        notifies: each of its lives will say when it is ready.

    Raises:
        LocalError: `usage`, it cannot be started again; `too_large`.
    """
    if sys.argv[:1] in ([""], ["-"], []):
        message = "a program that Python reads from a terminal or from standard input cannot be started again"
        raise LocalError(ErrorCode.USAGE, message, "Put it into a file.")
    command = (sys.executable or sys.orig_argv[0], *sys.orig_argv[1:])
    ready = Ready.NOTIFY if notifies else Ready.STARTED
    return _fields(name, command, os.getcwd(), _difference(os.environ, launcher_pid), hang_timeout_s, ready)


def describe_other(pid: int, name: str | None, hang_timeout_s: float | None, launcher_pid: int) -> dict[str, Any]:
    """Return another process as a program; without `name` it is called after its command.

    Raises:
        LocalError: `usage`, it cannot be looked at.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        command, directory, environment = process.cmdline(), process.cwd(), process.environ()
    except psutil.Error as error:
        raise LocalError(ErrorCode.USAGE, f"process {pid} cannot be looked at: {error}", "") from None
    if not command:
        raise LocalError(ErrorCode.USAGE, f"process {pid} has no command line to start it again by", "")
    called = name or program_name(os.path.splitext(os.path.basename(command[0]))[0])
    more = _difference(environment, launcher_pid)
    return _fields(called, tuple(command), directory, more, hang_timeout_s, Ready.STARTED)


def _fields(
    name: str,
    command: tuple[str, ...],
    directory: str,
    environment: Mapping[str, str],
    hang_timeout_s: float | None,
    ready: Ready,
) -> dict[str, Any]:
    spec = ProgramSpec(
        name=name,
        command=command,
        directory=directory,
        environment=environment,
        ready=ready,
        hang_timeout_s=HANG_TIMEOUT_DEFAULT_S if hang_timeout_s is None else float(hang_timeout_s),
        transient=True,
    )
    fields = to_fields(from_fields(to_fields(spec)))  # checked as the launcher will
    if len(json.dumps(fields)) > REQUEST_BYTES_MAX:
        message = f"the command line and environment of {name} are larger than {REQUEST_BYTES_MAX} bytes"
        hint = "Start it as a program: [program.NAME] in reliability.toml, or `relctl run`."
        raise LocalError(ErrorCode.TOO_LARGE, message, hint)
    return fields


def _difference(environment: Mapping[str, str], launcher_pid: int) -> dict[str, str]:
    """Return what of `environment` a child of the launcher would not have anyway."""
    try:
        with open(f"/proc/{launcher_pid}/environ", "rb") as file:
            inherited = set(file.read().split(b"\0"))
    except OSError:
        inherited = set()
    return {
        key: value
        for key, value in environment.items()
        if key not in _LIFES_OWN and os.fsencode(f"{key}={value}") not in inherited
    }
