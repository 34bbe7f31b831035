"""Programs that speak sd_notify to a running system: ready by their own word, beaten by nobody else's."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.programs import notify_path
from tests.chaos.system import MANY_RESTARTS, System, running, wait_until

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="the sender's credentials"),
]

SPEAKS = """
import os, signal, socket, sys, time
path = sys.argv[1]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while not os.path.exists(path + ".ready"):
    time.sleep(0.02)
while True:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        notify.connect(os.environ["NOTIFY_SOCKET"])
        notify.send(b"READY=1\\nSTATUS=serving")
    except OSError:  # nobody listens: as sd_notify does, go on
        time.sleep(0.1)
        continue
    while True:
        try:
            notify.send(b"WATCHDOG=1")
            if os.path.exists(path + ".trigger"):
                os.unlink(path + ".trigger")
                notify.send(b"WATCHDOG=trigger")
        except OSError:
            break
        time.sleep(0.1)
    time.sleep(0.1)
"""


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notify")


@pytest.fixture(name="system", scope="module")
def _system(place: Path) -> Iterator[System]:
    command = json.dumps([sys.executable, "-c", SPEAKS, str(place / "speaks")])
    config = MANY_RESTARTS + f'[program.speaks]\ncommand = {command}\nready = "notify"\nhang_timeout_s = 5\n'
    redis = shutil.which("redis-server")
    if redis:
        words = [redis, "--supervised", "systemd", "--port", "0", "--unixsocket", str(place / "redis"), "--save", ""]
        config += f'[program.redis]\ncommand = {json.dumps(words)}\nready = "notify"\n'
        config += f"directory = {json.dumps(str(place))}\n"
    with running(config=config) as system:
        yield system


def tell(system: System, data: bytes) -> None:
    """Say something on the program's socket that only the program may."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.connect(notify_path(str(system.runtime_dir), "speaks"))
        stranger.send(data)


def refusals(system: System) -> bool:
    """Whether refused notifications were told of."""
    journals = (system.runtime_dir / "journal").glob("*.jsonl")
    return any("notifications_refused" in path.read_text() for path in journals)


def test_it_is_ready_when_it_says_so_and_not_when_a_stranger_does(system: System, place: Path) -> None:
    wait_until(lambda: system.state("speaks") == "starting", 30, "it starts")
    tell(system, b"READY=1\nWATCHDOG=1")
    wait_until(lambda: refusals(system), 30, "the stranger is told of")
    assert system.state("speaks") == "starting"
    (place / "speaks.ready").touch()
    wait_until(lambda: system.ready("speaks"), 30, "it is ready")
    slot = system.board.find("speaks")[0]
    wait_until(lambda: slot.process.read().judged_by == "beats", 30, "it is judged by its beats")
    assert slot.read_activity() == "serving"


def test_one_that_calls_itself_hung_is_replaced(system: System, place: Path) -> None:
    (place / "speaks.ready").touch()
    wait_until(lambda: system.ready("speaks"), 30, "it is ready")
    before = system.pid("speaks")
    (place / "speaks.trigger").touch()
    wait_until(lambda: system.replaced("speaks", before), 30, "it is replaced")
    wait_until(lambda: "said so itself" in system.relctl("restart-status", "speaks").stdout, 30, "its record says so")


def test_frozen_it_is_replaced_after_its_time(system: System, place: Path) -> None:
    (place / "speaks.ready").touch()
    slot = system.board.find("speaks")[0]
    wait_until(lambda: system.ready("speaks") and slot.process.read().judged_by == "beats", 30, "it beats")
    before, since = system.pid("speaks"), time.monotonic()
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: system.replaced("speaks", before), 30, "it is replaced")
    assert time.monotonic() - since >= 4.8


def test_the_death_of_the_launcher_costs_it_nothing(system: System, place: Path) -> None:
    (place / "speaks.ready").touch()
    wait_until(lambda: system.ready("speaks"), 30, "it is ready")
    before, launcher = system.pid("speaks"), system.pid("launcher")
    system.signal("launcher", signal.SIGKILL)
    wait_until(lambda: system.replaced("launcher", launcher), 30, "the launcher is replaced")
    slot = system.board.find("speaks")[0]
    tick = slot.read_tick()
    wait_until(lambda: slot.read_tick() > tick + 5, 30, "it is heard again")
    assert system.pid("speaks") == before


@pytest.mark.skipif(not shutil.which("redis-server"), reason="Debian's redis-server is not installed")
def test_a_daemon_made_for_systemd_runs_unmodified(system: System) -> None:
    wait_until(lambda: system.ready("redis"), 30, "redis is ready by its own word")
    before = system.pid("redis")
    system.signal("redis", signal.SIGKILL)
    wait_until(lambda: system.replaced("redis", before), 30, "redis is ready again")


