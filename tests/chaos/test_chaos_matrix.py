"""A sample of the matrix, by a printed seed; the singles always. The whole of it: ``python -m tests.chaos.matrix``."""

import os
import random

import pytest

from tests.chaos import cases
from tests.chaos.conftest import HANG_TIMEOUT_S
from tests.chaos.system import System

SEED = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
"""Set CHAOS_SEED to repeat a run; the seed stands in the name of every sampled test."""

PAIRS_PER_MODE = 5

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


@pytest.mark.parametrize("case", cases.singles(), ids=str)
def test_every_process_comes_back_alone(shared_system: System, case: cases.Case) -> None:
    shared_system.wait_whole(20.0)
    cases.run(shared_system, case, HANG_TIMEOUT_S)


@pytest.mark.parametrize("number", range(PAIRS_PER_MODE), ids=lambda number: f"seed{SEED}-{number}")
def test_sampled_pairs_and_survivors_come_back(shared_system: System, number: int) -> None:
    case = cases.sample(SEED, PAIRS_PER_MODE)[number]
    print(f"CHAOS_SEED={SEED}: {case}")
    shared_system.wait_whole(20.0)
    cases.run(shared_system, case, HANG_TIMEOUT_S)
