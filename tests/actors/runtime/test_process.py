"""What a child of the launcher gets from its bootstrap, each in a process of its own."""

import os
import pathlib
import select
import signal
import threading
import time
from dataclasses import replace

import pytest

from actors.runtime.journal import Journal
from actors.runtime.liveness import LAUNCHER_SLOT, Board, ProcessState
from actors.runtime.paths import JOURNAL_DIR
from actors.runtime.process import ProcessRuntime, run_process, stacks_path
from actors.runtime.version import VERSION
from tests.actors.runtime.processes import House, record, wait_until

SLOT = 3
ROOT = pathlib.Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")


def until_stopped(runtime: ProcessRuntime) -> int:
    """A minimal loop: beats, and leaves when asked to."""
    runtime.set_state(ProcessState.READY)
    while not runtime.stop_requested:
        runtime.beat()
        if select.select([runtime.wakeup_fd], [], [], 0.02)[0]:
            runtime.drain_wakeup()
    return 0


def entries(home: House, name: str) -> list[dict[str, object]]:
    return list(Journal(os.path.join(home.runtime_dir, JOURNAL_DIR), name).entries())


def test_it_registers_beats_and_leaves_on_sigterm(home: House) -> None:
    identity = home.start("worker", SLOT, until_stopped)
    slot = home.board.slots[SLOT]
    wait_until(lambda: (written := slot.process.read()) and written.state == ProcessState.READY)
    written = slot.process.read()
    assert written is not None
    assert (written.pid, written.start_time, written.incarnation) == (identity.pid, identity.start_time, 1)
    assert written.version == VERSION
    seen = slot.read_beat().tick
    wait_until(lambda: slot.read_beat().tick > seen)
    assert abs(slot.read_beat().tick_ms - time.monotonic() * 1000) < 2000
    os.kill(identity.pid, signal.SIGTERM)
    assert home.exit_code(identity) == 0


def test_it_shows_its_role(home: House) -> None:
    pytest.importorskip("setproctitle")
    identity = home.start("worker", SLOT, until_stopped)
    assert pathlib.Path(f"/proc/{identity.pid}/cmdline").read_bytes().startswith(b"relctl: worker")


def test_a_signal_wakes_a_loop_that_sleeps_long(home: House) -> None:
    def sleeper(runtime: ProcessRuntime) -> int:
        runtime.set_state(ProcessState.READY)
        select.select([runtime.wakeup_fd], [], [], 60)
        return 7 if runtime.stop_requested else 1

    identity = home.start("worker", SLOT, sleeper)
    wait_until(lambda: (written := home.board.slots[SLOT].process.read()) and written.state == ProcessState.READY)
    os.kill(identity.pid, signal.SIGTERM)
    assert home.exit_code(identity) == 7


def test_ctrl_c_at_the_terminal_is_the_launchers_business(home: House) -> None:
    identity = home.start("worker", SLOT, until_stopped)
    wait_until(lambda: (written := home.board.slots[SLOT].process.read()) and written.state == ProcessState.READY)
    os.kill(identity.pid, signal.SIGINT)
    os.kill(identity.pid, signal.SIGHUP)
    seen = home.board.slots[SLOT].read_beat().tick
    wait_until(lambda: home.board.slots[SLOT].read_beat().tick > seen + 2)


def test_an_exception_is_logged_and_ends_it(home: House) -> None:
    def broken(runtime: ProcessRuntime) -> int:
        raise ZeroDivisionError("boom")

    identity = home.start("worker", SLOT, broken)
    assert home.exit_code(identity) == 1
    (entry,) = entries(home, "worker")
    assert (entry["kind"], entry["severity"], entry["event_type"]) == ("event", "CRITICAL", "crashed")
    assert entry["message"] == "ZeroDivisionError: boom"
    assert "in broken" in entry["attributes"]["traceback"]  # type: ignore[index]


