"""M9: a host's heartbeat, by itself: whoever is watched is found, and nobody beats for who stands still."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.identity import identity_of
from actors.runtime.programs import is_program_name
from app.reliability._adoption import describe_self, program_name
from app.reliability._notify import Notifier, timeout_told_s
from app.reliability.watchdog import WatchdogService
from protocol.errors import ErrorCode, LocalError
from tests.chaos.system import MANY_RESTARTS, System, gone, running, wait_until
from tests.reliability.hosts import PATIENCE_S, Host, environment, host, launcher, start

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="programs that notify, and states in /proc"),
]

_BEGIN = """
import asyncio, json, os, signal, sys, threading, time
from app.reliability.watchdog import WatchdogService
place, name = sys.argv[1:3]
def say(*what):
    with open(f"{place}/said", "a") as file:
        file.write(json.dumps([os.getpid(), *what]) + "\\n")
def ordered(what):
    try:
        done = open(f"{place}/order").read() == what
    except OSError:
        return False
    if done:
        os.unlink(f"{place}/order")
    return done
"""

ASYNC = (
    _BEGIN
    + """
async def main():
    say("began", os.getcwd(), os.environ.get("HOST_VARIABLE"))
    watchdog = WatchdogService(os.getpid(), name=name, hang_timeout_s=2)
    await watchdog.start()
    say("kept", 1)
    while True:
        if ordered("status"):
            say("status", watchdog.get_watchdog_status())
        if ordered("hang"):
            time.sleep(1000)
        if ordered("leave"):
            await watchdog.stop()
            sys.exit(3)
        await asyncio.sleep(0.05)
asyncio.run(main())
"""
)

PLAIN = (
    _BEGIN
    + """
signal.signal(signal.SIGUSR2, lambda *_: None)
watchdog = WatchdogService(os.getpid(), name=name, hang_timeout_s=2)
say("began", None, None)
watchdog.start_here()
say("kept", 1)
def beat_for_others():
    time.sleep(0.6)
    try:
        watchdog.beat()
    except RuntimeError as error:
        say("refused", str(error))
threading.Thread(target=beat_for_others).start()
lock = threading.Lock()
while True:
    watchdog.beat()
    if ordered("hang"):
        with lock:
            lock.acquire()
    time.sleep(0.05)
