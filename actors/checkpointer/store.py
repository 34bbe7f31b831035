"""The tables of checkpointer: every statement that writes them stands here; `queries` reads them. Worker thread only.

A large payload is on the disk, flushed, before the transaction begins whose row names its file; the row is what makes
it a checkpoint. A file without a row, left by a death in between, is swept away.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import apsw

from actors.checkpointer.core import (
    GENESIS,
    RUNS_KEPT_MAX,
    Description,
    Encoding,
    Format,
    Gap,
    Holder,
    Kept,
    Retention,
    Run,
    Runs,
    Save,
    hash_of,
    plan_thinning,
    with_gap,
)
from actors.checkpointer.payloads import (
    Head,
    PayloadFiles,
    Stored,
    check_msgpack,
    compress,
    decode,
    digest,
    shrinks,
)
from actors.runtime.database import Database, Migration, Schema
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.identity import ProcessIdentity
from protocol.errors import ErrorCode, ProtocolError, ReliabilityError
from protocol.limits import KIB
from protocol.names import CHECKPOINTER

SCHEMA: Final = Schema(
    CHECKPOINTER,
    (
        Migration(
            # What describes a checkpoint comes before its payload, so that listing them reads no payload.
            """
            CREATE TABLE checkpoints (
                number INTEGER PRIMARY KEY,
                name TEXT NOT NULL,
                seq INTEGER NOT NULL,
                run INTEGER NOT NULL,
                id BLOB NOT NULL UNIQUE,
                timestamp_ms INTEGER NOT NULL,
                confirmed_ms INTEGER NOT NULL,
                size_bytes INTEGER NOT NULL,
                sha256 BLOB NOT NULL,
                format TEXT NOT NULL,
                prev_hash BLOB NOT NULL,
                hash BLOB NOT NULL,
                damaged TEXT NOT NULL DEFAULT '',
                settled INTEGER NOT NULL DEFAULT 0,
                encoding TEXT NOT NULL,
                stored_bytes INTEGER NOT NULL,
                file TEXT,
                payload BLOB,
                UNIQUE (name, seq)
            ) STRICT;
            CREATE INDEX checkpoints_by_run ON checkpoints (name, run, seq);
            CREATE INDEX checkpoints_unsettled ON checkpoints (number) WHERE settled = 0;
            CREATE TABLE checkpoint_names (
                name TEXT PRIMARY KEY,
                seq INTEGER NOT NULL,
                hash BLOB NOT NULL,
                timestamp_ms INTEGER NOT NULL
            ) STRICT;
            CREATE TABLE checkpoint_gaps (
                name TEXT NOT NULL,
                first_seq INTEGER NOT NULL,
                last_seq INTEGER NOT NULL,
                prev_hash BLOB NOT NULL,
                last_hash BLOB NOT NULL,
                lost INTEGER NOT NULL,
                PRIMARY KEY (name, first_seq)
            ) STRICT;
            CREATE TABLE checkpoint_runs (
                id BLOB PRIMARY KEY,
                name TEXT NOT NULL,
                number INTEGER NOT NULL,
                ended INTEGER NOT NULL,
                pid INTEGER,
                start_time INTEGER,
                boot_id TEXT,
                UNIQUE (name, number)
            ) STRICT;
            """,
            usable_from=1,
        ),
    ),
)

Result = TypeVar("Result")

REMOVED_MAX: Final = 500
"""Checkpoints removed in one transaction."""
COMPRESSED_BYTES_MIN: Final = 4 * KIB
"""A smaller payload takes one page either way."""
_INSERT: Final = (
    "INSERT INTO checkpoints (name, seq, run, id, timestamp_ms, confirmed_ms, size_bytes, sha256, format, prev_hash,"
    " hash, encoding, stored_bytes, file, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FIND: Final = "SELECT name, seq, timestamp_ms, size_bytes, sha256 FROM checkpoints WHERE id = ?"
_NEWEST: Final = (
    "SELECT seq, run, id, timestamp_ms, size_bytes, sha256, format FROM checkpoints"
    " WHERE name = ? ORDER BY run DESC, seq DESC LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one state that was to be kept.

    Attributes:
        id: of the checkpoint that holds it.
        name: whose it is.
        seq: its number.
        timestamp_ms: when it was taken.
        size_bytes: of the payload.
        sha256: of the payload.
        unchanged: the newest checkpoint held it already.
        repeated: this very request was carried out before.
    """

    id: bytes
    name: str
    seq: int
    timestamp_ms: int
    size_bytes: int
    sha256: bytes
    unchanged: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """Checkpoints that the heads beside the database know, and the database does not."""

    name: str
    count: int
    head_seq: int


