"""The watchdog on real programs, with a board that the test writes in the launcher's place."""

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.runtime import programs
from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity, identity_of
from actors.runtime.journal import Journal
from actors.runtime.liveness import (
    FIRST_PROGRAM_SLOT,
    LAUNCHER_SLOT,
    WATCHDOG_SLOT,
    ProcessKind,
    ProcessRecord,
    ProcessState,
    Verdict,
)
from actors.runtime.paths import EVIDENCE_DIR, JOURNAL_DIR
from actors.runtime.process import ProcessRuntime, stacks_path
from actors.runtime.programs import Probe, ProgramSpec
from actors.runtime.verdict import Cause
from actors.watchdog.actor import Watchdog
from actors.watchdog.errands import Errands
from actors.watchdog.probes import ask
from actors.watchdog.trees import tree_memory, tree_of
from tests.actors.runtime.processes import House, house, record, state_letter, wait_until

TICK_S = 0.1
HANG_TIMEOUT_MS = 1000
SLOT = FIRST_PROGRAM_SLOT
SLEEP = (sys.executable, "-c", "import time; time.sleep(1000)")
LOOP = (sys.executable, "-c", "while True: pass")
SHOWS_STACKS = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR2, file=open(sys.argv[1], "a"), all_threads=True)
def waits_for_nothing():
    time.sleep(1000)
print("there", flush=True)
waits_for_nothing()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Context:
    """What the watchdog gets of its loop."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []

    def publish(self, topic: str, value: Any) -> None:
        self.published.append((topic, value))

    def register(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Nobody hands anything over."""

    def post(self, callback: Callable[[], None]) -> None:
        """The next tick takes in what there is."""


class Ward:
    """A launcher and a watchdog in one: this test."""

    def __init__(self, home: House, config: pathlib.Path) -> None:
        config.write_text(f"[supervision]\ntick_s = {TICK_S}\n")
        arguments = ProcessArguments("watchdog", WATCHDOG_SLOT, 1, home.data_dir, home.runtime_dir, str(config), False)
        self.home = home
        self.journal = Journal(os.path.join(home.runtime_dir, JOURNAL_DIR), "watchdog")
        self.runtime = ProcessRuntime(arguments, self.journal)
        self.watchdog = Watchdog(self.runtime)
        self.context = Context()
        self.watchdog.on_start(self.context)  # type: ignore[arg-type]
        self.specs: dict[int, ProgramSpec] = {}
        self.started: list[subprocess.Popen[bytes]] = []
        self.longest_tick_s = 0.0

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.watchdog.keeper.close()
        self.runtime.close()
        self.runtime.board.close()

    def program(
        self,
        command: tuple[str, ...] = SLEEP,
        *,
        slot: int = SLOT,
        state: ProcessState = ProcessState.READY,
        judged_by: str = "state",
        stacks_signal: int = 0,
        incarnation: int = 1,
        says: bool = False,
        hang_timeout_ms: int = HANG_TIMEOUT_MS,
        **fields: Any,
    ) -> ProcessIdentity:
        """Start a program and say so, as a launcher does; wait for its first words if it `says` any."""
        name = f"program{slot}"
        process = subprocess.Popen(command, stdout=subprocess.PIPE if says else None, start_new_session=True)
        self.started.append(process)
        if process.stdout is not None:
            process.stdout.readline()
        identity = identity_of(process.pid)
        assert identity is not None
        self.specs[slot] = ProgramSpec(name, command, "/", **fields)
        programs.save(self.home.runtime_dir, self.specs.values(), {spec.name: at for at, spec in self.specs.items()})
        area = self.home.board.slots[slot]
        kind = ProcessKind.PROGRAM
        area.launcher.write(
            record(name, identity, kind=kind, state=state, incarnation=incarnation, hang_timeout_ms=hang_timeout_ms)
        )
        area.process.write(
            ProcessRecord(
                identity.pid,
                identity.start_time,
                incarnation,
                state,
                judged_by=judged_by,
                stacks_signal=stacks_signal,
            )
        )
        return identity

    def tick(self, *, launcher: bool = True) -> None:
        now = time.monotonic()
        if launcher:
            self.home.board.slots[LAUNCHER_SLOT].beat(int(now * 1000))
        self.watchdog.on_tick(self.context, now)  # type: ignore[arg-type]
        self.longest_tick_s = max(self.longest_tick_s, time.monotonic() - now)
        select.select([], [], [], max(0.0, now + self.watchdog.tick_s - time.monotonic()))

    def tick_until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            self.tick()

    def tick_for(self, duration_s: float, *, launcher: bool = True) -> None:
        until = time.monotonic() + duration_s
        while time.monotonic() < until:
            self.tick(launcher=launcher)

    def verdict(self, slot: int = SLOT) -> str:
        written = self.home.board.slots[slot].watchdog.read()
        return written.verdict if written is not None else ""

    def evidence(self, slot: int = SLOT) -> dict[str, Any]:
        """Tick until the program is condemned; return what was found."""
        self.tick_until(lambda: self.verdict(slot) == Verdict.HUNG)
        written = self.home.board.slots[slot].watchdog.read()
        assert written is not None
        path = pathlib.Path(self.home.runtime_dir, EVIDENCE_DIR, written.evidence)
        document = json.loads(path.read_text())
        assert document["cause"] == written.cause
        return document  # type: ignore[no-any-return]


