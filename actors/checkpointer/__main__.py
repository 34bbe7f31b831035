"""checkpointer as a process."""

import sys
import time

from actors.checkpointer.actor import Checkpointer
from actors.checkpointer.config import CheckpointsConfig
from actors.runtime.actor import run_actor
from actors.runtime.arguments import ProcessArguments
from actors.runtime.database_wiring import prepare
from actors.runtime.process import ProcessRuntime


def main(arguments: ProcessArguments) -> int:
    """Run checkpointer and return its exit code."""
    return run_actor(arguments, _make)


def _make(runtime: ProcessRuntime) -> Checkpointer:
    prepare(runtime)
    arguments = runtime.arguments
    config = runtime.config.section("checkpoints", CheckpointsConfig)
    return Checkpointer(arguments.data_dir, arguments.runtime_dir, config, wall_ms=lambda: time.time_ns() // 1_000_000)


if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
