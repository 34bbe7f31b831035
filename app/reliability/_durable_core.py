"""Whether a durable call asks its owner or goes to the spool, as a state machine without socket and clock.

========== ============================ ========= ===================================================================
state      what happens                 next      effect
========== ============================ ========= ===================================================================
answering  a call                       answering ask the owner, for `patience_s` at most
answering  the owner answers            answering
answering  the owner does not           silent    that call is spooled; the next probe is due `PROBE_INTERVAL_S` later
silent     a call, no probe is due      silent    spool
silent     a call, a probe is due       probing   spool, and ask the owner for it as well, while nobody waits
probing    a call                       probing   spool
probing    the owner answers            answering
probing    the owner does not           silent    the next probe is due `PROBE_INTERVAL_S` later
probing    nothing for `PROBE_S_MAX`    probing   whoever probed is gone (a fork): the next call probes
any        a late answer to any call    answering
========== ============================ ========= ===================================================================

A probe is a call itself, under its own id, not a ping: a process whose loop answers may be unable to commit. It takes
effect once though it is spooled too. So nobody waits for a silent owner but those who were the first to find it so.
"""

from enum import Enum, StrEnum
from typing import Final

from protocol.errors import ErrorCode

PATIENCE_S_MAX: Final = 1.0
PATIENCE_SHARE: Final = 0.5
"""How long the owner is waited for: the smaller of the two, so that there is time left for the spool."""
PROBE_INTERVAL_S: Final = 1.0
PROBE_S_MAX: Final = 5.0
"""A probe without outcome after so long will never have one."""

SPOOLED_CODES: Final = frozenset(
    {
        ErrorCode.BROKER_DOWN,
        ErrorCode.BROKER_HUNG,
        ErrorCode.NOT_RUNNING,
        ErrorCode.SERVICE_MISSING,
        ErrorCode.SERVICE_UNKNOWN,
        ErrorCode.BUSY,
        ErrorCode.DEADLINE_PASSED,
        ErrorCode.DRAINING,
        ErrorCode.LOCKED,
        ErrorCode.FAILED,
        ErrorCode.INTEGRITY,
    }
)
"""Errors that may pass by themselves: nobody answered, or the owner cannot write now. The others are the call's own."""


class State(StrEnum):
    """What is thought of the owner."""

    ANSWERING = "answering"
    SILENT = "silent"
    PROBING = "probing"


class Way(Enum):
    """Where a call goes."""

    ASK = "to its owner"
    SPOOL = "to the spool"
    SPOOL_AND_ASK = "to the spool, and to its owner while nobody waits"


class Owner:
    """What one process knows of one owner.

    Attributes:
        state: see the module.
    """

    def __init__(self) -> None:
        """Expect an answer."""
        self.state = State.ANSWERING
        self._since = 0.0

    def call(self, now: float) -> Way:
        """Decide on a call at monotonic time `now`."""
        if self.state is State.ANSWERING:
            return Way.ASK
        wait_s = PROBE_INTERVAL_S if self.state is State.SILENT else PROBE_S_MAX
        if now < self._since + wait_s:
            return Way.SPOOL
        self.state, self._since = State.PROBING, now
        return Way.SPOOL_AND_ASK

    def answered(self) -> None:
        """Take in that the owner has answered, with whatever."""
        self.state = State.ANSWERING

    def missed(self, now: float) -> None:
        """Take in that it has not."""
        self.state, self._since = State.SILENT, now


def patience_s(timeout_s: float) -> float:
    """Return how long a call that may take `timeout_s` waits for its owner."""
    return min(PATIENCE_S_MAX, timeout_s * PATIENCE_SHARE)
