"""health_monitor as a process."""

import os
import sys
import time

from actors.health_monitor.actor import HealthMonitor
from actors.health_monitor.checks import machine_checks
from actors.health_monitor.config import HealthConfig
from actors.runtime.actor import run_actor
from actors.runtime.arguments import ProcessArguments
from actors.runtime.database_wiring import prepare
from actors.runtime.paths import DATABASE_FILE
from actors.runtime.process import ProcessRuntime


def main(arguments: ProcessArguments) -> int:
    """Run health_monitor and return its exit code."""
    return run_actor(arguments, _make)


def _make(runtime: ProcessRuntime) -> HealthMonitor:
    prepare(runtime)
    data_dir = runtime.arguments.data_dir
    path = os.path.join(data_dir, DATABASE_FILE)
    config = runtime.config.section("health", HealthConfig)
    checks = machine_checks(data_dir, path, config)
    return HealthMonitor(path, runtime.board, config, checks, wall_ms=lambda: time.time_ns() // 1_000_000)


if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
