"""What a durable event costs, against logging that is not durable, and against a flush of each line, in the same run.

    python benchmarks/events.py [throughput] [one] [--runs N] [--events N]

Every claim prints one row: the figure, the limit measured beside it (alternating with it), their ratio and the aim.
Machines are noisy: compare ratios, not figures. The flushed lines and pages lie on the file system of the data
directory, which is a temporary one unless --on says where.
"""

import argparse
import asyncio
import json
import logging
import logging.handlers
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgpack

from actors.event_logger.queries import verify_log
from app.reliability.client import Client
from app.reliability.event_logger import EventLogger
from tests.chaos.system import System, running

PIPELINED = 3
"""Requests of rows under way at once."""
ROWS = 500
FLUSHED_EVENTS = 400
DETAILS = {"total": 12.5, "customer": "c-1042", "items": 3}


class JsonFormatter(logging.Formatter):
    """What applications write to have JSON logs."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "timestamp": self.formatTime(record),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                "details": getattr(record, "details", {}),
            }
        )


def stdlib_per_s(directory: Path, events: int) -> float:
    """Logging as it comes with Python: in the page cache when it returns, if the process lives until then."""
    logger = logging.getLogger("shop")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.handlers.TimedRotatingFileHandler(directory / "stdlib.log", when="midnight")
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    begin = time.perf_counter()
    for number in range(events):
        logger.info("order %d was paid", number, extra={"details": DETAILS})
    handler.flush()
    taken = time.perf_counter() - begin
    logger.removeHandler(handler)
    handler.close()
    return events / taken


def flushed_per_s(directory: Path) -> float:
    """One line and one fsync each: what durable costs by hand."""
    with (directory / "flushed.jsonl").open("ab") as file:
        begin = time.perf_counter()
        for number in range(FLUSHED_EVENTS):
            fields = {"timestamp": time.time(), "level": "INFO", "message": f"order {number} was paid"}
            file.write(json.dumps(fields | {"details": DETAILS}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return FLUSHED_EVENTS / (time.perf_counter() - begin)


def queued_per_s(data_dir: Path, events: int) -> float:
    """`EventLogger.log`, until `flush` says that all are durable."""
    logger = EventLogger(data_dir)
    logger.log("INFO", "shop", "order_paid", "warm")
    logger.flush()
    begin = time.perf_counter()
    for number in range(events):
        logger.log("INFO", "shop", "order_paid", f"order {number} was paid", DETAILS)
    logger.flush(60)
    taken = time.perf_counter() - begin
    asyncio.run(logger.close())
    return events / taken


def awaited_per_s(data_dir: Path, events: int) -> float:
    """`await log_event`, many tasks at once, each of which is told that its event is durable."""

    async def work() -> float:
        logger = EventLogger(data_dir)
        await logger.log_event("INFO", "shop", "order_paid", "warm")
        begin = time.perf_counter()

        async def some(numbers: range) -> None:
            for number in numbers:
                await logger.log_event("INFO", "shop", "order_paid", f"order {number} was paid", DETAILS)

        tasks = 1000
        await asyncio.gather(*(some(range(task, events, tasks)) for task in range(tasks)))
        taken = time.perf_counter() - begin
        await logger.close()
        return events / taken

    return asyncio.run(work())


def rows_per_s(data_dir: Path, events: int) -> float:
    """Rows that are packed already, over `Client`: what broker and event_logger do, without a client's own work."""
    now_ms = int(time.time() * 1000)
    attributes = json.dumps(DETAILS)
    frames = [
        msgpack.packb(
            [
                [os.urandom(16), now_ms, 9, "shop", "order_paid", f"order {number} was paid", attributes]
                for number in range(first, first + ROWS)
            ]
        )
        for first in range(0, events, ROWS)
    ]
    with Client(data_dir) as client, ThreadPoolExecutor(PIPELINED) as threads:

        def send(frame: bytes) -> int:
            answer, _ = client.call_raw("event_logger", "emit_rows", raw=[frame], timeout=30)
            assert all(answer["seqs"])
            return len(answer["seqs"])

        begin = time.perf_counter()
        sent = sum(threads.map(send, frames))
        return sent / (time.perf_counter() - begin)


def compare(claim: str, values: list[float], limits: list[float], aim: float, unit: str, *, at_least: bool) -> None:
    """Print one claim: medians, the ratio of them, the aim."""
    value, limit = statistics.median(values), statistics.median(limits)
    ratio = value / limit
    held = ratio >= aim if at_least else ratio <= aim
    sign = ">=" if at_least else "<="
    print(
        f"{claim:58} {value:9.1f} {unit:3} limit {limit:9.1f}  ratio {ratio:6.2f}  aim {sign} {aim:4.2f}"
        f"  {'held' if held else 'MISSED'}",
        flush=True,
    )


def throughput(system: System, beside: Path, options: argparse.Namespace) -> None:
    """Durable events a second from one Python client."""
    ways: dict[str, Callable[[Path, int], float]] = {
        "EventLogger.log + flush": queued_per_s,
        "await log_event, pipelined": awaited_per_s,
        "packed rows": rows_per_s,
    }
    stdlib, flushed = [], []
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.runs):
        stdlib.append(stdlib_per_s(beside, options.events))
        flushed.append(flushed_per_s(beside))
        for name, measure in ways.items():
            taken[name].append(measure(system.data_dir, options.events))
    for name, values in taken.items():
        compare(f"{name}, against stdlib logging", values, stdlib, 0.5, "/s", at_least=True)
        compare(f"{name}, against a line and fsync each", values, flushed, 6.0, "/s", at_least=True)


def one(system: System, beside: Path, options: argparse.Namespace) -> None:
    """One event until it is acknowledged, against one page flushed."""
    page = os.urandom(4096)
    taken: list[float] = []
    limits: list[float] = []
    descriptor = os.open(beside / "page", os.O_RDWR | os.O_CREAT, 0o600)
    with Client(system.data_dir) as client:
        for number in range(options.runs * 100):
            begin = time.perf_counter()
            fields: dict[str, Any] = {"severity": "INFO", "component": "shop", "event_type": "order_paid"}
            client.call("event_logger", "emit", message=f"order {number}", attributes=DETAILS, **fields)
            taken.append((time.perf_counter() - begin) * 1e6)
            begin = time.perf_counter()
            os.pwrite(descriptor, page, 0)
            os.fdatasync(descriptor)
            limits.append((time.perf_counter() - begin) * 1e6)
    os.close(descriptor)
    compare("one event acknowledged, p50", taken, limits, 2.5, "us", at_least=False)


CLAIMS: dict[str, Callable[[System, Path, argparse.Namespace], None]] = {"throughput": throughput, "one": one}


def main() -> int:
    """Measure the claims named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(CLAIMS)}; all without one")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--on", help="directory whose disk the limits are measured on")
    options = parser.parse_args()
    print(f"{options.runs} runs, {options.events} events, Python {sys.version.split()[0]}")
    with running() as system, tempfile.TemporaryDirectory(dir=options.on or system.data_dir.parent) as beside:
        for name in options.claims or CLAIMS:
            CLAIMS[name](system, Path(beside), options)
        found = verify_log(str(system.data_dir))
        print(f"verified {found['checked']} events: {found['findings'] or 'as written'}")
        system.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
