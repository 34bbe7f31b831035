"""What the launcher says to the service manager that started it."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator

import pytest

from supervisor.upward import RETRY_S, Standing, Upward, upward_of
from tests.chaos.system import running, wait_until

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no local sockets")
PATIENCE_S = 30.0
STARTING = Standing(whole=False, stopping=False, status="1 of 6 processes ready")
WHOLE = Standing(whole=True, stopping=False, status="6 of 6 processes ready")
STOPPING = Standing(whole=True, stopping=True, status="stopping")


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.messages: list[list[str]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.setblocking(False)
        self._listener.bind(path)

    def take(self) -> list[list[str]]:
        """All messages that have come since the last call, each as its lines."""
        new = []
        while True:
            try:
                new.append(self._listener.recv(4096).decode().split("\n"))
            except BlockingIOError:
                self.messages += new
                return new

    def has(self, line: str) -> bool:
        self.take()
        return any(line in message for message in self.messages)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(name="manager")
def _manager() -> Iterator[Manager]:
    directory = tempfile.mkdtemp(prefix="up-")
    manager = Manager(os.path.join(directory, "notify"))
    yield manager
    manager.close()
    shutil.rmtree(directory)


def test_each_thing_is_said_once_and_the_beat_at_half_of_the_period(manager: Manager) -> None:
    upward = Upward(manager.path, 30.0, None)
    upward.turn(100.0, STARTING)
    assert manager.take() == [["STATUS=1 of 6 processes ready", "WATCHDOG=1"]]
    assert upward.due_at == 115.0
    upward.turn(101.0, STARTING)
    assert manager.take() == []
    upward.turn(102.0, WHOLE)
    assert manager.take() == [["READY=1", "STATUS=6 of 6 processes ready"]]
    upward.turn(114.9, WHOLE)
    assert manager.take() == []
    upward.turn(115.0, WHOLE)
    assert manager.take() == [["WATCHDOG=1"]]
    upward.turn(116.0, STARTING)  # it stays ready while a process is replaced
    upward.turn(117.0, STOPPING)
    upward.turn(118.0, STOPPING)
    assert manager.take() == [["STATUS=1 of 6 processes ready"], ["STOPPING=1", "STATUS=stopping"]]


def test_a_manager_that_is_away_or_reads_nothing_holds_nobody_up_and_hears_it_later(manager: Manager) -> None:
    absent = Upward(manager.path + "-later", None, 7)
    absent.turn(100.0, WHOLE)
    assert absent.due_at == 100.0 + RETRY_S
    later = Manager(manager.path + "-later")
    absent.turn(101.0, WHOLE)
    assert later.take() == [["MAINPID=7", "READY=1", "STATUS=6 of 6 processes ready"]]
    later.close()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.setblocking(False)
        full = False
        while not full:
            try:
                flood.sendto(b"X=1", manager.path)
            except BlockingIOError:
                full = True
    deaf = Upward(manager.path, 4.0, None)
    deaf.turn(100.0, WHOLE)
    manager.take()
    deaf.turn(101.0, WHOLE)
    assert manager.take() == [["READY=1", "STATUS=6 of 6 processes ready", "WATCHDOG=1"]]


def test_an_abstract_address_is_understood() -> None:
    name = f"relctl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        Upward("@" + name, None, None).turn(0.0, WHOLE)
        listener.settimeout(PATIENCE_S)
        assert listener.recv(4096).startswith(b"READY=1")


@pytest.mark.parametrize("address", ["", "@", "/", "vsock:2:1", "relative"])
def test_without_an_address_that_it_knows_nothing_is_said(address: str) -> None:
    assert upward_of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, 5, successor=False) is None


@pytest.mark.parametrize(
    ("usec", "pid", "successor", "beats"),
    [
        ("10000000", "5", False, True),
        ("10000000", None, False, True),
        ("10000000", "4", False, False),
        ("10000000", "4", True, True),
        ("0", "5", False, False),
        ("-1", "5", False, False),
        ("1" * 21, "5", False, False),
        ("²", "5", False, False),
    ],
)
def test_it_beats_if_it_is_the_one_that_is_asked_to(
    manager: Manager, usec: str, pid: str | None, successor: bool, beats: bool
) -> None:
    environment = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": usec} | ({"WATCHDOG_PID": pid} if pid else {})
    upward = upward_of(environment, 5, successor=successor)
    assert upward is not None
    upward.turn(0.0, WHOLE)
    (message,) = manager.take()
    assert ("WATCHDOG=1" in message, "MAINPID=5" in message) == (beats, successor)


@pytest.mark.chaos
def test_the_real_launcher_speaks_and_its_successor_goes_on(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with running() as system:
        wait_until(lambda: manager.has("READY=1") and manager.has("WATCHDOG=1"), PATIENCE_S, "ready said")
        manager.messages.clear()
        old = system.pid("launcher")
        system.signal("launcher", signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", old), PATIENCE_S, "a successor")
        successor = system.pid("launcher")
        wait_until(lambda: manager.has(f"MAINPID={successor}"), PATIENCE_S, "the successor names itself")
        wait_until(lambda: manager.has("READY=1") and manager.has("WATCHDOG=1"), PATIENCE_S, "the successor goes on")
        system.stop()
        wait_until(lambda: manager.has("STOPPING=1"), PATIENCE_S, "the stop said")
