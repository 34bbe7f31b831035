"""The search index: DATA/search.db, derived from the events and behind them by a second or two.

- One FTS5 table of trigrams, rowid = seq, that keeps no text (contentless) and no positions (``detail=none``): it names
  candidates, and whoever searches verifies them by the events themselves (docs/adr/0007).
- `marks` says how far it goes: (seq, id) of the last event of each slice, committed together with that slice. The index
  counts up to the newest mark whose event is in the log under the same id. So a log that lost its newest events in
  a power cut and has given their numbers again, or was replaced as a whole, is never read by an index of another.
- It is written here only, in steps of a few hundredths of a second, and never in the transaction of an event: whatever
  is wrong with it, events are acknowledged and searches scan. A file that is damaged, of an older format or folded
  otherwise is dropped; one that is not ours is set aside; both are built anew.
- `synchronous=NORMAL`: a power cut costs its last slices, not its structure. Nevertheless the first opening after a
  life that ended with its boot checks all of it, and every opening looks for some events that it must find.
"""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import apsw

from actors.event_logger.folding import SEARCHED, folding_version, match_all, trigrams
from actors.runtime.database import reading
from actors.runtime.database_guard import file_identity
from actors.runtime.database_problem import require_library
from actors.runtime.identity import boot_id

SEARCH_APPLICATION_ID: Final = 0x52454C53
"""`PRAGMA application_id` ("RELS"), set with the first table: any other database is somebody else's."""
FOREIGN_SUFFIX: Final = ".foreign"
SEARCH_FORMAT: Final = 1
"""`PRAGMA user_version`; a file of another format is built anew."""

STEP_S: Final = 0.025
"""What a step aims at; half of what it may take."""
SLICE_EVENTS_MAX: Final = 2000
SLICE_BYTES_MIN: Final = 2_000
SLICE_BYTES_MAX: Final = 400_000
MERGE_PAGES: Final = 48
PRUNE_EVENTS: Final = 500
MARKS_MAX: Final = 1000
CHECKPOINT_PAGES: Final = 1000
WAL_PAGES_MAX: Final = 16_000
"""A WAL that a reader holds up grows no further."""
CACHE_KIB: Final = 1000
BUSY_TIMEOUT_MS: Final = 100
SAMPLES: Final = 8
SAMPLE_TRIGRAMS: Final = 6
DISK_FREE_BYTES_MIN: Final = 64 * 1024 * 1024
"""What is left to the events: an index does not fill the last of a disk."""

_SCHEMA: Final = """
    CREATE TABLE state (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT;
    CREATE TABLE marks (seq INTEGER PRIMARY KEY, id BLOB NOT NULL) STRICT;
    CREATE VIRTUAL TABLE event_text USING fts5(
        text, tokenize = 'trigram', content = '', contentless_delete = 1, detail = none
    );
    INSERT INTO event_text (event_text, rank) VALUES ('automerge', 0), ('usermerge', 8), ('crisismerge', 256);
"""
"""Merging is a step of its own, so that no commit takes as long as a merge."""
_SLICE_END: Final = """
    SELECT seq, id FROM (
        SELECT seq, id, sum(size) OVER (ORDER BY seq) - size AS before FROM (
            SELECT seq, id, 64 + octet_length(message) + octet_length(attributes) AS size
            FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?3
        )
    ) WHERE before < ?2 ORDER BY seq DESC LIMIT 1
"""
"""Where a slice of so many bytes ends; it has at least one event."""
_SLICE: Final = f"SELECT json_group_object(seq, {SEARCHED}) FROM events WHERE seq > ? AND seq <= ?"  # noqa: S608 - constants
"""One row for a whole slice, and one statement that takes it in: the interpreter's lock is left alone meanwhile."""
_INSERT: Final = "INTO event_text (rowid, text) SELECT CAST(key AS INTEGER), value FROM json_each(?)"


