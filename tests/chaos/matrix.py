"""The whole matrix of kills and freezes, in both modes: ``python -m tests.chaos.matrix [--mode posix|portable]``.

Prints one row a case and exits 1 if any failed. CI runs a sample of it (`test_chaos_matrix.py`).
"""

import argparse
import sys
import time
import traceback
from collections.abc import Iterator

from tests.chaos import cases
from tests.chaos.system import MANY_RESTARTS, System, running

HANG_TIMEOUT_S = 5.0


def main() -> int:
    """Run the matrix and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["posix", "portable", "both"], default="both")
    parser.add_argument("--only", default="", help="run only cases whose row contains this text")
    options = parser.parse_args()
    failed = total = 0
    start = time.monotonic()
    for mode in ["posix", "portable"] if options.mode == "both" else [options.mode]:
        wanted = [case for case in cases.all_cases() if options.only in str(case)]
        print(f"\n{mode}: {len(wanted)} cases, hang timeout {HANG_TIMEOUT_S:g} s", flush=True)
        print(f"{'case':58} {'bound s':>8} {'whole s':>8} {'silent s':>9}", flush=True)
        for case, system in zip(wanted, _systems(mode == "portable"), strict=False):
            total += 1
            failed += not _row(case, system)
    print(f"\n{total - failed} of {total} cases held, in {time.monotonic() - start:.0f} s", flush=True)
    return 1 if failed else 0


def _row(case: cases.Case, system: System) -> bool:
    label = f"{case!s:58} {case.bound_s(HANG_TIMEOUT_S):8.1f}"
    try:
        system.wait_whole(20.0)
        outcome = cases.run(system, case, HANG_TIMEOUT_S)
    except (AssertionError, OSError) as error:
        print(f"{label} FAILED {error}", flush=True)
        traceback.print_exc()
        print(system.complaint(), file=sys.stderr, flush=True)
        _broken.append(system)
        return False
    print(f"{label} {outcome.recovery_s:8.2f} {outcome.gap_s:9.2f}", flush=True)
    return True


_broken: list[System] = []


def _systems(portable: bool) -> Iterator[System]:
    """Yield the same system for case after case, and a fresh one after a failure."""
    while True:
        with running(portable=portable, config=MANY_RESTARTS + f"hang_timeout_s = {HANG_TIMEOUT_S}\n") as system:
            while system not in _broken:
                yield system


if __name__ == "__main__":
    sys.exit(main())
