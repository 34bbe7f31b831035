"""The supervision core under seeded schedules of everything that happens to a PC, on a fake clock.

SIM_SCHEDULES says how many run (default 2000), SIM_SEED where the seeds begin (default: chosen anew, and printed). A
failure prints its seed and its story; ``SIM_SEED=N SIM_SCHEDULES=1 pytest tests/sim`` replays it.
"""

import os
import random

import pytest

from tests.sim.schedule import Schedule

SCHEDULES = int(os.environ.get("SIM_SCHEDULES", "2000"))
FIRST_SEED = int(os.environ.get("SIM_SEED", random.SystemRandom().randrange(10**9)))
CHUNK = 250


@pytest.mark.parametrize("start", range(0, SCHEDULES, CHUNK))
def test_the_laws_of_supervision_hold_in_every_schedule(start: int) -> None:
    seeds = range(FIRST_SEED + start, FIRST_SEED + min(start + CHUNK, SCHEDULES))
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    for seed in seeds:
        Schedule(seed).run()
