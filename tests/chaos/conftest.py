"""Fixtures of the chaos tests: the mode, and a system that is shared by the tests of one module and mode."""

from collections.abc import Iterator

import pytest

from tests.chaos.system import MANY_RESTARTS, System, running

HANG_TIMEOUT_S = 2.0
"""Shorter than the default 5 s, so that CI sees more cases; `python -m tests.chaos.matrix` runs with 5 s."""

CONFIG = MANY_RESTARTS + f"hang_timeout_s = {HANG_TIMEOUT_S}\n"


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.portable)], ids=["posix", "portable"]
)
def portable(request: pytest.FixtureRequest) -> bool:
    """Which pair of ports the system runs on."""
    return bool(request.param)


@pytest.fixture(scope="module")
def shared_system(portable: bool) -> Iterator[System]:
    """One system for the tests of a module; each test leaves it whole or fails."""
    with running(portable=portable, config=CONFIG) as system:
        yield system
        system.stop()
