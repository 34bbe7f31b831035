"""What a service manager runs: it becomes the launcher, or joins one that runs already.

===================================== ==============================================================================
what is found                         what follows
===================================== ==============================================================================
nothing, or a stop that is over       it becomes the launcher
a stop that is under way              it waits until that is over, then as above
a launcher of the manager's own       it names it as the main process, and leaves: so it is after a successor took over
a launcher that somebody else started it stays in its place: speaks for it while its loop turns, takes over after it
others that bring a launcher back     it waits for that
===================================== ==============================================================================

A start of the service, at boot too, is a start by a person: it lifts the mark of a stop, as `relctl up` does. The stop
that the manager itself asks for at each shutdown leaves one.
"""

import array
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from app.reliability._notify import SOCKET_VARIABLE, Notifier
from app.reliability._start import Condition, Finding
from protocol.errors import ErrorCode, LocalError

BEAT_INTERVAL_S: Final = 1.0
_LOOK_INTERVAL_S: Final = 0.2
PATIENCE_S: Final = 60.0
"""For a stop that is under way, and for others to bring a launcher back."""
_BARRIER_S: Final = 5.0
_SETTLED: Final = frozenset({Condition.RUNNING, Condition.STOPPED, Condition.MISSING})

Look = Callable[[], Finding]
Wait = Callable[[Callable[[], bool], float, float], bool]


def join(look: Look, anybody_stops: Callable[[], bool], wait_until: Wait, sleep: Callable[[float], None]) -> bool:
    """Return whether to become the launcher now; False if this process is done.

    Args:
        look: how the system stands.
        anybody_stops: whether a stop is under way, with somebody left.
        wait_until: waits for a condition, at most so long, looking so often.
        sleep: waits.

    Raises:
        LocalError: nobody is in charge, and nothing comes of waiting.
    """
    address = os.environ.get(SOCKET_VARIABLE, "")
    notifier = Notifier(address) if address and hasattr(socket, "AF_UNIX") else None
    try:
        return _join(look, anybody_stops, wait_until, sleep, notifier)
    finally:
        if notifier is not None:
            notifier.close()


def become(command: list[str], directory: str | None) -> NoReturn:
    """Turn this process into the launcher; where there is no such thing, run it and leave with its exit code."""
    if directory is not None:
        os.chdir(directory)
    sys.stdout.flush()
    if sys.platform == "win32":
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)  # noqa: S606 - without a shell is how it is meant


def _join(
    look: Look,
    anybody_stops: Callable[[], bool],
    wait_until: Wait,
    sleep: Callable[[float], None],
    notifier: Notifier | None,
) -> bool:
    while True:
        finding = look()
        match finding.condition:
            case Condition.MISSING:
                return True
            case Condition.STOPPED:
                if not wait_until(lambda: not anybody_stops(), PATIENCE_S, _LOOK_INTERVAL_S):
                    raise LocalError(ErrorCode.DEADLINE_PASSED, f"the stop is not over after {PATIENCE_S:g} s")
                return True
            case Condition.RUNNING if finding.launcher is not None:
                if notifier is not None and _in_our_group(finding.launcher.pid):
                    _hand_over(notifier, finding.launcher.pid)
                    return False
                _follow(look, finding, notifier, sleep)
                if look().condition is Condition.STOPPED:
                    return False
            case _:
                if not wait_until(lambda: look().condition in _SETTLED, PATIENCE_S, _LOOK_INTERVAL_S):
                    message = (
                        f"the launcher stands still, or is missing, and nobody replaces it within {PATIENCE_S:g} s"
                    )
                    raise LocalError(ErrorCode.FAILED, message, "`relctl ensure` ends what stands still.")


def _follow(look: Look, finding: Finding, notifier: Notifier | None, sleep: Callable[[float], None]) -> None:
    """Speak for a launcher that is not the manager's, until its loop turns no more."""
    told = None
    while finding.condition is Condition.RUNNING and finding.launcher is not None:
        if notifier is not None:
            fields = ["WATCHDOG=1"]
            if finding.launcher.pid != told:
                status = f"somebody else has started the launcher, pid {finding.launcher.pid}; it is followed"
                fields += ["READY=1", f"STATUS={status}"]
            if notifier.say(*fields):
                told = finding.launcher.pid
        sleep(BEAT_INTERVAL_S)
        finding = look()


def _in_our_group(pid: int) -> bool:
    """Tell whether the manager would take process `pid` for one of this service: it goes by the control group."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as own, open(f"/proc/{pid}/cgroup", encoding="utf-8") as its:
            return own.read() == its.read()
    except OSError:
        return False


def _hand_over(notifier: Notifier, pid: int) -> None:
    """Name the main process, and wait until the manager has read that: it looks up who said it while that one lives."""
    address = os.environ[SOCKET_VARIABLE]
    notifier.say(f"MAINPID={pid}", "READY=1", f"STATUS=joined the launcher, pid {pid}, which others have brought back")
    reading, writing = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.settimeout(_BARRIER_S)
            target = f"\0{address[1:]}" if address.startswith("@") else address
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writing]))]
            speaker.sendmsg([b"BARRIER=1"], ancillary, 0, target)
    except OSError:
        return
    finally:
        os.close(writing)
        _await_end(reading)


def _await_end(descriptor: int) -> None:
    import select

    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLHUP)
        poll.poll(int(_BARRIER_S * 1000))
    finally:
        os.close(descriptor)