def test_a_wrong_configuration_is_named_and_ends_it(home: House, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[supervision]\nhang_timeout = 1\n")
    arguments = replace(home.arguments("worker", SLOT), config_path=str(config))
    identity = home.fork(lambda: run_process(arguments, until_stopped))
    assert home.exit_code(identity) == 2
    (entry,) = entries(home, "worker")
    assert "hang_timeout" in str(entry["message"])


def test_without_a_board_it_ends_with_the_reason_logged(home: House) -> None:
    os.unlink(home.board.path)
    arguments = home.arguments("worker", SLOT)
    identity = home.fork(lambda: run_process(arguments, until_stopped))
    assert home.exit_code(identity) == 1
    assert entries(home, "worker")[0]["event_type"] == "crashed"


def test_a_thread_that_dies_is_logged(home: House) -> None:
    def body(runtime: ProcessRuntime) -> int:
        thread = threading.Thread(target=lambda: 1 // 0, name="digger")
        thread.start()
        thread.join()
        return 0

    assert home.exit_code(home.start("worker", SLOT, body)) == 0
    (entry,) = entries(home, "worker")
    assert entry["event_type"] == "thread_crashed"
    assert "digger" in str(entry["message"])


def test_what_it_prints_waits_for_no_terminal(home: House) -> None:
    reader, writer = os.pipe()

    def chatty(runtime: ProcessRuntime) -> int:
        os.write(1, b"x" * 1_000_000)
        os.write(2, b"x" * 1_000_000)
        return 0

    def child() -> int:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        return run_process(home.arguments("worker", SLOT), chatty)

    identity = home.fork(child)
    os.close(writer)
    assert home.exit_code(identity) == 0
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_sigusr1_writes_the_stacks_of_all_threads(home: House) -> None:
    def body(runtime: ProcessRuntime) -> int:
        done = threading.Event()

        def a_recognisable_place() -> None:
            done.wait()

        threading.Thread(target=a_recognisable_place, daemon=True).start()
        return until_stopped(runtime)

    identity = home.start("worker", SLOT, body)
    path = pathlib.Path(stacks_path(home.runtime_dir, SLOT))
    wait_until(lambda: (written := home.board.slots[SLOT].process.read()) and written.state == ProcessState.READY)
    os.kill(identity.pid, signal.SIGUSR1)
    wait_until(lambda: "until_stopped" in path.read_text())
    assert "a_recognisable_place" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_leases_stand_on_the_board(home: House) -> None:
    def body(runtime: ProcessRuntime) -> int:
        runtime.begin_lease("vacuum", 30.0)
        return until_stopped(runtime)

    home.start("worker", SLOT, body)
    slot = home.board.slots[SLOT]
    wait_until(lambda: (written := slot.process.read()) and written.lease_what == "vacuum")
    written = slot.process.read()
    assert written is not None
    assert not written.lease_holds_loop
    assert 20_000 < written.lease_until_ms - time.monotonic() * 1000 <= 30_000


def test_end_of_a_lease_keeps_the_state(home: House) -> None:
    def body(runtime: ProcessRuntime) -> int:
        runtime.set_state(ProcessState.READY)
        runtime.begin_lease("vacuum", 30.0, holds_loop=True)
        runtime.end_lease()
        runtime.log("INFO", "lease_ended", "done")
        return until_stopped(runtime)

    home.start("worker", SLOT, body)
    wait_until(lambda: entries(home, "worker"))
    written = home.board.slots[SLOT].process.read()
    assert written is not None
    assert (written.state, written.lease_what, written.lease_holds_loop) == (ProcessState.READY, "", False)


def test_log_raises_for_nothing(home: House) -> None:
    def body(runtime: ProcessRuntime) -> int:
        runtime.log("INFO", "odd", "cannot be JSON", value=object())
        runtime.journal.path = "/nowhere/at/all"
        runtime.log("INFO", "odd", "no such directory")
        return 0

    assert home.exit_code(home.start("worker", SLOT, body)) == 0


def until_replaced(runtime: ProcessRuntime) -> int:
    while not runtime.replaced():
        runtime.beat()
        select.select([], [], [], 0.01)
    return 42


@pytest.mark.parametrize("change", ["incarnation", "pid", "board", "gone"])
def test_a_replaced_process_notices(home: House, change: str) -> None:
    identity = home.start("worker", SLOT, until_replaced)
    seen = home.board.slots[SLOT].read_beat().tick
    wait_until(lambda: home.board.slots[SLOT].read_beat().tick > seen + 2)
    other = home.start("other", SLOT + 1, until_stopped)
    if change == "incarnation":
        home.board.slots[SLOT].launcher.write(record("worker", None, incarnation=2))
    elif change == "pid":
        home.board.slots[SLOT].launcher.write(record("worker", other, incarnation=1))
    elif change == "board":
        Board.create(home.board.path).close()
    else:
        os.unlink(home.board.path)
    assert home.exit_code(identity) == 42


def test_a_record_not_yet_written_replaces_nobody(home: House) -> None:
    """The launcher writes the new pid after the fork: the child may look before."""
    slot = home.board.slots[SLOT]

    def body(runtime: ProcessRuntime) -> int:
        return 1 if runtime.replaced() else 0

    slot.launcher.write(record("worker", None, incarnation=4, state=ProcessState.STARTING))
    identity = home.fork(lambda: _run(home, body, 4))
    assert home.exit_code(identity) == 0
    old = home.start("other", SLOT + 1, until_stopped)
    slot.launcher.write(record("worker", old, incarnation=4))
    assert home.exit_code(home.fork(lambda: _run(home, body, 5))) == 0


def _run(home: House, body: object, incarnation: int) -> int:
    return run_process(home.arguments("worker", SLOT, incarnation), body)  # type: ignore[arg-type]


def test_in_a_deliberate_stop_it_waits_for_its_turn(home: House) -> None:
    launcher = home.start("launcher", LAUNCHER_SLOT, until_replaced)
    identity = home.start("worker", SLOT, until_stopped)
    home.board.stopping = True
    seen = home.board.slots[SLOT].read_beat().tick
    wait_until(lambda: home.board.slots[SLOT].read_beat().tick > seen + 20)
    os.kill(launcher.pid, signal.SIGKILL)
    home.exit_code(launcher)
    assert home.exit_code(identity) == 0


def test_a_stop_that_nobody_finishes_ends_it(home: House, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "short.toml"
    config.write_text("[supervision]\nstop_timeout_s = 0.1\n")
    home.start("launcher", LAUNCHER_SLOT, until_replaced)
    arguments = replace(home.arguments("worker", SLOT), config_path=str(config))
    identity = home.fork(lambda: run_process(arguments, until_stopped))
    home.board.stopping = True
    assert home.exit_code(identity) == 0


def test_the_version_is_the_packages() -> None:
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
