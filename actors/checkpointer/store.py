"""Keeping checkpoints: with `tables` and `upkeep` all that writes them; `queries` reads them. Worker thread only.

A large payload is on the disk, flushed, before the transaction begins whose row names its file; the row is what makes
it a checkpoint. A file without a row, left by a death in between, is swept away.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import apsw

from actors.checkpointer.core import (
    GENESIS,
    Description,
    Encoding,
    Format,
    Gap,
    Handed,
    Save,
    hash_of,
    with_gap,
)
from actors.checkpointer.incoming import Refused, take
from actors.checkpointer.outcomes import Loss, Opened, Outcome, RunChange
from actors.checkpointer.payloads import Head, PayloadFiles, Stored, check_msgpack, digest
from actors.checkpointer.tables import (
    NEWEST,
    columns,
    load_gaps,
    load_head,
    load_runs,
    put_head,
    store_gaps,
    store_runs,
)
from actors.checkpointer.upkeep import Upkeep
from actors.runtime.database import Database
from actors.runtime.database_problem import DatabaseError, Problem
from protocol.errors import ErrorCode, ReliabilityError

Result = TypeVar("Result")

_INSERT: Final = (
    "INSERT INTO checkpoints (name, seq, run, id, timestamp_ms, confirmed_ms, size_bytes, sha256, format, prev_hash,"
    " hash, encoding, stored_bytes, file, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FIND: Final = "SELECT name, seq, timestamp_ms, size_bytes, sha256 FROM checkpoints WHERE id = ?"


@dataclass(slots=True)
class _Prepared:
    save: Save
    sha256: bytes
    stored: Stored


@dataclass(slots=True)
class _NotTaken:
    """A state that was handed over, and cannot be taken."""

    save: Save
    error: Refused

    def may_be(self, size_bytes: int, sha256: bytes) -> bool:
        """Tell whether a checkpoint of the same id is that state, as far as its client told."""
        save = self.save
        return save.handed is not None and save.handed.size_bytes == size_bytes and save.sha256 in {None, sha256}


_Item = _Prepared | _NotTaken | ReliabilityError


class CheckpointStore:
    """Keeps checkpoints; the only one that does.

    Attributes:
        database: the connection.
        files: the large payloads.
        upkeep: what becomes of checkpoints afterwards.
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
        self.upkeep = Upkeep(database, files, inline_bytes_max)
        self._inline_bytes_max = inline_bytes_max
        self._names_max = names_max
        self._wall_ms = wall_ms
        self._heads: dict[str, Head] = {}
        self._heads_dirty = False

    def open(self) -> Opened:
        """Compare the database with the heads beside it, and remove what a death left; once, before anything else.

        Raises:
            DatabaseError: the database cannot be used.
        """
        with suppress(OSError):  # without it, clients send their states
            self.files.make_directory()
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
        self.files.known.update(used)
        for name in sorted(files - used):
            opened.orphans += 1
            if opened.losses:
                self.files.set_aside(name)
            else:
                self.files.remove(name)
        self._heads_dirty = True
        self.upkeep.has_grown(self._heads)
        return opened

    def save(self, saves: Sequence[Save]) -> list[Outcome | ReliabilityError]:
        """Keep states, in their order; what is wrong with one of them is its outcome.

        Raises:
            DatabaseError, LocalError: none of them is kept.
        """
        prepared: list[_Item] = []
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
            runs = load_runs(connection, name)
            newest = connection.execute(NEWEST, (name,)).fetchone()
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
                newest = connection.execute(NEWEST, (name,)).fetchone()
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
            runs = load_runs(connection, change.name)
            number = runs.begin(change.run, change.holder)
            if change.ends:
                runs.end(change.run)
            store_runs(connection, change.name, runs)
            return number

        return self.database.write(work)

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

    def _prepare(self, save: Save) -> _Item:
        """Check and digest a state, and bring its payload to the disk if it is large."""
        try:
            if save.handed is not None:
                return self._take(save, save.handed)
            found = _judge(save, save.payload)
        except ReliabilityError as error:
            return error
        return _Prepared(save, found, self._keep(save.payload))

    def _take(self, save: Save, handed: Handed) -> _Item:
        """Prepare a state that lies in a file: it becomes the file of the payload, without being written again.

        What can only be the client's fault, or its helper's, is the outcome: the client sends the bytes then.
        """
        name = handed.file
        if name in self.files.known:
            return _NotTaken(save, Refused("is a checkpoint already"))
        self.files.known.add(name)
        try:
            with take(self.files.path(name), handed.size_bytes, time.sleep) as taken:
                found = _judge(save, taken.payload)
                taken.flush()
            save = replace(save, payload=taken.payload)
            if handed.size_bytes > self._inline_bytes_max:
                return _Prepared(save, found, Stored(Encoding.STORED, handed.size_bytes, file=name))
            kept = self._keep(taken.payload)
        except Refused as error:
            self.files.remove(name)
            return _NotTaken(save, error)
        except BaseException:
            self.files.remove(name)
            raise
        self.files.remove(name)
        return _Prepared(save, found, kept)

    def _keep(self, payload: bytes) -> Stored:
        if len(payload) <= self._inline_bytes_max:
            return Stored(Encoding.STORED, len(payload), blob=payload)
        # Digesting on a thread of its own meanwhile was measured, and is no quicker: the thread costs what it saves.
        return Stored(Encoding.STORED, len(payload), file=self.files.write(payload))

    def _commit(self, prepared: Sequence[_Item]) -> list[Outcome | ReliabilityError]:
        heads: dict[str, Head] = {}

        def work(connection: apsw.Connection) -> list[Outcome | ReliabilityError]:
            heads.clear()
            return [self._insert(connection, item, heads) for item in prepared]

        outcomes = self.database.write(work)
        if heads:
            self._heads.update(heads)
            self._heads_dirty = True
            self.upkeep.has_grown(heads)
        return outcomes

    def _insert(self, connection: apsw.Connection, item: _Item, heads: dict[str, Head]) -> Outcome | ReliabilityError:
        if isinstance(item, ReliabilityError):
            return item
        save = item.save
        repeated = connection.execute(_FIND, (save.id,)).fetchone()
        if repeated is not None:
            name, seq, timestamp_ms, size_bytes, sha256 = repeated
            # A file that was taken the first time, in another life, is gone.
            same = item.may_be(size_bytes, sha256) if isinstance(item, _NotTaken) else sha256 == item.sha256
            if name != save.name or not same:
                return ReliabilityError(ErrorCode.ID_CONFLICT, "this id is that of another checkpoint")
            return Outcome(save.id, name, seq, timestamp_ms, size_bytes, sha256, repeated=True)
        if isinstance(item, _NotTaken):
            return item.error
        try:
            if not save.acknowledged:
                self._admit_name(connection, save.name)
            runs = load_runs(connection, save.name)
            run = runs.saves(save.run, acknowledged=save.acknowledged)
        except ReliabilityError as error:
            return error
        newest = connection.execute(NEWEST, (save.name,)).fetchone()
        store_runs(connection, save.name, runs)
        if newest is not None and newest[1] == run and newest[5] == item.sha256 and newest[6] == save.format:
            connection.execute(
                "UPDATE checkpoints SET confirmed_ms = max(confirmed_ms, ?) WHERE name = ? AND seq = ?",
                (save.timestamp_ms, save.name, newest[0]),
            )
            return Outcome(newest[2], save.name, newest[0], newest[3], newest[4], newest[5], unchanged=True)
        head = load_head(connection, save.name)
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
                *columns(item.stored),
            ),
        )
        put_head(connection, save.name, new)
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

    def _remove_files(self, stored: Iterable[Stored | None]) -> None:
        for item in stored:
            if item is not None and item.file is not None:
                self.files.remove(item.file)


