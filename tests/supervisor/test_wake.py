"""The launcher is woken up for a verdict, and by nothing is it held up."""

import os
import selectors
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator

import pytest

from actors.runtime.programs import wake_path
from supervisor.wake import Wake

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no local datagram sockets")


@pytest.fixture(name="place")
def _place() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="wake-")
    yield directory
    shutil.rmtree(directory)


def turn(selector: selectors.BaseSelector, now: float) -> None:
    """One turn of a launcher."""
    for key, mask in selector.select(0):
        key.data(mask, now)


def test_many_words_wake_it_once_a_turn_and_none_is_left(place: str) -> None:
    woken: list[float] = []
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        wake = Wake(place, selector, woken.append)
        turn(selector, 1.0)
        for _ in range(5):
            speaker.sendto(b"\0" * 100, wake_path(place))
        turn(selector, 2.0)
        turn(selector, 3.0)
        assert woken == [2.0]
        wake.close()
        assert not selector.get_map()


def test_a_predecessors_socket_is_replaced_and_a_place_that_forbids_one_does_without(place: str) -> None:
    woken: list[float] = []
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        with selectors.DefaultSelector() as other:
            dead = Wake(place, other, woken.append)
            dead.close()
        wake = Wake(place, selector, woken.append)
        speaker.sendto(b"", wake_path(place))
        turn(selector, 4.0)
        assert woken == [4.0]
        wake.close()
        without = Wake(os.path.join(place, "nowhere"), selector, woken.append)
        without.close()
