"""EventLogger, as a host uses it: with the system up, restarting, hung and down. Nothing is lost or doubled."""

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger.queries import read_events
from actors.event_logger.records import EventFilter
from actors.runtime.database_problem import DatabaseError
from actors.runtime.paths import DATABASE_FILE
from app.reliability.event_logger import EventLogger, ReliabilityHandler
from protocol.errors import ErrorCode, NotDurable, ProtocolError, ReliabilityError
from tests.chaos.system import ROOT, System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]
HANG_TIMEOUT_S = 2.0
CONFIG = f"restart_max = 10000\nhang_timeout_s = {HANG_TIMEOUT_S}\n"
SEED = int(os.environ.get("RELCTL_TEST_SEED", random.randrange(10**6)))
PATIENCE_S = 20.0
CALL_S_MAX = 2.5
"""A second's wait for an owner that hangs, the spool, and a busy machine."""


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """One system for all tests here; each leaves it whole."""
    with running(config=CONFIG) as system:
        yield system
        system.stop()


def run(logger: EventLogger, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a host's coroutine, and close its logger as the host should."""

    async def main() -> Any:
        try:
            return await work
        finally:
            await logger.close()

    return asyncio.run(main())


def messages(system: System, component: str) -> list[str]:
    """Every message of a component, from the table itself; none before event_logger has made it."""
    try:
        return [event["message"] for event in rows(system, component)]
    except DatabaseError:
        return []


def rows(system: System, component: str) -> list[dict[str, Any]]:
    """Every event of a component, from the table itself."""
    page = read_events(
        str(system.data_dir / DATABASE_FILE),
        EventFilter(component=component, after_seq=0, limit=10**6),
        bytes_max=10**9,
    )
    found: list[dict[str, Any]] = page["events"]
    return found


def wait_for(system: System, component: str, wanted: set[str]) -> list[str]:
    """Wait until every wanted message is in the table; return all there are."""
    wait_until(lambda: wanted <= set(messages(system, component)), PATIENCE_S, f"{len(wanted)} of {component}", 0.1)
    return messages(system, component)


@contextmanager
def stopped(system: System, name: str) -> Iterator[None]:
    """`name` is frozen; the watchdog ends it after the hang timeout."""
    system.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        system.wait_whole(PATIENCE_S)


def test_an_event_is_durable_when_the_call_returns(system: System) -> None:
    logger = EventLogger(system.data_dir)
    told = run(logger, logger.log_event("INFO", "llm", "model_loaded", "it is ready", {"seconds": 4.2}))
    assert told["spooled"] is False
    assert messages(system, "llm") == ["it is ready"]
    (event,) = run(logger, logger.get_events(component="llm"))
    assert event["id"] == told["id"]
    assert event["seq"] == told["seq"]
    assert (event["severity_text"], event["event_type"]) == ("INFO", "model_loaded")
    assert event["attributes"] == {"seconds": 4.2}
    assert "offline" not in event


def test_concurrent_calls_travel_together_and_keep_their_order(system: System) -> None:
    logger = EventLogger(system.data_dir)
    before = system.client.call("event_logger", "status")["counters"]["answered"]

    async def many() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(logger.log_event("DEBUG", "many", "t", str(number), {"n": number}) for number in range(3000))
        )

    told = run(logger, many())
    assert messages(system, "many") == [str(number) for number in range(3000)]
    seqs = [item["seq"] for item in told]
    assert seqs == sorted(set(seqs))
    after = system.client.call("event_logger", "status")["counters"]["answered"]
    assert after - before < 50, "a few requests, not thousands"


def test_get_events_pages_and_filters(system: System) -> None:
    logger = EventLogger(system.data_dir)

    async def write() -> None:
        levels = ("DEBUG", "INFO", "WARN", "ERROR")
        await asyncio.gather(*(logger.log_event(levels[n % 4], "pages", "t", f"{n:05}") for n in range(2500)))

    async def read() -> None:
        events = await logger.get_events(component="pages")
        assert [event["message"] for event in events] == [f"{n:05}" for n in range(2500)]
        severe = await logger.get_events(component="pages", level="warning", hours=1)
        assert [event["message"] for event in severe] == [f"{n:05}" for n in range(2500) if n % 4 >= 2]
        assert len(await logger.get_events(component="pages", hours=0)) == 0
        newest = await logger.get_events(component="pages", limit=3)
        assert [event["message"] for event in newest] == ["02497", "02498", "02499"]
        with pytest.raises(ProtocolError):
            await logger.get_events(level="LOUD")

    run(logger, write())
    run(logger, read())


