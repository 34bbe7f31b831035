"""The client for asyncio: the same calls, awaited. One connection per event loop and lane carries all of its calls."""

# ruff: noqa: ASYNC109 - `timeout` is part of the calls' published signature, and travels with the request as its deadline

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import zmq

from actors.runtime.transport import Lane, Socket
from app.reliability._channel import Channel, Locator, Reply, decode_reply, encode_request
from app.reliability._client_core import PROBE_S, Call
from app.reliability.client import TIMEOUT_DEFAULT_S, new_call
from app.reliability.subscription import Publication, Subscription
from protocol.errors import ErrorCode, LocalError

BLIND_LOOK_S: Final = 0.01
"""How often a line looks for itself on an event loop that cannot watch descriptors (the proactor loop of Windows)."""


class AsyncClient:
    """Calls services of the system in one data directory, from the coroutines of one thread at a time."""

    def __init__(self, data_dir: str | os.PathLike[str] | None = None) -> None:
        """Name the system; nothing is opened. Without `data_dir` it is RELCTL_DATA_DIR's, or ./data's."""
        self._locator = Locator(data_dir)
        self._lines: dict[tuple[int, asyncio.AbstractEventLoop, Lane], _Line] = {}

    async def call(
        self, service: str, op: str, /, timeout: float = TIMEOUT_DEFAULT_S, **arguments: Any
    ) -> dict[str, Any]:
        """Have `service` do `op`, and return its result; all as `Client.call`."""
        return (await self._ask(service, op, arguments, timeout)).result()

    async def call_raw(
        self,
        service: str,
        op: str,
        /,
        raw: Sequence[bytes] = (),
        lane: Lane = Lane.CONTROL,
        timeout: float = TIMEOUT_DEFAULT_S,
        request_id: bytes | None = None,
        **arguments: Any,
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Have `service` do `op` on raw frames; all as `Client.call_raw`."""
        reply = await self._ask(service, op, arguments, timeout, raw, lane, request_id)
        return reply.result(), reply.raw

    async def subscribe(self, *topic_prefixes: str) -> AsyncIterator[Publication]:
        """Yield what `Client.subscribe` yields."""
        await asyncio.to_thread(self._locator.transport)
        with Subscription(self._locator, topic_prefixes) as subscription:
            while True:
                while (publication := subscription.receive_now()) is not None:
                    yield publication
                await _readable(subscription.socket, PROBE_S)
                subscription.follow()

    async def close(self) -> None:
        """Close the connections of this event loop; calls under way fail. The client may be used again."""
        here = (os.getpid(), asyncio.get_running_loop())
        for key in [key for key in self._lines if key[:2] == here]:
            self._lines.pop(key).close()

    def __del__(self) -> None:
        """Close what was forgotten, as sockets complain that nobody did; a forking parent's are left alone."""
        lines: dict[tuple[int, asyncio.AbstractEventLoop, Lane], _Line] = getattr(self, "_lines", {})
        for key, line in lines.items():
            if key[0] == os.getpid():
                line.close()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def _ask(
        self,
        service: str,
        op: str,
        arguments: dict[str, Any],
        timeout: float,
        raw: Sequence[bytes] = (),
        lane: Lane = Lane.CONTROL,
        request_id: bytes | None = None,
    ) -> Reply:
        call = new_call(timeout, request_id)
        frames = encode_request(service, op, call, arguments, raw, lane)
        if not self._locator.is_known:  # the first look at DATA may have to wait for a disk
            try:
                await asyncio.wait_for(asyncio.to_thread(self._locator.transport), timeout)
            except TimeoutError:
                message = f"{self._locator.data_dir} could not be read within {timeout:g} s"
                raise LocalError(ErrorCode.DEADLINE_PASSED, message) from None
        return await self._line(lane).ask(call, frames)

    def _line(self, lane: Lane) -> "_Line":
        """Return this event loop's line; those of closed loops are closed, those of a forking parent left alone."""
        key = (os.getpid(), asyncio.get_running_loop(), lane)
        line = self._lines.get(key)
        if line is None:
            for old in [old for old in self._lines if old[0] == key[0] and old[1].is_closed()]:
                self._lines.pop(old).close()
            line = self._lines[key] = _Line(Channel(self._locator, lane))
        return line


class _Pending:
    """A call under way in an event loop."""

    __slots__ = ("call", "frames", "future", "timer")

    def __init__(self, call: Call, frames: list[bytes], future: "asyncio.Future[Reply]") -> None:
        """Begin."""
        self.call = call
        self.frames = frames
        self.future = future
        self.timer: asyncio.TimerHandle | None = None


class _Line:
    """A channel that carries many calls at once.

    ZeroMQ's descriptors tell once that something has changed: after every look and every send the sockets themselves
    are asked whether there is more.
    """

    def __init__(self, channel: Channel) -> None:
        """Watch `channel` in the running event loop."""
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._pending: dict[bytes, _Pending] = {}
        self._connection = (channel.monitor.link, channel.connections)
        self._watched: Socket | None = None
        self._descriptors: tuple[int, ...] = ()
        self._blind_timer: asyncio.TimerHandle | None = None
        self._watch()

    async def ask(self, call: Call, frames: list[bytes]) -> Reply:
        """Send `frames` as `call` says, and return the answer.

        Raises:
            LocalError: there was none.
        """
        pending = _Pending(call, frames, self._loop.create_future())
        self._pending[call.id] = pending
        try:
            self._wake(pending)
            return await pending.future
        finally:
            self._pending.pop(call.id, None)
            if pending.timer is not None:
                pending.timer.cancel()

    def close(self) -> None:
        """Fail what is under way, and close the channel."""
        for pending in self._pending.values():
            if not pending.future.done() and not self._loop.is_closed():
                pending.future.set_exception(LocalError(ErrorCode.BROKER_DOWN, "the client was closed"))
        self._unwatch()
        self._channel.close()

    def _look(self) -> None:
        """Take in what has happened, until nothing more has."""
        channel, more = self._channel, True
        while more:
            channel.monitor.drain()
            while (message := channel.receive()) is not None:
                self._take_in(decode_reply(message))
            connection = (channel.monitor.link, channel.connections)
            if connection != self._connection:
                self._connection = connection
                for pending in list(self._pending.values()):
                    self._step(pending)
            more = any(
                int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN for socket in (channel.socket, channel.monitor.socket)
            )

    def _take_in(self, reply: Reply | None) -> None:
        pending = self._pending.get(reply.header.id) if reply is not None else None
        if reply is not None and pending is not None and not pending.future.done():
            pending.future.set_result(reply)

    def _step(self, pending: _Pending) -> None:
        """Do what the call's core decides, and come back when it wants to."""
        if pending.future.done():
            return
        try:
            self._channel.step(pending.call, pending.frames)
        except LocalError as error:
            pending.future.set_exception(error)
            return
        if self._channel.socket is not self._watched:
            self._watch()
        if pending.timer is not None:
            pending.timer.cancel()
        delay_s = max(0.0, pending.call.wake_at - time.monotonic())
        pending.timer = self._loop.call_later(delay_s, self._wake, pending)

    def _wake(self, pending: _Pending) -> None:
        self._look()
        self._step(pending)
        self._look()

    def _watch(self) -> None:
        """Watch the channel's sockets, which are others since it connected elsewhere."""
        self._unwatch()
        self._watched = self._channel.socket
        self._descriptors = (self._watched.FD, self._channel.monitor.socket.FD)
        try:
            for descriptor in self._descriptors:
                self._loop.add_reader(descriptor, self._look)
        except NotImplementedError:
            self._descriptors = ()
            self._look_blindly()

    def _unwatch(self) -> None:
        if not self._loop.is_closed():
            for descriptor in self._descriptors:
                self._loop.remove_reader(descriptor)
            if self._blind_timer is not None:
                self._blind_timer.cancel()

    def _look_blindly(self) -> None:
        self._look()
        self._blind_timer = self._loop.call_later(BLIND_LOOK_S, self._look_blindly)


async def _readable(socket: Socket, timeout_s: float) -> None:
    """Wait until `socket` may have something, at most `timeout_s`."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    descriptor = socket.FD
    try:
        loop.add_reader(descriptor, ready.set)
    except NotImplementedError:
        await asyncio.sleep(min(BLIND_LOOK_S, timeout_s))
        return
    try:
        await asyncio.wait_for(ready.wait(), timeout_s)
    except TimeoutError:
        return
    finally:
        loop.remove_reader(descriptor)
