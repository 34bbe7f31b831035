"""The watchdog as a process."""

import sys

from actors.runtime.actor import run_actor
from actors.runtime.arguments import ProcessArguments
from actors.watchdog.actor import Watchdog


def main(arguments: ProcessArguments) -> int:
    """Run the watchdog and return its exit code."""
    return run_actor(arguments, Watchdog)


if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
