"""Both transports, over real sockets: bounds, who is let in, and how a lost and regained broker is noticed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import zmq

from actors.runtime.paths import Curve
from actors.runtime.registration import Link
from actors.runtime.transport import (
    FRAME_BYTES_MAX,
    ConnectionMonitor,
    Lane,
    Retry,
    Socket,
    Transport,
    ZmqContext,
    local_endpoints,
    new_curve_keys,
)

PATIENCE_MS = 5000


class KeepingContext(zmq.Context[Socket]):
    """A context whose sockets live until it is destroyed, so that no test has to close them one by one."""

    kept: ClassVar[list[Socket]] = []

    def socket(self, *arguments: Any, **options: Any) -> Socket:
        socket: Socket = super().socket(*arguments, **options)
        self.kept.append(socket)
        return socket


@pytest.fixture
def context() -> Iterator[ZmqContext]:
    yield KeepingContext()
    for socket in KeepingContext.kept:
        socket.context.destroy(0)
    KeepingContext.kept.clear()


@pytest.fixture
def runtime_dir() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="relctl-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["local", "portable"])
def transport(request: pytest.FixtureRequest, runtime_dir: str) -> Transport:
    if request.param == "local":
        return Transport(local_endpoints(runtime_dir))
    return Transport(dict.fromkeys(Lane, "tcp://127.0.0.1:*"), new_curve_keys())


class Listener:
    """The broker's end of one lane, in a context of its own as in another process."""

    def __init__(self, transport: Transport, lane: Lane = Lane.CONTROL) -> None:
        self._context: ZmqContext = KeepingContext()
        self.socket: Socket = self._context.socket(zmq.ROUTER)
        self.admission = transport.admission(self._context)
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        if self.admission:
            self.poller.register(self.admission.socket, zmq.POLLIN)
        self.endpoint = transport.bind(self.socket, lane)

    def receive(self, also: Socket | None = None, timeout_ms: int = PATIENCE_MS) -> list[bytes] | None:
        """Wait for a message, or until `also` is readable; None if neither came."""
        if also is not None:
            self.poller.register(also, zmq.POLLIN)
        while ready := dict(self.poller.poll(timeout_ms)):
            if self.admission and self.admission.socket in ready:
                self.admission.handle()
            if self.socket in ready:
                return self.socket.recv_multipart()
            if also in ready:
                break
        if also is not None:
            self.poller.unregister(also)
        return None

    def close(self) -> None:
        """Returns once the endpoint is free again."""
        self._context.destroy(0)


def dealer(
    context: ZmqContext, transport: Transport, lane: Lane = Lane.CONTROL, retry: Retry = Retry.QUICK
) -> tuple[Socket, ConnectionMonitor]:
    socket: Socket = context.socket(zmq.DEALER)
    monitor = ConnectionMonitor(socket, retry)
    transport.connect(socket, lane, retry)
    return socket, monitor


def await_link(listener: Listener, monitor: ConnectionMonitor, link: Link) -> None:
    while monitor.link is not link:
        listener.receive(also=monitor.socket)
        before = monitor.link, monitor.connections
        monitor.drain()
        assert (monitor.link, monitor.connections) != before, f"no event while waiting for {link}"


def at(transport: Transport, listener: Listener, keys: Curve | None) -> Transport:
    """The transport of a client that read where `listener` listens."""
    return Transport({**transport.endpoints, Lane.CONTROL: listener.endpoint}, keys)


def keys_of(transport: Transport) -> Curve | None:
    return transport._curve


def test_a_message_passes_and_is_answered(context: ZmqContext, transport: Transport) -> None:
    listener = Listener(transport)
    socket, monitor = dealer(context, at(transport, listener, keys_of(transport)))
    await_link(listener, monitor, Link.UP)
    socket.send_multipart([b"a", b"b"], zmq.NOBLOCK)
    frames = listener.receive()
    assert frames is not None
    assert frames[1:] == [b"a", b"b"]
    listener.socket.send_multipart([frames[0], b"answer"])
    assert socket.poll(PATIENCE_MS)
    assert socket.recv() == b"answer"


