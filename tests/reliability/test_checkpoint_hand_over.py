"""Large states on their way to the checkpointer: as files, and as bytes whenever that does not work."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.reliability import _hand_over
from app.reliability._checkpoint_calls import CheckpointCalls
from app.reliability.async_client import AsyncClient
from app.reliability.crash_recovery import CrashRecoveryManager
from tests.chaos.system import System, running

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60)]

STATE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """One system for all tests."""
    with running(config="restart_max = 10000\nhang_timeout_s = 10\n") as system:
        yield system
        system.stop()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the calls of this test do: `file` for a hand-over, `bytes` for a message with the state."""
    done: list[str] = []
    call_raw = AsyncClient.call_raw

    async def call(self: AsyncClient, service: str, op: str, /, **arguments: object) -> object:
        if op == "save":
            done.append("file" if "file" in arguments else "bytes")
        return await call_raw(self, service, op, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AsyncClient, "call_raw", call)
    return done


def kept(system: System, name: str) -> None:
    """Have states kept, and see that the newest comes back."""

    async def main() -> None:
        manager = CrashRecoveryManager(name, system.data_dir)
        for _ in range(2):
            state = {"data": os.urandom(STATE_BYTES)}
            made = await manager.create_checkpoint(state)
            assert made.seq is not None
            assert not made.spooled
            assert await manager.recover_from_crash() == state
        await manager.close()

    asyncio.run(main())


def test_large_states_go_as_files(system: System, sent: list[str]) -> None:
    kept(system, "files")
    assert sent == ["file", "file"]


def _nowhere(offer: _hand_over.Offer) -> None:
    offer._path = "/nonexistent/state"


def _other_bytes(offer: _hand_over.Offer) -> None:
    offer._payload = b"\xc1" * offer.size_bytes


def _too_few(offer: _hand_over.Offer) -> None:
    offer._payload = offer._payload[1:]


@pytest.mark.parametrize("spoil", [_nowhere, _other_bytes, _too_few])
def test_what_goes_wrong_with_a_file_is_made_good_by_the_bytes(
    system: System, sent: list[str], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[_hand_over.Offer], None]
) -> None:
    write = _hand_over.Offer.write

    def spoiled(offer: _hand_over.Offer) -> None:
        spoil(offer)
        write(offer)

    monkeypatch.setattr(_hand_over.Offer, "write", spoiled)
    kept(system, f"spoiled{spoil.__name__}")
    assert sent[:2] == ["file", "bytes"]
    if spoil is _nowhere:
        assert sent == ["file", "bytes", "bytes"]  # once it cannot be written, it is not tried again for a while


def test_a_frozen_checkpointer_leaves_the_state_in_the_spool_and_no_file(system: System, sent: list[str]) -> None:
    folder = Path(system.data_dir) / "checkpoints"
    state = {"data": os.urandom(STATE_BYTES)}

    async def main() -> None:
        manager = CrashRecoveryManager("frozen", system.data_dir)
        await manager.start()
        before = {path.name for path in folder.glob("*.state")}
        system.signal("checkpointer", signal.SIGSTOP)
        try:
            start = time.monotonic()
            made = await manager.create_checkpoint(state)
            assert time.monotonic() - start < 4
            assert made.spooled
            give_up = time.monotonic() + 5
            while {path.name for path in folder.glob("*.state")} - before:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.01)
        finally:
            system.signal("checkpointer", signal.SIGCONT)
        assert await manager.recover_from_crash() == state
        await manager.close()

    asyncio.run(main())
    assert sent == ["file"]


def test_a_disk_that_stands_still_costs_one_thread_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = CheckpointCalls(str(tmp_path), AsyncClient(tmp_path))
    monkeypatch.setattr(_hand_over.Offer, "write", lambda offer: setattr(offer, "under_way", True))
    assert calls._hand_over.offer(bytes(STATE_BYTES)) is not None
    assert calls._hand_over.offer(bytes(STATE_BYTES)) is None
    calls.close()
