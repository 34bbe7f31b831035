"""event_logger on a loop of its own, as a process to be killed: `output_taker.py DATABASE RUNTIME_DIR [RATE TICK]`."""

import os
import sys
import time

from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig
from actors.runtime.actor import Context
from actors.runtime.liveness import Board
from tests.actors.harness import Harness


class Paced(EventLogger):
    """Ticks as seldom as the real loop."""

    tick_every_s = 0.0
    _tick_at = 0.0

    def on_tick(self, context: Context, now: float) -> None:
        if now >= self._tick_at:
            self._tick_at = now + self.tick_every_s
            super().on_tick(context, now)


def main() -> None:
    """Turn until killed."""
    path, runtime_dir, *more = sys.argv[1:]
    rate, tick_s = map(float, more or ("100000", "0"))
    config = EventLoggerConfig(output_lines_per_second_max=rate)
    board = Board.create(os.path.join(runtime_dir, "board"))
    actor = Paced(path, os.path.join(runtime_dir, "journal"), board, config, lambda: time.time_ns() // 1_000_000)
    actor.tick_every_s = tick_s
    harness = Harness(actor)
    print("ready", flush=True)
    while True:
        harness.turn()


if __name__ == "__main__":
    main()
