"""Restarts, for a host application: telling the system of its own, and asking for everybody's.

    service = AutoRestartService()
    service.record_restart("process_failure", exit_code=1)
    service.get_restart_status()

The system's own processes, and the programs that it supervises, are restarted and recorded without any of this.
"""

import json
import os
import sys
import time
from typing import Any, Final

from app.reliability._child import run_relctl
from app.reliability._cli.session import ABSENT
from app.reliability._durable import DurableCaller
from app.reliability._event_rows import message_of, text_of
from app.reliability.client import Client
from protocol.errors import ProtocolError, ReliabilityError
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.names import EVENT_LOGGER

TIMEOUT_S: Final = 5.0
QUERY_PATIENCE_S: Final = 1.0
OFFLINE_TIMEOUT_S: Final = 30.0
_EXIT_CODE_MAX: Final = 2**63


class AutoRestartService:
    """Records restarts of one program. For any thread and forked child."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        program: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Name the system and the program; nothing is opened.

        Args:
            data_dir: the system's; by default RELCTL_DATA_DIR's, or ./data.
            program: the name that restarts are recorded under; by default that of this process's program.
            timeout_s: what one call may take in all.
        """
        self._caller = DurableCaller(EVENT_LOGGER, data_dir)
        self._client = Client(self._caller.data_dir)
        self._program = text_of("program", program if program is not None else own_name())
        self._timeout_s = timeout_s

    def record_restart(self, reason: str, exit_code: int | None = None) -> dict[str, Any]:
        """Write that the program was restarted, and return once that is durable.

        Args:
            reason: why, in words; not empty.
            exit_code: of the life that ended, as far as it is known.

        Returns:
            ``{"id", "seq", "spooled"}``; seq, that of the restart's event, is None while it is only spooled.

        Raises:
            NotDurable: nobody keeps it; the hint says what to do.
            ProtocolError: the reason is empty, or the exit code no whole number.
        """
        if not reason:
            raise ProtocolError("reason is empty")
        if exit_code is not None and (type(exit_code) is not int or not -_EXIT_CODE_MAX <= exit_code < _EXIT_CODE_MAX):
            raise ProtocolError("exit_code is not a whole number")
        now_ms = time.time_ns() // 1_000_000
        arguments = {
            "name": self._program,
            "reason": message_of(reason),
            "exit_code": exit_code,
            "timestamp_ms": now_ms,
        }
        request_id = uuid7(now_ms, os.urandom(RANDOMNESS_BYTES))
        return self._caller.call("record_restart", request_id, arguments, timeout=self._timeout_s)

    def get_restart_status(self) -> dict[str, Any]:
        """Return restarts and budgets of everybody, as `relctl restart-status --json`; from files if nobody answers.

        Raises:
            LocalError: neither event_logger nor the files can be read; `not_running` if there never was a system.
        """
        try:
            return self._client.call(EVENT_LOGGER, "restart_status", timeout=QUERY_PATIENCE_S)
        except ReliabilityError as error:
            if error.code not in ABSENT:
                raise
        said = run_relctl(self._caller.data_dir, "restart-status", timeout_s=OFFLINE_TIMEOUT_S)
        status: dict[str, Any] = json.loads(said)
        return status

    def close(self) -> None:
        """Close the connections. The service may be used again."""
        self._client.close()
        self._caller.close()


def own_name() -> str:
    """Return the name of this process's program: its file's, without directory and suffix."""
    path = sys.argv[0] if sys.argv else ""
    name = os.path.basename(path)
    if name == "__main__.py":  # python -m package
        name = os.path.basename(os.path.dirname(path))
    return os.path.splitext(name)[0] or "application"
