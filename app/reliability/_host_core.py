"""How the end of a host's main function is to be taken. Pure.

========================= ========== ================= ================= ===============
main                      exit code  last checkpoint   ends the run      said to leave
========================= ========== ================= ================= ===============
returned or exited with 0 0          yes               yes               yes
the same after a signal n 128 + n    yes               yes               yes
returned or exited with c c          yes               no                no
was cancelled, signal n   128 + n    yes               yes               yes
was torn away, signal n   128 + n    no                no                yes
raised an exception       1          no                no                no
========================= ========== ================= ================= ===============

A run that is not ended is recovered from by the next one. Who is not said to leave is started again. A coroutine is
cancelled where it awaits, and unwinds from there; a plain function is torn away wherever it is, perhaps in the middle
of a change of its state, so that state is not kept.
"""

from dataclasses import dataclass
from enum import StrEnum

_SIGNALLED = 128
_INTERRUPT = 2
EXIT_FAILED = 1


class End(StrEnum):
    """How a main function ended."""

    RETURNED = "returned"
    CANCELLED = "cancelled"
    TORN = "torn"
    RAISED = "raised"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows; see the module's table."""

    code: int
    checkpoint: bool
    ends_run: bool
    leaves: bool


def outcome_of(end: End, result: object, signal_number: int) -> Outcome:
    """Return what follows.

    Args:
        end: how it ended.
        result: what it returned, or exited with.
        signal_number: the signal that asked it to end; 0 without one.
    """
    if end is End.RAISED:
        return Outcome(EXIT_FAILED, checkpoint=False, ends_run=False, leaves=False)
    if end is End.TORN:
        return Outcome(_SIGNALLED + (signal_number or _INTERRUPT), checkpoint=False, ends_run=False, leaves=True)
    code = exit_code_of(result) if end is End.RETURNED else 0
    if code:
        return Outcome(code, checkpoint=True, ends_run=False, leaves=False)
    code = _SIGNALLED + signal_number if signal_number else 0
    return Outcome(code, checkpoint=True, ends_run=True, leaves=True)


def exit_code_of(result: object) -> int:
    """Return the exit code that a result of main is, or what it has called `sys.exit` with."""
    if isinstance(result, bool) or result is None:
        return 0
    if isinstance(result, int):
        return result & 0xFF
    return EXIT_FAILED if isinstance(result, str) else 0
