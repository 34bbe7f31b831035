"""Programs that hang are replaced, whatever shows it; those that only share a launcher with trouble are not."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.paths import EVIDENCE_DIR
from protocol.errors import ReliabilityError
from tests.chaos.system import MANY_RESTARTS, System, running, wait_until

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="programs that notify, and states in /proc"),
]

HANG_TIMEOUT_S = 2.0
REPLACED_S = HANG_TIMEOUT_S + 8.0

SAYS_NOTHING = "import time; time.sleep(10000)"
BEAT_S = 0.2
BEATS_THEN_LOOPS = f"""
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):  # as sd_notify does: anew each time, and no matter if nobody listens
    try:
        notify.sendto(text, os.environ["NOTIFY_SOCKET"])
    except OSError:
        pass
say(b"READY=1")
while not os.path.exists(sys.argv[1]):
    say(b"WATCHDOG=1")
    time.sleep({BEAT_S})
os.unlink(sys.argv[1])
while True:
    pass
"""
ANSWERS_THEN_DOES_NOT = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        while os.path.exists(sys.argv[2]) and os.getpid() == int(open(sys.argv[2]).read() or 0):
            time.sleep(0.05)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

EATS = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
os.unlink(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    eaten = os.urandom(1 << 20) * 96
time.sleep(10000)
"""


def table(name: str, *command: str, **fields: Any) -> str:
    """One program of reliability.toml; JSON's texts, lists and numbers are TOML's."""
    lines = [f"[program.{name}]", f"command = {json.dumps(list(command))}", f"hang_timeout_s = {HANG_TIMEOUT_S}"]
    return "\n".join(lines + [f"{key} = {value}" for key, value in fields.items()]) + "\n"


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(name="system", scope="module")
def _system(place: Path) -> Iterator[System]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = sys.executable
    probe = f'{{http = "http://127.0.0.1:{port}/health", interval_s = 0.3}}'
    config = (
        MANY_RESTARTS
        + table("still", python, "-c", SAYS_NOTHING)
        + table("beating", python, "-c", BEATS_THEN_LOOPS, str(place / "loop"), ready='"notify"')
        + table("greedy", python, "-c", EATS, str(place / "eat"), memory_max_mib=64)
        + table("probed", python, "-c", ANSWERS_THEN_DOES_NOT, str(port), str(place / "silent"), probe=probe)
    )
    with running(config=config) as system:
        for name in ("still", "beating", "greedy", "probed"):
            wait_until(lambda name=name: system.state(name) == "ready", 30, f"{name} is ready")
        yield system
        system.stop()


def restarts_of(system: System, name: str) -> list[dict[str, Any]]:
    try:
        (process,) = system.client.call("event_logger", "restart_status", name=name)["processes"]
    except ReliabilityError:
        return []
    return list(process["history"])


def assert_replaced(system: System, name: str, pid: int, cause: str, since: float) -> dict[str, Any]:
    """Wait until `name` runs anew, and for the record of it; return the evidence."""
    wait_until(
        lambda: system.pid(name) not in (0, pid) and system.state(name) == "ready", REPLACED_S, f"{name} is replaced"
    )
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - since >= HANG_TIMEOUT_S
    found: list[dict[str, Any]] = []

    def recorded() -> bool:
        found[:] = [item for item in restarts_of(system, name) if cause in item["reason"]]
        return bool(found) and found[0]["recovery_ms"] is not None

    wait_until(recorded, 30, f"the restart of {name} is on record with its recovery: {restarts_of(system, name)}")
    assert found[0]["evidence"]
    evidence = json.loads((system.runtime_dir / EVIDENCE_DIR / found[0]["evidence"]).read_text())
    assert (evidence["name"], evidence["pid"]) == (name, pid)
    return dict(evidence)


def test_a_frozen_program_that_speaks_nothing(system: System) -> None:
    pid, since = system.pid("still"), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    evidence = assert_replaced(system, "still", pid, "frozen", since)
    assert evidence["judged_by"] == "state"
    assert evidence["process"]["command"][-1] == SAYS_NOTHING


def test_one_that_beats_and_then_loops(system: System, place: Path) -> None:
    pid, since = system.pid("beating"), time.monotonic() - BEAT_S  # it may have beaten just before
    (place / "loop").touch()
    evidence = assert_replaced(system, "beating", pid, "stuck in a loop", since)
    assert evidence["judged_by"] == "beats"


def test_one_that_no_longer_answers_its_probe(system: System, place: Path) -> None:
    pid, since = system.pid("probed"), time.monotonic()
    (place / "silent").write_text(str(pid))
    try:
        evidence = assert_replaced(system, "probed", pid, "hung", since)
    finally:
        (place / "silent").unlink()
    assert evidence["judged_by"] == "probe"
    assert evidence["probe"]["answers"] > 0


def test_a_tree_over_its_memory_limit(system: System, place: Path) -> None:
    pid, since = system.pid("greedy"), time.monotonic() - HANG_TIMEOUT_S
    (place / "eat").touch()
    evidence = assert_replaced(system, "greedy", pid, "over its memory limit", since)
    assert evidence["memory"]["held_mib"] > evidence["memory"]["limit_mib"] == 64


def test_a_frozen_launcher_and_watchdog_cost_no_program_its_life(system: System) -> None:
    names = ("still", "beating", "greedy", "probed")
    for name in names:
        wait_until(lambda name=name: system.state(name) == "ready", 30, f"{name} is ready")
    before = {name: system.pid(name) for name in names}
    for _ in range(2):
        frozen = [system.pid("launcher"), system.pid("watchdog")]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5 * HANG_TIMEOUT_S)  # the length of the freeze is what is tested
        for pid in frozen:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:  # survivors replaced it, as they should
                continue
        system.wait_whole(20)
    time.sleep(2.5 * HANG_TIMEOUT_S)  # in which a false verdict would fall
    assert {name: system.pid(name) for name in names} == before, [restarts_of(system, name)[:1] for name in names]
