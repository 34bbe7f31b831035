"""relctl in a child process: for what must not be done in a host's own, such as opening its database."""

import json
import os
import subprocess
import sys
from typing import Final

from protocol.errors import ErrorCode, LocalError, ReliabilityError

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def run_relctl(data_dir: str, *arguments: str, timeout_s: float) -> str:
    """Return what ``relctl --json`` says on the data directory `data_dir`.

    Raises:
        LocalError: it failed, with what it said of that; or it took longer than `timeout_s`.
    """
    command = [sys.executable, "-P", "-m", "app.reliability.cli", "--json", "--data-dir", data_dir, *arguments]
    path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LocalError(ErrorCode.DEADLINE_PASSED, f"relctl {arguments[0]} took longer than {timeout_s:g} s") from None
    except OSError as error:
        raise LocalError(ErrorCode.FAILED, f"{sys.executable} cannot be started: {error}", "") from error
    if done.returncode:
        raise _error(done.stderr.decode("utf-8", "replace"), arguments[0], done.returncode)
    return done.stdout.decode("utf-8", "replace")


def _error(said: str, command: str, code: int) -> ReliabilityError:
    """Return the error that relctl ended in."""
    for line in reversed(said.splitlines()):
        try:
            error = json.loads(line)["error"]
            return LocalError(error["code"], error["message"], error["hint"])
        except (ValueError, KeyError, TypeError):
            continue
    last = said.strip().splitlines()[-1:] or [""]
    return LocalError(ErrorCode.FAILED, f"relctl {command} failed with exit code {code}: {last[0]}", "")