def test_what_cannot_be_an_event_is_refused_and_spoils_no_other(system: System) -> None:
    logger = EventLogger(system.data_dir)

    async def write() -> list[Any]:
        return await asyncio.gather(
            logger.log_event("INFO", "mixed", "t", "good"),
            logger.log_event("LOUD", "mixed", "t", "bad level"),
            logger.log_event("INFO", "", "t", "no component"),
            logger.log_event("INFO", "mixed", "t", "too large", {"x": "y" * 70_000}),
            logger.log_event("INFO", "mixed", "t", "good too"),
            return_exceptions=True,
        )

    told = run(logger, write())
    assert [isinstance(item, ProtocolError) for item in told] == [False, True, True, True, False]
    assert messages(system, "mixed") == ["good", "good too"]


@pytest.mark.parametrize("victim", ["event_logger", "broker"])
def test_in_a_hang_calls_return_in_a_second_and_are_drained_once(system: System, victim: str) -> None:
    logger = EventLogger(system.data_dir)
    component = f"hung-{victim}"

    async def write() -> list[dict[str, Any]]:
        slowest = 0.0
        told = []
        for number in range(200):
            start = time.monotonic()
            told.append(await logger.log_event("INFO", component, "t", str(number)))
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < CALL_S_MAX
        return told

    with stopped(system, victim):
        start = time.monotonic()
        told = run(logger, write())
        assert time.monotonic() - start < 2 * CALL_S_MAX, "only the first one waits"
        assert all(item["spooled"] and item["seq"] is None for item in told[1:50])
    found = wait_for(system, component, {str(number) for number in range(200)})
    assert len(found) == 200
    ids = [event["id"] for event in run(logger, logger.get_events(component=component))]
    assert sorted(ids) == sorted(item["id"] for item in told)
    status = system.client.call("event_logger", "status")["spool"]
    assert status["pending_bytes"] == 0
    assert status["damaged_records"] == status["refused_calls"] == 0


def test_a_request_that_was_executed_after_its_caller_gave_up_is_written_once(system: System) -> None:
    """event_logger stands still while it has the request, thaws within the hang timeout, and executes it."""
    logger = EventLogger(system.data_dir)

    async def write() -> list[dict[str, Any]]:
        return await asyncio.gather(*(logger.log_event("INFO", "late", "t", str(number)) for number in range(50)))

    async def both() -> list[dict[str, Any]]:
        await logger.log_event("INFO", "late", "t", "first")
        writing = asyncio.ensure_future(write())
        await asyncio.sleep(0)
        system.signal("event_logger", signal.SIGSTOP)
        try:
            return await writing
        finally:
            system.signal("event_logger", signal.SIGCONT)

    for _ in range(3):
        run(logger, both())
    system.wait_whole(PATIENCE_S)
    wait_for(system, "late", {"first", *map(str, range(50))})
    wait_until(lambda: len(messages(system, "late")) >= 153, PATIENCE_S, "all of them", 0.1)
    time.sleep(0.5)  # what is written twice would come late
    assert Counter(messages(system, "late")) == Counter({"first": 3} | {str(number): 3 for number in range(50)})


