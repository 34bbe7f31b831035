"""Reading checkpoints: for the actor itself, and for others when no actor answers. Connections are READONLY."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import apsw

from actors.checkpointer.core import (
    Description,
    Encoding,
    Gap,
    Holder,
    Link,
    Save,
    broken_links,
    parse_holder,
    parse_run,
    parse_save,
)
from actors.checkpointer.payloads import Damaged, PayloadFiles, decode, digest
from actors.checkpointer.runs import Decision, Run, Runs
from actors.runtime.database import READ_S_MAX, reading
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.identity import ProcessIdentity
from actors.runtime.paths import DATABASE_FILE
from actors.runtime.spool_reader import peek
from protocol.errors import ErrorCode, LocalError, ProtocolError
from protocol.names import CHECKPOINTER

OP_SAVE: Final = "save"
OP_BEGIN: Final = "begin_run"
OP_END: Final = "end_run"
"""The calls that clients spool."""
LISTED_DEFAULT: Final = 200
LISTED_MAX: Final = 500
"""Checkpoints in one answer."""
SKIPPED_TOLD_MAX: Final = 100
VERIFY_READ_S_MAX: Final = 60.0
_DESCRIPTION: Final = (
    "name, seq, run, id, timestamp_ms, confirmed_ms, size_bytes, sha256, format, prev_hash, hash, encoding,"
    " stored_bytes, file"
)


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a client has put into its spool, and the owner not yet taken out.

    Attributes:
        run: the run that it is about, None for none.
        save: a state, or None for a run that begins or ends.
        holder: the run's process, if that is told.
        ends: whether the run ends.
    """

    run: bytes | None
    save: Save | None = None
    holder: Holder | None = None
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint, as far as it can be told without its payload; `seq` is None while it is only spooled."""

    name: str
    seq: int | None
    id: bytes
    timestamp_ms: int
    size_bytes: int
    sha256: bytes
    format: str
    confirmed_ms: int

    def document(self) -> dict[str, Any]:
        """Return it as others see it."""
        return {
            "id": self.id.hex(),
            "name": self.name,
            "seq": self.seq,
            "timestamp": timestamp_text(self.timestamp_ms),
            "confirmed": timestamp_text(self.confirmed_ms),
            "bytes": self.size_bytes,
            "sha256": self.sha256.hex(),
            "format": self.format,
        }


@dataclass(slots=True)
class Found:
    """What was found.

    Attributes:
        reason: why this: see `core.Decision`; `asked` for one that was asked for.
        checkpoint: it; None if there is none.
        payload: its state.
        skipped: (name, seq, problem) of those that were passed over because they are damaged.
    """

    reason: str
    checkpoint: Checkpoint | None = None
    payload: bytes = b""
    skipped: list[tuple[str, int, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return it as others see it, but for the payload."""
        return {
            "reason": self.reason,
            "checkpoint": None if self.checkpoint is None else self.checkpoint.document(),
            "skipped": [{"seq": seq, "problem": problem} for _, seq, problem in self.skipped[:SKIPPED_TOLD_MAX]],
            "skipped_count": len(self.skipped),
        }


@dataclass(frozen=True, slots=True)
class _Row:
    checkpoint: Checkpoint
    run: int
    link: Link
    encoding: str
    stored_bytes: int
    file: str | None


def recover(data_dir: str, name: str, run: bytes | None, spooled: Sequence[Spooled] = ()) -> Found:
    """Return the state that an application gets back: see `core`.

    Raises:
        DatabaseError: the database cannot be read, and nothing is spooled.
    """
    try:
        with reading(_database(data_dir), READ_S_MAX) as connection:
            if _has_tables(connection):
                return recover_from(connection, data_dir, name, run, spooled)
    except DatabaseError as error:
        missing = error.problem is Problem.CANNOT_OPEN and not os.path.exists(_database(data_dir))
        if not missing and not any(item.save for item in spooled):
            raise
    return recover_from(None, data_dir, name, run, spooled)


