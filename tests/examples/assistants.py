"""The assistant of examples/, run for tests, and spoken to over HTTP."""

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from tests.chaos.system import MANY_RESTARTS, ROOT, System, running, wait_until

PATIENCE_S = 40.0
NAME = "assistant"


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


class Assistant:
    """One that runs as a program of a system."""

    def __init__(self, system: System, port: int) -> None:
        self.system = system
        self.port = port

    def ask(self, method: str, *path: str, body: Any = None, timeout_s: float = 30.0) -> tuple[int, Any]:
        """Send one request; returns status and JSON. OSError or HTTPException: nobody answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            where = "/" + "/".join(quote(part, safe="") for part in path)
            connection.request(method, where, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def answers(self) -> bool:
        """Whether somebody answers."""
        try:
            return self.ask("GET", "health", timeout_s=5.0)[0] == 200
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def pid(self) -> int:
        """Its present life, by the board."""
        return self.system.pid(NAME)

    def wait_answers(self) -> None:
        """Wait until somebody answers."""
        wait_until(self.answers, PATIENCE_S, "the assistant answers")


@contextmanager
def assistant(*options: str) -> Iterator[Assistant]:
    """Run a system with an assistant, and end both."""
    port = free_port()
    command = [sys.executable, str(ROOT / "examples/assistant/main.py"), "--port", str(port), *options]
    table = (
        f"[program.{NAME}]\ncommand = {json.dumps(command)}\nenvironment = {{PYTHONPATH = {json.dumps(str(ROOT))}}}\n"
    )
    with running(config=MANY_RESTARTS + table + 'ready = "notify"\n') as system:
        made = Assistant(system, port)
        made.wait_answers()
        yield made
        system.stop()