class Ledger:
    """Hosts that log all the while: coroutines of one loop, threads, and a ledger of what was acknowledged."""

    def __init__(self, system: System) -> None:
        self.logger = EventLogger(system.data_dir)
        self.acknowledged: dict[str, bool] = {}
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: run(self.logger, self._work()))

    def __enter__(self) -> "Ledger":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int) -> None:
        enough = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= enough, PATIENCE_S, f"{count} more acknowledged events")

    async def _work(self) -> None:
        await asyncio.gather(*(self._log(task) for task in range(8)))

    async def _log(self, task: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            message = f"{task}:{number}"
            try:
                told = await self.logger.log_event("INFO", "ledger", "entry", message, {"n": number})
                self.acknowledged[told["id"]] = told["spooled"]
            except ReliabilityError as error:
                self.failures.append(f"{message}: {error.code} {error.message}")
            await asyncio.sleep(0.001)


def test_every_acknowledged_event_is_in_the_table_once_whoever_is_killed(system: System) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    with Ledger(system) as ledger:
        for turn in range(8):
            ledger.wait_for_more(draw.randint(1, 300))
            victims = draw.choice((("event_logger",), ("broker",), ("event_logger", "broker")))
            for name in victims:
                system.signal(name, signal.SIGSTOP if turn == 5 else signal.SIGKILL)
            system.wait_whole(PATIENCE_S)
        ledger.wait_for_more(10)
    assert ledger.failures == []
    wanted = set(ledger.acknowledged)

    def ids() -> Counter[str]:
        return Counter(event["id"] for event in rows(system, "ledger"))

    wait_until(lambda: wanted <= set(ids()), PATIENCE_S, "everything acknowledged in the table", 0.2)
    counts = ids()
    assert [event_id for event_id, count in counts.items() if count > 1] == []
    assert set(counts) == wanted, "nothing failed, so nothing else is there"
    assert sum(ledger.acknowledged.values()) > 0, "some of them went by the spool"


def test_with_the_system_down_everything_is_kept_and_read_from_files(tmp_path: Path) -> None:
    with running(config=CONFIG) as system:
        logger = EventLogger(system.data_dir)
        run(logger, logger.log_event("WARN", "down", "t", "while up"))
        system.stop()
        start = time.monotonic()
        told = run(logger, logger.log_event("WARN", "down", "t", "while down"))
        assert told == {"id": told["id"], "seq": None, "spooled": True}
        assert time.monotonic() - start < CALL_S_MAX
        logger.log("ERROR", "down", "t", "from a thread")
        logger.flush()
        emitted = system.relctl("--json", "emit", "INFO", "down", "t", "by relctl")
        assert emitted.returncode == 0
        assert json.loads(emitted.stdout)["spooled"] is True
        events = run(logger, logger.get_events(component="down", level="WARN", hours=1))
        assert [(event["message"], event["seq"] is None) for event in events] == [
            ("while up", False), ("while down", True), ("from a thread", True),
        ]  # fmt: skip
        assert all(event["offline"] for event in events)
        system.start()
        found = wait_for(system, "down", {"while up", "while down", "from a thread", "by relctl"})
        assert len(found) == 4
        assert told["id"] in [event["id"] for event in run(logger, logger.get_events(component="down"))]
        system.stop()


def test_where_no_system_was_ever_started(tmp_path: Path) -> None:
    logger = EventLogger(tmp_path / "data")
    told = run(logger, logger.log_event("INFO", "c", "t", "m"))
    assert told["spooled"] is True
    (event,) = run(logger, logger.get_events())
    assert (event["id"], event["seq"], event["offline"]) == (told["id"], None, True)
    other = EventLogger(tmp_path / "other")
    with pytest.raises(ReliabilityError) as caught:
        run(other, other.get_events())
    assert caught.value.code == ErrorCode.NOT_RUNNING
    assert "relctl up" in caught.value.hint


def test_not_durable_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a directory")
    logger = EventLogger(tmp_path / "data")

    async def write() -> list[Any]:
        work = (logger.log_event("INFO", "c", "t", str(number)) for number in range(3))
        return await asyncio.gather(*work, return_exceptions=True)

    told = run(logger, write())
    assert [type(item) for item in told] == [NotDurable] * 3
    assert len({id(item) for item in told}) == 3


@pytest.mark.parametrize("up", [True, False])
def test_a_diagnostics_bundle(system: System, tmp_path: Path, up: bool) -> None:
    logger = EventLogger(system.data_dir if up else tmp_path / "data")
    if not up:
        run(logger, logger.log_event("INFO", "c", "t", "m"))
    path = run(logger, logger.create_diagnostics_bundle(tmp_path / "bundle.zip"))
    assert path == str(tmp_path / "bundle.zip")
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        assert bundle.namelist()


def test_threads_log_without_waiting_and_flush_waits_for_all(system: System) -> None:
    logger = EventLogger(system.data_dir)

    def work(start: int) -> None:
        for number in range(start, start + 500):
            logger.log("INFO", "threads", "t", str(number))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 2000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logger.flush(10)
    asyncio.run(logger.close())
    assert Counter(messages(system, "threads")) == Counter(map(str, range(2000)))


@contextmanager
def handling(handler: ReliabilityHandler, name: str) -> Iterator[logging.Logger]:
    """A host's logger that writes to `handler` alone."""
    log = logging.getLogger(name)
    log.setLevel(1)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()


def events_of(system: System, component: str) -> list[dict[str, Any]]:
    logger = EventLogger(system.data_dir)
    found: list[dict[str, Any]] = run(logger, logger.get_events(component=component))
    return found


def test_a_hosts_own_logging_lands_here(system: System) -> None:
    handler = ReliabilityHandler(system.data_dir)
    with handling(handler, "host.llm") as log:
        log.warning("slow: %s s", 4, extra={"request": 17, "path": Path("/x")})
        try:
            raise KeyError("token")
        except KeyError:
            log.exception("it failed")
        log.log(25, "a notice")
        log.critical("half %s", "\ud800")
        handler.flush()
        first, second, third, fourth = events_of(system, "host.llm")
    assert (first["severity_text"], first["message"]) == ("WARN", "slow: 4 s")
    assert (
        first["attributes"] | {"request": 17, "path": "/x", "function": first["attributes"]["function"]}
        == first["attributes"]
    )
    assert first["attributes"]["file"] == __file__
    assert second["severity_text"] == "ERROR"
    assert second["attributes"]["exception"]["type"] == "builtins.KeyError"
    assert "test_event_logger.py" in second["attributes"]["exception"]["traceback"]
    assert [third["severity_text"], fourth["severity_text"]] == ["NOTICE", "CRITICAL"]


def test_a_handler_never_holds_the_host_up(system: System) -> None:
    handler = ReliabilityHandler(system.data_dir)
    with stopped(system, "event_logger"), handling(handler, "host.hang") as log:
        slowest = 0.0
        for number in range(3000):
            start = time.monotonic()
            log.info("%d", number)
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 0.5
    found = wait_for(system, "host.hang", set(map(str, range(3000))))
    assert found == [str(number) for number in range(3000)], "once, in their order"


def test_what_a_handler_drops_is_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_text("in the way")
    handler = ReliabilityHandler(tmp_path / "data")
    with handling(handler, "host.full") as log:
        for number in range(25_000):
            log.info("%d", number)
        assert handler.dropped > 0
        (tmp_path / "data").unlink()  # there is somewhere to keep them now
        wait_until(lambda: not handler.dropped, PATIENCE_S, "the report")
        handler.flush()
    with running(config=CONFIG, data_dir=tmp_path / "data", start=False) as system:
        system.start()
        logger = EventLogger(system.data_dir)

        def told() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = run(logger, logger.get_events(component="event_logger"))
            return [event for event in found if event["event_type"] == "events_dropped"]

        wait_until(lambda: bool(told()), PATIENCE_S, "drops told of", 0.2)
        kept = len(messages(system, "host.full"))
        assert kept + sum(event["attributes"]["count"] for event in told()) == 25_000
        system.stop()


HOST = """
import logging, os, sys
from app.reliability.event_logger import EventLogger, ReliabilityHandler
log = logging.getLogger("host.end")
log.setLevel(logging.INFO)
log.addHandler(ReliabilityHandler(sys.argv[1]))
log.info("before the fork")
child = os.fork()
if not child:
    log.info("in the child")
    logging.shutdown()
    os._exit(0)
os.waitpid(child, 0)
EventLogger(sys.argv[1]).log("INFO", "host.end", "t", "by log")
log.info("at the end")
"""


@pytest.mark.parametrize("up", [True, False])
def test_the_last_words_of_a_host_and_of_its_child_are_kept(system: System, tmp_path: Path, up: bool) -> None:
    data_dir = system.data_dir if up else tmp_path / "data"
    command = [sys.executable, "-c", HOST, str(data_dir)]
    environment = system.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = {"before the fork", "in the child", "by log", "at the end"}
    if up:
        assert sorted(wait_for(system, "host.end", wanted)) == sorted(wanted)
        return
    with running(config=CONFIG, data_dir=data_dir, start=False) as other:
        other.start()
        assert sorted(wait_for(other, "host.end", wanted)) == sorted(wanted)
        other.stop()
