"""The example that everybody starts from does what it promises, and refuses what it should."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.system import MANY_RESTARTS, ROOT, running, wait_until
from tests.examples.assistants import NAME, PATIENCE_S, Assistant, assistant, free_port

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="programs that notify"),
]

CATS = "Cats sleep sixteen hours a day."


@pytest.fixture(name="host", scope="module")
def _host() -> Iterator[Assistant]:
    with assistant("--hang-timeout", "2", "--demo") as host:
        yield host


def test_questions_are_answered_by_the_model_and_then_from_the_cache(host: Assistant) -> None:
    status, said = host.ask("PUT", "documents", "cats", body={"text": CATS})
    assert (status, said["id"]) == (200, "cats")
    question = {"question": "How long do cats sleep?"}
    assert host.ask("POST", "ask", body=question) == (200, {"answer": f"I have read this: {CATS}", "source": "model"})
    assert host.ask("POST", "ask", body=question)[1]["source"] == "cache"
    host.ask("PUT", "documents", "dogs", body={"text": "Dogs sleep less."})
    assert host.ask("POST", "ask", body=question)[1]["source"] == "model", "it knows more now"
    assert host.ask("DELETE", "documents", "dogs")[0] == 200
    assert host.ask("GET", "documents", "dogs")[0] == 404
    assert host.ask("GET", "documents", "cats") == (200, {"id": "cats", "text": CATS})


def test_without_its_model_it_answers_as_well_as_it_can(host: Assistant) -> None:
    host.ask("PUT", "documents", "birds", body={"text": "Swifts sleep while they fly."})
    assert host.ask("POST", "demo", body={"do": "model_down"})[0] == 200
    try:
        said = host.ask("POST", "ask", body={"question": "Do swifts fly?"})
        assert said == (200, {"answer": "Swifts sleep while they fly.", "source": "knowledge"})
        assert host.ask("POST", "ask", body={"question": "zzz"})[0] == 503
        assert host.ask("GET", "health")[1]["model"] is False
    finally:
        host.ask("POST", "demo", body={"do": "model_up"})


def raw(host: Assistant, data: bytes) -> bytes:
    """What comes back for bytes."""
    with socket.create_connection(("127.0.0.1", host.port), 10) as connection:
        connection.sendall(data)
        return connection.recv(4096)


def test_what_is_no_request_is_refused_and_harms_nobody(host: Assistant) -> None:
    with socket.create_connection(("127.0.0.1", host.port)) as silent:
        silent.sendall(b"GET /health")  # and no more
        for data, status in (
            (b"\x16\x03\x01 hello\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", 431),
            (b"PUT /documents/x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
            (b"PUT /documents/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
            (b"PUT /documents/x HTTP/1.1\r\nContent-Length: 5\r\n\r\nnoway", 400),
            (b"PUT /documents/x HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", 400),
            (b"BREW /coffee HTTP/1.1\r\n\r\n", 404),
        ):
            assert raw(host, data).split(b" ")[1] == str(status).encode(), data[:50]
        assert host.ask("GET", "health")[0] == 200
    assert host.ask("POST", "demo", body={"do": "sing"})[0] == 400


def test_many_at_once_are_answered_or_told_to_wait(host: Assistant) -> None:
    said: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: said.append(host.ask("POST", "ask", body={"question": f"number {n}"})[0]))
        for n in range(60)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 60
    assert set(said) <= {200, 503}
    assert said.count(200) >= 4
    wait_until(lambda: host.ask("GET", "stats")[1]["under_way"] == 0, PATIENCE_S, "nobody is left over")


@pytest.mark.parametrize("how", ["hang", "crash", "kill"])
def test_it_is_back_with_what_it_knew(host: Assistant, how: str) -> None:
    name = f"before a {how}"
    revision = host.ask("PUT", "documents", name, body={"text": CATS})[1]["revision"]
    pid = host.pid()
    if how == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        with pytest.raises(OSError):  # noqa: PT011 - it dies, or is killed, while it is asked
            host.ask("POST", "demo", body={"do": how})
    wait_until(lambda: host.system.replaced(NAME, pid), PATIENCE_S, "it is replaced")
    host.wait_answers()
    assert host.ask("GET", "documents", name)[1]["text"] == CATS
    assert host.ask("GET", "stats")[1]["began_with_revision"] >= revision


def test_it_runs_as_the_launchers_command_and_keeps_its_name() -> None:
    with running(config=MANY_RESTARTS, start=False) as system:
        host = Assistant(system, free_port())
        script = str(ROOT / "examples/assistant/main.py")
        system.command = ("env", f"PYTHONPATH={ROOT}", sys.executable, script, "--port", str(host.port))
        system.start()
        host.wait_answers()
        assert host.ask("PUT", "documents", "cats", body={"text": CATS})[0] == 200
        pid = system.pid("main")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: system.replaced("main", pid), PATIENCE_S, "it is replaced")
        host.wait_answers()
        assert host.ask("GET", "documents", "cats")[1]["text"] == CATS
        assert "cats" in system.relctl("checkpoint", "show", "assistant").stdout
        system.stop()
