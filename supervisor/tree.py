"""Who belongs to a life of a program, wherever it hides: whoever was executed in an environment with the life's id."""

import os
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

from actors.runtime.identity import ProcessIdentity, identity_of, stat_fields
from actors.runtime.programs import INVOCATION_VARIABLE
from actors.runtime.signalling import KILL, Signaller

ROUNDS_MAX: Final = 50
"""So often is looked for more; who goes on forking for longer wins."""
_PAUSE_S: Final = 0.01
_DESCENDANTS_MAX: Final = 4096
_START_TIME: Final = 19
"""Place in /proc/PID/stat, counted from the state (field 3) on."""
_Root = TypeVar("_Root")


def carries(pid: int, invocation: str) -> bool:
    """Tell whether a process was executed in the environment of this life of a program."""
    return f"{INVOCATION_VARIABLE}={invocation}".encode() in _variables(pid)


def variable_of(pid: int, name: str) -> str:
    """Return what a process was executed with as variable `name`; empty if it was not, or is gone."""
    start = f"{name}=".encode()
    return next((item[len(start) :].decode(errors="replace") for item in _variables(pid) if item.startswith(start)), "")


def children_of(pid: int) -> list[int]:
    """Return the children of all threads of a process, zombies too; nobody if the kernel does not list them."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += children_of_thread(f"/proc/{pid}/task/{task}/children")
    except OSError:  # it has ended
        return found
    return found


def children_of_thread(path: str) -> list[int]:
    """Return what the file `path`, /proc/PID/task/TID/children, lists."""
    try:
        with open(path, "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def descendants_of(roots: Iterable[tuple[_Root, int]], spared: Collection[int]) -> dict[tuple[int, int], _Root]:
    """Return pid and start time of who descends from `roots` now, and from which; not from those `spared`."""
    found: dict[tuple[int, int], _Root] = {}
    todo = list(roots)
    while todo and len(found) < _DESCENDANTS_MAX:
        root, parent = todo.pop()
        for pid in children_of(parent):
            fields = stat_fields(pid) if pid not in spared else None
            if fields is not None and (pid, int(fields[_START_TIME])) not in found:
                found[pid, int(fields[_START_TIME])] = root
                todo.append((root, pid))
    return found


def _variables(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


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
