"""event_logger as a process."""

import os
import sys
import time

from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig, EventsConfig
from actors.runtime.actor import run_actor
from actors.runtime.arguments import ProcessArguments
from actors.runtime.database_wiring import prepare
from actors.runtime.paths import DATABASE_FILE, JOURNAL_DIR
from actors.runtime.process import ProcessRuntime


def main(arguments: ProcessArguments) -> int:
    """Run event_logger and return its exit code."""
    return run_actor(arguments, _make)


def _make(runtime: ProcessRuntime) -> EventLogger:
    prepare(runtime)
    arguments = runtime.arguments
    return EventLogger(
        path=os.path.join(arguments.data_dir, DATABASE_FILE),
        journal_dir=os.path.join(arguments.runtime_dir, JOURNAL_DIR),
        board=runtime.board,
        config=runtime.config.section("event_logger", EventLoggerConfig),
        wall_ms=lambda: time.time_ns() // 1_000_000,
        events=runtime.config.section("events", EventsConfig),
    )


if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
