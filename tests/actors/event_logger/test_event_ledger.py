"""kill -9 while events stream: an outside ledger of acknowledgements is compared with the table."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from actors.event_logger.filer import Filer
from actors.event_logger.journals import JournalDrain
from actors.event_logger.queries import read_events, verify_log
from actors.event_logger.records import EventFilter
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database
from actors.runtime.liveness import Board

ROOT = Path(__file__).parents[3]
ROUNDS = 8
SEED = int(os.environ.get("RELCTL_TEST_SEED", random.randrange(10**6)))


@pytest.mark.chaos
def test_what_was_acknowledged_is_there_once_after_any_death(tmp_path: Path) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    (tmp_path / "journal").mkdir()
    Board.create(str(tmp_path / "board")).close()
    ledger: list[str] = []
    for round_number in range(ROUNDS):
        ledger += emit_until_killed(tmp_path, str(round_number), acknowledgements=draw.randint(1, 300))
    assert len(ledger) == len(set(ledger)) > ROUNDS

    store = EventStore(Database(str(tmp_path / "reliability.db"), SCHEMA))
    JournalDrain(str(tmp_path / "journal"), store).drain(0)
    filer = Filer(store.database.path, store.files)
    while filer.catch_up().more:
        continue
    store.database.close()
    assert verify_log(str(tmp_path))["findings"] == []
    page = read_events(str(tmp_path / "reliability.db"), EventFilter(after_seq=0, limit=10**6), bytes_max=10**9)
    found = Counter(event["message"] for event in page["events"])
    assert [message for message in ledger if found[message] != 1] == []
    assert [message for message, count in found.items() if count != 1] == []
    assert [event["seq"] for event in page["events"]] == list(range(1, len(page["events"]) + 1))


def emit_until_killed(directory: Path, name: str, acknowledgements: int) -> list[str]:
    """Return what the process said was durable before it was killed."""
    command = [sys.executable, "-m", "tests.actors.event_logger.emitting", str(directory), name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        rest = process.stdout.readlines()
    return [line.strip() for line in [*lines, *rest] if line.endswith("\n")]