def _judge(save: Save, payload: bytes) -> bytes:
    """Return the digest of a payload that is what its client tells.

    Raises:
        ReliabilityError: it is not.
    """
    if save.format is Format.MSGPACK:
        check_msgpack(payload)
    found = digest(payload)
    if save.sha256 is not None and save.sha256 != found:
        raise ReliabilityError(ErrorCode.INTEGRITY, "the state was damaged on its way: its SHA-256 is another")
    return found


def _compare(connection: apsw.Connection, name: str, heads: dict[str, Head], known: Head, opened: Opened) -> None:
    """Compare a name's head with the one beside the database; what is lost becomes a gap, its numbers stay used."""
    head = heads.get(name, Head(0, GENESIS, 0))
    if known.seq > head.seq:
        opened.losses.append(Loss(name, known.seq - head.seq, known.seq))
        gaps = load_gaps(connection, name)
        lost = Gap(head.seq + 1, known.seq, head.hash, known.hash, lost=True)
        store_gaps(connection, name, gaps, with_gap(gaps, lost))
        put_head(connection, name, known)
        heads[name] = known
        return
    at = connection.execute("SELECT hash FROM checkpoints WHERE name = ? AND seq = ?", (name, known.seq)).get
    if at is not None and at != known.hash:
        opened.forked.append(name)
