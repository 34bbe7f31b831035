"""Acknowledges changes: who waits for `kept` is told once a checkpoint that holds the change is durable."""

import asyncio

from app.reliability.crash_recovery import CrashRecoveryManager


class Keeper:
    """Takes one checkpoint at a time; all who come while it is under way share the next one."""

    def __init__(self, recovery: CrashRecoveryManager) -> None:
        """Keep what `recovery` calls the state."""
        self._recovery = recovery
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def kept(self) -> None:
        """Return once everything that has been changed by now is durable.

        Raises:
            ReliabilityError: it is not, as far as anybody knows.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        await future

    async def _work(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await self._recovery.create_checkpoint()  # takes the state as it is now
            except Exception as error:  # noqa: BLE001 - whatever it is, it is those who wait that have to know
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
