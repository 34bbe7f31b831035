"""The client's shell around its sockets: where the system is, one connection to it, and what the board says."""

import math
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import zmq

from actors.runtime.paths import BOARD_FILE, RUN_FILE, RunInfo, data_directory, read_run_file, read_run_info
from actors.runtime.registration import Link
from actors.runtime.transport import (
    FRAME_BYTES_MAX,
    ConnectionMonitor,
    Lane,
    Retry,
    Socket,
    Transport,
    ZmqContext,
    send_now,
)
from app.reliability._client_core import STANDING_STILL_S, Call, Scene, Step
from protocol import limits, mdp
from protocol.codec import pack
from protocol.errors import ErrorCode, LocalError, ProtocolError, RemoteError
from protocol.messages import ReplyHeader, RequestHeader, decode_arguments, decode_reply_header

_contexts: Final[dict[int, ZmqContext]] = {}
"""By pid: a forked child must not touch its parent's, not even to let it go."""


def own_context() -> ZmqContext:
    """Return this process's ZeroMQ context for all clients, made at the first use."""
    pid = os.getpid()
    context = _contexts.get(pid)
    if context is None:
        made: ZmqContext = zmq.Context()
        context = _contexts.setdefault(pid, made)
        if context is not made:  # another thread was quicker
            made.term()
    return context


class Locator:
    """Finds the system of one data directory, also after it has moved to other ports."""

    def __init__(self, data_dir: str | os.PathLike[str] | None) -> None:
        """Remember the data directory; nothing is read yet."""
        self.data_dir = data_directory(None if data_dir is None else os.fspath(data_dir))
        self._run: RunInfo | None = None

    @property
    def is_known(self) -> bool:
        """Whether run.json was read before, so that `transport` waits for no disk."""
        return self._run is not None

    def transport(self) -> Transport:
        """Return the way to the system, as last read.

        Raises:
            LocalError: nothing was ever started on this data directory.
        """
        return Transport.for_run(self._run or self._read())

    def transport_now(self) -> Transport:
        """Return the way to the system, read anew.

        Raises:
            LocalError: as `transport`.
        """
        return Transport.for_run(self._read())

    def scene(self) -> Scene:
        """Return what the liveness board says."""
        from actors.runtime.liveness import BROKER_SLOT, Board, BoardError

        if self._run is None:
            return Scene.NOBODY
        try:
            board = Board(os.path.join(self._run.runtime_dir, BOARD_FILE), writable=False)
        except (OSError, BoardError):
            return Scene.NOBODY
        with board:
            identities = {slot.number: slot.current_identity() for slot, _ in board.occupied()}
            running = {number for number, identity in identities.items() if identity and identity.is_running()}
            age_s = time.monotonic() - board.slots[BROKER_SLOT].read_beat().tick_ms / 1000
        if not running:
            return Scene.NOBODY
        if BROKER_SLOT not in running:
            return Scene.BROKER_GONE
        return Scene.BROKER_STILL if age_s > STANDING_STILL_S else Scene.BROKER_MOVES

    def _read(self) -> RunInfo:
        # The copy on tmpfs first, if it is known where: DATA may be on a disk that stalls.
        run = self._run and read_run_file(os.path.join(self._run.runtime_dir, RUN_FILE))
        run = run or read_run_info(self.data_dir)
        if run is None:
            raise LocalError(ErrorCode.NOT_RUNNING, f"nothing was ever started on {self.data_dir}")
        self._run = run
        return run


