"""The broker's entry: called in the forked child, or executed."""

import sys

from actors.runtime.arguments import ProcessArguments
from actors.runtime.guardian import Guardian
from actors.runtime.process import ProcessRuntime, run_process
from broker.server import Server


def main(arguments: ProcessArguments) -> int:
    """Run the broker; returns its exit code."""
    return run_process(arguments, _body)


def _body(runtime: ProcessRuntime) -> int:
    return Server(runtime, Guardian(runtime)).run()


if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
