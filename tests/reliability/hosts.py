"""Host applications as a user would write them, for the tests: they do what a file tells them, and write what they do.

[pid, "began", what was recovered, what the last run has left]
[pid, "kept", count]       the count is durable
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.runtime import paths
from actors.runtime.control_client import call_launcher
from protocol.errors import ReliabilityError
from tests.chaos.system import ROOT, System, wait_until

PATIENCE_S = 40.0
HANG_TIMEOUT_S = 2.0
UNSAVED = 1_000_000

_BEGIN = """
import asyncio, json, os, sys, threading, time
from app.system_startup import SystemApplication
place, name = sys.argv[1:3]
state = {"count": 0}
def say(*what):
    with open(f"{place}/said", "a") as file:
        file.write(json.dumps([os.getpid(), *what]) + "\\n")
def order():
    try:
        with open(f"{place}/order") as file:
            text = file.read()
        os.unlink(f"{place}/order")
        return text
    except OSError:
        return ""
def helper():
    while True:
        time.sleep(0.05)
threading.Thread(target=helper, daemon=True).start()
"""

ASYNC = (
    _BEGIN
    + """
async def main(app):
    say("began", app.recovered, app.last_state())
    state.update(app.recovered or {})
    while not app.stopping.is_set():
        state["count"] += 1
        say("kept", (await app.recovery.create_checkpoint(), state["count"])[1])
        match order():
            case "hang":
                state["count"] = 1_000_000
                say("hangs", time.monotonic())
                hang_here()
            case "raise":
                raise ValueError("as it was told")
            case "exit":
                return 7
            case "rest":
                say("rests")
                await asyncio.sleep(1000)
        await asyncio.sleep(0.05)
    state["count"] += 1000
def hang_here():
    time.sleep(1000)
SystemApplication(main, name=name, state=lambda: state, hang_timeout_s=2.0).run()
"""
)

PLAIN = (
    _BEGIN
    + """
lock = threading.Lock()
def main(app):
    say("began", app.recovered, app.last_state())
    state.update(app.recovered or {})
    while app.beat():
        state["count"] += 1
        app.checkpoint()
        say("kept", state["count"])
        match order():
            case "hang":
                state["count"] = 1_000_000
                say("hangs", time.monotonic())
                hang_here()
            case "raise":
                raise ValueError("as it was told")
            case "exit":
                return 7
            case "rest":
                say("rests")
                time.sleep(1000)
        time.sleep(0.05)
    state["count"] += 1000
def hang_here():
    with lock:
        lock.acquire()
SystemApplication(main, name=name, state=lambda: state, hang_timeout_s=2.0).run()
"""
)

SCRIPTS = {"async": ASYNC, "plain": PLAIN}


@dataclass
class Host:
    """One host application of a running system.

    Attributes:
        process: the life that was started by hand, if one was.
    """

    system: System
    name: str
    place: Path
    process: subprocess.Popen[bytes] | None = None

    def order(self, what: str) -> None:
        """Have it do something."""
        (self.place / "order.new").write_text(what)
        (self.place / "order.new").rename(self.place / "order")

    def said(self) -> list[list[Any]]:
        """What its lives have written."""
        try:
            lines = (self.place / "said").read_text().splitlines(keepends=True)
        except OSError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def kept(self) -> int:
        """The last count that it knows to be durable."""
        return max((item[2] for item in self.said() if item[1] == "kept"), default=0)

    def began(self) -> list[list[Any]]:
        """The beginnings of its lives."""
        return [item for item in self.said() if item[1] == "began"]

    def pid(self) -> int:
        """Its present life, by the board."""
        return self.system.pid(self.name)

    def wait_working(self, lives: int = 1) -> None:
        """Wait until so many lives have begun, and the last one is supervised and has kept something."""

        def works() -> bool:
            began = self.began()
            if len(began) < lives:
                return False
            pid = began[-1][0]
            return self.pid() == pid and any(item[:2] == [pid, "kept"] for item in self.said())

        wait_until(works, PATIENCE_S, f"{self.name} works in life {lives}: {self.said()[-3:]}")

    def wait_judged(self) -> None:
        """Wait until it is judged by its beats."""
        slot = self.system.board.find(self.name)[0]
        wait_until(lambda: slot.process.read().judged_by == "beats", PATIENCE_S, f"{self.name} beats")


def environment(system: System, **more: str) -> dict[str, str]:
    """What a host by hand is started with."""
    variables = system.environment | {paths.DATA_DIR_VARIABLE: str(system.data_dir), "PYTHONPATH": str(ROOT)}
    return variables | more


def start(system: System, name: str, place: Path, script: str) -> subprocess.Popen[bytes]:
    """Start a host by hand."""
    path = place / f"{name}.py"
    path.write_text(script)
    with open(place / "output", "ab") as output:
        return subprocess.Popen(
            [sys.executable, str(path), str(place), name],
            env=environment(system),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def launcher(system: System, op: str, **arguments: Any) -> dict[str, Any]:
    """Ask the launcher."""
    run = paths.read_run_info(str(system.data_dir))
    assert run is not None
    return call_launcher(run, op, 20.0, **arguments)


@contextmanager
def host(system: System, name: str, place: Path, script: str, *, by_hand: bool) -> Iterator[Host]:
    """Have a host run, and end it whatever happens."""
    made = Host(system, name, place)
    if by_hand:
        made.process = start(system, name, place, script)
    else:
        (place / f"{name}.py").write_text(script)
        command = [sys.executable, str(place / f"{name}.py"), str(place), name]
        fields = {
            "directory": str(place),
            "environment": {"PYTHONPATH": str(ROOT)},
            "ready": "notify",
            "stop_timeout_s": 2,
        }
        launcher(system, "run", program={"name": name, "command": command, **fields})
    try:
        made.wait_working()
        yield made
    except BaseException as error:
        error.add_note(f"output: {output_of(made)[-3000:]}\nsaid: {made.said()[-5:]}")
        raise
    finally:
        try:
            launcher(system, "stop", name=name)
            wait_until(lambda: not made.pid(), PATIENCE_S, f"{name} ends")
        except (ReliabilityError, OSError):
            pass
        if made.process is not None:
            made.process.send_signal(signal.SIGKILL)
            made.process.wait()


def output_of(made: Host) -> str:
    """What its lives have printed."""
    files = [made.place / "output", made.system.data_dir / "programs" / made.name / "output.log"]
    return "\n".join(file.read_text(errors="replace") for file in files if file.exists())


def children_gone(pid: int) -> bool:
    """Whether a process is gone, as far as others can see."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return not os.path.exists(f"/proc/{pid}")
