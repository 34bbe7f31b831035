"""Any Majordomo 0.2 client or worker interoperates: both written here from ZeroMQ RFC 18 and RFC 8 alone, with plain
sockets and literal bytes. Nothing of ours is used but the broker.
"""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import zmq

from actors.runtime.transport import Lane
from tests.broker.broker_process import Broker, running_broker

PATIENCE_MS = 5000


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as made:
        yield made


@dataclass
class Door:
    """Where plain sockets come in; closes them in the end."""

    endpoint: str
    context: "zmq.Context[zmq.Socket[bytes]]" = field(default_factory=zmq.Context)
    sockets: "list[zmq.Socket[bytes]]" = field(default_factory=list)

    def connect(self) -> "zmq.Socket[bytes]":
        socket = self.context.socket(zmq.DEALER)
        socket.connect(self.endpoint)
        self.sockets.append(socket)
        return socket


@pytest.fixture
def door(broker: Broker) -> Iterator[Door]:
    made = Door(broker.place.transport.endpoints[Lane.CONTROL])
    yield made
    for socket in made.sockets:
        socket.close(linger=0)
    made.context.term()


class Client:
    """RFC 18, MDP/Client: a DEALER; requests and replies as multipart messages."""

    def __init__(self, door: Door) -> None:
        self.socket = door.connect()

    def request(self, service: bytes, *body: bytes) -> None:
        self.socket.send_multipart([b"MDPC02", b"\x01", service, *body])

    def receive(self) -> list[bytes]:
        assert self.socket.poll(PATIENCE_MS), "the broker does not answer"
        frames: list[bytes] = self.socket.recv_multipart()
        assert frames[0] == b"MDPC02"
        return frames[1:]


class Worker:
    """RFC 18, MDP/Worker: READY, then one request at a time, heartbeats both ways."""

    def __init__(self, door: Door, service: bytes) -> None:
        self.socket = door.connect()
        self.send(b"\x01", service)

    def send(self, command: bytes, *frames: bytes) -> None:
        self.socket.send_multipart([b"MDPW02", command, *frames])

    def receive(self, command: bytes) -> list[bytes]:
        """The next message that has this command; the broker's heartbeats may come at any time."""
        while True:
            assert self.socket.poll(PATIENCE_MS), f"the broker does not say {command!r}"
            protocol, said, *frames = self.socket.recv_multipart()
            assert protocol == b"MDPW02"
            if said == command:
                return frames
            assert said == b"\x05", f"the broker says {said!r}"

    def receive_request(self) -> tuple[bytes, list[bytes]]:
        address, empty, *body = self.receive(b"\x02")
        assert empty == b""
        return address, body


def discovered(client: Client, service: bytes) -> bytes:
    """RFC 8."""
    client.request(b"mmi.service", service)
    final, name, code = client.receive()
    assert (final, name) == (b"\x03", b"mmi.service")
    return code


def wait_for(client: Client, service: bytes, code: bytes) -> None:
    give_up = time.monotonic() + 5
    while discovered(client, service) != code:
        assert time.monotonic() < give_up, f"{service!r} does not become {code!r}"


def test_a_request_and_its_reply(door: Door) -> None:
    client, worker = Client(door), Worker(door, b"echo")
    wait_for(client, b"echo", b"200")
    client.request(b"echo", b"hello", b"", b"\x00\xff")
    address, body = worker.receive_request()
    assert body == [b"hello", b"", b"\x00\xff"]
    worker.send(b"\x04", address, b"", b"world", b"")
    assert client.receive() == [b"\x03", b"echo", b"world", b""]


def test_partial_replies_come_in_order_before_the_final_one(door: Door) -> None:
    client, worker = Client(door), Worker(door, b"stream")
    wait_for(client, b"stream", b"200")
    client.request(b"stream", b"go")
    address, _ = worker.receive_request()
    for part in (b"1", b"2"):
        worker.send(b"\x03", address, b"", part)
    worker.send(b"\x04", address, b"", b"end")
    assert [client.receive() for _ in range(3)] == [
        [b"\x02", b"stream", b"1"],
        [b"\x02", b"stream", b"2"],
        [b"\x03", b"stream", b"end"],
    ]


