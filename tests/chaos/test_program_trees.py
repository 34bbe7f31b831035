"""What a program has started ends with it: none survives a stop, a restart, its death, or its launcher's."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.identity import ProcessIdentity, identity_of
from actors.runtime.programs import INVOCATION_VARIABLE
from tests.chaos.system import MANY_RESTARTS, System, running, wait_until

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="environments in /proc"),
]

FORKS = """
import os, signal, subprocess, sys, time
place = sys.argv[1]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def forked(depth):
    if os.fork() == 0:
        os.setsid()
        if depth:
            forked(depth - 1)
            os._exit(0)
        open(os.path.join(place, str(os.getpid())), "w").close()
        time.sleep(1000)
forked(0)
forked(2)
subprocess.Popen(["setsid", "sh", "-c", f"touch {place}/$$; exec sleep 1000"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
time.sleep(1000)
"""


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forked")


@pytest.fixture(name="system", scope="module", params=[False, True], ids=["posix", "portable"])
def _system(place: Path, request: pytest.FixtureRequest) -> Iterator[System]:
    command = json.dumps([sys.executable, "-c", FORKS, str(place)])
    config = MANY_RESTARTS + f'[program.forks]\ncommand = {command}\nrestart = "always"\nstop_timeout_s = 2\n'
    with running(config=config, portable=request.param) as system:
        yield system


def forked(place: Path) -> list[ProcessIdentity]:
    """Wait for the three that hide, and return who they are; then forget them."""
    wait_until(lambda: len(list(place.iterdir())) >= 3, 30, "three processes hide")
    found = [identity_of(int(path.name)) for path in place.iterdir()]
    for path in place.iterdir():
        path.unlink()
    assert all(found)
    assert len(found) == 3
    return [identity for identity in found if identity is not None]


def gone(identities: list[ProcessIdentity]) -> bool:
    return not any(identity.is_running() for identity in identities)


def test_none_survives(system: System, place: Path) -> None:
    innocent = subprocess.Popen(["sleep", "1000"], env=os.environ | {INVOCATION_VARIABLE: "0" * 32})
    try:
        hidden = forked(place)
        os.kill(system.pid("forks"), signal.SIGKILL)
        wait_until(lambda: gone(hidden), 30, "its death leaves nobody")
        hidden = forked(place)
        assert system.relctl("restart", "forks").returncode == 0
        wait_until(lambda: gone(hidden), 30, "its restart leaves nobody")
        hidden, launcher = forked(place), system.pid("launcher")
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", launcher), 30, "the launcher is replaced")
        assert not gone(hidden)
        os.kill(system.pid("forks"), signal.SIGKILL)
        wait_until(lambda: gone(hidden), 30, "its death under another launcher leaves nobody")
        hidden, launcher, program = forked(place), system.pid("launcher"), system.pid("forks")
        os.kill(launcher, signal.SIGKILL)
        os.kill(program, signal.SIGKILL)
        wait_until(lambda: gone(hidden), 30, "its death without a launcher leaves nobody")
        hidden = forked(place)
        system.stop()
        wait_until(lambda: gone(hidden), 30, "the stop leaves nobody")
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
