"""Journals on tmpfs: how processes that may not wait for anybody (launcher, watchdog) say what they did.

One JSON object a line, appended with one write. event_logger drains every journal into its tables; each entry has an
id, so draining is repeated safely. A journal that nobody drains is bounded: past `JOURNAL_BYTES_MAX` it is turned
over once to ``NAME.1``, which drops the entries that were there.
"""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from actors.runtime.identity import boot_id

JOURNAL_BYTES_MAX: Final = 1024 * 1024
_SUFFIX: Final = ".jsonl"


def new_entry(kind: str, **fields: Any) -> dict[str, Any]:
    """Return an entry of `kind` ("event", "restart", ...) with the common fields: id, wall and monotonic time, boot."""
    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    mono_ms = time.monotonic_ns() // 1_000_000
    return {"id": os.urandom(16).hex(), "at": at, "mono_ms": mono_ms, "boot": boot_id(), "kind": kind} | fields


class Journal:
    """Appends entries to one journal; the only writer of that file."""

    def __init__(self, directory: str, name: str) -> None:
        """Name the journal ``directory/name.jsonl``."""
        self.path = os.path.join(directory, name + _SUFFIX)

    def append(self, entry: dict[str, Any]) -> None:
        """Append one entry (JSON values only). On tmpfs, so it does not wait for a disk.

        A line that a killed predecessor left torn is ended first, so that it costs itself alone.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size > JOURNAL_BYTES_MAX:
                os.replace(self.path, self.path + ".1")
                os.close(descriptor)
                descriptor = os.open(
                    self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600
                )
            elif size and not _ends_line(descriptor, size):
                line = b"\n" + line
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield every whole entry still kept, oldest first."""
        for path in (self.path + ".1", self.path):
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                continue
            yield from parse_lines(data)[0]


def parse_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Parse the whole lines of a journal; return the entries and how many bytes they take.

    Torn or foreign lines are passed over.
    """
    end = data.rfind(b"\n") + 1
    entries = []
    for line in data[:end].splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries, end


def _ends_line(descriptor: int, size: int) -> bool:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"