def test_a_worker_gets_one_request_at_a_time_and_workers_take_turns(door: Door) -> None:
    client = Client(door)
    workers = [Worker(door, b"pool") for _ in range(2)]
    wait_for(client, b"pool", b"200")
    for worker in workers:
        worker.receive(b"\x05")  # the broker heartbeats to whom it knows
    for number in range(4):
        client.request(b"pool", b"%d" % number)
    first = [worker.receive_request() for worker in workers]
    assert sorted(body for _, body in first) == [[b"0"], [b"1"]]
    for worker, (address, body) in zip(workers, first, strict=True):
        worker.send(b"\x04", address, b"", *body)
    second = [worker.receive_request() for worker in workers]
    assert sorted(body for _, body in second) == [[b"2"], [b"3"]]


def test_many_requests_of_many_clients_find_their_way_back(door: Door) -> None:
    clients = [Client(door) for _ in range(5)]
    worker = Worker(door, b"square")
    wait_for(clients[0], b"square", b"200")
    for number, client in enumerate(clients):
        for step in range(10):
            client.request(b"square", struct.pack(">I", number * 10 + step))
    for _ in range(50):
        address, (body,) = worker.receive_request()
        worker.send(b"\x04", address, b"", struct.pack(">I", struct.unpack(">I", body)[0] ** 2))
    for number, client in enumerate(clients):
        answers = [struct.unpack(">I", client.receive()[2])[0] for _ in range(10)]
        assert answers == [(number * 10 + step) ** 2 for step in range(10)]


def test_discovery_follows_registration(door: Door) -> None:
    client = Client(door)
    assert discovered(client, b"comes-and-goes") == b"404"
    worker = Worker(door, b"comes-and-goes")
    wait_for(client, b"comes-and-goes", b"200")
    worker.send(b"\x06")
    wait_for(client, b"comes-and-goes", b"404")


def test_an_unknown_management_service_is_not_implemented(door: Door) -> None:
    client = Client(door)
    client.request(b"mmi.unheard-of", b"")
    assert client.receive() == [b"\x03", b"mmi.unheard-of", b"501"]


def test_the_broker_heartbeats_and_a_worker_that_heartbeats_stays(door: Door) -> None:
    client, worker = Client(door), Worker(door, b"steady")
    for _ in range(3):
        assert worker.receive(b"\x05") == []
        worker.send(b"\x05")
    assert discovered(client, b"steady") == b"200"


@pytest.mark.parametrize("command", [b"\x03", b"\x04", b"\x05"])
def test_a_command_of_a_worker_that_is_not_registered_is_answered_with_disconnect(door: Door, command: bytes) -> None:
    stranger = Worker(door, b"mmi.reserved")
    assert stranger.receive(b"\x06") == []
    stranger.send(command, b"address", b"", b"body")
    assert stranger.receive(b"\x06") == []


def test_a_second_ready_disconnects_and_a_third_registers_anew(door: Door) -> None:
    client, worker = Client(door), Worker(door, b"twice")
    worker.send(b"\x01", b"twice")
    assert worker.receive(b"\x06") == []
    assert discovered(client, b"twice") == b"404"
    worker.send(b"\x01", b"twice")
    wait_for(client, b"twice", b"200")


def test_a_request_waits_while_every_worker_is_busy(door: Door) -> None:
    client, worker = Client(door), Worker(door, b"slow")
    wait_for(client, b"slow", b"200")
    client.request(b"slow", b"1")
    client.request(b"slow", b"2")
    address, body = worker.receive_request()
    assert body == [b"1"]
    worker.send(b"\x04", address, b"", b"done 1")
    assert client.receive() == [b"\x03", b"slow", b"done 1"]
    address, body = worker.receive_request()
    assert body == [b"2"]
    worker.send(b"\x04", address, b"", b"done 2")
    assert client.receive() == [b"\x03", b"slow", b"done 2"]


def test_a_worker_that_leaves_hands_its_request_to_the_next(door: Door) -> None:
    client, leaving = Client(door), Worker(door, b"relay")
    wait_for(client, b"relay", b"200")
    client.request(b"relay", b"baton")
    assert leaving.receive_request()[1] == [b"baton"]
    leaving.send(b"\x06")
    staying = Worker(door, b"relay")
    address, body = staying.receive_request()
    assert body == [b"baton"]
    staying.send(b"\x04", address, b"", b"finish")
    assert client.receive() == [b"\x03", b"relay", b"finish"]
