"""The acceptance test of `app.reliability.crash_recovery`: with the system up, restarting, and down."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.checkpointer.payloads import FOLDER
from actors.checkpointer.queries import chain_problems, list_checkpoints
from actors.runtime.database import reading
from actors.runtime.database_problem import write_lock_holder
from actors.runtime.paths import DATABASE_FILE
from app.reliability._states import decode, encode
from app.reliability.crash_recovery import CrashRecoveryManager, StateError, default_name
from protocol.errors import ErrorCode, LocalError, NotDurable, RemoteError
from tests.chaos.system import ROOT, System, is_stopped, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

CONFIG = "restart_max = 10000\nhang_timeout_s = 2\n"

HOST = """
import asyncio, sys
from app.reliability.crash_recovery import CrashRecoveryManager

async def main(data_dir, ending):
    manager = CrashRecoveryManager("host", data_dir)
    await manager.start()
    recovered = await manager.recover_from_crash()
    count = recovered["count"] + 1 if recovered else 1
    await manager.create_checkpoint(state={"count": count})
    print(recovered, flush=True)
    if ending == "stop":
        await manager.stop()
    else:
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[System]:
    """One system for all tests that harm nothing."""
    with running(config=CONFIG) as system:
        yield system
        system.stop()


async def until(condition: Callable[[], bool], patience_s: float = 20.0) -> None:
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def host(system: System, ending: str) -> str:
    """Run a host to its end, clean or by kill -9 once it has its checkpoint; returns what it recovered."""
    command = [sys.executable, "-c", HOST, str(system.data_dir), ending]
    process = subprocess.Popen(command, env=system.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if ending != "stop":
        process.kill()
    assert process.wait(20) == (0 if ending == "stop" else -signal.SIGKILL)
    process.stdout.close()
    return said


def test_the_calls_as_a_host_writes_them(shared: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELCTL_DATA_DIR", str(shared.data_dir))

    async def main() -> None:
        recovery_manager = CrashRecoveryManager()
        await recovery_manager.start()
        assert await recovery_manager.recover_from_crash() is None
        await recovery_manager.create_checkpoint(state={"data": "value"})
        recovered = await recovery_manager.recover_from_crash()
        assert recovered == {"data": "value"}
        assert recovery_manager.last_recovery is not None
        assert recovery_manager.last_recovery.reason == "same_run"
        await recovery_manager.stop()
        assert await recovery_manager.recover_from_crash() is None
        assert recovery_manager.last_recovery.reason == "clean_stop"
        await recovery_manager.close()

    run(main())
    assert list_checkpoints(str(shared.data_dir), default_name())["checkpoints"][0]["valid"]


def test_a_killed_host_gets_its_state_back_and_a_stopped_one_begins_anew(shared: System) -> None:
    assert host(shared, "crash") == "None"
    assert host(shared, "crash") == "{'count': 1}"
    assert host(shared, "stop") == "{'count': 2}"
    assert host(shared, "crash") == "None"
    assert host(shared, "stop") == "{'count': 1}"


STATES = [
    None,
    {},
    {"a": [1, 2.5, None, True, "ä", b"\x00\xff", {"deep": [[[]]]}]},
    {1: "int key", None: "none", b"b": 2, False: 3},
    [2**64 - 1, -(2**63), float("inf")],
    "text",
    {"large": os.urandom(1 << 20), "long": list(range(100_000))},
]


@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_any_state_comes_back_as_it_was(shared: System, state: Any) -> None:
    async def main() -> None:
        async with CrashRecoveryManager("any", shared.data_dir) as manager:
            made = await manager.create_checkpoint(state)
            assert made.seq is not None
            assert await manager.recover_from_crash() == state
            assert (await manager.create_checkpoint(state)).unchanged

    run(main())


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {"b": {1, 2}}]}, "state['a'][1]['b'] is of type set"),
        ({"f": open}, "state['f'] is of type builtin_function_or_method"),
        ([object()], "state[0] is of type object"),
        ({(1, 2): 3}, "a key of state is of type tuple"),
        ({"n": 2**64}, "state['n'] is a number of more than 64 bits"),
        ({"s": "\ud800"}, "state['s'] is no valid text"),
    ],
)
def test_what_no_state_can_hold_is_named(state: Any, where: str) -> None:
    with pytest.raises(StateError) as caught:
        encode(state)
    assert where in caught.value.message


def test_tuples_and_derived_types_are_taken_plainly_and_bounds_told() -> None:
    class Settings(dict[str, int]):
        pass

    assert decode(encode({"a": (1, (2,)), "b": Settings(c=3), "d": bytearray(b"e")})) == {
        "a": [1, [2]],
        "b": {"c": 3},
        "d": b"e",
    }
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(StateError, match="holds itself"):
        encode(itself)
    with pytest.raises(StateError) as caught:
        encode({"data": bytes(64 * 1024 * 1024)})
    assert caught.value.code == ErrorCode.TOO_LARGE
    with pytest.raises(LocalError):
        CrashRecoveryManager("no/name")


