"""The tables of checkpointer, and the rows of those that only `store` and `upkeep` write. Worker thread only."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import apsw

from actors.checkpointer.core import GENESIS, Gap, Holder
from actors.checkpointer.payloads import Head, Stored
from actors.checkpointer.retention import Kept
from actors.checkpointer.runs import RUNS_KEPT_MAX, Run, Runs
from actors.runtime.database import Migration, Schema
from actors.runtime.identity import ProcessIdentity
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

NEWEST: Final = (
    "SELECT seq, run, id, timestamp_ms, size_bytes, sha256, format FROM checkpoints"
    " WHERE name = ? ORDER BY run DESC, seq DESC LIMIT 1"
)
"""The newest checkpoint of a name."""


def holder_is_alive(holder: Holder) -> bool:
    """Tell whether the process of a run still runs."""
    return ProcessIdentity(holder.pid, holder.start_time, holder.boot_id).is_running()


def columns(stored: Stored) -> tuple[str, int, str | None, bytes | None]:
    """Return what the columns of a payload hold."""
    return stored.encoding, stored.stored_bytes, stored.file, stored.blob


def load_head(connection: apsw.Connection, name: str) -> Head:
    """Return the end of a name's chain."""
    row = connection.execute("SELECT seq, hash, timestamp_ms FROM checkpoint_names WHERE name = ?", (name,)).fetchone()
    return Head(*row) if row else Head(0, GENESIS, 0)


def put_head(connection: apsw.Connection, name: str, head: Head) -> None:
    """Keep the end of a name's chain."""
    connection.execute(
        "INSERT OR REPLACE INTO checkpoint_names (name, seq, hash, timestamp_ms) VALUES (?, ?, ?, ?)",
        (name, head.seq, head.hash, head.timestamp_ms),
    )


def load_runs(connection: apsw.Connection, name: str) -> Runs:
    """Return the runs of a name."""
    rows: Iterable[Any] = connection.execute(
        "SELECT id, number, ended, pid, start_time, boot_id FROM checkpoint_runs WHERE name = ?", (name,)
    )
    runs = [
        Run(id_, number, bool(ended), None if pid is None else Holder(pid, start_time, boot_id))
        for id_, number, ended, pid, start_time, boot_id in rows
    ]
    return Runs(name, runs, holder_is_alive)


def store_runs(connection: apsw.Connection, name: str, runs: Runs) -> None:
    """Keep what has changed of the runs of a name, and forget the oldest."""
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


def load_kept(connection: apsw.Connection, name: str) -> list[Kept]:
    """Return the checkpoints of a name as the retention sees them."""
    rows: Iterable[Any] = connection.execute(
        "SELECT seq, timestamp_ms, stored_bytes, damaged, run FROM checkpoints WHERE name = ?", (name,)
    )
    return [
        Kept(seq, timestamp_ms, stored_bytes, bool(damaged), run)
        for seq, timestamp_ms, stored_bytes, damaged, run in rows
    ]


def load_gaps(connection: apsw.Connection, name: str) -> list[Gap]:
    """Return the gaps in the numbers of a name."""
    rows: Iterable[Any] = connection.execute(
        "SELECT first_seq, last_seq, prev_hash, last_hash, lost FROM checkpoint_gaps WHERE name = ?", (name,)
    )
    return [Gap(first, last, prev_hash, last_hash, bool(lost)) for first, last, prev_hash, last_hash, lost in rows]


def store_gaps(connection: apsw.Connection, name: str, before: Sequence[Gap], after: Sequence[Gap]) -> None:
    """Keep the gaps of a name: `after`, where there was `before`."""
    """Return the columns of a payload."""
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
