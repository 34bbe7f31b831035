"""Recovery while nobody answers: a child of the application reads the files."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from protocol.errors import ErrorCode, LocalError

_OFFLINE: Final = "actors.checkpointer.offline"


def read_offline(data_dir: str, words: Sequence[str], end: float) -> tuple[dict[str, Any], bytes]:
    """Have a child read the files: an application never opens our database in its own process.

    Args:
        data_dir: the system's.
        words: what is asked, a name, and more, as `actors.checkpointer.offline` has it.
        end: monotonic time by which it has to have answered.

    Raises:
        LocalError: it did not manage, or not until monotonic time `end`.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    command = [sys.executable, "-P", "-m", _OFFLINE, data_dir, *words]
    search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=max(0.5, end - time.monotonic()),
            check=False,
        )
        head, newline, payload = done.stdout.partition(b"\n")
        answer: dict[str, Any] = json.loads(head) if newline else {}
    except subprocess.TimeoutExpired:
        raise LocalError(ErrorCode.DEADLINE_PASSED, f"the files in {data_dir} could not be read in time") from None
    except (OSError, ValueError) as error:
        raise LocalError(ErrorCode.FAILED, f"the files in {data_dir} could not be read: {error}", "") from None
    if "error" in answer:
        raise LocalError(**answer["error"])
    if "reason" not in answer:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LocalError(ErrorCode.FAILED, f"the files in {data_dir} could not be read: {last}", "")
    return answer, payload
