"""What a program's own settings decide: whether its end was a good one, and when it may begin. Pure."""

from collections.abc import Iterable
from typing import Final

from actors.runtime.programs import Restart
from supervisor.model import Exit

OWN_PATIENCE_S: Final = 10.0
"""How long a late process waits for those that are not late."""
STEADY_S: Final = 1.0
"""A life of this length was a good one, for who is ready as soon as it runs."""
_CLEAN_SIGNALS: Final = frozenset({1, 2, 13, 15})
"""SIGHUP, SIGINT, SIGPIPE and SIGTERM: who dies of one was asked to leave, or had nobody left to write to."""


def stays_down(restart: Restart, exit_: Exit, *, said_stopping: bool, failed: bool) -> bool:
    """Tell whether whoever ended so is not started again.

    Args:
        restart: its policy.
        exit_: how it ended.
        said_stopping: whether it had said that it was leaving.
        failed: whether it was told to leave for a failure.
    """
    if restart is Restart.ON_FAILURE:
        clean = said_stopping or exit_.exit_code == 0 or exit_.signal in _CLEAN_SIGNALS
        return clean and not failed
    return restart is Restart.NEVER


def waiting_for(names: Iterable[str]) -> str:
    """Return the sentence that says whom a process waits for."""
    return f"waits for {', '.join(names)}"