class Channel:
    """A connection to one lane of the broker, wherever that goes. It is looked for only while a call waits for it.

    Attributes:
        lane: which lane.
        socket: poll it for input.
        monitor: poll its socket for input.
    """

    def __init__(self, locator: Locator, lane: Lane) -> None:
        """Connect, without waiting for it.

        Raises:
            LocalError: nothing was ever started on the data directory.
        """
        self.lane = lane
        self._locator = locator
        self._earlier_connections = 0
        self._connect(locator.transport())

    def step(self, call: Call, frames: list[bytes]) -> None:
        """Do for `call`, whose message is `frames`, what its core decides now.

        Raises:
            LocalError: it has failed.
        """
        now = time.monotonic()
        match call.step(self.monitor.link, self.connections, now):
            case Step.SEND if send_now(self.socket, frames):
                call.sent(now)
            case Step.SEND:
                call.not_sent(now)
            case Step.RECONNECT:
                self._reconnect(self._transport)
            case Step.PROBE:
                scene = self._locator.scene()
                if scene is Scene.NOBODY:
                    raise call.failure(scene)
                self.follow()
            case Step.GIVE_UP:
                raise call.failure(self._locator.scene())

    def follow(self) -> None:
        """Connect elsewhere if the endpoint has moved."""
        transport = self._locator.transport_now()
        if transport.endpoints != self._transport.endpoints:
            self._reconnect(transport)

    def receive(self) -> list[bytes] | None:
        """Return the next message, or None if there is none."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def wait(self, until: float) -> None:
        """Wait until something has happened, at most until monotonic time `until`."""
        self._poller.poll(max(0, math.ceil((until - time.monotonic()) * 1000)))

    @property
    def connections(self) -> int:
        """How often it came up; what was sent before the last time may be lost."""
        return self._earlier_connections + self.monitor.connections

    @property
    def is_up(self) -> bool:
        """Whether it is connected now."""
        self.monitor.drain()
        return self.monitor.link is Link.UP

    def close(self) -> None:
        """Close the sockets."""
        self.monitor.close()
        self.socket.close()

    def _reconnect(self, transport: Transport) -> None:
        self._earlier_connections += self.monitor.connections
        self.close()
        self._connect(transport)

    def _connect(self, transport: Transport) -> None:
        self._transport = transport
        self.socket: Socket = own_context().socket(zmq.DEALER)
        self.monitor = ConnectionMonitor(self.socket, Retry.NEVER)
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self.monitor.socket, zmq.POLLIN)
        transport.connect(self.socket, self.lane, Retry.NEVER)


def encode_request(
    service: str, op: str, call: Call, arguments: dict[str, Any], raw: Sequence[bytes], lane: Lane
) -> list[bytes]:
    """Return the message that asks `service` for `op`.

    Raises:
        ProtocolError: the arguments are not plain data, or too large for the lane.
    """
    header = RequestHeader(call.id, op, int(call.request_deadline * 1000))
    frames = mdp.request(service.encode(), header.encode(), pack(arguments), *raw)
    frame_bytes = max(map(len, frames))
    if frame_bytes > FRAME_BYTES_MAX[lane]:
        raise ProtocolError(
            f"{frame_bytes} bytes in one frame exceed the lane's limit of {FRAME_BYTES_MAX[lane]}", ErrorCode.TOO_LARGE
        )
    return frames


class Reply:
    """An answer that has arrived.

    Attributes:
        header: id and error.
        raw: the frames behind the result.
    """

    def __init__(self, header: ReplyHeader, result: bytes, raw: list[bytes]) -> None:
        """Hold what came; the result is parsed when asked for."""
        self.header = header
        self.raw = raw
        self._result = result

    def result(self) -> dict[str, Any]:
        """Return the result.

        Raises:
            RemoteError: the asked side answered with an error, or with what is no result.
        """
        error = self.header.error
        if error is not None:
            raise RemoteError(error.code, error.message, error.hint or None)
        try:
            return decode_arguments(self._result, limits.BULK_FRAME_BYTES_MAX)
        except ProtocolError as problem:
            raise RemoteError(ErrorCode.FAILED, f"the answer is no result: {problem.message}") from None


def decode_reply(frames: list[bytes]) -> Reply | None:
    """Return the answer that a message of the broker carries, or None if it is none of ours."""
    if len(frames) < 4 or frames[0] != mdp.CLIENT or frames[1] != mdp.CLIENT_FINAL:
        return None
    try:
        return Reply(decode_reply_header(frames[3]), frames[4] if len(frames) > 4 else b"", frames[5:])
    except ProtocolError:
        return None
