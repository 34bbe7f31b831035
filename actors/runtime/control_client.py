"""Asks the launcher on its own socket: one JSON line there, one back. Blocks, so it is not for a message loop."""

import json
import os
import socket
import time
from typing import Any, Final

from actors.runtime.paths import TOKEN_FILE, RunInfo
from protocol.errors import ErrorCode, LocalError, RemoteError

TCP_PREFIX: Final = "tcp:"
ANSWER_BYTES_MAX: Final = 256 * 1024
_READ_BYTES: Final = 16 * 1024


def call_launcher(run: RunInfo, op: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
    """Ask the launcher of `run` to do `op`, and return its answer.

    Args:
        run: where it is.
        op: ping, status, start, stop, restart or down.
        timeout_s: for everything together.
        arguments: what `op` needs, such as `name`; `user` says for the audit trail on whose behalf it is asked.

    Raises:
        LocalError: `not_running`, nobody listens there or it left while it was asked; `deadline_passed`.
        RemoteError: what the launcher answered.
    """
    deadline = time.monotonic() + timeout_s
    request = {"op": op, "user": caller_name(), **arguments}
    if run.control.startswith(TCP_PREFIX):
        request["token"] = _token(run)
    try:
        with _connect(run.control, timeout_s) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(connection, deadline)
    except (TimeoutError, BlockingIOError):
        raise LocalError(
            ErrorCode.DEADLINE_PASSED,
            f"the launcher has not answered within {timeout_s:g} s",
            "If it hangs, the watchdog replaces it; see `relctl ps`.",
        ) from None
    except OSError as error:
        raise LocalError(ErrorCode.NOT_RUNNING, f"no launcher listens on {run.control}: {error.strerror}") from None
    return _parse(line)


def _connect(address: str, timeout_s: float) -> socket.socket:
    if address.startswith(TCP_PREFIX):
        host, _, port = address.removeprefix(TCP_PREFIX).rpartition(":")
        return socket.create_connection((host, int(port)), timeout_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        part = connection.recv(_READ_BYTES)
        if not part or len(data) > ANSWER_BYTES_MAX:
            raise ConnectionResetError(0, "it closed the connection without an answer")
        data += part
    return data


def _parse(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        error = answer.get("error")
        result = answer["ok"] if error is None else {}
        if error is None and isinstance(result, dict):
            return result
        raise RemoteError(str(error["code"]), str(error["message"]), str(error.get("hint", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RemoteError(ErrorCode.FAILED, "the launcher's answer makes no sense", "") from None


def caller_name() -> str:
    """Return who runs this program, for the audit trail; empty if the environment does not say."""
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or os.environ.get("USERNAME") or ""


def unnamed() -> str:
    """Return what to call a caller whose name the environment does not say."""
    return f"uid {os.getuid()}" if hasattr(os, "getuid") else "an unnamed user"


def _token(run: RunInfo) -> str:
    try:
        with open(os.path.join(run.runtime_dir, TOKEN_FILE), "rb") as file:
            return file.read().hex()
    except OSError:
        return ""
