"""The control socket: one line there, one line back, and nobody who misbehaves holds it up."""

import json
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ErrorCode, LocalError
from supervisor.control import CONNECTIONS_MAX, IDLE_S_MAX, LINE_BYTES_MAX, ControlServer, Refusals, Request, listen_tcp
from supervisor.control import listen_local as listen

TOKEN = b"t" * 32


class Desk:
    """A server whose loop runs when a test says so."""

    def __init__(self, listener: socket.socket, token: bytes | None) -> None:
        self.asked: list[Request] = []
        self.answer: Callable[[Request], None] = lambda request: request.reply({"op": request.op})
        self.now = 100.0
        self._selector = selectors.DefaultSelector()
        self.server = ControlServer(listener, token, self._selector, self._handle)

    def _handle(self, request: Request) -> None:
        self.asked.append(request)
        self.answer(request)

    def turn(self) -> None:
        for _ in range(10):
            for key, mask in self._selector.select(0.01):
                key.data(mask, self.now)
        self.server.expire(self.now)

    def close(self) -> None:
        self.server.close()
        self._selector.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[tuple[Desk, Callable[[], socket.socket]]]:
    path = str(tmp_path / "control")
    desk = Desk(listen(path), None)
    clients = []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(5.0)
        client.connect(path)
        clients.append(client)
        return client

    yield desk, connect
    desk.close()
    for client in clients:
        client.close()


def ask(client: socket.socket, **fields: Any) -> None:
    client.sendall(json.dumps(fields).encode() + b"\n")


def answer(client: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        part = client.recv(4096)
        assert part, "the connection was closed"
        data += part
    return dict(json.loads(data))


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(10) == b""
    except ConnectionResetError:
        return True


def test_a_request_is_answered_and_another_after_it(local: Any) -> None:
    desk, connect = local
    client = connect()
    for op in ("ping", "status"):
        ask(client, op=op, name="broker", user="anna")
        desk.turn()
        assert answer(client) == {"ok": {"op": op}}
    assert [(request.op, request.name) for request in desk.asked] == [("ping", "broker"), ("status", "broker")]
    assert desk.asked[0].who.startswith("anna (uid ")


def test_a_request_that_comes_in_pieces_is_put_together(local: Any) -> None:
    desk, connect = local
    client = connect()
    client.sendall(b'{"op": "pi')
    desk.turn()
    assert desk.asked == []
    client.sendall(b'ng"}\n')
    desk.turn()
    assert answer(client) == {"ok": {"op": "ping"}}


def test_an_error_says_what_to_do(local: Any) -> None:
    desk, connect = local
    desk.answer = lambda request: request.fail(LocalError(ErrorCode.USAGE, "no such process", "try another"))
    client = connect()
    ask(client, op="restart")
    desk.turn()
    assert answer(client) == {"error": {"code": "usage", "message": "no such process", "hint": "try another"}}


def test_an_answer_may_come_later(local: Any) -> None:
    desk, connect = local
    desk.answer = lambda _request: None
    client = connect()
    ask(client, op="down")
    desk.turn()
    desk.now += 10 * IDLE_S_MAX
    desk.turn()
    desk.asked[0].reply({"stopping": True})
    assert answer(client) == {"ok": {"stopping": True}}


def test_an_answer_to_somebody_who_has_left_is_dropped(local: Any) -> None:
    desk, connect = local
    desk.answer = lambda _request: None
    client = connect()
    ask(client, op="down")
    desk.turn()
    client.close()
    desk.turn()
    desk.asked[0].reply({})
    other = connect()
    desk.answer = lambda request: request.reply({})
    ask(other, op="ping")
    desk.turn()
    assert answer(other) == {"ok": {}}


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b'{"op": 3}\n', b'{"op": "x", "name": {}}\n', b"\xff\n"])
def test_what_is_no_request_is_refused(local: Any, line: bytes) -> None:
    desk, connect = local
    client = connect()
    client.sendall(line)
    desk.turn()
    assert answer(client)["error"]["code"] in ("bad_request", "refused")
    assert desk.asked == []


def test_a_line_without_end_is_cut_off(local: Any) -> None:
    desk, connect = local
    client = connect()
    client.sendall(b"x" * (LINE_BYTES_MAX + 1))
    desk.turn()
    assert closed(client)


def test_connections_are_bounded_and_idle_ones_closed(local: Any) -> None:
    desk, connect = local
    clients = [connect() for _ in range(CONNECTIONS_MAX)]
    desk.turn()
    one_too_many = connect()
    desk.turn()
    assert closed(one_too_many)
    desk.now += IDLE_S_MAX + 1
    desk.turn()
    assert all(closed(client) for client in clients)
    client = connect()
    ask(client, op="ping")
    desk.turn()
    assert answer(client) == {"ok": {"op": "ping"}}


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    listen(path).close()
    assert (tmp_path / "control").exists()
    listener = listen(path)
    assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
    listener.close()


def test_on_tcp_only_the_token_admits() -> None:
    listener, address = listen_tcp("")
    desk = Desk(listener, TOKEN)
    host, port = address.removeprefix("tcp:").split(":")
    with socket.create_connection((host, int(port)), 5.0) as client:
        for token in (None, "", "74", TOKEN.hex()[:-1] + "0", 7):
            ask(client, op="ping", token=token)
            desk.turn()
            assert answer(client)["error"]["code"] == "refused"
        ask(client, op="ping", token=TOKEN.hex())
        desk.turn()
        assert answer(client) == {"ok": {"op": "ping"}}
    desk.close()


def test_the_port_of_an_earlier_run_is_taken_again_if_it_is_free() -> None:
    first, address = listen_tcp("")
    second, other = listen_tcp(address)
    assert other != address
    first.close()
    third, again = listen_tcp(address)
    assert again == address
    for listener in (second, third):
        listener.close()


def test_who_may_not_and_what_is_no_request_are_counted(local: tuple[Desk, Callable[[], socket.socket]]) -> None:
    desk, connect = local
    client = connect()
    ask(client, op="ping")
    desk.turn()
    assert "ok" in answer(client)
    assert desk.server.refused == 0
    for line in (b"nonsense\n", b"[]\n", b"x" * (LINE_BYTES_MAX + 10)):
        client = connect()
        client.sendall(line)
        desk.turn()
    assert desk.server.refused == 3


def test_refusals_are_told_as_sums_once_in_a_while_and_none_is_left_out() -> None:
    refusals = Refusals()
    assert refusals.due(0, 0.0) == 0
    assert refusals.due(3, 1.0) == 3, "the first at once"
    assert [refusals.due(count, 1.0 + count) for count in range(4, 20)] == [0] * 16
    assert refusals.due(20, 31.0) == 17
    assert refusals.due(20, 100.0) == 0
    assert refusals.rest(25) == 5
    assert refusals.rest(25) == 0