def read_one(data_dir: str, name: str, seq: int | None = None, spooled: Sequence[Spooled] = ()) -> Found:
    """Return the newest valid checkpoint of a name, or the one of number `seq` (`skipped`, if that is damaged).

    Raises:
        DatabaseError: the database cannot be read.
    """
    files = PayloadFiles(data_dir)
    found = Found("asked")
    states = [item.save for item in spooled if item.save is not None]
    if seq is None and states:
        found.checkpoint, found.payload = _of_spool(states[-1]), states[-1].payload
        return found
    with reading(_database(data_dir), READ_S_MAX) as connection:
        if _has_tables(connection):
            condition, values = ("TRUE", (name,)) if seq is None else ("seq = ?", (name, seq))
            _first_valid(connection, files, condition, values, found)
    return found


def list_checkpoints(
    data_dir: str, name: str | None = None, limit: int = LISTED_DEFAULT, *, verify: bool = False
) -> dict[str, Any]:
    """Return ``{"checkpoints": [...], "names": [...]}``, of each name the newest first.

    `valid` tells that its description is the one that was saved and its payload is there, for the newest of each name
    (with `verify` for all of them) that the payload has its SHA-256. `names` tells of each name the numbers that are
    there, those that were lost, and where its chain does not hold.

    Raises:
        DatabaseError: the database cannot be read.
    """
    files = PayloadFiles(data_dir)
    with reading(_database(data_dir), VERIFY_READ_S_MAX if verify else READ_S_MAX) as connection:
        if not _has_tables(connection):
            return {"checkpoints": [], "names": []}
        names = [
            row[0]
            for row in connection.execute(
                "SELECT name FROM checkpoint_names WHERE ?1 IS NULL OR name = ?1 ORDER BY name LIMIT ?2",
                (name, LISTED_MAX),
            )
        ]
        limit = max(1, min(limit, LISTED_MAX))
        per_name = max(1, limit // max(1, len(names)))
        documents = []
        for item in names:
            rows = _rows(connection, "TRUE ORDER BY run DESC, seq DESC LIMIT ?", (item, per_name))
            for place, row in enumerate(rows):
                problem = _problem(connection, files, row, payload=verify or place == 0)
                documents.append(row.checkpoint.document() | {"valid": problem is None, "problem": problem})
        return {
            "checkpoints": documents,
            "names": [_name_document(connection, item) for item in names],
        }


def read_spooled(data_dir: str, name: str | None, now_ms: int) -> list[Spooled]:
    """Return what waits in the spool, of `name` alone if that is given; what is wrong is passed over.

    Args:
        data_dir: of the system.
        name: an application.
        now_ms: when states were taken that do not tell.
    """
    found = []
    for entry in peek(data_dir, CHECKPOINTER):
        arguments = entry.arguments
        if name is not None and arguments.get("name") != name:
            continue
        try:
            if entry.op == OP_SAVE:
                save = parse_save(entry.id, arguments, entry.raw, now_ms, acknowledged=True)
                found.append(Spooled(save.run, save))
            elif entry.op in {OP_BEGIN, OP_END}:
                run, holder = parse_run(arguments.get("run")), parse_holder(arguments)
                found.append(Spooled(run, holder=holder, ends=entry.op == OP_END))
        except ProtocolError:
            continue
    return found


def chain_problems(data_dir: str, name: str) -> list[int]:
    """Return the numbers at which the chain of a name does not hold.

    Raises:
        DatabaseError: the database cannot be read.
    """
    with reading(_database(data_dir), READ_S_MAX) as connection:
        return _chain_problems(connection, name) if _has_tables(connection) else []


def timestamp_text(milliseconds: int) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def recover_from(
    connection: apsw.Connection | None, data_dir: str, name: str, run: bytes | None, spooled: Sequence[Spooled] = ()
) -> Found:
    """Return what `recover` returns, from a connection inside a transaction; None: there is no database."""
    files = PayloadFiles(data_dir)
    runs = Runs(name, _stored_runs(connection, name) if connection is not None else (), _is_alive)
    states: list[tuple[int, Save]] = []
    for item in _not_taken_in(connection, spooled):
        if item.save is not None:
            states.append((runs.saves(item.run, acknowledged=True), item.save))
        elif item.run is not None:
            runs.begin(item.run, item.holder)
            if item.ends:
                runs.end(item.run)
    bound = runs.bound(run)
    states = [state for state in states if state[0] <= bound]
    stored_run = None if connection is None else _newest_run(connection, name, bound)
    newest_run = max([number for number, _ in states] + ([] if stored_run is None else [stored_run]), default=None)
    decision = runs.decide(run, newest_run)
    found = Found(decision.reason)
    if decision.returns:
        _newest_valid(connection, files, name, decision, states, found)
    return found


def _newest_valid(
    connection: apsw.Connection | None,
    files: PayloadFiles,
    name: str,
    decision: Decision,
    states: list[tuple[int, Save]],
    found: Found,
) -> None:
    """Enter the newest state of runs up to `decision.run_max`; what is spooled is later than what is stored."""
    for number in sorted({number for number, _ in states}, reverse=True):
        if connection is not None:
            _first_valid(connection, files, "run <= ? AND run > ?", (name, decision.run_max, number), found)
        if found.checkpoint is None:
            save = [save for of_run, save in states if of_run == number][-1]
            found.checkpoint, found.payload = _of_spool(save), save.payload
        return
    if connection is not None:
        _first_valid(connection, files, "run <= ?", (name, decision.run_max), found)


def _first_valid(
    connection: apsw.Connection, files: PayloadFiles, condition: str, values: Sequence[object], found: Found
) -> None:
    for row in _rows(connection, f"{condition} ORDER BY run DESC, seq DESC", values):
        try:
            found.payload = _payload(connection, files, row)
        except Damaged as damage:
            found.skipped.append((row.checkpoint.name, row.checkpoint.seq or 0, f"the payload {damage}"))
            continue
        found.checkpoint = row.checkpoint
        return


def _problem(connection: apsw.Connection, files: PayloadFiles, row: _Row, *, payload: bool) -> str | None:
    if payload:
        try:
            _payload(connection, files, row)
        except Damaged as damage:
            return str(damage)
        return None
    if not row.link.holds:
        return "its description is not the one that was saved"
    size_bytes = row.stored_bytes if row.file is None else files.size_bytes(row.file)
    return None if size_bytes == row.stored_bytes else "its file is missing or has another size"


def _payload(connection: apsw.Connection, files: PayloadFiles, row: _Row) -> bytes:
    """Return a checkpoint's payload.

    Raises:
        Damaged: it, or its description, is not what was saved.
    """
    if not row.link.holds:
        raise Damaged("its description is not the one that was saved")
    checkpoint = row.checkpoint
    if row.file is not None:
        stored = files.read(row.file, row.stored_bytes)
    else:
        stored = connection.execute(
            "SELECT payload FROM checkpoints WHERE name = ? AND seq = ?", (checkpoint.name, checkpoint.seq)
        ).get
        if type(stored) is not bytes:
            raise Damaged("is missing")
    try:
        encoding = Encoding(row.encoding)
    except ValueError:
        raise Damaged("has an unknown encoding") from None
    return decode(stored, encoding, checkpoint.size_bytes, checkpoint.sha256)


def _rows(connection: apsw.Connection, condition: str, values: Sequence[object]) -> Iterator[_Row]:
    """Yield descriptions of the checkpoints of name ``values[0]`` that `condition`, a constant text, selects."""
    statement = f"SELECT {_DESCRIPTION} FROM checkpoints WHERE name = ? AND {condition}"  # noqa: S608 - constants
    rows: Iterable[Any] = connection.execute(statement, tuple(values))
    for name, seq, run, id_, timestamp_ms, confirmed_ms, size_bytes, sha256, kind, prev_hash, hash_, *stored in rows:
        encoding, stored_bytes, file = stored
        checkpoint = Checkpoint(name, seq, id_, timestamp_ms, size_bytes, sha256, kind, confirmed_ms)
        link = Link(Description(name, seq, id_, sha256, timestamp_ms), prev_hash, hash_)
        yield _Row(checkpoint, run, link, encoding, stored_bytes, file)


def _name_document(connection: apsw.Connection, name: str) -> dict[str, Any]:
    count, stored_bytes = connection.execute(
        "SELECT count(*), coalesce(sum(stored_bytes), 0) FROM checkpoints WHERE name = ?", (name,)
    ).get
    lost = connection.execute(
        "SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM checkpoint_gaps WHERE name = ? AND lost", (name,)
    ).get
    return {
        "name": name,
        "count": count,
        "stored_bytes": stored_bytes,
        "lost": lost,
        "chain_broken_at": _chain_problems(connection, name)[:SKIPPED_TOLD_MAX],
    }


def _chain_problems(connection: apsw.Connection, name: str) -> list[int]:
    links = [
        Link(Description(name, seq, id_, sha256, timestamp_ms), prev_hash, hash_)
        for seq, id_, sha256, timestamp_ms, prev_hash, hash_ in connection.execute(
            "SELECT seq, id, sha256, timestamp_ms, prev_hash, hash FROM checkpoints WHERE name = ?", (name,)
        )
    ]
    gaps = [
        Gap(first, last, prev_hash, last_hash, bool(lost))
        for first, last, prev_hash, last_hash, lost in connection.execute(
            "SELECT first_seq, last_seq, prev_hash, last_hash, lost FROM checkpoint_gaps WHERE name = ?", (name,)
        )
    ]
    return broken_links(links, gaps)


def _stored_runs(connection: apsw.Connection, name: str) -> list[Run]:
    return [
        Run(id_, number, bool(ended), None if pid is None else Holder(pid, start_time, boot_id))
        for id_, number, ended, pid, start_time, boot_id in connection.execute(
            "SELECT id, number, ended, pid, start_time, boot_id FROM checkpoint_runs WHERE name = ?", (name,)
        )
    ]


def _newest_run(connection: apsw.Connection, name: str, bound: int) -> int | None:
    newest: int | None = connection.execute(
        "SELECT max(run) FROM checkpoints WHERE name = ? AND run <= ?", (name, bound)
    ).get
    return newest


def _not_taken_in(connection: apsw.Connection | None, spooled: Sequence[Spooled]) -> Sequence[Spooled]:
    """Return what the owner has not taken in yet: what follows the last one that it has, for it goes in order."""
    if connection is None:
        return spooled
    for place in range(len(spooled), 0, -1):
        save = spooled[place - 1].save
        if save is not None and connection.execute("SELECT 1 FROM checkpoints WHERE id = ?", (save.id,)).get:
            return spooled[place:]
    return spooled


def _of_spool(save: Save) -> Checkpoint:
    return Checkpoint(
        save.name,
        None,
        save.id,
        save.timestamp_ms,
        len(save.payload),
        digest(save.payload),
        save.format,
        save.timestamp_ms,
    )


def _has_tables(connection: apsw.Connection) -> bool:
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'checkpoint_runs')").get)


def _is_alive(holder: Holder) -> bool:
    return ProcessIdentity(holder.pid, holder.start_time, holder.boot_id).is_running()


def _database(data_dir: str) -> str:
    return os.path.join(data_dir, DATABASE_FILE)


def not_found(name: str, seq: int | None) -> LocalError:
    """Return the error that there is no such checkpoint."""
    what = f"no checkpoint of {name!r}" if seq is None else f"no checkpoint {seq} of {name!r}"
    return LocalError(ErrorCode.FAILED, f"there is {what}", "See `relctl checkpoint-info`.")
