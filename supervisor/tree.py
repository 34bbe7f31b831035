"""Who belongs to a life of a program, wherever it hides: whoever was executed in an environment with the life's id."""

import os
from typing import Final

from actors.runtime.identity import ProcessIdentity, identity_of
from actors.runtime.programs import INVOCATION_VARIABLE
from actors.runtime.signalling import KILL, Signaller

ROUNDS_MAX: Final = 50
"""So often is looked for more; who goes on forking for longer wins."""
_PAUSE_S: Final = 0.01


def carries(pid: int, invocation: str) -> bool:
    """Tell whether a process was executed in the environment of this life of a program."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read().split(b"\0")
    except OSError:
        return False
    return f"{INVOCATION_VARIABLE}={invocation}".encode() in environment


def carriers(invocation: str) -> list[ProcessIdentity]:
    """Return every process that carries the id; nobody where there is no /proc.

    And nobody if this launcher carries it itself, having been started by the program: then so do all of ours.
    """
    try:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []
    if carries(os.getpid(), invocation):
        return []
    found = []
    for pid in pids:
        identity = identity_of(pid) if carries(pid, invocation) else None
        if identity is not None and carries(pid, invocation):  # the number was not given to another in between
            found.append(identity)
    return found


def end_carriers(invocation: str, signals: Signaller, spared: ProcessIdentity | None = None) -> list[ProcessIdentity]:
    """Kill everybody who carries the id but `spared`, until nobody is left; return whom that did not end."""
    left: list[ProcessIdentity] = []
    for _ in range(ROUNDS_MAX):
        left = [identity for identity in carriers(invocation) if identity != spared]
        if not left:
            break
        for identity in left:
            signals.send(identity, KILL)
        signals.wait_gone(left[-1], _PAUSE_S)  # the kernel takes a moment to take their environments away
    return left