class IndexDamagedError(Exception):
    """The index does not say what it must; it is to be built anew."""


_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.ConstraintError, apsw.SQLError, IndexDamagedError)
"""What no later try would mend: the index is begun anew."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a step did.

    Attributes:
        through_seq: up to here the index is complete.
        last_seq: end of the log as this step saw it.
        more: whether there is more to do at once.
        took_s: how long the step took.
        opening: whether it did no more than open the file.
        rebuilt: why the index was begun anew in this step; empty if it was not.
    """

    through_seq: int
    last_seq: int
    more: bool
    took_s: float
    opening: bool = False
    rebuilt: str = ""


class SearchIndex:
    """Writes the index. For one thread, never a message loop."""

    def __init__(self, path: str, events_path: str) -> None:
        """Follow the events at `events_path` with an index at `path`; the first step opens it."""
        self.path = path
        self._events_path = events_path
        self._connection: apsw.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._slice_bytes = SLICE_BYTES_MIN
        self._merging = False
        self._through_seq = 0
        self._last_seq = 0
        self._suspicion = ""

    def step(self, clock: Callable[[], float]) -> Progress:
        """Do the next thing there is to do, in about `STEP_S`; the check after a power cut takes longer.

        `clock` tells monotonic seconds, by which the next slice is measured out.

        Raises:
            DatabaseError: the events cannot be read.
            apsw.Error, OSError: the index cannot be written now: a full disk, another writer, no permission.
        """
        began = clock()
        self._let_go_of_a_lost_file()
        rebuilt, more, opening = "", True, self._connection is None
        try:
            if self._suspicion:
                raise IndexDamagedError(self._suspicion)
            if opening:
                self._open()
            else:
                more = self._step(self._open(), clock)
        except _DAMAGE as error:
            self.discard()
            rebuilt = str(error)
        return Progress(self._through_seq, self._last_seq, more, clock() - began, opening, rebuilt)

    def suspect(self, what: str) -> None:
        """Take note that a search could not read the index: the next step begins it anew. From any thread."""
        self._suspicion = what

    def close(self) -> None:
        """Close the file in good order, as the next opening will find noted in it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(apsw.Error):
            _set(connection, "orderly", 1)
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        connection.close(True)

    def discard(self) -> None:
        """Remove the index.

        Raises:
            OSError: the directory does not let us.
        """
        connection, self._connection = self._connection, None
        self._suspicion = ""
        self._merging = False
        self._through_seq = 0
        if connection is not None:
            connection.close(True)
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.remove(self.path + suffix)

    def _step(self, connection: apsw.Connection, clock: Callable[[], float]) -> bool:
        """Do one thing; returns whether there is more to do."""
        if self._merging:
            changes = connection.total_changes()
            connection.execute("INSERT INTO event_text (event_text, rank) VALUES ('merge', ?)", (MERGE_PAGES,))
            self._merging = connection.total_changes() - changes >= 2  # that many, if it did anything
        elif _checkpoint(connection):
            _prune_marks(connection)
        else:
            return self._follow(connection, clock)
        return True

    def _follow(self, connection: apsw.Connection, clock: Callable[[], float]) -> bool:
        """Take in the next events, or let go of some that the log has let go of."""
        began = clock()
        marks = _marks(connection)
        # Nothing is asked of the index in here: what is wrong with it would be taken for damage of the events.
        with reading(self._events_path) as events:
            first_seq, self._last_seq = _ends(events)
            self._through_seq = _through(marks, events)
            end = events.execute(_SLICE_END, (self._through_seq, self._slice_bytes, SLICE_EVENTS_MAX)).fetchone()
            texts = end and str(events.execute(_SLICE, (self._through_seq, end[0])).get)
        if end is None or texts is None:
            return self._prune(connection, first_seq)
        self._take_in(connection, first_seq, end, texts)
        self._adapt(clock() - began)
        return True

    def _take_in(self, connection: apsw.Connection, first_seq: int, end: tuple[int, bytes], texts: str) -> None:
        self._require_space()
        indexed_seq = int(_get(connection, "indexed_seq") or 0)
        # Numbers up to there may be in the index with the texts of events that the log has lost.
        verb = "INSERT OR REPLACE" if self._through_seq < indexed_seq else "INSERT"
        with connection:
            connection.execute(f"{verb} {_INSERT}", (texts,))
            connection.execute("DELETE FROM marks WHERE seq >= ?", (end[0],))
            connection.execute("INSERT INTO marks VALUES (?, ?)", end)
            if end[0] > indexed_seq:
                _set(connection, "indexed_seq", end[0])
            if indexed_seq == 0:
                _set(connection, "oldest_seq", first_seq)
        self._merging = True
        self._through_seq = end[0]

    def _adapt(self, took_s: float) -> None:
        """Choose how much the next slice takes."""
        wanted = int(self._slice_bytes * min(2.0, STEP_S / max(took_s, 1e-6)))
        self._slice_bytes = max(SLICE_BYTES_MIN, min(SLICE_BYTES_MAX, wanted))

    def _prune(self, connection: apsw.Connection, first_seq: int) -> bool:
        """Delete some of the events that the log has let go of; returns whether there are more."""
        oldest_seq = int(_get(connection, "oldest_seq") or 1)
        if oldest_seq >= first_seq:
            connection.execute("PRAGMA shrink_memory")
            return False
        until_seq = min(first_seq, oldest_seq + PRUNE_EVENTS)
        indexed_seq = int(_get(connection, "indexed_seq") or 0)
        with connection:
            gone = range(oldest_seq, min(until_seq, indexed_seq + 1))
            connection.executemany("DELETE FROM event_text WHERE rowid = ?", ((seq,) for seq in gone))
            _set(connection, "oldest_seq", first_seq if until_seq > indexed_seq else until_seq)
        self._merging = True
        return True

    def _require_space(self) -> None:
        status = os.statvfs(os.path.dirname(self.path)) if hasattr(os, "statvfs") else None
        if status is not None and status.f_bavail * status.f_frsize < DISK_FREE_BYTES_MIN:
            raise OSError(f"less than {DISK_FREE_BYTES_MIN} bytes are free; they are left to the events")

    # --- opening ---

    def _let_go_of_a_lost_file(self) -> None:
        """Close a file that was removed or replaced by somebody: searches read what is there now."""
        if self._connection is not None and file_identity(self.path) != self._file:
            self._connection.close(True)
            self._connection = None

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            require_library(self.path)
            _set_aside_foreign(self.path)
            connection = apsw.Connection(self.path)
            try:
                _configure(connection)
                _prepare(connection)
                self._examine(connection)
                _set(connection, "boot_id", boot_id())
                _set(connection, "orderly", 0)
            except BaseException:
                connection.close(True)
                raise
            self._connection = connection
            self._file = file_identity(self.path)
            self._merging = False
        return self._connection

    def _examine(self, connection: apsw.Connection) -> None:
        """Find out whether the file can be relied upon.

        Raises:
            IndexDamagedError: it cannot.
        """
        if _get(connection, "folding") != folding_version():
            raise IndexDamagedError("this SQLite folds letters otherwise")
        if not _get(connection, "orderly") and _get(connection, "boot_id") not in {None, boot_id()}:
            finding = connection.execute("PRAGMA integrity_check(1)").get
            if finding != "ok":
                raise IndexDamagedError(str(finding))
        for seq, text in self._samples(connection):
            tokens = trigrams(text)
            chosen = random.sample(tokens, min(SAMPLE_TRIGRAMS, len(tokens)))
            found = connection.execute(
                "SELECT 1 FROM event_text WHERE event_text MATCH ? AND rowid = ?", (match_all(chosen), seq)
            ).get
            if chosen and not found:
                raise IndexDamagedError(f"event {seq} is not found by {chosen}")

    def _samples(self, connection: apsw.Connection) -> list[tuple[int, str]]:
        marks = _marks(connection)
        with reading(self._events_path) as events:
            first_seq, _ = _ends(events)
            through_seq = _through(marks, events)
            if not through_seq:
                return []
            wanted = [random.randint(first_seq, through_seq) for _ in range(SAMPLES - 1)]
            statement = f"SELECT seq, {SEARCHED} FROM events WHERE seq = ?"  # noqa: S608 - constants
            return [row for seq in (through_seq, *wanted) for row in events.execute(statement, (seq,))]


def _ends(events: apsw.Connection) -> tuple[int, int]:
    first_seq, last_seq = events.execute("SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events)").get
    return first_seq or 0, last_seq or 0


def _marks(connection: apsw.Connection) -> list[tuple[int, bytes]]:
    return [(seq, event_id) for seq, event_id in connection.execute("SELECT seq, id FROM marks ORDER BY seq DESC")]


def _through(marks: list[tuple[int, bytes]], events: apsw.Connection) -> int:
    """Return up to where an index with these marks goes with `events`: its newest mark that is true of them."""
    for seq, event_id in marks:
        if events.execute("SELECT id FROM events WHERE seq = ?", (seq,)).get == event_id:
            return seq
    return 0


def _set_aside_foreign(path: str) -> None:
    """Move away what is not our index; what is moved away by the next such find replaces it."""
    if not os.path.exists(path):
        for suffix in ("-wal", "-shm"):  # of a file that is gone: not to be applied to a new one
            with suppress(FileNotFoundError):
                os.remove(path + suffix)
    elif _is_foreign(path):
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.replace(path + suffix, f"{path}{FOREIGN_SUFFIX}{suffix}")


def _is_foreign(path: str) -> bool:
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        if not connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").get:
            return False
        return bool(connection.pragma("application_id") != SEARCH_APPLICATION_ID)
    except apsw.NotADBError:
        return True
    except apsw.CorruptError:
        return False
    finally:
        connection.close(True)


def _configure(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.transaction_mode = "IMMEDIATE"
    connection.pragma("journal_mode", "WAL")
    connection.pragma("synchronous", "NORMAL")
    connection.pragma("cache_size", -CACHE_KIB)
    connection.pragma("temp_store", "MEMORY")
    connection.wal_autocheckpoint(0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


def _prepare(connection: apsw.Connection) -> None:
    if not connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").get:
        with connection:
            connection.pragma("application_id", SEARCH_APPLICATION_ID)
            connection.pragma("user_version", SEARCH_FORMAT)
            connection.execute(_SCHEMA)
            _set(connection, "folding", folding_version())
    elif connection.pragma("user_version") != SEARCH_FORMAT:
        raise IndexDamagedError(f"format {connection.pragma('user_version')}, this program writes {SEARCH_FORMAT}")


def _checkpoint(connection: apsw.Connection) -> bool:
    """Move the WAL into the file when it is long enough; returns whether that was this step's work.

    Raises:
        apsw.BusyError: a reader has held it up for too long.
    """
    pages, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    if pages - moved < CHECKPOINT_PAGES:
        return False
    pages, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    if moved < pages and pages > WAL_PAGES_MAX:
        raise apsw.BusyError(f"a reader holds up {pages} pages of the write-ahead log")
    return moved == pages


def _prune_marks(connection: apsw.Connection) -> None:
    connection.execute(
        "DELETE FROM marks WHERE seq < (SELECT min(seq) FROM (SELECT seq FROM marks ORDER BY seq DESC LIMIT ?))",
        (MARKS_MAX,),
    )


def _get(connection: apsw.Connection, name: str) -> Any:
    return connection.execute("SELECT value FROM state WHERE name = ?", (name,)).get


def _set(connection: apsw.Connection, name: str, value: str | int) -> None:
    connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
