"""A real broker process in an installation of its own, and plain sockets that speak to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Any

import zmq

from actors.runtime.liveness import (
    BROKER_SLOT,
    FIRST_ACTOR_SLOT,
    LauncherRecord,
    ProcessKind,
    ProcessState,
)
from actors.runtime.paths import read_or_make_token
from actors.runtime.transport import Lane, Transport
from protocol import mdp
from protocol.codec import pack
from protocol.messages import (
    ReplyHeader,
    RequestHeader,
    WorkerHello,
    decode_arguments,
    decode_reply_header,
)
from tests.spine import Place, place, until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_MS = 10_000
EXPECTED = ("event_logger", "health_monitor")


@dataclass
class Broker:
    """The process, and who spoke to it."""

    place: Place
    incarnation: int = 0
    process: subprocess.Popen[bytes] | None = None
    context: zmq.Context[Any] = field(default_factory=zmq.Context)
    peers: list["Peer"] = field(default_factory=list)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the next incarnation and wait until it is ready."""
        self.incarnation += 1
        arguments = self.place.arguments("broker", BROKER_SLOT, self.incarnation)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "broker.__main__", *arguments.to_argv()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd="/",
        )
        until(self.is_ready, "the broker is ready")

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the broker left: {self.process.returncode}"
        record = self.place.board.slots[BROKER_SLOT].process.read()
        return record is not None and record.pid == self.pid and record.state == ProcessState.READY

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to leave; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def resident_mib(self) -> float:
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def peer(self, lane: Lane = Lane.CONTROL) -> "Peer":
        """Return a connected socket."""
        return self.peer_with(self.place.transport, lane)

    def peer_with(self, transport: Transport, lane: Lane = Lane.CONTROL) -> "Peer":
        """Return a socket that connects as `transport` says."""
        made = Peer(self.context, transport, lane)
        self.peers.append(made)
        return made

    def worker(self, service: str, *, incarnation: int = 1, window: int = 64, lane: Lane = Lane.CONTROL) -> "Peer":
        """Return a registered worker of ours."""
        made = self.peer(lane)
        token = read_or_make_token(self.place.runtime_dir)
        made.send(*mdp.ready(service.encode(), WorkerHello(token, incarnation, window).encode()))
        assert made.receive() == mdp.HEARTBEAT
        return made

    def status(self) -> dict[str, Any]:
        """What the broker says of itself."""
        return self.peer().call("broker", "status")

    def counters(self, lane: str = "control") -> dict[str, int]:
        counters: dict[str, int] = self.status()["lanes"][lane]["counters"]
        return counters


class Peer:
    """One DEALER."""

    def __init__(self, context: zmq.Context[Any], transport: Transport, lane: Lane) -> None:
        self.socket = context.socket(zmq.DEALER)
        transport.connect(self.socket, lane)
        self.socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self.socket.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self) -> list[bytes]:
        frames: list[bytes] = self.socket.recv_multipart()
        return frames

    def receive_request(self) -> tuple[bytes, list[bytes]]:
        """Receive as a worker; returns address and body. Heartbeats are passed over."""
        while (frames := self.receive())[1] == mdp.WORKER_HEARTBEAT:
            pass
        assert frames[:2] == [mdp.WORKER, mdp.WORKER_REQUEST]
        assert frames[3] == b""
        return frames[2], frames[4:]

    def request(
        self, service: str, op: str, timeout_s: float = 5.0, request_id: bytes | None = None, **arguments: Any
    ) -> bytes:
        """Send a request; returns its id."""
        request_id = request_id or os.urandom(16)
        header = RequestHeader(request_id, op, deadline_in(timeout_s)).encode()
        self.send(*mdp.request(service.encode(), header, pack(arguments)))
        return request_id

    def reply(self) -> tuple[ReplyHeader, dict[str, Any]]:
        """Receive as a client."""
        frames = self.receive()
        assert frames[:2] == [mdp.CLIENT, mdp.CLIENT_FINAL]
        return decode_reply_header(frames[3]), decode_arguments(frames[4])

    def call(self, service: str, op: str, timeout_s: float = 5.0, **arguments: Any) -> dict[str, Any]:
        """Request and receive; an error fails the test."""
        request_id = self.request(service, op, timeout_s, **arguments)
        header, result = self.reply()
        assert header.id == request_id
        assert header.error is None, header.error
        return result

    def error_of(self, service: str, op: str = "ping", timeout_s: float = 5.0) -> str:
        """Request and receive; returns the error's code."""
        self.request(service, op, timeout_s)
        error = self.reply()[0].error
        assert error is not None
        return error.code


def deadline_in(seconds: float) -> int:
    """An absolute deadline for a header."""
    return monotonic_ns() // 1_000_000 + int(seconds * 1000)


@contextmanager
def running_broker(*, portable: bool = False, config: str = "", started: bool = True) -> Iterator[Broker]:
    """Run a broker in an installation of its own; nothing of it is left afterwards."""
    with place(portable=portable, supervision=f"tick_s = 0.05\n{config}") as installation:
        for number, name in enumerate(EXPECTED, FIRST_ACTOR_SLOT):
            record = LauncherRecord(name, ProcessKind.ACTOR, 0, 0, 0, ProcessState.BACKOFF, 0, 0, 0, 3, 0, 5000, 15000)
            installation.board.slots[number].launcher.write(record)
        broker = Broker(installation)
        try:
            if started:
                broker.start()
            yield broker
        finally:
            for peer in broker.peers:
                peer.socket.close(linger=0)
            broker.context.term()
            if broker.process is not None and broker.process.poll() is None:
                broker.process.kill()
                broker.process.wait()