FORKS = """
import os, socket, sys, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
if os.fork():
    os._exit(0) if sys.argv[1] == "early" else time.sleep(1000)
else:
    os.setsid()
    tell(f"MAINPID={os.getpid()}\\nREADY=1")
    time.sleep(1000)
"""


def test_another_main_process_takes_the_place_of_the_first_one() -> None:
    with running(config=MANY_RESTARTS) as system:
        words = [sys.executable, "-c", FORKS, "late"]
        assert system.relctl("run", "--name", "forks", "--ready", "notify", "--", *words).returncode == 0
        wait_until(lambda: system.ready("forks"), 30, "it is ready")
        main = system.pid("forks")
        parent = int(Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{parent}"), 30, "the first one is gone and reaped")
        launcher = system.pid("launcher")
        system.signal("launcher", signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", launcher), 30, "the launcher is replaced")
        wait_until(lambda: system.ready("forks"), 30, "it is adopted")
        assert system.pid("forks") == main
        os.kill(main, signal.SIGKILL)
        wait_until(lambda: system.replaced("forks", main), 30, "its main process is replaced")
        again = system.pid("forks")
        assert system.relctl("stop", "forks").returncode == 0
        wait_until(lambda: not os.path.exists(f"/proc/{again}"), 30, "it is gone")


def test_only_its_probe_makes_a_program_with_one_ready_and_an_error_it_names_is_told(tmp_path: Path) -> None:
    says = """
import os, socket, sys, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1\\nRELOADING=1\\nERRNO=98", os.environ["NOTIFY_SOCKET"])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
if os.path.exists(sys.argv[1] + ".fail"):
    sys.exit(1)
time.sleep(1000)
"""
    healthy = tmp_path / "healthy"
    command = json.dumps([sys.executable, "-c", says, str(healthy)])
    probe = json.dumps(["test", "-e", str(healthy)])
    program = f'[program.probed]\ncommand = {command}\nprobe = {{command = {probe}}}\nrestart = "never"\n'
    with running(config=MANY_RESTARTS + program) as system:
        wait_until(lambda: system.pid("probed") != 0, 30, "it is there")
        slot = system.board.find("probed")[0]
        wait_until(lambda: slot.read_activity() == "reloading", 30, "it is heard")
        assert system.state("probed") == "starting"
        (tmp_path / "healthy.fail").touch()
        healthy.touch()
        wait_until(lambda: system.state("probed") == "stopped", 30, "it failed")
        assert "having said 'Address already in use'" in system.relctl("why", "probed").stdout


CONNECTED = """
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
notify.send(b"READY=1")
open(sys.argv[1] + ".said", "w").close()
while True:
    notify.send(b"WATCHDOG=1")
    time.sleep(0.5)
"""


def test_who_connected_once_is_heard_by_the_next_launcher_with_what_it_said_meanwhile(
    tmp_path: Path,
) -> None:
    go = tmp_path / "go"
    command = json.dumps([sys.executable, "-c", CONNECTED, str(go)])
    program = f'[program.connected]\ncommand = {command}\nready = "notify"\nhang_timeout_s = 5\nrestart_max = 1\n'
    with running(config=MANY_RESTARTS + program) as system:
        wait_until(lambda: system.pid("connected") != 0, 30, "it is there")
        main, launcher = system.pid("connected"), system.pid("launcher")
        system.wait_whole(30)
        wait_until(lambda: keeps(system, "connected"), 30, "the watchdog keeps its socket")
        system.signal("launcher", signal.SIGSTOP)
        go.touch()
        wait_until((tmp_path / "go.said").exists, 30, "it says that it is ready")
        system.signal("launcher", signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", launcher), 30, "the launcher is replaced")
        wait_until(lambda: system.ready("connected"), 30, "what it said is heard")
        slot = system.board.find("connected")[0]
        wait_until(lambda: slot.process.read().judged_by == "beats", 30, "it is judged by its beats")
        wait_until(lambda: keeps(system, "connected"), 30, "the watchdog keeps its socket for this launcher too")
        second = system.pid("launcher")
        system.signal("launcher", signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", second), 30, "the launcher is replaced again")
        assert system.pid("connected") == main
        assert slot.process.read().judged_by == "beats"
        os.kill(main, signal.SIGSTOP)
        wait_until(lambda: system.replaced("connected", main), 30, "it is replaced for its silence")


def keeps(system: System, name: str) -> bool:
    """Whether the watchdog holds the socket that is bound where the program speaks."""
    path = notify_path(str(system.runtime_dir), name)
    lines = Path("/proc/net/unix").read_text().splitlines()
    inodes = {f"socket:[{line.split()[6]}]" for line in lines if line.endswith(" " + path)}
    held = set()
    for entry in Path(f"/proc/{system.pid('watchdog')}/fd").iterdir():
        try:
            held.add(os.readlink(entry))
        except OSError:
            continue
    return bool(inodes & held)
