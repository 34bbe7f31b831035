"""The programs' sockets in the watchdog's keeping: given, replaced, handed back, and what is no message refused."""

import os
import random
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from actors.runtime.programs import NOTIFY_DIR, keeper_path, notify_path
from actors.watchdog.keeper import ALONE_S, Keeper
from supervisor.keeping import keep, kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors over sockets")


@pytest.fixture(name="place")
def _place() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="keep-")
    os.mkdir(os.path.join(directory, NOTIFY_DIR))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(name="keeper")
def _keeper(place: str) -> Iterator[Keeper]:
    keeper = Keeper(place)
    assert keeper.open() is not None
    yield keeper
    keeper.close()


@contextmanager
def listening(place: str, name: str) -> Iterator[socket.socket]:
    """A program's socket."""
    path = notify_path(place, name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        if os.path.lexists(path):
            os.unlink(path)
        listener.bind(path)
        yield listener


def given(place: str, keeper: Keeper) -> dict[str, socket.socket]:
    """What the keeper gives to a launcher that waits for it."""
    found: dict[str, socket.socket] = {}
    asking = threading.Thread(target=lambda: found.update(kept(place)))
    asking.start()
    while asking.is_alive():
        keeper.take()
    asking.join()
    return found


def test_what_waits_in_a_socket_outlives_the_launcher(place: str, keeper: Keeper) -> None:
    with listening(place, "a") as a, listening(place, "b") as b:
        assert keep(place, {"a": a, "b": b})
        keeper.take()
        speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        speaker.connect(notify_path(place, "a"))
        speaker.send(b"READY=1")
    with speaker:
        found = given(place, keeper)
        assert set(found) == {"a", "b"}
        assert found["a"].recv(100) == b"READY=1"
        speaker.send(b"WATCHDOG=1")
        assert found["a"].recv(100) == b"WATCHDOG=1"
        with pytest.raises(BlockingIOError):
            found["b"].recv(100)
    for listener in found.values():
        listener.close()


def test_the_last_word_counts_and_nothing_leaks(place: str, keeper: Keeper) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with listening(place, "a") as a, listening(place, "b") as b:
        for _ in range(50):
            assert keep(place, {"a": a, "b": b})
            assert keep(place, {"b": b})
            keeper.take()
        assert set(keeper.kept) == {"b"}
        assert keep(place, {})
        keeper.take()
        assert keeper.kept == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_that_no_program_reaches_any_more_is_not_given(place: str, keeper: Keeper) -> None:
    with listening(place, "a") as first:
        assert keep(place, {"a": first})
        keeper.take()
    with listening(place, "a"):
        pass  # of a launcher that died before it could have it kept
    assert given(place, keeper) == {}


def test_without_a_launcher_a_program_is_told_that_nobody_listens(place: str, keeper: Keeper) -> None:
    with listening(place, "a") as a:
        assert keep(place, {"a": a})
        keeper.take()
    keeper.tick(100.0, 7)
    keeper.tick(100.0 + ALONE_S, 7)
    assert set(keeper.kept) == {"a"}
    keeper.tick(100.1 + ALONE_S, 7)
    assert keeper.kept == {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker, pytest.raises(ConnectionRefusedError):
        speaker.connect(notify_path(place, "a"))


def test_a_watchdog_that_is_away_or_frozen_holds_no_launcher_up(place: str, keeper: Keeper) -> None:
    assert kept(place) == {}  # it does not answer: within half a second, or this would hang
    os.unlink(keeper_path(place))
    with listening(place, "a") as a:
        assert not keep(place, {"a": a})
    assert kept(place) == {}


def test_what_is_no_message_is_refused_with_its_descriptors(place: str, keeper: Keeper) -> None:
    source = random.Random(5)
    words = [
        b"",
        b"[]",
        b"{}",
        b"[1]",
        b'["keep"',
        b'["keep","a"]',
        b'["keep","a","a"]',
        b'["give"]',
        b'["fly"]',
        b"null",
    ]
    words += [source.randbytes(source.randrange(200)) for _ in range(50)]
    with listening(place, "kept") as good, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        assert keep(place, {"kept": good})
        keeper.take()
        speaker.connect(keeper_path(place))
        before = len(os.listdir("/proc/self/fd"))
        for word in words:
            socket.send_fds(speaker, [word], [good.fileno(), good.fileno(), good.fileno()])
            keeper.take()
        assert len(os.listdir("/proc/self/fd")) == before
    assert set(keeper.kept) == {"kept"}
