"""Hostile input at the real broker: counted, answered where possible, memory bounded, everyone else unaffected."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from actors.runtime.transport import Lane
from protocol import mdp
from protocol.codec import pack
from protocol.limits import (
    BULK_FRAME_BYTES_MAX,
    CONTROL_FRAME_BYTES_MAX,
    CONTROL_FRAMES_MAX,
    KIB,
    MIB,
)
from protocol.messages import ReplyHeader, RequestHeader, WorkerHello, decode_reply_header
from tests.broker.broker_process import Broker, Peer, deadline_in, running_broker
from tests.broker.lane_world import request_id_of
from tests.spine import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="raw local sockets and /proc")

MANY_FRAMES = """
import sys, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send_multipart([b"MDPC02", b"\\x01", b"health_monitor", b""] + [b"x" * 20] * 100_000)
sys.stdout.buffer.write(socket.recv_multipart()[3])
"""

ANSWER_S_MAX = 1.0
"""What everyone else must be answered within, whatever is going on."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Broker]:
    with running_broker() as made:
        yield made


@contextmanager
def bystanders(broker: Broker) -> Iterator[None]:
    """A client and a worker of ours that go on with their work; every answer must come in time."""
    worker, client = broker.worker("health_monitor", incarnation=next_incarnation()), broker.peer()
    pid = broker.pid
    asked_enough, answered_all = threading.Event(), threading.Event()
    slowest, failures = [0.0], []

    def answer() -> None:
        while not answered_all.is_set():
            if worker.socket.poll(20):
                frames = worker.receive()
                if frames[1] == mdp.WORKER_REQUEST:
                    header = ReplyHeader(request_id_of(frames[4:])).encode()
                    worker.send(*mdp.final(frames[2], header, pack({"pong": True})))
                else:
                    worker.send(*mdp.HEARTBEAT)

    def ask() -> None:
        try:
            while not asked_enough.is_set():
                started = time.monotonic()
                assert client.call("health_monitor", "ping", 10.0) == {"pong": True}
                slowest[0] = max(slowest[0], time.monotonic() - started)
                asked_enough.wait(0.005)
        except (AssertionError, zmq.ZMQError) as error:
            failures.append(error)

    answering, asking = threading.Thread(target=answer), threading.Thread(target=ask)
    answering.start()
    asking.start()
    try:
        yield
    finally:
        asked_enough.set()
        asking.join()
        answered_all.set()
        answering.join()
        worker.send(*mdp.DISCONNECT)
    assert not failures, failures
    assert slowest[0] < ANSWER_S_MAX
    assert broker.is_ready()
    assert broker.pid == pid


_incarnations = iter(range(1, 1000))


def next_incarnation() -> int:
    return next(_incarnations)


def valid_messages() -> list[list[bytes]]:
    """One of each kind, to be spoiled."""
    header = RequestHeader(os.urandom(16), "ping", deadline_in(5)).encode()
    hello = WorkerHello(bytes(32), 1, 1).encode()
    return [
        mdp.request(b"health_monitor", header, pack({"a": [1, {"b": 2}]})),
        mdp.request(mdp.MMI_SERVICE, b"health_monitor"),
        mdp.ready(b"health_monitor", hello),
        [mdp.WORKER, mdp.WORKER_READY, b"foreign"],
        mdp.final(bytes(8), b"h", b"r"),
        mdp.publish(b"state.x", b"y"),
        mdp.HEARTBEAT,
    ]


