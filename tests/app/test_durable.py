"""Durable calls: asked of the owner, else spooled; never slower than a second in a hang, and nobody waits twice."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.spool import SpoolEntry, SpoolReader, SpoolWriter
from app.reliability._durable import DurableCaller
from app.reliability._durable_core import (
    PATIENCE_S_MAX,
    PROBE_INTERVAL_S,
    PROBE_S_MAX,
    SPOOLED_CODES,
    Owner,
    State,
    Way,
    patience_s,
)
from protocol.errors import ErrorCode, LocalError, NotDurable, RemoteError
from tests.spine import until

SERVICE = "event_logger"


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeClient:
    """An owner that answers, refuses, or lets the caller wait for all of its patience."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answer: Callable[[], dict[str, Any]] = lambda: {"id": "ab", "seq": 7}
        self.asked: list[tuple[str, bytes, float]] = []

    def call_raw(
        self, service: str, op: str, *, raw: Any, lane: Any, timeout: float, request_id: bytes, **arguments: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        assert service == SERVICE
        self.asked.append((op, request_id, timeout))
        return self.answer(), []

    def hang(self) -> None:
        """Have every call from now on wait for its whole patience."""

        def answer() -> dict[str, Any]:
            self.clock.now += self.asked[-1][2]
            raise LocalError(ErrorCode.DEADLINE_PASSED, "no answer")

        self.answer = answer

    def fail(self, error: Exception) -> None:
        """Have every call from now on fail at once."""

        def answer() -> dict[str, Any]:
            raise error

        self.answer = answer

    def close(self) -> None:
        return


class World:
    """A durable caller between a fake owner and a real spool."""

    def __init__(self, data_dir: str) -> None:
        self.clock = Clock()
        self.client = FakeClient(self.clock)
        self.spool = SpoolWriter(data_dir, SERVICE)
        self.reader = SpoolReader(data_dir, SERVICE)
        self.caller = DurableCaller(
            SERVICE,
            data_dir,
            client=self.client,  # type: ignore[arg-type]
            spool=self.spool,
            monotonic=self.clock,
        )
        self.number = 0

    def call(self, timeout: float = 5.0) -> dict[str, Any]:
        self.number += 1
        return self.caller.call("emit", self.number.to_bytes(16), {"number": self.number}, timeout=timeout)

    def spooled(self) -> list[int]:
        return [entry.arguments["number"] for entry in self.entries()]

    def entries(self) -> list[SpoolEntry]:
        return self.reader.read(1 << 20)

    def until_state(self, state: State) -> None:
        until(lambda: self.caller.owner.state is state, f"the owner {state}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(str(tmp_path / "data"))
    yield made
    made.reader.close()


def test_the_table() -> None:
    owner = Owner()
    assert owner.call(0.0) is Way.ASK
    owner.answered()
    owner.missed(10.0)
    assert owner.state is State.SILENT
    assert owner.call(10.0) is Way.SPOOL
    assert owner.call(10.0 + PROBE_INTERVAL_S - 0.001) is Way.SPOOL
    assert owner.call(10.0 + PROBE_INTERVAL_S) is Way.SPOOL_AND_ASK
    assert owner.state is State.PROBING
    assert owner.call(10.0 + PROBE_INTERVAL_S) is Way.SPOOL, "one probe at a time"
    owner.missed(12.0)
    assert owner.call(12.5) is Way.SPOOL
    assert owner.call(13.0) is Way.SPOOL_AND_ASK
    assert owner.call(13.0 + PROBE_S_MAX) is Way.SPOOL_AND_ASK, "whoever probed is gone"
    owner.answered()
    assert owner.call(20.0) is Way.ASK
    assert patience_s(60.0) == PATIENCE_S_MAX
    assert patience_s(1.0) == 0.5


def test_an_owner_that_answers_is_all_it_takes(world: World) -> None:
    assert world.call() == {"id": "ab", "seq": 7, "spooled": False}
    assert world.client.asked == [("emit", (1).to_bytes(16), 1.0)]
    assert world.spooled() == []


def test_in_a_hang_one_call_waits_a_second_and_the_others_not_at_all(world: World) -> None:
    world.client.hang()
    start = world.clock.now
    assert world.call() == {"id": (1).to_bytes(16).hex(), "seq": None, "spooled": True}
    assert world.clock.now - start == pytest.approx(1.0)
    for _ in range(100):
        world.call()
    assert world.clock.now - start == pytest.approx(1.0)
    assert len(world.client.asked) == 1
    assert world.spooled() == list(range(1, 102))


def test_the_owner_is_probed_once_a_second_under_the_ids_of_calls_that_are_spooled(world: World) -> None:
    world.client.fail(LocalError(ErrorCode.BROKER_DOWN, "down"))
    world.call()
    world.clock.now += PROBE_INTERVAL_S
    assert world.call()["spooled"]
    world.until_state(State.SILENT)
    assert [request_id for _, request_id, _ in world.client.asked] == [(1).to_bytes(16), (2).to_bytes(16)]
    world.client.answer = lambda: {"id": "ab", "seq": 8}
    assert world.call()["spooled"], "not yet"
    world.clock.now += PROBE_INTERVAL_S
    assert world.call()["spooled"], "nobody waits for a probe"
    world.until_state(State.ANSWERING)
    assert not world.call()["spooled"]
    assert world.spooled() == [1, 2, 3, 4]


@pytest.mark.parametrize("code", sorted(SPOOLED_CODES - {ErrorCode.BUSY}))
def test_what_may_pass_is_spooled(world: World, code: ErrorCode) -> None:
    world.client.fail(RemoteError(code, "not now"))
    assert world.call()["spooled"]
    assert world.spooled() == [1]


@pytest.mark.parametrize("code", [ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.ID_CONFLICT, ErrorCode.REFUSED])
def test_what_is_refused_for_good_is_the_callers(world: World, code: ErrorCode) -> None:
    world.client.fail(RemoteError(code, "never"))
    with pytest.raises(RemoteError) as caught:
        world.call()
    assert caught.value.code == code
    assert world.spooled() == []
    assert world.caller.owner.state is State.ANSWERING


def test_a_full_queue_is_asked_again_within_the_patience(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        world.clock.now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    world.client.fail(RemoteError(ErrorCode.BUSY, "full"))
    start = world.clock.now
    assert world.call()["spooled"]
    assert 0.9 < world.clock.now - start <= 1.0
    assert len(world.client.asked) > 10
    assert {request_id for _, request_id, _ in world.client.asked} == {(1).to_bytes(16)}


def test_nobody_keeps_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise NotDurable("the spool is full", "do this")

    monkeypatch.setattr(world.spool, "append", full)
    world.client.fail(LocalError(ErrorCode.BROKER_DOWN, "down"))
    with pytest.raises(NotDurable) as caught:
        world.call()
    assert (caught.value.code, caught.value.hint) == (ErrorCode.NOT_DURABLE, "do this")


def test_a_disk_that_stands_still_holds_nobody_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = threading.Event()
    append = world.spool.append

    def stall(*arguments: Any) -> None:
        moves.wait(10)
        append(*arguments)

    monkeypatch.setattr(world.spool, "append", stall)
    world.client.fail(LocalError(ErrorCode.BROKER_DOWN, "down"))
    start = time.monotonic()
    with pytest.raises(NotDurable, match="stands still"):
        world.call(timeout=0.2)
    for _ in range(70):
        with pytest.raises(NotDurable, match="stands still"):
            world.call(timeout=0.002)
    assert time.monotonic() - start < 2
    assert sum(thread.name == "relctl-spool" for thread in threading.enumerate()) <= 64
    moves.set()
    until(lambda: not any(thread.name == "relctl-spool" for thread in threading.enumerate()), "the disk moves")
    assert world.call()["spooled"]


def test_with_nothing_ever_started_it_is_kept_all_the_same(tmp_path: Path) -> None:
    data_dir = tmp_path / "never" / "data"
    caller = DurableCaller(SERVICE, data_dir)
    start = time.monotonic()
    assert caller.call("emit", b"1" * 16, {"number": 1})["spooled"]
    assert time.monotonic() - start < 0.9
    assert (data_dir / "spool").stat().st_mode & 0o777 == 0o700

    async def call() -> dict[str, Any]:
        try:
            return await caller.call_async("emit", b"2" * 16, {"number": 2})
        finally:
            await caller.close_async()

    assert asyncio.run(call())["spooled"]
    reader = SpoolReader(str(data_dir), SERVICE)
    assert [entry.id for entry in reader.read(1 << 20)] == [b"1" * 16, b"2" * 16]
    reader.close()


def test_an_event_loop_goes_on_while_the_disk_stands_still(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = threading.Event()
    monkeypatch.setattr(world.spool, "append", lambda *_arguments: moves.wait(10))
    world.caller.owner.missed(world.clock.now)

    async def main() -> int:
        turns = 0
        call = asyncio.ensure_future(world.caller.call_async("emit", b"1" * 16, {}, timeout=0.2))
        while not call.done():
            await asyncio.sleep(0.005)
            turns += 1
        with pytest.raises(NotDurable):
            await call
        return turns

    assert asyncio.run(main()) > 10
    moves.set()