def test_nothing_is_queued_while_no_broker_is_there(context: ZmqContext, transport: Transport) -> None:
    listener = Listener(transport)
    client_transport = at(transport, listener, keys_of(transport))
    listener.close()
    socket, monitor = dealer(context, client_transport)
    with pytest.raises(zmq.Again):
        socket.send(b"lost", zmq.NOBLOCK)
    monitor.drain()
    assert monitor.link is Link.DOWN


def test_a_broker_that_comes_back_is_noticed_and_the_old_message_is_not_replayed(
    context: ZmqContext, transport: Transport
) -> None:
    first = Listener(transport)
    client_transport = at(transport, first, keys_of(transport))
    socket, monitor = dealer(context, client_transport)
    await_link(first, monitor, Link.UP)
    first.close()
    assert monitor.socket.poll(PATIENCE_MS)
    second = Listener(client_transport)
    while monitor.connections < 2:
        second.receive(also=monitor.socket)
        monitor.drain()
    assert monitor.link is Link.UP
    socket.send(b"new", zmq.NOBLOCK)
    frames = second.receive()
    assert frames is not None
    assert frames[1:] == [b"new"]


def test_a_socket_that_never_retries_says_that_its_connection_is_lost(
    context: ZmqContext, transport: Transport
) -> None:
    listener = Listener(transport)
    client_transport = at(transport, listener, keys_of(transport))
    _, monitor = dealer(context, client_transport, retry=Retry.NEVER)
    await_link(listener, monitor, Link.UP)
    listener.close()
    _, hopeless = dealer(context, client_transport, retry=Retry.NEVER)
    for lost in (monitor, hopeless):
        while lost.link is not Link.LOST:
            assert lost.socket.poll(PATIENCE_MS)
            lost.drain()


def test_a_frame_past_the_bound_costs_its_sender_the_connection(context: ZmqContext, transport: Transport) -> None:
    listener = Listener(transport)
    socket, monitor = dealer(context, at(transport, listener, keys_of(transport)))
    await_link(listener, monitor, Link.UP)
    socket.send(bytes(FRAME_BYTES_MAX[Lane.CONTROL] + 1), zmq.NOBLOCK)
    while monitor.connections < 2:
        assert listener.receive(also=monitor.socket) is None
        monitor.drain()


@pytest.mark.portable
def test_a_peer_without_the_client_key_is_refused_and_counted(context: ZmqContext) -> None:
    transport = Transport(dict.fromkeys(Lane, "tcp://127.0.0.1:*"), new_curve_keys())
    listener = Listener(transport)
    keys, strange = keys_of(transport), new_curve_keys()
    assert keys
    assert listener.admission
    stolen = Curve(keys.server_public, "", strange.client_public, strange.client_secret)
    _, monitor = dealer(context, at(transport, listener, stolen))
    while listener.admission.refused == 0:
        assert listener.receive(also=monitor.socket) is None
        monitor.drain()
        assert monitor.link is not Link.UP


@pytest.mark.portable
def test_a_plain_tcp_peer_is_not_let_in(context: ZmqContext) -> None:
    transport = Transport(dict.fromkeys(Lane, "tcp://127.0.0.1:*"), new_curve_keys())
    listener = Listener(transport)
    _, monitor = dealer(context, at(transport, listener, None), retry=Retry.NEVER)
    while monitor.link is not Link.LOST:
        assert listener.receive(also=monitor.socket) is None
        monitor.drain()
    assert monitor.connections == 0


@pytest.mark.portable
def test_a_taken_port_is_replaced_and_a_free_one_kept(context: ZmqContext) -> None:
    keys = new_curve_keys()
    first = Listener(Transport(dict.fromkeys(Lane, "tcp://127.0.0.1:*"), keys))
    squatted = Transport(dict.fromkeys(Lane, first.endpoint), keys)
    socket: Socket = context.socket(zmq.ROUTER)
    endpoint = squatted.bind(socket, Lane.CONTROL)
    assert endpoint != first.endpoint
    assert endpoint.startswith("tcp://127.0.0.1:")
    first.close()
    again: Socket = context.socket(zmq.ROUTER)
    assert squatted.bind(again, Lane.BULK) == first.endpoint
