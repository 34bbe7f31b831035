"""The calls by which checkpoints are kept: to the checkpointer, by hand-over or by message, or else to the spool."""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from actors.runtime.spool import SpoolWriter
from actors.runtime.transport import Lane
from app.reliability._durable_core import SPOOLED_CODES
from app.reliability._hand_over import HandOver
from app.reliability.async_client import AsyncClient
from protocol.errors import ErrorCode, NotDurable, ReliabilityError, RemoteError
from protocol.limits import KIB, MIB
from protocol.names import CHECKPOINTER

ANSWER_S: Final = 1.0
"""How long the checkpointer has to answer before a small state goes to the spool."""
ANSWER_BYTES_PER_S: Final = 16 * MIB
"""A large one may take this much longer."""
CONTROL_LANE_BYTES_MAX: Final = 128 * KIB
_SEND_INSTEAD: Final = frozenset({ErrorCode.INTEGRITY, ErrorCode.FAILED, ErrorCode.BAD_REQUEST})
"""What the checkpointer says of a state that it does not take as a file; an older one knows of no files."""


class CheckpointCalls:
    """Makes calls of one application durable, for the coroutines of one event loop, one call at a time."""

    def __init__(self, data_dir: str, client: AsyncClient) -> None:
        """Name the system; nothing is opened."""
        self._data_dir = data_dir
        self._client = client
        self._spool = SpoolWriter(data_dir, CHECKPOINTER)
        self._hand_over = HandOver(data_dir)
        self._missed_at = float("-inf")

    def close(self) -> None:
        """Let go of the spool."""
        self._spool.close()

    async def durably(
        self, op: str, arguments: dict[str, Any], raw: Sequence[bytes], timeout_s: float
    ) -> tuple[bytes, dict[str, Any] | None]:
        """Have the checkpointer do something, or else the spool keep it; returns its id, and the answer if any.

        Raises:
            NotDurable: neither the system nor the spool takes it.
            RemoteError: it must not be done.
        """
        request_id = os.urandom(16)
        end = time.monotonic() + timeout_s
        if time.monotonic() - self._missed_at >= ANSWER_S:
            patience_s = min(timeout_s / 2, ANSWER_S + sum(map(len, raw)) / ANSWER_BYTES_PER_S)
            try:
                if raw:
                    answer = await self._handed_over(op, request_id, arguments, raw[0], patience_s)
                    if answer is not None:
                        return request_id, answer
                    request_id = os.urandom(16)  # the first one was refused, and stays so
                return request_id, await self._sent(op, request_id, arguments, raw, patience_s)
            except ReliabilityError as error:
                if error.code not in SPOOLED_CODES:
                    raise
                self._missed_at = time.monotonic()
        left = max(0.0, end - time.monotonic())
        try:
            await asyncio.wait_for(asyncio.to_thread(self._spool.append, op, request_id, arguments, raw), left)
        except TimeoutError:
            hint = "It may be kept all the same. Try again once the disk moves, or give more time."
            raise NotDurable(f"{self._data_dir} did not take it in time: its disk stands still", hint) from None
        return request_id, None

    async def _handed_over(
        self, op: str, request_id: bytes, arguments: dict[str, Any], payload: bytes, patience_s: float
    ) -> dict[str, Any] | None:
        """Hand a large state over as a file; None if the bytes have to be sent, under another id.

        Raises:
            ReliabilityError: nobody answered, or it must not be done.
        """
        offer = self._hand_over.offer(payload)
        if offer is None:
            return None
        file: dict[str, Any] = {"file": offer.file, "bytes": offer.size_bytes}
        try:
            answer, _ = await self._client.call_raw(
                CHECKPOINTER, op, timeout=patience_s, request_id=request_id, **arguments, **file
            )
        except BaseException as error:
            offer.withdraw()
            if isinstance(error, RemoteError) and error.code in _SEND_INSTEAD:
                return None
            raise
        return answer

    async def _sent(
        self, op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes], patience_s: float
    ) -> dict[str, Any]:
        lane = Lane.CONTROL if sum(map(len, raw)) <= CONTROL_LANE_BYTES_MAX else Lane.BULK
        answer, _ = await self._client.call_raw(
            CHECKPOINTER, op, raw=raw, lane=lane, timeout=patience_s, request_id=request_id, **arguments
        )
        return answer
