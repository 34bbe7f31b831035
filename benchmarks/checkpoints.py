"""What a checkpoint costs, against writing and flushing the same bytes in the same run.

    python benchmarks/checkpoints.py [changed] [unchanged] [recover] [--runs N] [--history N]

Prints one row a claim: the figure, the limit measured beside it (alternating with it), their ratio and the aim.
Machines are noisy: compare ratios, not figures.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import apsw

from actors.checkpointer.core import Format, Save
from actors.checkpointer.payloads import PayloadFiles
from actors.checkpointer.store import CheckpointStore
from actors.checkpointer.tables import SCHEMA
from actors.runtime.database import Database
from actors.runtime.paths import DATABASE_FILE
from app.reliability._states import encode
from app.reliability.crash_recovery import CrashRecoveryManager
from tests.chaos.system import running

MIB = 1024 * 1024


def row(claim: str, values: list[float], limits: list[float], aim: float) -> None:
    """Print one claim: its medians, their ratio and the aim."""
    value, limit = statistics.median(values), statistics.median(limits)
    mark = "held" if value / limit <= aim else "MISSED"
    print(
        f"{claim:58} {value:8.2f} ms  limit {limit:8.2f}  ratio {value / limit:5.2f}  aim <= {aim:4.2f}  {mark}",
        flush=True,
    )


def random_state(number: int) -> dict[str, Any]:
    """One MiB that nothing can make smaller."""
    return {"number": number, "data": os.urandom(MIB)}


_WORDS = [f"{stem}{ending}" for stem in ("talk", "plan", "home", "light", "order") for ending in ("", "ed", "ing", "s")]


def _message(place: int) -> dict[str, Any]:
    words = random.Random(place)
    return {
        "role": "user" if place % 2 else "assistant",
        "text": " ".join(words.choices(_WORDS, k=38)),
        "at": 1_700_000_000 + place * 17,
        "id": f"{words.getrandbits(64):016x}",
    }


_CONVERSATION = [_message(place) for place in range(4000)]


def realistic_state(number: int) -> dict[str, Any]:
    """About one MiB of a conversation, a little more of it each time."""
    return {"number": number, "messages": [*_CONVERSATION[:-1], _message(number)], "settings": {"model": "local"}}


def write_and_flush(directory: Path, payload: bytes, number: int) -> float:
    """Write bytes to a new file and fdatasync it: the limit."""
    path = directory / f"limit-{number % 8}-{time.monotonic_ns()}"
    start = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, payload)
    os.fdatasync(descriptor)
    os.close(descriptor)
    taken = time.perf_counter() - start
    path.unlink()
    return taken * 1e3


def changed(options: argparse.Namespace) -> None:
    """A state of 1 MiB that changed, from `create_checkpoint` to its return."""
    _through_the_system(options, aim=3.0, same=False)


def unchanged(options: argparse.Namespace) -> None:
    """A state of 1 MiB that has not changed."""
    _through_the_system(options, aim=0.5, same=True)


def _through_the_system(options: argparse.Namespace, *, aim: float, same: bool) -> None:
    makers: tuple[Callable[[int], dict[str, Any]], ...] = (random_state, realistic_state)
    with running() as system:

        async def measure(make: Callable[[int], dict[str, Any]]) -> None:
            manager = CrashRecoveryManager("benchmark", system.data_dir)
            state = make(0)
            await manager.create_checkpoint(state)
            values, limits = [], []
            for number in range(1, options.runs + 1):
                state = state if same else make(number)
                payload = encode(state)
                limits.append(write_and_flush(system.data_dir, payload, number))
                await asyncio.sleep(0.02)
                start = time.perf_counter()
                made = await manager.create_checkpoint(state)
                values.append((time.perf_counter() - start) * 1e3)
                assert made.seq is not None
                assert made.unchanged is same
                await asyncio.sleep(0.02)
            kind = "unchanged" if same else "acknowledged"
            row(f"{make.__name__.replace('_', ' ')}, {len(payload) / MIB:.2f} MiB, {kind}, p50", values, limits, aim)
            await manager.stop()

        for make in makers:
            asyncio.run(measure(make))
        system.stop()


def recover(options: argparse.Namespace) -> None:
    """`recover_from_crash` with a long history, against reading the newest row from the database."""
    with running(start=False) as system:
        path = str(system.data_dir / DATABASE_FILE)
        with open(system.data_dir / "reliability.toml", "a", encoding="utf-8") as file:
            file.write("[checkpoints]\ncount_max = 1000000\nkeep_newest = 100000\n")
        store = CheckpointStore(
            Database(path, SCHEMA),
            PayloadFiles(str(system.data_dir)),
            inline_bytes_max=256 * 1024,
            names_max=10,
            wall_ms=lambda: 0,
        )
        store.open()
        for first in range(0, options.history, 500):
            store.save(
                [
                    Save(
                        os.urandom(16),
                        "benchmark",
                        None,
                        number,
                        Format.MSGPACK,
                        encode({"n": number, "d": os.urandom(4096)}),
                    )
                    for number in range(first, first + 500)
                ]
            )
        store.database.close()
        system.start()

        async def measure() -> None:
            manager = CrashRecoveryManager("benchmark", system.data_dir)
            await manager.recover_from_crash()
            values, limits = [], []
            for _ in range(options.runs):
                limits.append(read_newest_row(path))
                start = time.perf_counter()
                state = await manager.recover_from_crash()
                values.append((time.perf_counter() - start) * 1e3)
                assert state["n"] == options.history - 1
            row(f"recover_from_crash, {options.history} checkpoints in the history, p50", values, limits, 3.0)
            await manager.stop()

        asyncio.run(measure())
        system.stop()


def read_newest_row(path: str) -> float:
    """Open the database and read the newest row with its payload: the limit."""
    start = time.perf_counter()
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    connection.execute(
        "SELECT * FROM checkpoints WHERE name = 'benchmark' ORDER BY run DESC, seq DESC LIMIT 1"
    ).fetchone()
    connection.close()
    return (time.perf_counter() - start) * 1e3


CLAIMS: dict[str, Callable[[argparse.Namespace], None]] = {
    "changed": changed,
    "unchanged": unchanged,
    "recover": recover,
}


def main() -> int:
    """Measure the claims named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(CLAIMS)}; all without one")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--history", type=int, default=10_000)
    options = parser.parse_args()
    for name in options.claims or CLAIMS:
        CLAIMS[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
