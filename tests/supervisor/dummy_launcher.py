"""`launcher.py` with two dummies in place of our processes, so with nobody who restores the launcher."""

import sys

import launcher
from actors.runtime.liveness import FIRST_ACTOR_SLOT, ProcessKind
from supervisor.settings import Definition

MODULE = "tests.supervisor.dummy_actor"


def definitions() -> tuple[Definition, ...]:
    """Two dummies; `two` is stopped first."""
    return (
        Definition("one", ProcessKind.ACTOR, MODULE, FIRST_ACTOR_SLOT, stop_rank=1),
        Definition("two", ProcessKind.ACTOR, MODULE, FIRST_ACTOR_SLOT + 1, stop_rank=0),
    )


if __name__ == "__main__":
    launcher.definitions = definitions
    sys.exit(launcher.main())