@dataclass(slots=True)
class Opened:
    """What was found at the start."""

    losses: list[Loss] = field(default_factory=list)
    forked: list[str] = field(default_factory=list)
    heads_damaged: bool = False
    orphans: int = 0


@dataclass(frozen=True, slots=True)
class RunChange:
    """A run that begins or ends."""

    name: str
    run: bytes
    holder: Holder | None = None
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A checkpoint whose payload was not yet looked at for compression."""

    number: int
    name: str
    seq: int
    size_bytes: int
    sha256: bytes
    stored: Stored


@dataclass(slots=True)
class _Prepared:
    save: Save
    sha256: bytes
    stored: Stored


class CheckpointStore:
    """Keeps checkpoints; the only one that does.

    Attributes:
        database: the connection.
        files: the large payloads.
    """

    def __init__(
        self,
        database: Database,
        files: PayloadFiles,
        *,
        inline_bytes_max: int,
        names_max: int,
        wall_ms: Callable[[], int],
    ) -> None:
        """Write through `database`, whose schema is `SCHEMA` and which is synchronous=FULL."""
        self.database = database
        self.files = files
        self._inline_bytes_max = inline_bytes_max
        self._names_max = names_max
        self._wall_ms = wall_ms
        self._heads: dict[str, Head] = {}
        self._heads_dirty = False
        self._unthinned: set[str] = set()

    def open(self) -> Opened:
        """Compare the database with the heads beside it, and remove what a death left; once, before anything else.

        Raises:
            DatabaseError: the database cannot be used.
        """
        known = self.files.read_heads()
        opened = Opened(heads_damaged=known is None)
        files = self.files.names()

        def work(connection: apsw.Connection) -> tuple[dict[str, Head], set[str]]:
            opened.losses.clear()
            opened.forked.clear()
            heads = {
                name: Head(seq, hash_, timestamp_ms)
                for name, seq, hash_, timestamp_ms in connection.execute(
                    "SELECT name, seq, hash, timestamp_ms FROM checkpoint_names"
                )
            }
            for name, head in (known or {}).items():
                _compare(connection, name, heads, head, opened)
            used = {file for (file,) in connection.execute("SELECT file FROM checkpoints WHERE file IS NOT NULL")}
            return heads, used

        self._heads, used = self.database.write(work)
        for name in sorted(files - used):
            opened.orphans += 1
            if opened.losses:
                self.files.set_aside(name)
            else:
                self.files.remove(name)
        self._heads_dirty = True
        self._unthinned = set(self._heads)
        return opened

    def save(self, saves: Sequence[Save]) -> list[Outcome | ReliabilityError]:
        """Keep states, in their order; what is wrong with one of them is its outcome.

        Raises:
            DatabaseError, LocalError: none of them is kept.
        """
        prepared: list[_Prepared | ReliabilityError] = []
        try:
            prepared += map(self._prepare, saves)
            outcomes = self._commit(prepared)
        except BaseException as error:
            # After an I/O error nobody knows whether the row will be there: then the next start sweeps.
            if not (isinstance(error, DatabaseError) and error.problem is Problem.IO):
                self._remove_files(item.stored for item in prepared if isinstance(item, _Prepared))
            raise
        for item, outcome in zip(prepared, outcomes, strict=True):
            if not isinstance(item, _Prepared):
                continue
            if not isinstance(outcome, Outcome) or outcome.repeated or outcome.unchanged:
                self._remove_files([item.stored])
        return outcomes

    def read(self, work: Callable[[apsw.Connection], Result]) -> Result:
        """Return what `work` reads over the store's own connection: quicker than opening another one.

        Raises:
            DatabaseError: the database cannot be used.
        """
        return self.database.write(work)

    def confirm(self, name: str, run: bytes | None, sha256: bytes) -> Outcome | None:
        """Return the newest checkpoint of a run if it holds a state of this digest, else None.

        Raises:
            DatabaseError: the database cannot be used.
        """

        def work(connection: apsw.Connection) -> Outcome | None:
            runs = _load_runs(connection, name)
            newest = connection.execute(_NEWEST, (name,)).fetchone()
            if newest is None or newest[5] != sha256 or newest[1] != runs.newest_number or not runs.is_newest(run):
                return None
            seq, _, id_, timestamp_ms, size_bytes, digest_, _ = newest
            return Outcome(id_, name, seq, timestamp_ms, size_bytes, digest_, unchanged=True)

        return self.database.write(work)

    def touch(self, confirmed: dict[str, int]) -> None:
        """Note when the newest checkpoint of each name was last confirmed.

        Raises:
            DatabaseError: nothing is noted.
        """

        def work(connection: apsw.Connection) -> None:
            for name, at_ms in confirmed.items():
                newest = connection.execute(_NEWEST, (name,)).fetchone()
                if newest is not None:
                    connection.execute(
                        "UPDATE checkpoints SET confirmed_ms = max(confirmed_ms, ?) WHERE name = ? AND seq = ?",
                        (at_ms, name, newest[0]),
                    )

        self.database.write(work)

    def change_run(self, change: RunChange, *, acknowledged: bool = False) -> int:
        """Have a run begin or end; returns its number. `acknowledged`: its client was told already that it has.

        Raises:
            DatabaseError, ReliabilityError: nothing has changed.
        """

        def work(connection: apsw.Connection) -> int:
            if not acknowledged:
                self._admit_name(connection, change.name)
            runs = _load_runs(connection, change.name)
            number = runs.begin(change.run, change.holder)
            if change.ends:
                runs.end(change.run)
            _store_runs(connection, change.name, runs)
            return number

        return self.database.write(work)

    def thin(self, retention: Retention, look: Callable[[str], Sequence[tuple[str, int, str]]]) -> int:
        """Remove what is no longer kept, at most `REMOVED_MAX` of each name; returns how many that were.

        Before anything of a name is removed, `look` is asked which of its newest checkpoints are damaged, up to the
        newest valid one: so that one stays.

        Raises:
            DatabaseError: not all of it is removed.
        """
        removed_in_all = 0
        while self._unthinned:
            name = self._unthinned.pop()
            try:
                if self._plan(name, retention):
                    if damaged := look(name):
                        self.mark_damaged(damaged)
                    removed = self._thin(name, retention)
                    removed_in_all += removed
                    if removed == REMOVED_MAX:
                        self._unthinned.add(name)
                        break
            except BaseException:
                self._unthinned.add(name)
                raise
        return removed_in_all

    @property
    def is_thin(self) -> bool:
        """Whether nothing was saved since the last `thin`."""
        return not self._unthinned

    def mark_damaged(self, found: Iterable[tuple[str, int, str]]) -> None:
        """Note checkpoints (name, number, problem) that turned out to be damaged, so that they protect no other.

        Raises:
            DatabaseError: it is not noted.
        """
        marks = [(problem, name, seq) for name, seq, problem in found]

        def work(connection: apsw.Connection) -> None:
            connection.executemany("UPDATE checkpoints SET damaged = ? WHERE name = ? AND seq = ?", marks)

        self.database.write(work)

    def unsettled(self) -> Unsettled | None:
        """Return a checkpoint that may be compressed: one that has a successor. None if there is none.

        Raises:
            DatabaseError: the database cannot be used.
        """

        def work(connection: apsw.Connection) -> Unsettled | None:
            connection.execute("UPDATE checkpoints SET settled = 1 WHERE settled = 0 AND stored_bytes < ?", (4 * KIB,))
            row = connection.execute(
                "SELECT number, c.name, c.seq, size_bytes, sha256, encoding, stored_bytes, payload, file"
                " FROM checkpoints AS c JOIN checkpoint_names AS n ON n.name = c.name AND n.seq > c.seq"
                " WHERE settled = 0 ORDER BY number LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            number, name, seq, size_bytes, sha256, encoding, stored_bytes, payload, file = row
            stored = Stored(Encoding(encoding), stored_bytes, payload, file)
            return Unsettled(number, name, seq, size_bytes, sha256, stored)

        return self.database.write(work)

    def squeeze(self, item: Unsettled) -> Stored:
        """Return a payload compressed, if that pays, in a new file if it is large; from any thread.

        Raises:
            Damaged: it is not what was saved.
            LocalError: there is no space.
        """
        before = item.stored
        stored = before.blob
        if stored is None:
            stored = self.files.read(before.file or "", before.stored_bytes)
        payload = decode(stored, before.encoding, item.size_bytes, item.sha256)
        if before.encoding is not Encoding.STORED or not shrinks(payload):
            return before
        smaller = compress(payload)
        if len(smaller) >= len(payload):
            return before
        if len(smaller) <= self._inline_bytes_max:
            return Stored(Encoding.ZLIB, len(smaller), blob=smaller)
        return Stored(Encoding.ZLIB, len(smaller), file=self.files.write(smaller))

    def settle(self, item: Unsettled, after: Stored) -> None:
        """Let a checkpoint's payload be kept as `after`, and drop what it was before.

        Raises:
            DatabaseError: it is kept as it was.
        """

        def work(connection: apsw.Connection) -> bool:
            connection.execute(
                "UPDATE checkpoints SET settled = 1, encoding = ?, stored_bytes = ?, file = ?, payload = ?"
                " WHERE number = ? AND id = (SELECT id FROM checkpoints WHERE number = ? AND seq = ? AND name = ?)",
                (*_columns(after), item.number, item.number, item.seq, item.name),
            )
            return connection.changes() > 0

        done = False
        try:
            done = self.database.write(work)
        finally:
            if after is not item.stored:
                self._remove_files([item.stored if done else after])

    def publish_heads(self) -> None:
        """Keep the heads beside the database, if they have changed since.

        Raises:
            LocalError: they cannot be written.
        """
        if self._heads_dirty:
            self.files.write_heads(self._heads)
            self._heads_dirty = False

    @property
    def heads_dirty(self) -> bool:
        """Whether the heads have changed since they were last published."""
        return self._heads_dirty

    # --- saving ---

    def _prepare(self, save: Save) -> "_Prepared | ReliabilityError":
        """Check and digest a state, and bring its payload to the disk if it is large."""
        payload = save.payload
        try:
            if save.format is Format.MSGPACK:
                check_msgpack(payload)
        except ProtocolError as error:
            return error
        found = digest(payload)
        if save.sha256 is not None and save.sha256 != found:
            return ReliabilityError(ErrorCode.INTEGRITY, "the state was damaged on its way: its SHA-256 is another")
        if len(payload) <= self._inline_bytes_max:
            return _Prepared(save, found, Stored(Encoding.STORED, len(payload), blob=payload))
        # Digesting on a thread of its own meanwhile was measured, and is no quicker: the thread costs what it saves.
        return _Prepared(save, found, Stored(Encoding.STORED, len(payload), file=self.files.write(payload)))

    def _commit(self, prepared: "Sequence[_Prepared | ReliabilityError]") -> list[Outcome | ReliabilityError]:
        heads: dict[str, Head] = {}

        def work(connection: apsw.Connection) -> list[Outcome | ReliabilityError]:
            heads.clear()
            return [self._insert(connection, item, heads) for item in prepared]

        outcomes = self.database.write(work)
        if heads:
            self._heads.update(heads)
            self._heads_dirty = True
            self._unthinned |= heads.keys()
        return outcomes

    def _insert(
        self, connection: apsw.Connection, item: "_Prepared | ReliabilityError", heads: dict[str, Head]
    ) -> Outcome | ReliabilityError:
        if isinstance(item, ReliabilityError):
            return item
        save = item.save
        repeated = connection.execute(_FIND, (save.id,)).fetchone()
        if repeated is not None:
            if repeated[0] != save.name or repeated[4] != item.sha256:
                return ReliabilityError(ErrorCode.ID_CONFLICT, "this id is that of another checkpoint")
            name, seq, timestamp_ms, size_bytes, sha256 = repeated
            return Outcome(save.id, name, seq, timestamp_ms, size_bytes, sha256, repeated=True)
        try:
            if not save.acknowledged:
                self._admit_name(connection, save.name)
            runs = _load_runs(connection, save.name)
            run = runs.saves(save.run, acknowledged=save.acknowledged)
        except ReliabilityError as error:
            return error
        newest = connection.execute(_NEWEST, (save.name,)).fetchone()
        _store_runs(connection, save.name, runs)
        if newest is not None and newest[1] == run and newest[5] == item.sha256 and newest[6] == save.format:
            connection.execute(
                "UPDATE checkpoints SET confirmed_ms = max(confirmed_ms, ?) WHERE name = ? AND seq = ?",
                (save.timestamp_ms, save.name, newest[0]),
            )
            return Outcome(newest[2], save.name, newest[0], newest[3], newest[4], newest[5], unchanged=True)
        head = _head(connection, save.name)
        described = Description(save.name, head.seq + 1, save.id, item.sha256, save.timestamp_ms)
        new = Head(described.seq, hash_of(head.hash, described), save.timestamp_ms)
        connection.execute(
            _INSERT,
            (
                save.name,
                described.seq,
                run,
                save.id,
                save.timestamp_ms,
                save.timestamp_ms,
                len(save.payload),
                item.sha256,
                save.format,
                head.hash,
                new.hash,
                *_columns(item.stored),
            ),
        )
        _put_head(connection, save.name, new)
        heads[save.name] = new
        return Outcome(save.id, save.name, new.seq, save.timestamp_ms, len(save.payload), item.sha256)

    def _admit_name(self, connection: apsw.Connection, name: str) -> None:
        if name in self._heads or connection.execute("SELECT 1 FROM checkpoint_runs WHERE name = ?", (name,)).get:
            return
        count = connection.execute(
            "SELECT count(*) FROM (SELECT name FROM checkpoint_names UNION SELECT name FROM checkpoint_runs)"
        ).get
        if count >= self._names_max:
            message = f"{count} names have checkpoints already"
            raise ReliabilityError(ErrorCode.TOO_LARGE, message, "See [checkpoints] names_max in reliability.toml.")

    # --- removing ---

    def _plan(self, name: str, retention: Retention) -> list[int]:
        return self.database.write(lambda connection: plan_thinning(_load_kept(connection, name), retention))

    def _thin(self, name: str, retention: Retention) -> int:
        def work(connection: apsw.Connection) -> tuple[int, list[str]]:
            removed = plan_thinning(_load_kept(connection, name), retention)[:REMOVED_MAX]
            gaps = before = _load_gaps(connection, name)
            files = []
            for seq in removed:
                prev_hash, hash_, file = connection.execute(
                    "SELECT prev_hash, hash, file FROM checkpoints WHERE name = ? AND seq = ?", (name, seq)
                ).get
                gaps = with_gap(gaps, Gap(seq, seq, prev_hash, hash_))
                files += [file] if file else []
            connection.executemany(
                "DELETE FROM checkpoints WHERE name = ? AND seq = ?", [(name, seq) for seq in removed]
            )
            _store_gaps(connection, name, before, gaps)
            return len(removed), files

        removed, files = self.database.write(work)
        for file in files:
            self.files.remove(file)
        return removed

    def _remove_files(self, stored: Iterable[Stored | None]) -> None:
        for item in stored:
            if item is not None and item.file is not None:
                self.files.remove(item.file)


def holder_is_alive(holder: Holder) -> bool:
    """Tell whether the process of a run still runs."""
    return ProcessIdentity(holder.pid, holder.start_time, holder.boot_id).is_running()


def _columns(stored: Stored) -> tuple[str, int, str | None, bytes | None]:
    return stored.encoding, stored.stored_bytes, stored.file, stored.blob


def _compare(connection: apsw.Connection, name: str, heads: dict[str, Head], known: Head, opened: Opened) -> None:
    """Compare a name's head with the one beside the database; what is lost becomes a gap, its numbers stay used."""
    head = heads.get(name, Head(0, GENESIS, 0))
    if known.seq > head.seq:
        opened.losses.append(Loss(name, known.seq - head.seq, known.seq))
        gaps = _load_gaps(connection, name)
        lost = Gap(head.seq + 1, known.seq, head.hash, known.hash, lost=True)
        _store_gaps(connection, name, gaps, with_gap(gaps, lost))
        _put_head(connection, name, known)
        heads[name] = known
        return
    at = connection.execute("SELECT hash FROM checkpoints WHERE name = ? AND seq = ?", (name, known.seq)).get
    if at is not None and at != known.hash:
        opened.forked.append(name)


