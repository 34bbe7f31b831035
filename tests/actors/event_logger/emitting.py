"""A process that emits events through an event logger of its own, says what was acknowledged, and waits to be killed.

``python -m tests.actors.event_logger.emitting DIRECTORY ROUND``
"""

import itertools
import os
import sys
import time
from pathlib import Path

from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig
from actors.runtime.journal import Journal, new_entry
from actors.runtime.liveness import Board
from tests.actors.harness import Asked, Harness

IN_FLIGHT = 16


def main(directory: Path, round_name: str) -> None:
    board = Board(str(directory / "board"), writable=False)
    actor = EventLogger(
        str(directory / "reliability.db"),
        str(directory / "journal"),
        board,
        EventLoggerConfig(),
        lambda: time.time_ns() // 1_000_000,
    )
    logger = Harness(actor)
    journal = Journal(str(directory / "journal"), "launcher")
    asked: dict[str, Asked] = {}
    for number in itertools.count():
        message = f"{round_name}:{number}"
        request_id = os.urandom(16)
        asked[message] = logger.ask(
            "emit", request_id=request_id, severity="INFO", component="c", event_type="t", message=message
        )
        if number % 5 == 0:
            entry = f"journal:{message}"
            journal.append(new_entry("event", severity="INFO", component="c", event_type="t", message=entry))
            print(entry, flush=True)
        logger.turn()
        while True:
            for key in [key for key, item in asked.items() if item.done]:
                assert asked.pop(key).error is None
                print(key, flush=True)
            if len(asked) < IN_FLIGHT:
                break
            logger.turn()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
