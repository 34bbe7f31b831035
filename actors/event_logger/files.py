"""The event log outside the database: DATA/events with its lines, roots and head, and the key in DATA/keys.

A segment is ``events-DAY.jsonl``, and once it is closed ``events-DAY.jsonl.gz``; what was set aside because it did not
agree with the table ends in ``.damaged``. Blocks: for worker threads and for processes that only look.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from actors.event_logger.chain import KEY_BYTES, Head, Segment, head_text, parse_head, parse_root
from actors.event_logger.lines import Line, parse_line
from actors.runtime.paths import make_private_directory, sync_directory, write_atomically
from protocol.limits import KIB, MIB

EVENTS_DIR: Final = "events"
KEYS_DIR: Final = "keys"
KEY_FILE: Final = "events.key"
HEAD_FILE: Final = "head.json"
ROOTS_FILE: Final = "roots.jsonl"
PLAIN: Final = ".jsonl"
PACKED: Final = ".jsonl.gz"
DAMAGED: Final = ".damaged"

LINE_BYTES_MAX: Final = 256 * KIB
"""No line is longer: six bytes for each of a message's characters, and the attributes."""
_PREFIX: Final = "events-"
_CHUNK_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class Tail:
    """How a segment's file ends.

    Attributes:
        whole_bytes: its length up to the last newline; what follows was torn.
        size_bytes: its length.
        line: its last whole line; None if there is none, or it is damaged.
    """

    whole_bytes: int
    size_bytes: int
    line: Line | None


class LogFiles:
    """Names, reads and writes the files of the log in one data directory."""

    def __init__(self, data_dir: str) -> None:
        """Name the files; nothing is opened."""
        self.directory = os.path.join(data_dir, EVENTS_DIR)
        self.roots_path = os.path.join(self.directory, ROOTS_FILE)
        self._head_path = os.path.join(self.directory, HEAD_FILE)
        self._keys_dir = os.path.join(data_dir, KEYS_DIR)
        self._key_path = os.path.join(self._keys_dir, KEY_FILE)

    def path(self, day: str) -> str:
        """Return the file of a segment that may still grow."""
        return os.path.join(self.directory, f"{_PREFIX}{day}{PLAIN}")

    def packed_path(self, day: str) -> str:
        """Return the file of a segment that is closed."""
        return os.path.join(self.directory, f"{_PREFIX}{day}{PACKED}")

    def make_directory(self) -> None:
        """Make the directory of the segments.

        Raises:
            OSError: it cannot be made.
        """
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    def days(self) -> tuple[list[str], list[str]]:
        """Return the days of which there is a file that may grow, and those of which there is a packed one."""
        plain, packed = [], []
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return [], []
        for name in sorted(names):
            if name.startswith(_PREFIX) and name.endswith(PLAIN):
                plain.append(name[len(_PREFIX) : -len(PLAIN)])
            elif name.startswith(_PREFIX) and name.endswith(PACKED):
                packed.append(name[len(_PREFIX) : -len(PACKED)])
        return plain, packed

    # --- key and head ---

    def read_key(self) -> bytes | None:
        """Return the key that roots and head are sealed with; None if there is none."""
        try:
            with open(self._key_path, "rb") as file:
                key = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return key if len(key) == KEY_BYTES else None

    def read_or_make_key(self) -> bytes:
        """Return the key, made the first time.

        Raises:
            OSError, LocalError: it cannot be read or made.
        """
        key = self.read_key()
        if key is None:
            make_private_directory(self._keys_dir)
            key = os.urandom(KEY_BYTES)
            write_atomically(self._key_path, key, sync=True)
        return key

    def read_head(self) -> Head | None:
        """Return the head; None if there is none.

        Raises:
            ValueError: it is damaged.
        """
        try:
            with open(self._head_path, "rb") as file:
                return parse_head(file.read(_CHUNK_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_head(self, head: Head) -> None:
        """Replace the head, so that it survives a power cut.

        Raises:
            OSError: the elder one is still there.
        """
        write_atomically(self._head_path, head_text(head), sync=True)

    # --- roots ---

    def read_roots(self) -> tuple[list[Segment], list[int]]:
        """Return the roots in the order of the file, and the numbers of the lines (from 1) that are damaged."""
        roots, damaged = [], []
        try:
            with open(self.roots_path, "rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        roots.append(parse_root(line))
                    except ValueError:
                        damaged.append(number)
        except (FileNotFoundError, NotADirectoryError):
            pass
        return roots, damaged

    # --- segments ---

    def tail(self, day: str) -> Tail:
        """Return how the file of a segment that may grow ends.

        Raises:
            OSError: it cannot be read; FileNotFoundError: there is none.
        """
        with open(self.path(day), "rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            begin = max(0, size_bytes - 2 * LINE_BYTES_MAX)
            file.seek(begin)
            end = file.read(2 * LINE_BYTES_MAX)
        whole = end.rfind(b"\n") + 1
        if not whole:
            return Tail(begin and size_bytes, size_bytes, None)
        last = end[end.rfind(b"\n", 0, whole - 1) + 1 : whole - 1]
        try:
            line: Line | None = parse_line(last)
        except ValueError:
            line = None
        return Tail(begin + whole, size_bytes, line)

    def lines(self, day: str) -> Iterator[bytes]:
        """Yield the whole lines of a segment's file, without their newlines; longer ones than there can be are cut up.

        Raises:
            OSError: there is no file, or it cannot be read (a packed one: cannot be unpacked).
        """
        with self._open(day) as file:
            while line := file.readline(LINE_BYTES_MAX):
                if line.endswith(b"\n"):
                    yield line[:-1]
                elif len(line) == LINE_BYTES_MAX:
                    yield line

    def remove(self, day: str) -> None:
        """Remove whatever there is of a segment."""
        for path in (self.path(day), self.packed_path(day)):
            for name in (path, path + DAMAGED):
                try:
                    os.unlink(name)
                except FileNotFoundError:
                    continue

    def set_aside(self, path: str) -> None:
        """Keep a file that does not agree with the table, out of the way; of one name the latest is kept."""
        os.replace(path, path + DAMAGED)
        sync_directory(self.directory)

    def _open(self, day: str) -> BinaryIO:
        try:
            return open(self.path(day), "rb")
        except FileNotFoundError:
            import gzip  # noqa: PLC0415 - for what is closed, which is read rarely

            return gzip.open(self.packed_path(day), "rb")  # type: ignore[return-value]
