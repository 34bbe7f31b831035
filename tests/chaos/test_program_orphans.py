"""Who clears its environment and leaves its session and its parents ends with its program, or is told of."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from actors.runtime.identity import ProcessIdentity, identity_of
from tests.chaos.system import MANY_RESTARTS, System, gone, running, wait_until

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's child subreaper"),
]

EVADES = """
import os, sys, time
def evade():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execve("/bin/sh", ["sh", "-c", 'echo > "$0/$$"; exec sleep 1000', sys.argv[1]], {})
        os._exit(0)
    os.wait()
evade()
for _ in range(200):  # orphans that are dead at once
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
time.sleep(1000)
"""


def table(name: str, place: Path) -> str:
    place.mkdir()
    command = json.dumps([sys.executable, "-c", EVADES, str(place)])
    return f'[program.{name}]\ncommand = {command}\nrestart = "always"\nstop_timeout_s = 2\n'


def evading(place: Path) -> ProcessIdentity:
    """Wait for the one that evades, and return who it is; then forget it."""
    wait_until(lambda: any(place.iterdir()), 60, "one evades")
    (path,) = place.iterdir()
    identity = identity_of(int(path.name))
    path.unlink()
    assert identity is not None
    return identity


def zombies(parent: int) -> int:
    return sum(1 for pid in children(parent) if identity_of(pid) is None)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def known(system: System, who: ProcessIdentity) -> bool:
    path = system.runtime_dir / "orphans.json"
    return path.exists() and any(
        entry[:2] == [who.pid, who.start_time] for entry in json.loads(path.read_text())["orphans"]
    )


def told(system: System) -> list[int]:
    lines = (system.runtime_dir / "journal" / "launcher.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [event["attributes"]["pid"] for event in events if event.get("event_type") == "process_evaded"]


def test_one_program_cannot_evade(tmp_path: Path) -> None:
    place = tmp_path / "one"
    with running(config=MANY_RESTARTS + table("one", place)) as system:
        who, launcher = evading(place), system.pid("launcher")
        wait_until(lambda: known(system, who), 30, "it is found")
        wait_until(lambda: zombies(launcher) == 0, 30, "the dead are reaped")
        assert not gone(who)  # its life goes on, and so may it
        os.kill(system.pid("one"), signal.SIGKILL)
        wait_until(lambda: gone(who), 30, "the program's death ends it")
        who = evading(place)
        assert system.relctl("restart", "one").returncode == 0
        wait_until(lambda: gone(who), 30, "the restart ends it")
        who = evading(place)
        assert system.relctl("stop", "one").returncode == 0
        wait_until(lambda: gone(who), 30, "the stop ends it")
        assert told(system) == []
        assert system.relctl("start", "one").returncode == 0
        who = evading(place)
        wait_until(lambda: known(system, who), 30, "it is found")
        os.kill(system.pid("launcher"), signal.SIGKILL)
        wait_until(lambda: system.replaced("launcher", launcher), 30, "the launcher is replaced")
        assert not gone(who)
        os.kill(system.pid("one"), signal.SIGKILL)
        wait_until(lambda: gone(who), 30, "its death under the successor ends it")
        who = evading(place)
        for name in ("watchdog", "broker", "event_logger"):
            before = system.pid(name)
            os.kill(before, signal.SIGKILL)
            wait_until(lambda name=name, before=before: system.replaced(name, before), 30, f"{name} is replaced")
        assert not gone(who)
        system.stop()
        wait_until(lambda: gone(who), 30, "the system's stop ends it")


def test_of_two_programs_it_is_told_and_ends_with_the_later(tmp_path: Path) -> None:
    second = tmp_path / "second"
    quiet = '[program.quiet]\ncommand = ["sleep", "1000"]\n'
    after = table("second", second) + 'after = ["quiet"]\n'
    with running(config=MANY_RESTARTS + quiet + after) as system:
        who = evading(second)
        wait_until(lambda: who.pid in told(system), 30, "it is told of")
        os.kill(system.pid("second"), signal.SIGKILL)
        wait_until(lambda: system.ready("second"), 30, "it is back")
        evading(second)
        assert not gone(who)  # it may be the other's
        assert system.relctl("stop", "quiet").returncode == 0
        wait_until(lambda: gone(who), 30, "whichever it belongs to has ended")
        assert told(system).count(who.pid) == 1
        system.stop()
