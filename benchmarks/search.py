"""How long a search in a million events takes, against `grep -F` over the JSON lines of the same events.

    python benchmarks/search.py [--events N] [--runs N] [--keep DIRECTORY]

Prints what the index costs, then one row a search: the median of the whole reply (opening the files included), the
limit measured beside it in the same run, their ratio, and for each kind of search the aim. Machines are noisy: compare
ratios, not figures. grep reads the file from the page cache and writes all that it finds to a pipe.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors.event_logger.queries import query
from actors.event_logger.records import Event, event_document, format_timestamp
from actors.event_logger.search_index import SearchIndex
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database
from protocol.severity import Severity

AIM = 0.1
START_MS = 1_790_000_000_000
COMPONENTS = ["http", "db", "scheduler", "worker", "payment", "auth", "mailer", "cache", "importer", "watchdog"]
TYPES = ["request", "query", "job_started", "job_finished", "login", "retry", "timeout", "restart", "state_changed"]
PATHS = ["/api/orders", "/api/users", "/api/items", "/login", "/static/app.js", "/metrics", "/api/export"]
WORDS = """
    connection pool exhausted waiting for lock of table customer after retry queue depth above limit worker finished
    batch import record invalid field address missing upstream closed early socket reset peer backup snapshot written
    disk space low memory pressure
