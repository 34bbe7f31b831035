"""Draining the journals on tmpfs into the tables: each entry once, whoever dies when."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, Final

from actors.event_logger.core import ATTEMPT_PATIENCE_S, JournalBook, JournalFile, Position
from actors.event_logger.records import Event, JournalEntry, derived_id, parse_journal_entries
from actors.event_logger.store import DrainBatch, EventStore, Stored
from actors.runtime.digests import blake2b
from actors.runtime.identity import boot_id
from actors.runtime.journal import parse_lines
from protocol.limits import MIB
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

DRAIN_BYTES_MAX: Final = MIB
"""No further file is begun past this, so that a transaction stays short; the journals bound each file."""
_HEAD_BYTES: Final = 128
_DIGEST_BYTES: Final = 16
_SUFFIX: Final = ".jsonl"
_TURNED_OVER_SUFFIX: Final = ".jsonl.1"


@dataclass(frozen=True, slots=True)
class Drained:
    """What one drain did.

    Attributes:
        stored: every event of it.
        refused: entries that cannot be understood; they are passed over.
        more: whether something is left for the next drain.
    """

    stored: list[Stored]
    refused: int
    more: bool


class JournalDrain:
    """Reads the journals of one runtime directory and commits them. For the worker thread, except `sizes`."""

    def __init__(self, directory: str, store: EventStore) -> None:
        """Drain the journals in `directory` into `store`."""
        self._directory = directory
        self._store = store
        self._book: JournalBook | None = None

    def sizes(self) -> dict[str, int]:
        """Return the size of every journal file: a change tells the loop that there is something to drain."""
        sizes = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.endswith((_SUFFIX, _TURNED_OVER_SUFFIX)):
                        sizes[entry.name] = entry.stat().st_size
        except OSError:  # no directory, or a file that was just turned over
            return {}
        return sizes

    def drain(self, now_ms: int) -> Drained:
        """Commit what the journals hold beyond what is in the tables.

        Raises:
            DatabaseError, OSError: nothing of it is stored; the next drain begins at the same place.
        """
        if self._book is None:
            self._book = JournalBook(self._store.positions(ATTEMPT_PATIENCE_S), boot_id())
        book = self._book
        entries: list[JournalEntry] = []
        positions: list[Position] = []
        read_bytes = refused = 0
        more = False
        with ExitStack() as stack:
            files = self._open_files(stack)
            for file, handle in files:
                if read_bytes >= DRAIN_BYTES_MAX:
                    more = True
                    break
                offset = book.offset(file)
                handle.seek(offset)
                found, size_bytes = parse_lines(handle.read())
                read_bytes += size_bytes
                parsed, bad = parse_journal_entries(found)
                entries += parsed
                refused += bad
                position = book.advance(file, offset + size_bytes)
                if position is not None:
                    positions.append(position)
        entries.sort(key=lambda entry: entry.mono_ms)
        gone = book.gone(file for file, _ in files)
        entries += [JournalEntry(_lost_event(position, now_ms)) for position in gone if book.is_lossy(position)]
        stored: list[Stored] = []
        if entries or positions or gone:
            stored = self._store.drain(DrainBatch(entries, positions, gone), ATTEMPT_PATIENCE_S)
            book.keep(positions)
            book.drop(gone)
        return Drained(stored, refused, more)

    def _open_files(self, stack: ExitStack) -> list[tuple[JournalFile, BinaryIO]]:
        """Open every journal's files; of one journal the elder comes first, because a recovery follows its restart."""
        files = []
        for journal in sorted({name.partition(_SUFFIX)[0] for name in self.sizes()}):
            # The younger is opened first: if it is turned over in between, both names lead to the same file.
            younger = self._open(journal, _SUFFIX, stack)
            elder = self._open(journal, _TURNED_OVER_SUFFIX, stack)
            if elder is not None:
                files.append(elder)
            if younger is not None and (elder is None or elder[0].head != younger[0].head):
                files.append(younger)
        return files

    def _open(self, journal: str, suffix: str, stack: ExitStack) -> tuple[JournalFile, BinaryIO] | None:
        try:
            handle = stack.enter_context(open(os.path.join(self._directory, journal + suffix), "rb"))  # noqa: SIM115
        except FileNotFoundError:
            return None
        beginning = handle.read(_HEAD_BYTES)
        head, newline, _ = beginning.partition(b"\n")
        if not newline and len(beginning) < _HEAD_BYTES:
            return None  # it may begin otherwise a moment later, and has no whole line to drain
        size = os.fstat(handle.fileno()).st_size
        return JournalFile(journal, blake2b(head, _DIGEST_BYTES), suffix == _TURNED_OVER_SUFFIX, size), handle


def _lost_event(position: Position, now_ms: int) -> Event:
    return Event(
        id=derived_id(position.head, position.offset + 1),
        timestamp_ms=now_ms,
        severity=Severity.WARN,
        component=EVENT_LOGGER,
        event_type="journal_lost",
        message=f"entries of {position.journal}'s journal may have been lost before they were drained",
    )
