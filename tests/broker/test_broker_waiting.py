"""Waiting by descriptors: nothing that came is overlooked, and nothing is spent at rest."""

import os
import time
from collections.abc import Iterator

import pytest
import zmq

from broker.inlet import AWAKE_S, Waiter, descriptor_of, has_input


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_it_tells_who_is_readable_and_nobody_after_the_time(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    waiter = Waiter([reader])
    started = time.monotonic()
    assert waiter.wait(0.05) == set()
    assert time.monotonic() - started >= 0.045
    os.write(writer, b"x")
    assert waiter.wait(5.0) == {reader}
    waiter.close()


@pytest.mark.parametrize("timeout_s", [0.0, 0.02])
def test_in_a_conversation_it_keeps_its_time_too(pipe: tuple[int, int], timeout_s: float) -> None:
    reader, writer = pipe
    waiter = Waiter([reader])
    os.write(writer, b"x")
    waiter.wait(1.0)
    os.read(reader, 1)
    started = time.monotonic()
    assert waiter.wait(timeout_s) == set()
    assert timeout_s * 0.9 <= time.monotonic() - started < timeout_s + 5.0
    os.write(writer, b"x")
    assert waiter.wait(1.0) == {reader}
    waiter.close()


def test_at_rest_it_spends_no_time_awake(pipe: tuple[int, int]) -> None:
    waiter = Waiter([pipe[0]])
    before = time.process_time()
    for _ in range(20):
        waiter.wait(0.01)
    assert time.process_time() - before < 20 * AWAKE_S + 0.02
    waiter.close()


def test_a_descriptor_alone_does_not_tell_of_what_came_during_a_send() -> None:
    """Why `Inlet.unsure` exists; should this ever fail, it can go."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    first, second = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    first.bind("inproc://pair")
    second.connect("inproc://pair")
    waiter = Waiter([descriptor_of(first)])
    assert not has_input(first)
    second.send(b"came")
    assert waiter.wait(5.0)
    assert has_input(first)
    assert waiter.wait(0.0) == set()
    assert first.recv() == b"came"
    waiter.close()
    for socket in (first, second):
        socket.close(linger=0)
    context.term()
