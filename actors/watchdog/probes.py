"""Questions that only a healthy program answers. They block: for threads, never for a message loop."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from actors.runtime.helpers import as_helper
from actors.runtime.programs import ProgramSpec
from actors.watchdog.trees import tree_of

HTTP_FAILURE_MIN: Final = 400
"""Statuses from here on are failures; a redirect is an answer, and is not followed."""
NOT_HANDED_ON: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "PYTHONPATH"})
_KILL_ROUNDS: Final = 5


def ask(spec: ProgramSpec, timeout_s: float) -> str:
    """Probe a program once; returns why it failed, empty for a success. An answer after `timeout_s` is none."""
    probe = spec.probe
    if probe is None:
        return ""
    began = time.monotonic()
    try:
        match probe.kind, probe.target:
            case "http", str(url):
                problem = ask_http(url, timeout_s)
            case "tcp", str(address):
                problem = ask_tcp(address, timeout_s)
            case "command", tuple(words):
                problem = ask_command(words, spec.directory, spec.environment, timeout_s)
            case _:
                problem = f"there is no probe of the kind {probe.kind!r}"
    except (OSError, ValueError) as error:
        problem = str(error) or type(error).__name__
    late = time.monotonic() - began > timeout_s
    return problem or (f"no answer within {timeout_s:g} s" if late else "")


def ask_http(url: str, timeout_s: float) -> str:
    """GET `url`; returns why that failed. The body is not read.

    Raises:
        OSError, ValueError: no connection, or no answer.
    """
    from http import client  # noqa: PLC0415 - only a system with such a probe pays for it

    parts = urlsplit(url)
    if parts.hostname is None:
        return f"{url} names no host"
    kind = client.HTTPSConnection if parts.scheme == "https" else client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers={"User-Agent": "relctl-probe", "Connection": "close"})
        answer = connection.getresponse()
    except client.HTTPException as error:
        return f"no HTTP answer: {error!r}"
    finally:
        connection.close()
    return f"HTTP status {answer.status}" if answer.status >= HTTP_FAILURE_MIN else ""


def ask_tcp(address: str, timeout_s: float) -> str:
    """Connect to HOST:PORT, and leave.

    Raises:
        OSError, ValueError: no connection.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    return ""


def ask_command(words: tuple[str, ...], directory: str, environment: Mapping[str, str], timeout_s: float) -> str:
    """Run a command, and kill it with all that it started once the time is over.

    Raises:
        OSError, ValueError: it cannot be started.
    """
    # With vfork the interpreter's lock is held until the exec is through: the loop would wait for the disk.
    subprocess._USE_VFORK = False  # type: ignore[misc]
    inherited = {key: value for key, value in os.environ.items() if key not in NOT_HANDED_ON}
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=directory or None,
        env=as_helper(inherited | dict(environment)),
        start_new_session=True,
    )
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        _kill_tree(process)
        return f"the command ran for more than {timeout_s:g} s"
    return "" if code == 0 else f"the command ended with {code}"


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command that is our child, so that its pid is its own until we have waited for it, and its descendants."""
    for _ in range(_KILL_ROUNDS):
        below = tree_of(process.pid) - {process.pid}
        for pid in below:
            _kill(pid)
        if not below:
            break
    process.kill()
    process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except (ProcessLookupError, PermissionError):
        return
