"""Durable calls: kept by their owner, or, if it does not answer within a second, by the spool, until it does.

What a call returns from survives the death of every process. Nothing here waits longer than the call may take, not
even for a disk that stands still.
"""

# ruff: noqa: ASYNC109 - `timeout` is part of the calls' published signature, and travels with the request as its deadline

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from actors.runtime.paths import data_directory
from actors.runtime.spool import SpoolWriter
from actors.runtime.transport import Lane
from app.reliability._durable_core import PATIENCE_S_MAX, SPOOLED_CODES, Owner, Way, patience_s
from app.reliability.client import TIMEOUT_DEFAULT_S, Client
from protocol.errors import ErrorCode, NotDurable, ReliabilityError

if TYPE_CHECKING:
    from app.reliability.async_client import AsyncClient

BUSY_PAUSE_S: Final = 0.02
"""Before an owner whose queue is full is asked again, within the patience."""
APPENDS_UNDER_WAY_MAX: Final = 64
"""Appends that may wait for a disk at once; past this it is not waited for any more."""


class DurableCaller:
    """Calls one service durably. For any thread, event loop and forked child."""

    def __init__(
        self,
        service: str,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        client: "Client | None" = None,
        spool: SpoolWriter | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name the service and the system; nothing is opened. Tests put fakes at the other ports."""
        path = data_directory(None if data_dir is None else os.fspath(data_dir))
        self.data_dir = path
        self.owner = Owner()
        self._service = service
        self._client = client or Client(path)
        self._async_client: AsyncClient | None = None
        self._spool = spool or SpoolWriter(path, service)
        self._monotonic = monotonic
        self._appends: set[int] = set()

    def call(
        self,
        op: str,
        request_id: bytes,
        arguments: dict[str, Any],
        raw: Sequence[bytes] = (),
        lane: Lane = Lane.CONTROL,
        timeout: float = TIMEOUT_DEFAULT_S,
    ) -> dict[str, Any]:
        """Have the service do `op`, now or later, and return once that is certain.

        Args:
            op: one of its operations, which it takes from the spool as well.
            request_id: 8 to 32 bytes; done once, however often it is called.
            arguments: the operation's; none is called `raw`, `lane`, `timeout` or `request_id`.
            raw: frames that nobody in between copies or parses.
            lane: `Lane.BULK` for what is large.
            timeout: seconds that the call may take in all; the owner gets half of it, at most one.

        Returns:
            The service's answer with ``"spooled": False``; or ``{"id": hexadecimal, "seq": None, "spooled": True}``.

        Raises:
            NotDurable: neither has it; the hint says what to do.
            RemoteError: the service refuses it, now and always.
            ProtocolError: it cannot be sent.
        """
        give_up_at = self._monotonic() + timeout
        way = self.owner.call(self._monotonic())
        if way is Way.ASK:
            answer = self._ask(op, request_id, arguments, raw, lane, patience_s(timeout))
            if answer is not None:
                return answer
        self._append(max(0.0, give_up_at - self._monotonic()), op, request_id, arguments, raw)
        if way is Way.SPOOL_AND_ASK:
            self._probe(op, request_id, arguments, raw, lane)
        return _spooled(request_id)

    async def call_async(
        self,
        op: str,
        request_id: bytes,
        arguments: dict[str, Any],
        raw: Sequence[bytes] = (),
        lane: Lane = Lane.CONTROL,
        timeout: float = TIMEOUT_DEFAULT_S,
    ) -> dict[str, Any]:
        """Do the same without holding up the event loop; all as `call`."""
        give_up_at = self._monotonic() + timeout
        way = self.owner.call(self._monotonic())
        if way is Way.ASK:
            answer = await self._ask_async(op, request_id, arguments, raw, lane, patience_s(timeout))
            if answer is not None:
                return answer
        import asyncio

        await asyncio.to_thread(self._append, max(0.0, give_up_at - self._monotonic()), op, request_id, arguments, raw)
        if way is Way.SPOOL_AND_ASK:
            self._probe(op, request_id, arguments, raw, lane)
        return _spooled(request_id)

    def close(self) -> None:
        """Close the connections, and the spool's file. The caller may be used again."""
        self._client.close()
        self._spool.close()

    async def close_async(self) -> None:
        """Close the running event loop's connections too."""
        if self._async_client is not None:
            await self._async_client.close()
        self.close()

    def _ask(
        self, op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes], lane: Lane, patience: float
    ) -> dict[str, Any] | None:
        """Return the owner's answer; None if it has none.

        Raises:
            RemoteError, ProtocolError: as `call`.
        """
        give_up_at = self._monotonic() + patience
        while True:
            try:
                left = max(0.0, give_up_at - self._monotonic())
                result, _ = self._client.call_raw(
                    self._service, op, raw=raw, lane=lane, timeout=left, request_id=request_id, **arguments
                )
            except ReliabilityError as error:
                if self._try_again(error, give_up_at):
                    time.sleep(BUSY_PAUSE_S)
                    continue
                return None
            self.owner.answered()
            return result | {"spooled": False}

    async def _ask_async(
        self, op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes], lane: Lane, patience: float
    ) -> dict[str, Any] | None:
        import asyncio

        if self._async_client is None:
            from app.reliability.async_client import AsyncClient

            self._async_client = AsyncClient(self.data_dir)
        give_up_at = self._monotonic() + patience
        while True:
            try:
                left = max(0.0, give_up_at - self._monotonic())
                result, _ = await self._async_client.call_raw(
                    self._service, op, raw=raw, lane=lane, timeout=left, request_id=request_id, **arguments
                )
            except ReliabilityError as error:
                if self._try_again(error, give_up_at):
                    await asyncio.sleep(BUSY_PAUSE_S)
                    continue
                return None
            self.owner.answered()
            return result | {"spooled": False}

    def _try_again(self, error: ReliabilityError, give_up_at: float) -> bool:
        """Tell whether to ask again; if not, the call is to be spooled.

        Raises:
            ReliabilityError: `error`, if it is the call's own fault.
        """
        if error.code not in SPOOLED_CODES:
            if error.code != ErrorCode.BAD_VERSION:
                self.owner.answered()
            raise error
        now = self._monotonic()
        if error.code == ErrorCode.BUSY and now + 2 * BUSY_PAUSE_S < give_up_at:
            return True
        self.owner.missed(now)
        return False

    def _probe(self, op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes], lane: Lane) -> None:
        """Ask the owner for what is spooled already, on a thread for which nobody waits."""

        def ask() -> None:
            try:
                self._ask(op, request_id, arguments, raw, lane, PATIENCE_S_MAX)
            except ReliabilityError:  # it refuses, so it answers
                return

        if not _run("relctl-probe", ask):
            self.owner.missed(self._monotonic())

    def _append(
        self, patience: float, op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes]
    ) -> None:
        """Append to the spool, and wait for the disk no longer than `patience`.

        Raises:
            NotDurable: it is not kept, or not known to be.
        """
        outcome: list[ReliabilityError | None] = []
        done = threading.Lock()  # an event would cost twice as much
        done.acquire()

        def append() -> None:
            try:
                self._spool.append(op, request_id, arguments, raw)
                outcome.append(None)
            except ReliabilityError as error:
                outcome.append(error)
            finally:
                self._appends.discard(key)
                done.release()

        key = id(done)
        if len(self._appends) >= APPENDS_UNDER_WAY_MAX:
            raise _standing_still(self.data_dir)
        self._appends.add(key)
        if not _run("relctl-spool", append):
            append()
        if not done.acquire(timeout=max(patience, 0.001)):
            raise _standing_still(self.data_dir)
        if not outcome:
            raise NotDurable("the spool failed in a way that it should not; the traceback is on stderr")
        if outcome[0] is not None:
            raise outcome[0]


def _run(name: str, function: Callable[[], None]) -> bool:
    """Run `function` on a thread of its own; False if there can be none (too many, or the interpreter is ending)."""
    try:
        threading.Thread(target=function, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _spooled(request_id: bytes) -> dict[str, Any]:
    return {"id": request_id.hex(), "seq": None, "spooled": True}


def _standing_still(data_dir: str) -> NotDurable:
    return NotDurable(
        f"{data_dir} did not take it in time: its disk stands still, or is very slow",
        "It may be kept all the same. Call again under the same id once the disk moves, or give more time.",
    )