def _head(connection: apsw.Connection, name: str) -> Head:
    row = connection.execute("SELECT seq, hash, timestamp_ms FROM checkpoint_names WHERE name = ?", (name,)).fetchone()
    return Head(*row) if row else Head(0, GENESIS, 0)


def _put_head(connection: apsw.Connection, name: str, head: Head) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO checkpoint_names (name, seq, hash, timestamp_ms) VALUES (?, ?, ?, ?)",
        (name, head.seq, head.hash, head.timestamp_ms),
    )


def _load_runs(connection: apsw.Connection, name: str) -> Runs:
    rows: Iterable[Any] = connection.execute(
        "SELECT id, number, ended, pid, start_time, boot_id FROM checkpoint_runs WHERE name = ?", (name,)
    )
    runs = [
        Run(id_, number, bool(ended), None if pid is None else Holder(pid, start_time, boot_id))
        for id_, number, ended, pid, start_time, boot_id in rows
    ]
    return Runs(name, runs, holder_is_alive)


def _store_runs(connection: apsw.Connection, name: str, runs: Runs) -> None:
    for run in runs.changed.values():
        holder = run.holder
        connection.execute(
            "INSERT OR REPLACE INTO checkpoint_runs (id, name, number, ended, pid, start_time, boot_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run.id, name, run.number, int(run.ended))
            + ((holder.pid, holder.start_time, holder.boot_id) if holder else (None, None, None)),
        )
    if runs.changed:
        connection.execute(
            "DELETE FROM checkpoint_runs WHERE name = ? AND number <= ?", (name, runs.newest_number - RUNS_KEPT_MAX)
        )


