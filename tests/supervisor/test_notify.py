"""What programs say by sd_notify: what each field means, and that nothing hostile is taken for it."""

import os
import random
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.programs import INVOCATION_VARIABLE, notify_path
from supervisor.notify import Life, Notifications, belongs
from supervisor.notify_core import DATAGRAM_BYTES_MAX, STATUS_CHARACTERS_MAX, Message, parse

INVOCATION = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("datagram", "message"),
    [
        (b"READY=1", Message(ready=True)),
        (b"READY=1\nSTATUS=serving\n", Message(ready=True, status="serving")),
        (b"READY=0", Message()),
        (b"STOPPING=1\0", Message(stopping=True)),
        (b"WATCHDOG=1", Message(beat=True)),
        (b"WATCHDOG=trigger", Message(hung=True)),
        (b"WATCHDOG=2", Message()),
        (b"WATCHDOG_USEC=5000000", Message(hang_timeout_s=5.0)),
        (b"WATCHDOG_USEC=1", Message(hang_timeout_s=1.0)),
        (b"WATCHDOG_USEC=0", Message()),
        (b"WATCHDOG_USEC=99999999999999999999", Message(hang_timeout_s=86400.0)),
        (b"WATCHDOG_USEC=999999999999999999999", Message()),
        (b"WATCHDOG_USEC=-5", Message()),
        (b"EXTEND_TIMEOUT_USEC=1500000", Message(extend_s=1.5)),
        (b"X_RELIABILITY_STACKS=10", Message(stacks_signal=10)),
        (b"X_RELIABILITY_STACKS=65", Message()),
        (b"MAINPID=4711\nREADY=1", Message(ready=True, main_pid=4711)),
        (b"MAINPID=1", Message()),
        (b"MAINPID=2147483648", Message()),
        (b"MAINPID=-4", Message()),
        (b"RELOADING=1\nMONOTONIC_USEC=5", Message(reloading=True)),
        (b"ERRNO=98", Message(errno=98)),
        (b"ERRNO=0", Message()),
        (b"ERRNO=4096", Message()),
        (b"FDSTORE=1\nFDNAME=x", Message()),
        (b"STATUS=a\x1b[2Jb", Message(status="a [2Jb")),
        (b"STATUS=\xff\xfe", Message(status="\ufffd\ufffd")),
        (b"STATUS=first\nSTATUS=second", Message(status="first")),
        (b"", Message()),
        (b"\n\n==\n=1\nREADY", Message()),
        (b"READY=1\0\nSTOPPING=1", None),
        (b"STATUS=" + b"x" * DATAGRAM_BYTES_MAX, None),
    ],
)
def test_what_a_datagram_means(datagram: bytes, message: Message | None) -> None:
    assert parse(datagram) == message


def test_a_thousand_fields_and_noise() -> None:
    many = b"\n".join(b"A%d=%d" % (number, number) for number in range(400)) + b"\nREADY=1"
    assert parse(many) == Message(ready=True)
    source = random.Random(7)
    for _ in range(3000):
        message = parse(source.randbytes(source.randrange(200)))
        assert message is None or len(message.status or "") <= STATUS_CHARACTERS_MAX


class Place:
    """A program's socket, whose program is `life`."""

    def __init__(self, runtime_dir: str) -> None:
        self.life: Life | None = Life(os.getpid(), 3, INVOCATION)
        self.heard: list[tuple[int, Message]] = []
        self.selector = selectors.DefaultSelector()
        self.hearing = Notifications(runtime_dir, self.selector, lambda _: self.life, self._hear)
        self.path = self.hearing.open("web")
        self.runtime_dir = runtime_dir

    def _hear(self, _name: str, incarnation: int, message: Message, _now: float) -> None:
        self.heard.append((incarnation, message))

    def turn(self) -> None:
        for key, mask in self.selector.select(0):
            key.data(mask, 0.0)


@pytest.fixture(name="place")
def _place() -> Iterator[Place]:
    runtime_dir = tempfile.mkdtemp(prefix="rt-")
    place = Place(runtime_dir)
    yield place
    place.hearing.close("web")
    place.selector.close()
    shutil.rmtree(runtime_dir)


def say(place: Place, data: bytes, descriptors: list[int] | None = None) -> None:
    assert place.path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.connect(place.path)
        if descriptors:
            socket.send_fds(speaker, [data], descriptors)
        else:
            speaker.send(data)


def test_its_own_process_is_heard(place: Place) -> None:
    say(place, b"READY=1")
    place.turn()
    assert (place.heard, place.hearing.refused) == ([(3, Message(ready=True))], 0)
    assert place.path == notify_path(place.runtime_dir, "web")
    assert Path(place.path).stat().st_mode & 0o777 == 0o600


def test_strangers_are_counted(place: Place) -> None:
    stranger = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:
        place.life = Life(stranger.pid, 3, INVOCATION)
        say(place, b"READY=1\nWATCHDOG=1")
        place.life = None
        place.turn()
        assert (place.heard, place.hearing.refused) == ([], 1)
        assert [place.hearing.refused_since(at) for at in (0.0, 0.0)] == [1, 0]
    finally:
        stranger.kill()
        stranger.wait()


def test_who_belongs(tmp_path: Path) -> None:
    """A grandchild in a session of its own, whose parent is gone, is known by the id in its environment."""
    told = tmp_path / "pid"
    script = f"setsid sleep 100 </dev/null >/dev/null 2>&1 & echo $! >{told}"
    subprocess.run(["sh", "-c", script], env=os.environ | {INVOCATION_VARIABLE: INVOCATION}, check=True, timeout=10)
    pid = int(told.read_text())
    try:
        other = subprocess.Popen(["sleep", "100"], start_new_session=True)
        try:
            assert belongs(pid, Life(other.pid, 1, INVOCATION))
            assert not belongs(pid, Life(other.pid, 1, INVOCATION[::-1]))
            assert not belongs(0, Life(other.pid, 1, INVOCATION))
            assert not belongs(1, Life(other.pid, 1, INVOCATION))
        finally:
            other.kill()
            other.wait()
    finally:
        os.kill(pid, 9)


def test_hostile_datagrams_and_their_descriptors(place: Place) -> None:
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    say(place, b"FDSTORE=1", [writer] * 100)
    say(place, b"BARRIER=1", [writer])
    say(place, os.urandom(64 * 1024))
    say(place, b"STATUS=" + b"x" * 60_000, [writer] * 3)
    place.turn()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(writer)
    assert os.read(reader, 1) == b""  # nobody else holds it: a barrier's sender goes on
    os.close(reader)
    assert place.hearing.refused == 2
    say(place, b"READY=1")
    place.turn()
    assert place.heard[-1] == (3, Message(ready=True))


def test_a_flood_is_taken_in_portions(place: Place) -> None:
    assert place.path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.connect(place.path)
        speaker.setblocking(False)
        sent = 0
        try:
            while sent < 10_000:
                speaker.send(b"WATCHDOG=1")
                sent += 1
        except BlockingIOError:
            pass
    for _ in range(sent):
        place.turn()
    assert len(place.heard) == sent


def test_a_socket_left_behind_is_replaced(place: Place) -> None:
    place.hearing.close_inherited()  # as a launcher's death does: the file stays
    again = Notifications(place.runtime_dir, selectors.DefaultSelector(), lambda _: place.life, place._hear)
    assert again.open("web") == place.path
    again.close("web")
    place.selector = selectors.DefaultSelector()
    place.hearing._sockets.clear()


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sender's credentials")