def test_the_largest_state_goes_through(shared: System) -> None:
    state = {"data": os.urandom(64 * 1024 * 1024 - 64)}

    async def main() -> None:
        manager = CrashRecoveryManager("largest", shared.data_dir)
        made = await manager.create_checkpoint(state, timeout=30.0)
        assert await manager.recover_from_crash(timeout=30.0) == state
        assert made.bytes > 64 * 1024 * 1024 - 64
        await manager.stop()

    run(main())


def test_checkpoints_come_by_themselves_from_a_callback_or_the_last_state(shared: System) -> None:
    async def main() -> None:
        state = {"n": 0}
        async with CrashRecoveryManager("auto", shared.data_dir, interval_s=0.05) as manager:
            await asyncio.sleep(0.2)
            assert manager.last_checkpoint is None
            first = await manager.create_checkpoint(state)
            state["n"] = 1
            await until(lambda: manager.last_checkpoint is not None and manager.last_checkpoint.seq != first.seq)
            assert await manager.recover_from_crash() == {"n": 1}

            async def callback() -> dict[str, int]:
                state["n"] += 1
                return dict(state) if state["n"] != 5 else {"n": 1 // 0}

            manager.register_callback(callback)
            await until(lambda: manager.last_error is not None)
            assert isinstance(manager.last_error, ZeroDivisionError)
            await until(lambda: manager.last_error is None)
            assert (await manager.recover_from_crash())["n"] >= 6

    run(main())


def test_names_stand_side_by_side_and_one_name_belongs_to_one_run(shared: System) -> None:
    async def main() -> None:
        one, two = CrashRecoveryManager("one", shared.data_dir), CrashRecoveryManager("two", shared.data_dir)
        await one.create_checkpoint({"of": "one"})
        await two.create_checkpoint({"of": "two"})
        assert await one.recover_from_crash() == {"of": "one"}
        later = CrashRecoveryManager("one", shared.data_dir)
        await later.start()
        assert await later.recover_from_crash() == {"of": "one"}
        with pytest.raises(RemoteError) as caught:
            await one.create_checkpoint({"of": "the earlier"})
        assert caught.value.code == ErrorCode.REFUSED
        await later.stop()
        assert (await one.create_checkpoint({"of": "the earlier"})).seq is not None
        assert await one.recover_from_crash() == {"of": "the earlier"}
        for manager in (one, two):
            await manager.stop()

    run(main())


def test_the_command_line_sees_and_makes_checkpoints(shared: System) -> None:
    (shared.data_dir / "state.json").write_text('{"a": [1, "ä"]}')
    saved = shared.relctl("--json", "checkpoint", "save", "script", str(shared.data_dir / "state.json"))
    assert saved.returncode == 0, saved.stderr
    assert json.loads(saved.stdout)["seq"] == 1
    shown = shared.relctl("--json", "checkpoint", "show", "script")
    assert json.loads(shown.stdout)["state"] == {"a": [1, "ä"]}
    listed = json.loads(shared.relctl("--json", "checkpoint-info", "script").stdout)["checkpoints"]
    assert [(item["name"], item["seq"], item["valid"]) for item in listed] == [("script", 1, True)]
    assert "script" in shared.relctl("checkpoint-info").stdout

    async def main() -> Any:
        async with CrashRecoveryManager("script", shared.data_dir) as manager:
            return await manager.recover_from_crash()

    assert run(main()) == {"a": [1, "ä"]}
    missing = shared.relctl("--json", "checkpoint", "show", "nobody")
    assert (missing.returncode, json.loads(missing.stderr)["error"]["code"]) == (1, "failed")


# --- harm -------------------------------------------------------------------------------------------------------------


def test_down_restarting_and_up_again(tmp_path: Path) -> None:
    """With the system down states go to the spool, the newest wins from there, and all are taken in, once."""
    with running(config=CONFIG, data_dir=tmp_path) as system:

        async def main() -> None:
            manager = CrashRecoveryManager("app", tmp_path)
            await manager.start()
            assert (await manager.create_checkpoint({"n": 0})).seq == 1
            system.stop()
            began = time.monotonic()
            for number in range(1, 6):
                made = await manager.create_checkpoint({"n": number, "data": os.urandom(10**number)})
                assert made.spooled
            assert time.monotonic() - began < 5.0
            recovered = await manager.recover_from_crash()
            assert recovered["n"] == 5
            assert manager.last_recovery is not None
            assert manager.last_recovery.offline
            successor = CrashRecoveryManager("app", tmp_path)
            await successor.start()
            assert (await successor.recover_from_crash())["n"] == 5, "after a crash, all of it still in the spool"
            await successor.stop()
            assert await successor.recover_from_crash() is None, "a clean stop, in the spool"
            system.start()
            late = CrashRecoveryManager("app", tmp_path)
            await late.start()
            assert await late.recover_from_crash() is None
            assert (await late.create_checkpoint({"n": 6})).seq == 7
            await late.stop()
            await manager.close()
            await successor.close()

        run(main())
        system.stop()
        seqs = [item["seq"] for item in list_checkpoints(str(tmp_path), "app")["checkpoints"]]
        assert seqs == [7, 6, 5, 4, 3, 2, 1]
        assert chain_problems(str(tmp_path), "app") == []


def test_nothing_was_ever_started(tmp_path: Path) -> None:
    async def main() -> None:
        manager = CrashRecoveryManager("app", tmp_path)
        assert await manager.recover_from_crash() is None
        assert (await manager.create_checkpoint({"n": 1})).spooled
        assert await manager.recover_from_crash() == {"n": 1}
        await manager.close()

    run(main())


def test_neither_system_nor_spool(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")

    async def main() -> None:
        manager = CrashRecoveryManager("app", tmp_path)
        with pytest.raises(NotDurable):
            await manager.create_checkpoint({"n": 1})
        await manager.close()

    run(main())


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system of its own, to be harmed."""
    with running(config=CONFIG, data_dir=tmp_path) as made:
        yield made


def test_a_frozen_checkpointer_holds_nobody_up(system: System) -> None:
    async def main() -> None:
        manager = CrashRecoveryManager("app", system.data_dir)
        await manager.start()
        await manager.create_checkpoint({"n": 0})
        pid = system.pid("checkpointer")
        system.signal("checkpointer", signal.SIGSTOP)
        began = time.monotonic()
        made = await manager.create_checkpoint({"n": 1})
        assert made.spooled
        assert time.monotonic() - began < 2.0
        assert await manager.recover_from_crash() == {"n": 1}
        wait_until(lambda: system.replaced("checkpointer", pid), 30, "freed")
        await asyncio.sleep(1.0)
        made = await manager.create_checkpoint({"n": 2})
        assert made.seq == 3
        assert await manager.recover_from_crash() == {"n": 2}
        await manager.stop()

    run(main())
    system.stop()


def test_recovery_falls_back_past_damage_and_says_so(system: System) -> None:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)

    async def main() -> None:
        manager = CrashRecoveryManager("app", system.data_dir)
        states = [{"n": number, "data": os.urandom(400_000)} for number in range(3)]
        for state in states:
            await manager.create_checkpoint(state)
        files = sorted((system.data_dir / FOLDER).glob("*.state"), key=lambda path: path.stat().st_mtime_ns)
        flip(files[2])
        assert await manager.recover_from_crash() == states[1]
        assert manager.last_recovery is not None
        assert [seq for seq, _ in manager.last_recovery.skipped] == [3]
        files[1].unlink()
        assert await manager.recover_from_crash() == states[0]
        wait_until(lambda: "checkpoint_damaged" in system.relctl("--json", "logs", "checkpointer").stdout, 30, "told")
        await manager.stop()

    run(main())


KILLS = 25


@pytest.mark.parametrize("victims", [("checkpointer",), ("checkpointer", "broker")], ids="+".join)
def test_what_was_acknowledged_is_there_once_whoever_is_killed(system: System, victims: tuple[str, ...]) -> None:
    """An outside ledger of acknowledged states against what is there: every one of them, its bytes, once, in order."""
    ledger: dict[str, tuple[str, bytes]] = {}

    async def stream(number: int, ended: asyncio.Event) -> None:
        manager = CrashRecoveryManager(f"app{number}", system.data_dir)
        count = 0
        while not ended.is_set():
            count += 1
            state = {"count": count, "data": os.urandom(300_000 if count % 7 == 0 else 200)}
            made = await manager.create_checkpoint(state)
            assert made.id not in ledger
            ledger[made.id] = (manager.name, encode(state))
        await manager.stop()

    async def main() -> None:
        ended = asyncio.Event()
        streams = [asyncio.create_task(stream(number, ended)) for number in range(2)]
        for kill in range(KILLS):
            enough = len(ledger) + 5 + kill % 7
            await until(lambda enough=enough: len(ledger) >= enough)
            for name in victims:
                if pid := system.pid(name):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(1.5)
        ended.set()
        await asyncio.gather(*streams)

    run(main())
    system.wait_whole(20)
    check_ledger(system, ledger)


def freeze_in_a_transaction(system: System) -> int:
    """Stop the checkpointer while it holds the write lock; returns its pid."""
    path, pid = str(system.data_dir / DATABASE_FILE), system.pid("checkpointer")
    give_up = time.monotonic() + 60.0
    while time.monotonic() < give_up:
        if write_lock_holder(path) == pid:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: is_stopped(pid), 30, "stopped")
            if write_lock_holder(path) == pid:
                return pid
            os.kill(pid, signal.SIGCONT)
    raise AssertionError("it was never seen inside a transaction")


def test_a_checkpointer_frozen_inside_its_transaction_is_freed_and_nothing_is_missing(system: System) -> None:
    ledger: dict[str, tuple[str, bytes]] = {}

    async def stream(ended: asyncio.Event) -> None:
        manager = CrashRecoveryManager("app", system.data_dir)
        count = 0
        while not ended.is_set():
            count += 1
            state = {"count": count, "data": os.urandom(200_000)}
            began = time.monotonic()
            made = await manager.create_checkpoint(state)
            assert time.monotonic() - began < 2.5, "an application never waits for a frozen checkpointer"
            ledger[made.id] = (manager.name, encode(state))
            await asyncio.sleep(0.02 if made.spooled else 0)
        await manager.stop()

    async def main() -> None:
        ended = asyncio.Event()
        streaming = asyncio.create_task(stream(ended))
        pid = await asyncio.to_thread(freeze_in_a_transaction, system)
        for name, op in (("event_logger", "query"), ("health_monitor", "health"), ("watchdog", "ping")):
            await asyncio.to_thread(system.client.call, name, op, timeout=1.0)
        freed = asyncio.to_thread(wait_until, lambda: system.replaced("checkpointer", pid), 10, "freed")
        await freed
        await asyncio.sleep(1.5)
        ended.set()
        await streaming

    run(main())
    check_ledger(system, ledger)


def check_ledger(system: System, ledger: dict[str, tuple[str, bytes]]) -> None:
    from actors.checkpointer.queries import read_one

    system.client.call("checkpointer", "info", timeout=10.0)
    with reading(str(system.data_dir / DATABASE_FILE)) as connection:
        rows = connection.execute("SELECT lower(hex(id)), name, seq FROM checkpoints").fetchall()
    found = {made: seq for made, _, seq in rows}
    assert len(rows) == len(found) == len({(name, seq) for _, name, seq in rows}), "twice"
    for name in {name for name, _ in ledger.values()}:
        assert chain_problems(str(system.data_dir), name) == []
        assert all(item["valid"] for item in list_checkpoints(str(system.data_dir), name, verify=True)["checkpoints"])
    order: dict[str, list[int]] = {}
    for made, (name, payload) in ledger.items():
        assert made in found, f"lost: one of {name}"
        assert read_one(str(system.data_dir), name, found[made]).payload == payload
        order.setdefault(name, []).append(found[made])
    for seqs in order.values():
        assert seqs == sorted(seqs), "the order in which they were acknowledged"


def test_the_default_name_is_that_of_the_main_program(tmp_path: Path) -> None:
    (tmp_path / "my assistant.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from app.reliability.crash_recovery import default_name; print(default_name())"
    )

    def name_of(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert name_of("my assistant.py") == "my_assistant"
    (tmp_path / "assistant").mkdir()
    (tmp_path / "my assistant.py").rename(tmp_path / "assistant" / "__main__.py")
    assert name_of("-m", "assistant") == "assistant"


def test_a_state_is_kept_apart_while_the_event_loop_stands_still(shared: System) -> None:
    async def main() -> Any:
        manager = CrashRecoveryManager("apart", shared.data_dir)
        assert manager.keep_apart() is False, "it has not begun"
        await manager.start()
        assert manager.keep_apart() is False, "there is nothing to keep"
        await manager.create_checkpoint(state={"count": 1})
        thread = threading.Thread(target=manager.keep_apart, kwargs={"state": {"count": 2}})
        thread.start()
        thread.join(20)  # holds the event loop up
        assert await manager.recover_from_crash() == {"count": 2}
        await manager.create_checkpoint(state={"count": 1})  # which is no longer the newest one
        assert await manager.recover_from_crash() == {"count": 1}
        await manager.stop()
        assert await manager.recover_from_crash() is None
        state = await manager.newest_state()
        await manager.close()
        return state

    assert run(main()) == {"count": 1}


def test_the_newest_state_is_read_from_the_files_too(tmp_path: Path) -> None:
    async def main() -> tuple[Any, Any]:
        manager = CrashRecoveryManager("files", tmp_path)
        before = await manager.newest_state() if (tmp_path / "reliability.db").exists() else None
        await manager.start()
        await manager.create_checkpoint(state=[1, 2])
        await manager.stop()
        after = await manager.newest_state()
        await manager.close()
        return before, after

    assert run(main()) == (None, [1, 2])
