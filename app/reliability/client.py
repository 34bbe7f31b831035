"""Ask the running system, from any program: ``Client().call("health_monitor", "health")``.

A client finds the system by its data directory and connects when it is first used. It may be shared by threads,
survives restarts of the broker, and after a fork the child's calls go over connections of their own. It has no thread
of its own. `AsyncClient` is its twin for asyncio. Errors are those of `protocol.errors`: `LocalError` if nobody could
be asked, `RemoteError` for what was answered.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from actors.runtime.transport import Lane
from app.reliability._channel import Channel, Locator, Reply, decode_reply, encode_request
from app.reliability._client_core import Call
from protocol import limits

if TYPE_CHECKING:
    from app.reliability.async_client import AsyncClient
    from app.reliability.subscription import Subscription

__all__ = ["AsyncClient", "Client", "Lane"]

TIMEOUT_DEFAULT_S: Final = 5.0
TIMEOUT_S_MAX: Final = limits.DEADLINE_MS_MAX / 1000
IDLE_CHANNELS_MAX: Final = 8
"""Connections that are kept for the next call; further ones are closed after use."""


class Client:
    """Calls services of the system in one data directory."""

    def __init__(self, data_dir: str | os.PathLike[str] | None = None) -> None:
        """Name the system; nothing is opened. Without `data_dir` it is RELCTL_DATA_DIR's, or ./data's."""
        self._locator = Locator(data_dir)
        self._pool = _Pool(self._locator)

    def call(self, service: str, op: str, /, timeout: float = TIMEOUT_DEFAULT_S, **arguments: Any) -> dict[str, Any]:
        """Have `service` do `op`, and return its result.

        Args:
            service: its name, as in `relctl ps`.
            op: one of its operations; it tells them on `describe`.
            timeout: seconds that the call may take in all; it never takes longer.
            arguments: the operation's.

        Raises:
            LocalError: `not_running`, `broker_down`, `broker_hung` or `deadline_passed`: there was no answer, and
                whether it was executed is not known.
            RemoteError: the service's answer, or the broker's for it: `service_missing`, `service_unknown`, `busy`, ...
            ProtocolError: the arguments cannot be sent.
        """
        return self._ask(service, op, arguments, timeout).result()

    def call_raw(
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
        """Have `service` do `op` on raw frames, and return its result with those that it sent.

        Args:
            service: as for `call`.
            op: as for `call`.
            raw: frames that nobody in between copies or parses.
            lane: `Lane.BULK` for what is large.
            timeout: as for `call`.
            request_id: 8 to 32 bytes; a call that is repeated under its id takes effect once. Random by default.
            arguments: the operation's.

        Raises:
            LocalError, RemoteError, ProtocolError: as for `call`.
        """
        reply = self._ask(service, op, arguments, timeout, raw, lane, request_id)
        return reply.result(), reply.raw

    def subscribe(self, *topic_prefixes: str) -> "Subscription":
        """Return what is published under topics that begin with one of these; without any, everything."""
        from app.reliability.subscription import Subscription

        return Subscription(self._locator, topic_prefixes)

    def close(self) -> None:
        """Close the connections. The client may be used again, and opens new ones then."""
        self._pool.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _ask(
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
        with self._pool.channel(lane) as channel:
            while True:
                channel.monitor.drain()
                while (message := channel.receive()) is not None:
                    reply = decode_reply(message)
                    if reply is not None and reply.header.id == call.id:
                        return reply
                channel.step(call, frames)
                channel.wait(call.wake_at)


def new_call(timeout: float, request_id: bytes | None) -> Call:
    """Begin a call now."""
    return Call(request_id or os.urandom(limits.ID_BYTES), min(timeout, TIMEOUT_S_MAX), time.monotonic())


class _Pool:
    """Channels that are not in use, the last one used first. Safe for threads and forks."""

    def __init__(self, locator: Locator) -> None:
        """Start empty."""
        self._locator = locator
        self._abandoned: list[list[Channel]] = []
        self._idle: list[Channel] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @contextmanager
    def channel(self, lane: Lane) -> Iterator[Channel]:
        """Lend a channel to `lane`."""
        channel = self._take(lane) or Channel(self._locator, lane)
        try:
            yield channel
        finally:
            self._give_back(channel)

    def close(self) -> None:
        """Close the channels that are not lent."""
        self._leave_parent_behind()
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def _take(self, lane: Lane) -> Channel | None:
        """Return an idle channel to `lane`, and close those that have lost their connection."""
        self._leave_parent_behind()
        taken, kept, lost = None, [], []
        with self._lock:
            for channel in reversed(self._idle):
                if not channel.is_up:
                    lost.append(channel)
                elif taken is None and channel.lane is lane:
                    taken = channel
                else:
                    kept.append(channel)
            self._idle = kept[::-1]
        for channel in lost:
            channel.close()
        return taken

    def _give_back(self, channel: Channel) -> None:
        with self._lock:
            keep = len(self._idle) < IDLE_CHANNELS_MAX and self._pid == os.getpid()
            if keep:
                self._idle.append(channel)
        if not keep:
            channel.close()

    def _leave_parent_behind(self) -> None:
        """In a forked child: start anew. The parent's channels stay referenced, or they would be closed."""
        if self._pid != os.getpid():
            self._abandoned.append(self._idle)
            self._idle = []
            self._lock = threading.Lock()
            self._pid = os.getpid()


def __getattr__(name: str) -> Any:
    """Import the twin only for those who use it: asyncio takes longer to import than all of this."""
    if name == "AsyncClient":
        from app.reliability.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
