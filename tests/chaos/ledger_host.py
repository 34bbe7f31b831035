"""A host application for the ledger test: events and checkpoints in a stream, and a ledger of what was acknowledged.

``python -m tests.chaos.ledger_host DATA_DIR LEDGER RUN``. A line goes to the ledger after the call has returned, so
whatever stands there was promised; the host may be killed at any moment.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
from typing import Any

import msgpack

from app.reliability.crash_recovery import CrashRecoveryManager
from app.reliability.event_logger import EventLogger

NAME = "ledger"
TASKS = 8
STATE_BYTES = (10, 2_000, 40_000, 400_000)
PAUSE_S = 0.002
"""Between two calls of one task: the test is about kills, not about load."""


class Host:
    """One life of the application."""

    def __init__(self, data_dir: str, ledger: str, run: str) -> None:
        self._data_dir = data_dir
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._run = run
        self._draw = random.Random(run)

    async def live(self) -> None:
        """Write until killed."""
        logger = EventLogger(self._data_dir)
        recovery = CrashRecoveryManager(NAME, self._data_dir)
        await recovery.start()
        state = await recovery.recover_from_crash()
        self._enter(kind="recovered", n=None if state is None else state["n"], run=state and state["run"])
        await asyncio.gather(*(self._events(logger, task) for task in range(TASKS)), self._checkpoints(recovery))

    async def _events(self, logger: EventLogger, task: int) -> None:
        number = 0
        while True:
            number += 1
            message = f"{self._run}:{task}:{number}"
            answer = await logger.log_event("INFO", NAME, "entry", message, {"n": number})
            self._enter(kind="event", message=message, **answer)
            await asyncio.sleep(PAUSE_S)

    async def _checkpoints(self, recovery: CrashRecoveryManager) -> None:
        number = 0
        while True:
            number += 1
            state = {"run": self._run, "n": number, "pad": self._draw.randbytes(self._draw.choice(STATE_BYTES))}
            made = await recovery.create_checkpoint(state=state)
            sha256 = hashlib.sha256(msgpack.packb(state)).hexdigest()
            self._enter(kind="checkpoint", run=self._run, n=number, id=made.id, seq=made.seq, sha256=sha256)
            await asyncio.sleep(PAUSE_S)

    def _enter(self, **fields: Any) -> None:
        os.write(self._ledger, json.dumps(fields).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(Host(*sys.argv[1:]).live())