""".split()  # noqa: SIM905 - a list of them takes forty lines
LEVELS = [Severity.DEBUG, *[Severity.INFO] * 5, Severity.WARN, Severity.ERROR]
RARE = "thermal runaway in cell 17"


def events(count: int, seed: int = 1) -> Iterator[Event]:
    """Events as an application writes them: requests, jobs, orders; a rare one in every hundred thousand."""
    draw = random.Random(seed)
    moment_ms = START_MS
    for number in range(1, count + 1):
        moment_ms += draw.randrange(1, 2000)
        kind = draw.random()
        if kind < 0.5:
            status, took = draw.choice((200, 200, 200, 404, 500)), draw.randrange(1, 3000)
            message = f"GET {draw.choice(PATHS)}/{draw.randrange(10**6)} {status} in {took} ms"
        elif kind < 0.8:
            message = " ".join(draw.choices(WORDS, k=draw.randrange(5, 14)))
        else:
            message = f"order {draw.randrange(10**7)}: {' '.join(draw.choices(WORDS, k=6))}"
        if number % 100_000 == 77:
            message += f", {RARE}"
        details = {
            "trace_id": f"{draw.getrandbits(128):032x}",
            "user": draw.randrange(50_000),
            "host": f"node-{draw.randrange(20)}",
        }
        attributes = json.dumps(details, separators=(",", ":"))
        component, event_type = draw.choice(COMPONENTS), draw.choice(TYPES)
        yield Event(draw.randbytes(16), moment_ms, draw.choice(LEVELS), component, event_type, message, attributes)


def searches(count: int) -> list[tuple[str, dict[str, Any]]]:
    """What is searched for: the claim it belongs to, and the arguments."""
    middle = format_timestamp(START_MS + count * 500)
    late = format_timestamp(START_MS + count * 950)
    phrase, part = "phrase", "substring"
    return [
        (phrase, {"text": "connection pool"}),
        (phrase, {"text": "worker finished batch"}),
        (phrase, {"text": RARE}),
        (phrase, {"text": "retry queue depth unknown"}),
        (phrase, {"text": "queue depth above limit worker finished batch import record invalid"}),
        (phrase, {"text": "404 in 2999 ms"}),
        (part, {"text": "node-13"}),
        (part, {"text": "runaway"}),
        (part, {"text": "/api/orders/12345"}),
        (part, {"text": '"user":4711'}),
        (part, {"text": "exhaus"}),
        (part, {"text": "xyzzy"}),
        ("filtered", {"text": "connection pool", "component": "db"}),
        ("filtered", {"text": "connection pool", "level": "ERROR", "limit": 1000}),
        ("filtered", {"text": "connection pool", "until": middle}),
        ("filtered", {"text": "connection pool", "since": late, "reverse": True}),
        ("filtered", {"text": "order", "grep": "order 12345[0-9]*:"}),
        ("filtered", {"text": "connection pool", "after_seq": count // 2}),
        ("short", {"text": "17"}),
        ("short", {"text": "zq"}),
    ]


def fill(directory: Path, count: int) -> None:
    """Write the events through the store, and their JSON lines."""
    store = EventStore(Database(str(directory / "reliability.db"), SCHEMA))
    source = events(count)
    seq = 0
    with open(directory / "events.jsonl", "w", encoding="utf-8") as lines:
        while batch := list(islice(source, 20_000)):
            store.append(batch, 10)
            for event in batch:
                seq += 1
                document = {**event_document(seq, event), "hash": (event.id * 2).hex()}
                lines.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
            if seq % 100_000 == 0:
                store.database.checkpoint(truncate=True)
    store.database.checkpoint(truncate=True)
    store.database.close()


def index(directory: Path, count: int) -> None:
    """Build the index as event_logger does, without its rests, and say what that took."""
    writer = SearchIndex(str(directory / "search.db"), str(directory / "reliability.db"))
    began, cpu = time.perf_counter(), time.process_time()
    steps: list[float] = []
    while (progress := writer.step(time.monotonic)).more:
        steps.append(progress.took_s)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    assert progress.through_seq == count
    writer.close()
    size, whole = (os.path.getsize(directory / name) for name in ("search.db", "reliability.db"))
    print(
        f"index: {cpu_s / count * 1e6:.0f} ms CPU per 1000 events, {wall_s:.0f} s in all;"
        f" {size / count:.0f} bytes an event ({size / whole:.2f} of the database);"
        f" steps p50 {percentile(steps, 0.5):.0f}, p99 {percentile(steps, 0.99):.0f}, max {max(steps) * 1e3:.0f} ms"
    )


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie, in ms."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3


def timed(function: Callable[[], Any], runs: int) -> float:
    """Median time of a call, in seconds."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def grep(path: str, text: str) -> None:
    """Run grep; without a pipe it would stop at its first find."""
    command = ["grep", "-F", "--", text, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.read(1 << 20):
            pass


def row(claim: str, value: float, limit: float, aim: float | None) -> None:
    """Print one claim: its figure, the limit of the same run, their ratio and the aim."""
    ratio = value / limit
    verdict = "" if aim is None else f"aim <= {aim:5.2f}  {'held' if ratio <= aim else 'MISSED'}"
    print(f"{claim:76} {value:8.2f} ms   limit {limit:8.2f}  ratio {ratio:6.3f}  {verdict}", flush=True)


def main() -> int:
    """Fill a scratch directory and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--keep", type=Path, help="use and leave the events there")
    options = parser.parse_args()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="search-"))
    try:
        if not (directory / "events.jsonl").exists():
            directory.mkdir(exist_ok=True)
            fill(directory, options.events)
        if not (directory / "search.db").exists():
            index(directory, options.events)
        measure(directory, options.events, options.runs)
    finally:
        if options.keep is None:
            shutil.rmtree(directory)
    return 0


def measure(directory: Path, count: int, runs: int) -> None:
    """Print a row for every search, and one for every kind of them."""
    path, lines = str(directory / "reliability.db"), str(directory / "events.jsonl")
    kinds: dict[str, list[tuple[float, float]]] = {}
    for kind, arguments in searches(count):
        json_text = json.dumps(arguments["text"])[1:-1] if kind != "substring" else arguments["text"]
        limit_ms = timed(partial(grep, lines, json_text), max(3, runs // 3)) * 1e3
        value_ms = timed(partial(query, path, arguments), runs) * 1e3
        reply = query(path, arguments)
        assert not reply["index"]["problem"], reply["index"]
        assert reply["index"]["through_seq"] == count
        kinds.setdefault(kind, []).append((value_ms, limit_ms))
        row(f"  {kind}: {arguments}, {len(reply['events'])} found", value_ms, limit_ms, None)
    for kind, pairs in kinds.items():
        values, limits = [value for value, _ in pairs], [limit for _, limit in pairs]
        aim = AIM if kind in {"phrase", "substring"} else None
        row(f"{kind}, p50 of the searches", statistics.median(values), statistics.median(limits), aim)


if __name__ == "__main__":
    sys.exit(main())
