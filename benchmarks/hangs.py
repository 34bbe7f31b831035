"""How long after its timeout a program that hangs is found, and how soon it runs again.

    python benchmarks/hangs.py [--runs N] [--hang-timeout SECONDS]

A program is stopped by SIGSTOP at random moments; it is found when the watchdog's verdict is on the board, and replaced
when its next life is ready. The aim holds for the median of found minus the timeout.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors.runtime.liveness import Verdict
from tests.chaos.system import MANY_RESTARTS, System, running, wait_until

NAME = "victim"
AIM_S = 0.5


def measure(system: System, hang_timeout_s: float) -> tuple[float, float]:
    """Stop the program once; return when it was found, from its timeout on, and when it was replaced."""
    slot, record = system.board.find(NAME) or sys.exit("there is no program")
    life = record.incarnation
    time.sleep(random.uniform(1.5, 2.0))
    os.kill(record.pid, signal.SIGSTOP)
    stopped_at = time.monotonic()

    def found() -> bool:
        written = slot.watchdog.read()
        return written is not None and (written.incarnation, written.verdict) == (life, Verdict.HUNG)

    wait_until(found, hang_timeout_s + 30, "it is found", 0.002)
    found_s = time.monotonic() - stopped_at - hang_timeout_s

    def replaced() -> bool:
        now = slot.launcher.read()
        return now is not None and now.incarnation > life and now.state == "ready"

    wait_until(replaced, 30, "it is replaced", 0.002)
    return found_s, time.monotonic() - stopped_at - hang_timeout_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--hang-timeout", type=float, default=2.0)
    arguments = parser.parse_args()
    command = json.dumps([sys.executable, "-c", "import time; time.sleep(100000)"])
    config = f"{MANY_RESTARTS}[program.{NAME}]\ncommand = {command}\nhang_timeout_s = {arguments.hang_timeout}\n"
    with running(config=config) as system:
        wait_until(lambda: system.state(NAME) == "ready", 20, "the program is ready")
        figures = [measure(system, arguments.hang_timeout) for _ in range(arguments.runs)]
        system.stop()
    found, replaced = ([figure[place] for figure in figures] for place in (0, 1))
    median_s = statistics.median(found)
    mark = "held" if median_s <= AIM_S else "MISSED"
    print(f"found - timeout     median {median_s:6.3f} s  worst {max(found):6.3f} s  aim <= {AIM_S} s  {mark}")
    print(f"replaced - timeout  median {statistics.median(replaced):6.3f} s  worst {max(replaced):6.3f} s")


if __name__ == "__main__":
    main()
