"""A small child for the tests of process control: its name says what it does, its data directory is where it tells."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from actors.runtime.arguments import ProcessArguments

LIFETIME_S = 60.0
"""No dummy outlives a test run, even one that nobody kills."""


def main(arguments: ProcessArguments) -> int:
    """Do what the name says."""
    BEHAVIOURS[arguments.name](Path(arguments.data_dir))
    return 3


def told(directory: Path, name: str) -> dict[str, object] | None:
    """What a dummy told under `name`, or None if it has not yet."""
    try:
        return dict(json.loads((directory / name).read_text()))
    except FileNotFoundError:
        return None


def open_files() -> list[str]:
    """What the descriptors of this process refer to, where the system tells."""
    found = []
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:  # the one that was listed by
            continue
    return sorted(found)


def _tell(directory: Path, name: str, **facts: object) -> None:
    facts |= {"pid": os.getpid(), "session": os.getsid(0), "group": os.getpgrp(), "open": open_files()}
    (directory / f"{name}.new").write_text(json.dumps(facts))
    os.replace(directory / f"{name}.new", directory / name)


def _sleep() -> None:
    end = time.monotonic() + LIFETIME_S
    while time.monotonic() < end:
        time.sleep(0.2)


def _exit(directory: Path) -> None:
    masked = sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    _tell(directory, "exit", masked=masked, default=default, title=sys.argv[0])


def _wait(directory: Path) -> None:
    _tell(directory, "wait")
    _sleep()


def _stubborn(directory: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _tell(directory, "stubborn")
    _sleep()


def _family(directory: Path, leader_stays: bool = True) -> None:
    """A leader with three stubborn descendants: in its group, in a group of its own, in a session of its own."""
    for name, leave in (("same", lambda: None), ("group", lambda: os.setpgid(0, 0)), ("session", os.setsid)):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            leave()
            _tell(directory, name)
            _sleep()
            os._exit(0)
    while not all((directory / name).exists() for name in ("same", "group", "session")):
        time.sleep(0.005)
    _tell(directory, "family")
    if leader_stays:
        _sleep()


def _crash(_directory: Path) -> None:
    raise ValueError("as it was told to")


def _leave(_directory: Path) -> None:
    sys.exit(7)


BEHAVIOURS: dict[str, Callable[[Path], None]] = {
    "exit": _exit,
    "wait": _wait,
    "stubborn": _stubborn,
    "family": _family,
    "orphans": lambda directory: _family(directory, leader_stays=False),
    "crash": _crash,
    "leave": _leave,
}

if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