@pytest.fixture(name="ward")
def _ward(tmp_path: pathlib.Path) -> Iterator[Ward]:
    with house(tmp_path) as home:
        ward = Ward(home, tmp_path / "reliability.toml")
        yield ward
        ward.close()


class Listener:
    """An HTTP server that answers with `status`, or takes connections and says nothing."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self._held:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self.status is None:
                self._held.append(connection)
                continue
            with connection:
                connection.recv(4096)
                try:
                    connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % self.status)
                except OSError:
                    continue


@pytest.fixture(name="listener")
def _listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


# --- verdicts and evidence --------------------------------------------------------------------------------------------


def test_a_frozen_program_is_told_of_and_not_killed(ward: Ward) -> None:
    identity = ward.program()
    ward.tick_for(2.5 * HANG_TIMEOUT_MS / 1000)
    assert ward.verdict() == ""
    os.kill(identity.pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    document = ward.evidence()
    assert abs(time.monotonic() - stopped_at - HANG_TIMEOUT_MS / 1000) <= 0.5
    assert document["cause"] == Cause.FROZEN
    assert document["looks"][-1]["state"] == "T"
    assert document["judged_by"] == "state"
    facts = document["process"]
    assert facts["command"] == list(SLEEP)
    assert [thread["state"] for thread in facts["threads"]] == ["T"]
    assert "0" in facts["open_files"]
    assert facts["memory_bytes"] > 0
    assert ward.context.published == [("program.hung", {"name": "program16", "incarnation": 1})]
    ward.tick_for(0.5)
    assert identity.is_running()
    assert ward.verdict() == Verdict.HUNG
    os.kill(identity.pid, signal.SIGCONT)
    ward.tick_until(lambda: ward.verdict() == Verdict.OK)
    assert [event["event_type"] for event in ward.journal.entries()] == ["process_hung"]


def test_a_program_that_no_longer_beats_is_found_with_its_place(ward: Ward) -> None:
    path = stacks_path(ward.home.runtime_dir, SLOT)
    command = (sys.executable, "-c", SHOWS_STACKS, path)
    ward.program(command, judged_by="beats", stacks_signal=signal.SIGUSR2, says=True)
    for _ in range(40):
        ward.home.board.slots[SLOT].beat(0)
        ward.tick()
    assert ward.verdict() == ""
    document = ward.evidence()
    assert document["cause"] == Cause.BLOCKED
    assert "in waits_for_nothing" in document["stacks"]


def test_one_that_would_die_of_the_question_is_not_asked(ward: Ward) -> None:
    identity = ward.program(LOOP, judged_by="beats", stacks_signal=signal.SIGUSR2)
    assert ward.evidence()["cause"] == Cause.STUCK_IN_LOOP
    assert identity.is_running()


@pytest.mark.parametrize("state", [ProcessState.STARTING, ProcessState.STOPPING])
def test_who_starts_or_leaves_is_the_launchers_affair(ward: Ward, state: ProcessState) -> None:
    identity = ward.program(judged_by="beats", state=state)
    os.kill(identity.pid, signal.SIGSTOP)
    ward.tick_for(2.5 * HANG_TIMEOUT_MS / 1000)
    assert ward.verdict() == ""


def test_without_its_launcher_no_program_is_judged(ward: Ward) -> None:
    identity = ward.program()
    ward.tick()
    os.kill(identity.pid, signal.SIGSTOP)
    ward.tick_for(3 * HANG_TIMEOUT_MS / 1000, launcher=False)
    assert ward.verdict() != Verdict.HUNG
    assert ward.evidence()["cause"] == Cause.FROZEN


def test_programs_and_ours_are_told_together(ward: Ward) -> None:
    ward.program()
    ward.tick()
    ward.tick()
    (verdicts,) = (item for item in ward.watchdog.operations() if item.name == "verdicts")
    (program,) = verdicts.handler(None)["processes"]  # type: ignore[arg-type]
    assert (program["name"], program["kind"], program["standing"]) == ("program16", "program", "ticking")
    assert ward.watchdog.status()["programs_judged"] == 1
    assert ward.watchdog.status()["judged"] == 0


# --- probes -----------------------------------------------------------------------------------------------------------


def test_the_first_answer_makes_a_program_ready_and_the_last_one_counts(ward: Ward, listener: Listener) -> None:
    listener.status = 503
    probe = Probe("http", f"http://127.0.0.1:{listener.port}/health?deep=1", 5.0, 3.0)
    identity = ward.program(state=ProcessState.STARTING, judged_by="probe", probe=probe)
    ward.tick_for(0.5)
    assert ward.verdict() == ""
    listener.status = 302
    ward.tick_until(lambda: ward.verdict() == Verdict.OK, 3.0)
    area = ward.home.board.slots[SLOT]
    own, told = area.process.read(), area.launcher.read()
    assert own is not None
    assert told is not None
    area.process.write(replace(own, state=ProcessState.READY))
    area.launcher.write(replace(told, state=ProcessState.READY))
    ward.tick_for(2.5 * HANG_TIMEOUT_MS / 1000)
    assert ward.verdict() == Verdict.OK
    listener.status = None
    document = ward.evidence()
    assert document["probe"]["answers"] > 3
    assert identity.is_running()


def test_a_kernel_that_answers_for_a_frozen_program_saves_it_not(ward: Ward, listener: Listener) -> None:
    identity = ward.program(judged_by="probe", probe=Probe("tcp", f"127.0.0.1:{listener.port}"))
    ward.tick_for(2.0 * HANG_TIMEOUT_MS / 1000)
    assert ward.verdict() in {"", Verdict.OK}
    os.kill(identity.pid, signal.SIGSTOP)
    document = ward.evidence()
    assert document["cause"] == Cause.FROZEN
    assert document["probe"]["last_problem"] == ""


def test_a_slow_probe_delays_nobody(ward: Ward, listener: Listener) -> None:
    slow = Probe("command", ("sleep", "1000"), 0.5, 0.9)
    for number in range(1, 9):
        ward.program(slot=SLOT + number, judged_by="probe", probe=slow, hang_timeout_ms=60_000)
    ward.program(judged_by="probe", probe=Probe("http", f"http://127.0.0.1:{listener.port}/"))
    ward.tick_for(3.0)
    assert ward.verdict() == Verdict.OK
    assert all(ward.verdict(SLOT + number) == "" for number in range(1, 9))
    assert ward.longest_tick_s < 0.5


def test_a_probe_that_says_nothing_about_the_life_before(ward: Ward, listener: Listener) -> None:
    probe = Probe("http", f"http://127.0.0.1:{listener.port}/")
    ward.program(judged_by="probe", probe=probe)
    ward.tick_until(lambda: ward.verdict() == Verdict.OK)
    listener.status = None
    ward.program(judged_by="probe", probe=probe, incarnation=2, state=ProcessState.STARTING)
    ward.tick_for(0.5)
    written = ward.home.board.slots[SLOT].watchdog.read()
    assert written is not None
    assert written.incarnation == 1


def _spec(probe: Probe, **fields: Any) -> ProgramSpec:
    return ProgramSpec("x", ("x",), "/", probe=probe, **fields)


def test_commands_answer_by_their_exit_code_and_with_the_programs_environment(tmp_path: pathlib.Path) -> None:
    fields = {"environment": {"WHAT": "0"}}
    assert ask(_spec(Probe("command", ("sh", "-c", "exit $WHAT")), **fields), 5.0) == ""
    assert ask(_spec(Probe("command", ("sh", "-c", "exit 3"))), 5.0) == "the command ended with 3"
    assert "No such file" in ask(_spec(Probe("command", ("/no/such/command",))), 5.0)


def test_a_command_is_killed_with_its_tree(tmp_path: pathlib.Path) -> None:
    pids = tmp_path / "pids"
    script = f"setsid sleep 1000 & echo $! > {pids}; sleep 1000 & echo $! >> {pids}; wait"
    began = time.monotonic()
    assert ask(_spec(Probe("command", ("sh", "-c", script))), 0.5) == "the command ran for more than 0.5 s"
    assert time.monotonic() - began < 5.0
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: state_letter(pid) in "XZ")


def test_what_answers_and_what_does_not(listener: Listener) -> None:
    url = f"http://127.0.0.1:{listener.port}/"
    assert ask(_spec(Probe("http", url)), 5.0) == ""
    listener.status = 404
    assert ask(_spec(Probe("http", url)), 5.0) == "HTTP status 404"
    assert ask(_spec(Probe("tcp", f"127.0.0.1:{listener.port}")), 5.0) == ""
    listener.status = None
    assert "timed out" in ask(_spec(Probe("http", url)), 0.2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "refused" in ask(_spec(Probe("tcp", f"127.0.0.1:{port}")), 5.0)
    assert "refused" in ask(_spec(Probe("http", f"http://127.0.0.1:{port}/")), 5.0)


def test_errands_are_one_per_key_and_bounded() -> None:
    errands, gate = Errands(most=2), threading.Event()
    woken = threading.Semaphore(0)
    errands.wake = woken.release
    assert errands.begin("a", gate.wait)
    assert not errands.begin("a", gate.wait)
    assert errands.begin("b", int, "no number")
    assert not errands.begin("c", gate.wait)
    assert woken.acquire(timeout=5)
    ((key, outcome),) = errands.take()
    assert key == "b"
    assert isinstance(outcome, ValueError)
    assert errands.begin("c", gate.wait)
    gate.set()
    assert woken.acquire(timeout=5)
    assert woken.acquire(timeout=5)
    assert sorted(errands.take()) == [("a", True), ("c", True)]


# --- memory -----------------------------------------------------------------------------------------------------------

HOLDS = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    held = bytearray(os.urandom(1 << 20) * 64)
    print("held", flush=True)
time.sleep(1000)
"""


def test_a_tree_over_its_memory_limit_is_told_of(ward: Ward) -> None:
    ward.program((sys.executable, "-c", HOLDS), says=True, memory_max_mib=48)
    root = ward.started[0].pid
    try:
        document = ward.evidence()
        assert document["cause"] == "over its memory limit"
        assert 64 <= document["memory"]["held_mib"] < 200
        ward.tick_for(0.5)
        assert ward.verdict() == Verdict.HUNG
        (event,) = list(ward.journal.entries())
        assert event["message"] == "program16 is over its memory limit"
        assert tree_memory(root, 0) < tree_memory(root, 1 << 40)
    finally:
        for pid in tree_of(root) - {root}:
            os.kill(pid, signal.SIGKILL)


def test_a_tree_within_its_limit_is_left_alone(ward: Ward) -> None:
    ward.program(memory_max_mib=4096)
    ward.tick_for(1.0)
    assert ward.verdict() == ""
