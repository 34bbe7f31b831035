"""An event log without an actor: a store and a filer over one data directory, with a clock of their own."""

import gzip
import os
from pathlib import Path
from typing import Any

from actors.event_logger.filer import Filer
from actors.event_logger.lines import parse_line
from actors.event_logger.records import Event
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime.database import Database, reading
from protocol.severity import Severity

DAY_MS = 86_400_000
NOON_MS = 1_790_000_000_000 // DAY_MS * DAY_MS + DAY_MS // 2
TODAY = "2026-09-21"


class Log:
    """A store and a filer over one data directory, with a clock of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "events"
        self.path = str(directory / "reliability.db")
        self.now_ms = NOON_MS
        self.number = 0
        self.reopen()

    def reopen(self) -> None:
        """Begin a new life."""
        if self.number:
            self.store.database.close()
        self.store = EventStore(Database(self.path, SCHEMA), lambda: self.now_ms)
        self.filer = Filer(self.path, self.store.files)

    def write(self, count: int) -> None:
        events = [
            Event((self.number + place).to_bytes(16), self.now_ms, Severity.INFO, "c", "t", f"event {place}")
            for place in range(1, count + 1)
        ]
        self.number += count
        self.store.append(events, 1)

    def file(self) -> None:
        while self.filer.catch_up().more:
            pass

    def in_files(self) -> list[int]:
        """The places in all files, in the order of days."""
        found = []
        for name in sorted(os.listdir(self.directory)):
            content = (self.directory / name).read_bytes()
            if name.endswith(".jsonl.gz"):
                content = gzip.decompress(content)
            elif not name.startswith("events-") or not name.endswith(".jsonl"):
                continue
            assert content.endswith(b"\n") or not content
            found += [parse_line(line) for line in content.split(b"\n")[:-1]]
        assert [(line.seq, *line.event, line.hash) for line in found] == self.rows()
        return [line.seq for line in found]

    def rows(self) -> list[tuple[Any, ...]]:
        with reading(self.path) as connection:
            return list(connection.execute("SELECT * FROM events ORDER BY seq"))

    def today(self) -> Path:
        return self.directory / f"events-{TODAY}.jsonl"
