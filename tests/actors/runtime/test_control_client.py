"""Asking the launcher: what comes back, and which error for which silence."""

import json
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from actors.runtime.control_client import call_launcher
from actors.runtime.paths import CONTROL_SOCKET, TOKEN_FILE, RunInfo
from protocol.errors import ErrorCode, LocalError, RemoteError
from tests.actors.runtime.processes import House

Asked = dict[str, object]


@contextmanager
def serving(family: socket.AddressFamily, address: object, answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Answer one connection; yields the address in the form of run.json."""
    listener = socket.socket(family)
    listener.bind(address)  # type: ignore[arg-type]
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            received = b""
            while not received.endswith(b"\n"):
                received += connection.recv(4096)
            for part in answer(received).splitlines(keepends=True):
                connection.sendall(part[: len(part) // 2])
                connection.sendall(part[len(part) // 2 :])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        name = listener.getsockname()
        yield name if isinstance(name, str) else f"tcp:{name[0]}:{name[1]}"
    finally:
        thread.join()
        listener.close()


def run_info(home: House, control: str) -> RunInfo:
    return RunInfo("", "", "", control, home.runtime_dir, 1)


def socket_path(home: House) -> str:
    return str(pathlib.Path(home.runtime_dir, CONTROL_SOCKET))


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no local sockets")
def test_a_request_and_its_answer(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.delenv("SUDO_USER", raising=False)
    asked: list[Asked] = []

    def answer(line: bytes) -> bytes:
        asked.append(json.loads(line))
        return b'{"ok":{"name":"broker","state":"starting"}}\n'

    with serving(socket.AF_UNIX, socket_path(home), answer) as control:
        result = call_launcher(run_info(home, control), "restart", 5.0, name="broker")
    assert result == {"name": "broker", "state": "starting"}
    assert asked == [{"op": "restart", "name": "broker", "user": "ada"}]


def test_on_tcp_the_token_is_shown(home: House) -> None:
    pathlib.Path(home.runtime_dir, TOKEN_FILE).write_bytes(b"\x01\xff")
    asked: list[Asked] = []

    def answer(line: bytes) -> bytes:
        asked.append(json.loads(line))
        return b'{"ok":{}}\n'

    with serving(socket.AF_INET, ("127.0.0.1", 0), answer) as control:
        assert call_launcher(run_info(home, control), "ping", 5.0) == {}
    assert asked[0]["token"] == "01ff"


def test_the_launchers_error_is_raised_as_it_came(home: House) -> None:
    line = b'{"error":{"code":"bad_request","message":"no such process","hint":"look at ps"}}\n'
    with (
        serving(socket.AF_INET, ("127.0.0.1", 0), lambda _: line) as control,
        pytest.raises(RemoteError) as caught,
    ):
        call_launcher(run_info(home, control), "stop", 5.0, name="x")
    assert (caught.value.code, caught.value.message, caught.value.hint) == (
        "bad_request",
        "no such process",
        "look at ps",
    )


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"ok":3}\n', b"{}\n", b'{"error":"x"}\n'])
def test_nonsense_is_an_error_of_the_launcher(home: House, line: bytes) -> None:
    with (
        serving(socket.AF_INET, ("127.0.0.1", 0), lambda _: line) as control,
        pytest.raises(RemoteError) as caught,
    ):
        call_launcher(run_info(home, control), "ping", 5.0)
    assert caught.value.code == ErrorCode.FAILED


@pytest.mark.parametrize("kind", ["missing", "nobody listens", "tcp", "closed"])
def test_where_nobody_listens_nothing_runs(home: House, kind: str) -> None:
    control = socket_path(home)
    if kind == "nobody listens":
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(control)
    elif kind == "tcp":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            control = f"tcp:127.0.0.1:{probe.getsockname()[1]}"
    if kind == "closed":
        with (
            serving(socket.AF_INET, ("127.0.0.1", 0), lambda _: b"") as control,
            pytest.raises(LocalError) as caught,
        ):
            call_launcher(run_info(home, control), "ping", 5.0)
    else:
        with pytest.raises(LocalError) as caught:
            call_launcher(run_info(home, control), "ping", 5.0)
    assert caught.value.code == ErrorCode.NOT_RUNNING


def test_a_frozen_launcher_costs_the_timeout_and_no_more(home: House) -> None:
    """Its socket still takes connections: the system does that for it, until its backlog is full."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path(home))
        listener.listen(1)
        for _ in range(4):
            started = time.monotonic()
            with pytest.raises(LocalError) as caught:
                call_launcher(run_info(home, socket_path(home)), "ping", 0.2)
            assert caught.value.code == ErrorCode.DEADLINE_PASSED
            assert time.monotonic() - started < 1.0