def _load_kept(connection: apsw.Connection, name: str) -> list[Kept]:
    rows: Iterable[Any] = connection.execute(
        "SELECT seq, timestamp_ms, stored_bytes, damaged, run FROM checkpoints WHERE name = ?", (name,)
    )
    return [
        Kept(seq, timestamp_ms, stored_bytes, bool(damaged), run)
        for seq, timestamp_ms, stored_bytes, damaged, run in rows
    ]


def _load_gaps(connection: apsw.Connection, name: str) -> list[Gap]:
    rows: Iterable[Any] = connection.execute(
        "SELECT first_seq, last_seq, prev_hash, last_hash, lost FROM checkpoint_gaps WHERE name = ?", (name,)
    )
    return [Gap(first, last, prev_hash, last_hash, bool(lost)) for first, last, prev_hash, last_hash, lost in rows]


def _store_gaps(connection: apsw.Connection, name: str, before: Sequence[Gap], after: Sequence[Gap]) -> None:
    connection.executemany(
        "DELETE FROM checkpoint_gaps WHERE name = ? AND first_seq = ?",
        [(name, gap.first_seq) for gap in before if gap not in after],
    )
    connection.executemany(
        "INSERT INTO checkpoint_gaps (name, first_seq, last_seq, prev_hash, last_hash, lost) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (name, gap.first_seq, gap.last_seq, gap.prev_hash, gap.last_hash, int(gap.lost))
            for gap in after
            if gap not in before
        ],
    )
