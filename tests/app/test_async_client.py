"""The asyncio twin, against the real broker and a real actor."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.liveness import ProcessState
from app.reliability._client_core import RESEND_S
from app.reliability.client import AsyncClient, Lane
from protocol.errors import ErrorCode, LocalError, ReliabilityError, RemoteError
from tests.spine import PATIENCE_S, System, shop_running, until


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.portable)], ids=["local", "portable"])
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    with shop_running(portable=request.param) as started:
        yield started


class BlindLoop(asyncio.SelectorEventLoop):
    """An event loop that cannot watch descriptors, as the proactor loop of Windows."""

    def add_reader(self, *arguments: object) -> None:
        raise NotImplementedError


def test_many_calls_share_one_connection(system: System) -> None:
    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            answers = await asyncio.gather(*(client.call("shop", "order", text=str(number)) for number in range(300)))
            assert answers == [{"text": str(number)} for number in range(300)]
            assert len(client._lines) == 1
            result, raw = await client.call_raw("shop", "order", [b"x" * 2_000_000], Lane.BULK, text="large")
            assert (result, raw) == ({"text": "large"}, [b"x" * 2_000_000])

    asyncio.run(main())


def test_one_client_serves_one_event_loop_after_another(system: System) -> None:
    client = AsyncClient(system.where.data_dir)

    async def ask() -> None:
        assert await client.call("shop", "order", text="tea") == {"text": "tea"}

    async def finish() -> None:
        await ask()
        assert len(client._lines) == 1
        await client.close()
        assert client._lines == {}

    asyncio.run(ask())
    asyncio.run(finish())


def test_an_event_loop_without_descriptors_is_served_too(system: System) -> None:
    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            await client.call("shop", "announce", topic="state.till", value=1)
            async for publication in client.subscribe("state."):
                assert publication == ("state.till", 1)
                break

    with asyncio.Runner(loop_factory=BlindLoop) as runner:
        runner.run(main())


def test_errors_are_told_apart(system: System, tmp_path: Path) -> None:
    async def code_of(client: AsyncClient, service: str, op: str, timeout_s: float) -> str:
        start = time.monotonic()
        with pytest.raises(ReliabilityError) as caught:
            await client.call(service, op, timeout=timeout_s)
        assert time.monotonic() - start < timeout_s + 0.1
        return caught.value.code

    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            assert await code_of(client, "nobody", "ping", 1) == ErrorCode.SERVICE_UNKNOWN
            assert await code_of(client, "shop", "refuse", 1) == ErrorCode.INTEGRITY
            system.signal("shop", signal.SIGSTOP)
            assert await code_of(client, "shop", "ping", 0.3) == ErrorCode.DEADLINE_PASSED
            system.signal("broker", signal.SIGSTOP)
            assert await code_of(client, "shop", "ping", 2.0) == ErrorCode.BROKER_HUNG
            system.kill("broker")
            assert await code_of(client, "shop", "ping", 0.3) == ErrorCode.BROKER_DOWN
        async with AsyncClient(tmp_path) as client:
            assert await code_of(client, "shop", "ping", 1.0) == ErrorCode.NOT_RUNNING

    asyncio.run(main())


def test_calls_go_on_while_the_broker_is_killed_and_restarted(system: System) -> None:
    async def ask(client: AsyncClient, count: int) -> None:
        for number in range(count):
            assert await client.call("shop", "order", timeout=PATIENCE_S, text=str(number)) == {"text": str(number)}

    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            tasks = [asyncio.create_task(ask(client, 200)) for _ in range(5)]
            for _ in range(3):
                await ask(client, 20)
                await asyncio.to_thread(system.kill, "broker")
                await asyncio.to_thread(system.start, "broker")
            await asyncio.gather(*tasks)
            assert (await client.call("shop", "status"))["executed"] == 5 * 200 + 3 * 20

    asyncio.run(main())


def test_a_call_under_way_notices_at_once_that_the_broker_is_gone_and_back(system: System) -> None:
    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            await client.call("shop", "ping")
            system.signal("broker", signal.SIGSTOP)
            waiting = asyncio.create_task(client.call("shop", "order", timeout=PATIENCE_S, text="tea"))
            await asyncio.sleep(0)  # it is on its way into the frozen broker
            await asyncio.to_thread(system.kill, "broker")
            await asyncio.to_thread(system.start, "broker")
            await asyncio.to_thread(until, lambda: system.state("broker") == ProcessState.READY, "the broker ready")
            assert await asyncio.wait_for(waiting, RESEND_S / 2) == {"text": "tea"}

    asyncio.run(main())


def test_a_subscription_goes_on_over_a_broker_restart(system: System) -> None:
    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            await client.call("shop", "announce", topic="state.till", value=1)
            seen = 0
            async for publication in client.subscribe("state.till"):
                seen += 1
                if publication == ("state.till", 2):
                    break
                if seen == 1:
                    await asyncio.to_thread(system.kill, "broker")
                    await asyncio.to_thread(system.start, "broker")
                    await client.call("shop", "announce", topic="state.till", value=2, timeout=PATIENCE_S)

    asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE_S))


def test_a_cancelled_call_leaves_nothing_behind(system: System) -> None:
    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.call("shop", "wait"), 0.1)
            assert all(not line._pending for line in client._lines.values())
            assert await client.call("shop", "ping") == {"name": "shop"}

    asyncio.run(main())


def test_closing_fails_what_is_under_way(system: System) -> None:
    async def main() -> None:
        client = AsyncClient(system.where.data_dir)
        waiting = asyncio.create_task(client.call("shop", "wait", timeout=PATIENCE_S))
        await client.call("shop", "ping", timeout=PATIENCE_S)
        await client.close()
        with pytest.raises(LocalError):
            await waiting

    asyncio.run(main())


def test_a_remote_error_is_what_the_service_said(system: System) -> None:
    async def main() -> None:
        async with AsyncClient(system.where.data_dir) as client:
            with pytest.raises(RemoteError) as refused:
                await client.call("shop", "refuse")
            assert (refused.value.message, refused.value.hint) == ("the till does not balance", "Count again.")

    asyncio.run(main())