"""
)


@pytest.fixture(name="system", scope="module")
def _system() -> Iterator[System]:
    with running(config=MANY_RESTARTS) as system:
        yield system
        system.stop()


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "by the launcher"])
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_who_beats_lives_and_who_blocks_is_replaced(system: System, tmp_path: Path, kind: str, by_hand: bool) -> None:
    name = f"beats-{kind}-{'hand' if by_hand else 'launcher'}"
    with host(system, name, tmp_path, ASYNC if kind == "async" else PLAIN, by_hand=by_hand) as made:
        made.wait_judged()
        slot, pid = system.board.find(name)[0], made.pid()
        tick = slot.read_tick()
        wait_until(lambda: slot.read_tick() >= tick + 6, PATIENCE_S, "it beats for more than its timeout")
        assert made.pid() == pid
        expected = int(signal.SIGUSR2) if kind == "async" else 0  # which the plain one needs for itself
        assert slot.process.read().stacks_signal == expected
        made.order("hang")
        wait_until(lambda: system.replaced(name, pid), PATIENCE_S, "it is replaced")
        made.wait_working(2)
        refused = [item for item in made.said() if item[1] == "refused"]
        assert kind == "async" or (refused and "the thread that does the work" in refused[0][2])


def test_status_is_what_the_board_says(system: System, tmp_path: Path) -> None:
    with host(system, "tells", tmp_path, ASYNC, by_hand=True) as made:
        made.wait_judged()
        made.order("status")
        wait_until(lambda: made.said()[-1][1] == "status", PATIENCE_S, "it tells")
        status = made.said()[-1][2]
        assert status.pop("last_beat_age_s") < 2.0
        assert status == {
            "name": "tells",
            "pid": made.pid(),
            "state": "ready",
            "judged_by": "beats",
            "hang_timeout_s": 2.0,
            "restarts_in_period": 0,
            "restarts_left": 10_000,
            "supervised": True,
        }


def test_it_is_started_again_where_and_as_it_was(system: System, tmp_path: Path) -> None:
    os.environ["HOST_VARIABLE"] = "only the shell knew\nof this = that"
    try:
        system.environment["HOST_VARIABLE"] = os.environ.pop("HOST_VARIABLE")
        with host(system, "back", tmp_path, ASYNC, by_hand=True) as made:
            os.kill(made.pid(), signal.SIGKILL)
            made.wait_working(2)
            first, second = made.began()
            assert first[2:] == second[2:] == [str(tmp_path), "only the shell knew\nof this = that"]
    finally:
        system.environment.pop("HOST_VARIABLE", None)


def test_who_says_that_it_leaves_stays_away(system: System, tmp_path: Path) -> None:
    with host(system, "leaves", tmp_path, ASYNC, by_hand=False) as made:
        made.order("leave")
        wait_until(lambda: system.state("leaves") == "stopped", PATIENCE_S, "it stays down")
        assert len(made.began()) == 1


def test_the_launchers_successor_hears_it(system: System, tmp_path: Path) -> None:
    with host(system, "heard", tmp_path, ASYNC, by_hand=True) as made:
        made.wait_judged()
        pid, old = made.pid(), system.pid("launcher")
        system.signal("launcher", signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", old), PATIENCE_S, "the launcher is replaced")
        slot = system.board.find("heard")[0]
        tick = slot.read_tick()
        wait_until(lambda: slot.read_tick() > tick + 3, PATIENCE_S, "it is heard")
        assert made.pid() == pid
        made.order("hang")
        wait_until(lambda: system.replaced("heard", pid), PATIENCE_S, "and judged")


def test_another_process_is_judged_by_its_state(system: System) -> None:
    other = subprocess.Popen(["sleep", "3600"], env=environment(system), start_new_session=True)
    identity = identity_of(other.pid)
    assert identity is not None
    try:
        watchdog = WatchdogService(other.pid, hang_timeout_s=1.5, data_dir=system.data_dir)
        assert watchdog.get_watchdog_status()["supervised"] is False
        asyncio.run(watchdog.start())
        asyncio.run(watchdog.start())  # once
        assert watchdog.name == "sleep"
        status = watchdog.get_watchdog_status()
        assert (status["pid"], status["judged_by"], status["state"]) == (other.pid, "state", "ready")
        os.kill(other.pid, signal.SIGSTOP)
        wait_until(lambda: system.replaced("sleep", other.pid), PATIENCE_S, "it is replaced")
        wait_until(lambda: gone(identity), PATIENCE_S, "it is gone")
    finally:
        other.kill()
        other.wait()
        launcher(system, "stop", name="sleep")


def test_what_cannot_be_watched_says_why(system: System, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="nothing runs on") as caught:
        asyncio.run(WatchdogService(os.getppid(), data_dir=tmp_path).start())
    assert caught.value.code == ErrorCode.NOT_RUNNING
    assert "relctl up" in caught.value.hint
    assert WatchdogService(os.getpid(), name="me", data_dir=tmp_path).get_watchdog_status()["state"] == "unknown"
    with pytest.raises(LocalError, match="there is no process"):
        asyncio.run(WatchdogService(2**22 + 1, name="nobody", data_dir=system.data_dir).start())
    script = (
        "import os; from app.reliability.watchdog import WatchdogService; WatchdogService(os.getpid()).start_here()"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=script, env=environment(system), capture_output=True, text=True, check=False
    )
    assert "cannot be started again" in done.stderr


def test_a_child_of_a_program_is_judged_with_it(system: System, tmp_path: Path) -> None:
    child = (
        "import os, asyncio; from app.reliability.watchdog import WatchdogService\n"
        "watchdog = WatchdogService(os.getpid(), name='child'); asyncio.run(watchdog.start())\n"
        "print(watchdog.name, os.environ['RELIABILITY_PROGRAM'])\n"
    )
    parent = (
        "import os, subprocess, sys, time; from app.system_startup import SystemApplication\n"
        "def main(app):\n"
        f"    done = subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True)\n"
        f"    open({str(tmp_path / 'said')!r}, 'w').write(done.stdout + done.stderr)\n"
        "    while app.beat(): time.sleep(0.05)\n"
        "SystemApplication(main).run()"
    )
    (tmp_path / "parent.py").write_text(parent)
    fields = {"directory": str(tmp_path), "environment": {"PYTHONPATH": environment(system)["PYTHONPATH"]}}
    command = [sys.executable, str(tmp_path / "parent.py")]
    launcher(system, "run", program={"name": "parent", "command": command, "ready": "notify", **fields})
    try:
        said = tmp_path / "said"
        wait_until(lambda: said.exists() and bool(said.read_text()), PATIENCE_S, "its child has ended")
        assert said.read_text() == "parent parent\n"
        assert system.board.find("child") is None
    finally:
        launcher(system, "stop", name="parent")


def test_one_that_runs_already_is_not_taken_for_this_one(system: System, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with host(system, "twice", tmp_path, ASYNC, by_hand=True):
        other = start(system, "twice", tmp_path / "other", ASYNC)
        made = Host(system, "twice", tmp_path / "other", other)
        assert other.wait(PATIENCE_S) == 1
        assert "twice runs already" in (tmp_path / "other/output").read_text()
        assert made.kept() == 0


def test_what_is_too_large_to_be_told_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_VARIABLE", "x" * 100_000)
    with pytest.raises(LocalError, match="larger than") as caught:
        describe_self("large", None, os.getpid(), notifies=True)
    assert "relctl run" in caught.value.hint
    monkeypatch.delenv("HOST_VARIABLE")
    monkeypatch.setenv("HOST_VARIABLE", "small")
    monkeypatch.setenv("NOTIFY_SOCKET", "/somebody/else's")
    fields = describe_self("small", 3, os.getpid(), notifies=False)
    assert fields["environment"]["HOST_VARIABLE"] == "small"
    assert "NOTIFY_SOCKET" not in fields["environment"]
    assert fields["command"][0] == sys.executable
    assert (fields["directory"], fields["ready"], fields["hang_timeout_s"]) == (os.getcwd(), "started", 3.0)


def test_names_are_made_of_whatever_there_is() -> None:
    assert program_name("My Script (2)") == "my-script-2"
    assert program_name("watchdog") == "watchdog-app"
    assert program_name("  ") == "application"
    for text in ("x" * 100, "Ünïcode", "-_-", "launcher", "9", "é"):
        assert is_program_name(program_name(text)), text


def test_datagrams_arrive_and_nobody_is_waited_for(tmp_path: Path) -> None:
    path = f"@relctl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + path[1:])
        notifier = Notifier(path)
        assert notifier.say("READY=1", "WATCHDOG=1")
        assert listener.recv(100) == b"READY=1\nWATCHDOG=1"
        since = time.monotonic()
        while notifier.say("WATCHDOG=1"):  # until there is no room
            continue
        assert time.monotonic() - since < 5.0
        notifier.close()
    deaf = Notifier(str(tmp_path / "nobody"))
    assert not deaf.say("READY=1")
    deaf.close()
    assert timeout_told_s({"WATCHDOG_USEC": "2500000"}) == 2.5
    for text in ("", "0", "-1", "x", "9" * 30):
        assert timeout_told_s({"WATCHDOG_USEC": text}) is None
    assert json.dumps(timeout_told_s({})) == "null"
