"""What a person does through relctl, for the audit trail, where no process of ours enters it on its own account."""

import os
import time
from typing import Any, Final

from actors.runtime.control_client import caller_name, unnamed
from app.reliability._cli.session import Session
from protocol.errors import ReliabilityError
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

COMPONENT: Final = "relctl"
TIMEOUT_S: Final = 2.0


def record(session: Session, event_type: str, message: str, **attributes: Any) -> None:
    """Enter what has been done, with the user who did it. Durable, by event_logger or the spool.

    What is done is done: if neither takes the entry, people are told, and the command goes on.
    """
    user = caller_name() or unnamed()
    now_ms = time.time_ns() // 1_000_000
    event = {
        "severity": Severity.NOTICE.name,
        "component": COMPONENT,
        "event_type": event_type,
        "message": f"{message}, by {user}",
        "attributes": {"user": user, **attributes},
        "timestamp_ms": now_ms,
    }
    request_id = uuid7(now_ms, os.urandom(RANDOMNESS_BYTES))
    try:
        session.durable(EVENT_LOGGER).call("emit", request_id, event, timeout=TIMEOUT_S)
    except ReliabilityError as error:
        session.output.note(f"It is not in the audit trail: {error}")