def spoil(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """Change something somewhere."""
    frames = list(frames)
    for _ in range(rng.randint(1, 3)):
        number = rng.randrange(len(frames))
        match rng.randrange(5):
            case 0:
                frames[number] = rng.randbytes(rng.randrange(40))
            case 1:
                frames[number] = frames[number][: rng.randrange(len(frames[number]) + 1)]
            case 2:
                frames.insert(number, rng.randbytes(rng.randrange(9)))
            case 3 if len(frames) > 1:
                del frames[number]
            case _:
                spoilt = bytearray(frames[number] or b"\0")
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
                frames[number] = bytes(spoilt)
    return frames


class TestFrames:
    @pytest.mark.parametrize("lane", [Lane.CONTROL, Lane.BULK])
    def test_random_and_spoilt_frames(self, shared: Broker, lane: Lane) -> None:
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        rng = random.Random(seed)
        with bystanders(shared):
            hostile = shared.peer(lane)
            for number in range(4000):
                if number % 2:
                    frames = [rng.randbytes(rng.choice([0, 1, 6, 40, 5000])) for _ in range(rng.randint(1, 9))]
                else:
                    frames = spoil(rng, rng.choice(valid_messages()))
                hostile.send(*frames)
                while hostile.socket.poll(0):
                    hostile.receive()
        assert shared.counters(lane.name.lower())["malformed"] > 1000

    def test_too_many_frames_and_too_many_bytes_are_answered(self, shared: Broker) -> None:
        client = shared.peer()
        header = RequestHeader(b"i" * 16, "ping", deadline_in(5)).encode()
        many = [b""] * (CONTROL_FRAMES_MAX + 5)
        heavy = [bytes(200 * KIB)] * 3
        for excess in (many, heavy):
            client.send(*mdp.request(b"health_monitor", header, *excess))
            reply = client.reply()[0]
            assert reply.error is not None
            assert (reply.id, reply.error.code) == (b"i" * 16, "too_large")

    def test_a_message_of_a_hundred_thousand_frames(self, shared: Broker) -> None:
        before = shared.resident_mib()
        with bystanders(shared):
            # In a process of its own: here it would hold the interpreter's lock, and so the bystanders, for a second.
            endpoint = shared.place.transport.endpoints[Lane.CONTROL]
            hostile = subprocess.run(
                [sys.executable, "-c", MANY_FRAMES, endpoint], capture_output=True, timeout=60, check=True
            )
            header = decode_reply_header(hostile.stdout)
        assert header.error is not None
        assert header.error.code == "too_large"
        assert shared.resident_mib() < before + 60

    @pytest.mark.parametrize(
        ("lane", "size"), [(Lane.CONTROL, CONTROL_FRAME_BYTES_MAX + 1), (Lane.BULK, BULK_FRAME_BYTES_MAX + 1)]
    )
    def test_a_huge_frame_costs_its_sender_the_connection(self, shared: Broker, lane: Lane, size: int) -> None:
        before = shared.resident_mib()
        with bystanders(shared):
            hostile = shared.peer(lane)
            hostile.socket.setsockopt(zmq.MAXMSGSIZE, -1)
            for _ in range(3):
                hostile.send(*mdp.request(b"health_monitor", b"", bytes(size)))
                time.sleep(0.05)  # no condition to wait for: nothing comes back from a dropped connection
        assert shared.resident_mib() < before + 80

    def test_headers_out_of_order_are_refused_by_name(self, shared: Broker) -> None:
        client = shared.peer()
        wrong_version = pack({"v": 99, "id": bytes(16), "op": "ping", "deadline_ms": 1 << 50})
        expected = {
            wrong_version: "bad_version",
            b"\x91" * 4000: "bad_request",
            b"\x81\xa1x" * 1300: "bad_request",
            b"\xdf\xff\xff\xff\xff": "bad_request",
            bytes(100_000): "too_large",
            RequestHeader(bytes(16), "ping", 1).encode(): "deadline_passed",
        }
        for header, code in expected.items():
            client.send(*mdp.request(b"event_logger", header, b"\x80"))
            error = client.reply()[0].error
            assert error is not None
            assert error.code == code

    def test_a_message_that_never_ends_costs_everybody_a_reconnection_at_most(self) -> None:
        with running_broker(config="[broker]\nmemory_mib_max = 128\n") as broker:
            pid = broker.pid
            other = broker.peer()
            assert other.call("broker", "ping")
            assert sends_until_dropped(broker.place.transport.endpoints[Lane.CONTROL], bytes(128 * KIB))
            other.socket.setsockopt(zmq.RCVTIMEO, 300)
            until(lambda: answers(other), "everyone else is back")
            assert broker.pid == pid
            assert broker.is_ready()
            until(lambda: broker.resident_mib() < 128, "the memory is free again")


def answers(peer: Peer) -> bool:
    try:
        peer.request("broker", "ping")
        peer.reply()
    except zmq.Again:
        return False
    return True


def sends_until_dropped(endpoint: str, payload: bytes) -> bool:
    """Speak ZMTP 3.0 by hand and send one message of ever more frames; True once the broker hangs up."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
    properties = b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    ready = b"\x05READY" + properties
    frame = b"\x03" + len(payload).to_bytes(8, "big") + payload
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(endpoint.removeprefix("ipc://"))
        raw.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        try:
            for number in range(4096):
                raw.sendall(frame)
                if number > 500:
                    time.sleep(0.001)  # not to outrun the broker's look at its memory by far
        except ConnectionError:
            return True
    return False


class TestIdentity:
    def test_replayed_ids_execute_nothing_twice(self, shared: Broker) -> None:
        worker = shared.worker("event_logger", incarnation=next_incarnation())
        crowd = [shared.peer() for _ in range(12)]
        for peer in crowd:
            for _ in range(20):
                peer.request("event_logger", "put", 20.0, request_id=b"replayed" * 2, x=1)
        address, body = worker.receive_request()
        until(lambda: shared.status()["queues"]["requests_in_flight"] == 1, "it is in flight")
        worker.send(*mdp.final(address, ReplyHeader(request_id_of(body)).encode(), pack({"n": 1})))
        answered = 0
        for peer in crowd:
            header, result = peer.reply()
            answered += header.error is None
            assert result == {"n": 1} or (header.error is not None and header.error.code == "busy")
        assert answered >= 8
        assert not [frames for frames in pending(worker) if frames[1] == mdp.WORKER_REQUEST]
        crowd[0].request("event_logger", "put", 20.0, request_id=b"replayed" * 2, x=2)
        assert any(code_of(frames) == "id_conflict" for frames in pending(crowd[0], 500))
        worker.send(*mdp.DISCONNECT)

    def test_stolen_names_are_not_given(self, shared: Broker) -> None:
        with bystanders(shared):
            thief = shared.peer()
            for token in (b"", bytes(32), os.urandom(32)):
                for name in (b"health_monitor", b"event_logger", b"launcher", b"broker", b"mmi.service"):
                    thief.send(*mdp.ready(name, WorkerHello(token, 1 << 60, 64).encode()))
                    assert thief.receive() == mdp.DISCONNECT
        assert shared.counters()["workers_refused"] >= 15

    def test_a_made_up_answer_reaches_nobody(self, shared: Broker) -> None:
        liar = shared.peer()
        liar.send(mdp.WORKER, mdp.WORKER_READY, b"liars")
        assert liar.receive() == mdp.HEARTBEAT
        with bystanders(shared):
            sequence = (1 << 40) + 1
            for number in range(3000):
                liar.send(*mdp.final((sequence + number).to_bytes(8, "big"), b"h", b"lie"))
        assert shared.counters()["late_replies"] >= 3000


class TestFlood:
    def test_requests_for_an_absent_service_leave_room_for_others(self, shared: Broker) -> None:
        before = shared.resident_mib()
        with bystanders(shared):
            hostile = shared.peer()
            for _ in range(5000):
                hostile.request("event_logger", "put", 3.0, x="y" * 1000)
            codes = [code_of(hostile.receive()) for _ in range(5000)]
        assert set(codes) == {"busy", "service_missing"}
        assert codes.count("service_missing") == 1024
        assert shared.resident_mib() < before + 60

    @pytest.mark.parametrize(
        ("lane", "answer_bytes", "count"), [(Lane.CONTROL, 200 * KIB, 2000), (Lane.BULK, 8 * MIB, 60)]
    )
    def test_a_client_that_never_reads_is_bounded(
        self, shared: Broker, lane: Lane, answer_bytes: int, count: int
    ) -> None:
        before = shared.resident_mib()
        name = lane.name.lower()
        lost = shared.counters(name)["dead_lettered"]
        worker = shared.worker("event_logger", incarnation=next_incarnation(), lane=lane)
        mute = shared.peer(lane)
        answer, peak = bytes(answer_bytes), before
        with bystanders(shared):
            for _ in range(count):
                mute.request("event_logger", "get", 60.0)
                address, body = worker.receive_request()
                worker.send(*mdp.final(address, ReplyHeader(request_id_of(body)).encode(), b"\x80", answer))
                peak = max(peak, shared.resident_mib())
            until(lambda: shared.counters(name)["dead_lettered"] > lost, "some answers are given up")
        letters = shared.peer().call("broker", "dead_letters")["lanes"][name]
        assert letters[-1]["reason"] == "the client does not read"
        assert peak < before + 180, "far less than what was answered"
        worker.send(*mdp.DISCONNECT)


def pending(peer: Peer, patience_ms: int = 0) -> list[list[bytes]]:
    """What lies there."""
    found = []
    while peer.socket.poll(patience_ms):
        found.append(peer.receive())
        patience_ms = 0
    return found


def code_of(frames: list[bytes]) -> str:
    from protocol.messages import decode_reply_header

    error = decode_reply_header(frames[3]).error
    return error.code if error else ""
