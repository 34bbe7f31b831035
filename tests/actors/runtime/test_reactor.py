"""The reactor's descriptors and the mailbox, over real sockets and threads."""

import os
import threading
from collections.abc import Iterator

import pytest
import zmq

from actors.runtime.reactor import Mailbox, Reactor
from actors.runtime.transport import Socket
from tests.spine import PATIENCE_S


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def pair() -> Iterator[tuple[Socket, Socket]]:
    context: zmq.Context[Socket] = zmq.Context()
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ends[0].bind("inproc://pair")
    ends[1].connect("inproc://pair")
    yield ends
    context.destroy(0)


def turn(reactor: Reactor, timeout_s: float = PATIENCE_S) -> None:
    reactor.call(reactor.wait(timeout_s))


def test_input_that_was_there_before_registration_is_seen(reactor: Reactor, pair: tuple[Socket, Socket]) -> None:
    pair[0].send(b"early")
    received: list[bytes] = []
    reactor.register(pair[1], lambda: received.append(pair[1].recv()))
    turn(reactor)
    assert received == [b"early"]


def test_a_doubted_socket_is_asked_though_its_descriptor_is_silent(
    reactor: Reactor, pair: tuple[Socket, Socket]
) -> None:
    received: list[bytes] = []
    reactor.register(pair[1], lambda: received.append(pair[1].recv()))
    turn(reactor, 0)
    for text in (b"1", b"2", b"3"):
        pair[0].send(text)
    turn(reactor)
    for _ in range(2):
        reactor.doubt(pair[1])
        turn(reactor)
    assert received == [b"1", b"2", b"3"]


def test_a_source_that_an_earlier_callback_unregistered_is_not_called(reactor: Reactor) -> None:
    called: list[int] = []
    pipes = [os.pipe(), os.pipe()]

    def first_wins(reader: int) -> None:
        called.append(reader)
        for other, _ in pipes:
            reactor.unregister(other)

    for reader, writer in pipes:
        reactor.register(reader, lambda reader=reader: first_wins(reader))  # type: ignore[misc]
        os.write(writer, b"x")
    turn(reactor)
    assert len(called) == 1
    assert reactor.wait(0) == []
    for ends in pipes:
        for descriptor in ends:
            os.close(descriptor)


def test_nothing_posted_is_lost_or_reordered_between_threads(reactor: Reactor) -> None:
    mailbox = Mailbox()
    reactor.register(mailbox.fileno(), mailbox.drain)
    received: list[tuple[int, int]] = []

    def post(sender: int) -> None:
        for number in range(2000):
            mailbox.post(lambda number=number: received.append((sender, number)))  # type: ignore[misc]

    threads = [threading.Thread(target=post, args=(sender,)) for sender in range(3)]
    for thread in threads:
        thread.start()
    while len(received) < 6000:
        before = len(received)
        turn(reactor)
        assert len(received) > before or reactor.wait(PATIENCE_S)
    for sender in range(3):
        assert [number for who, number in received if who == sender] == list(range(2000))
    for thread in threads:
        thread.join()
    mailbox.close()
    mailbox.post(lambda: None)
