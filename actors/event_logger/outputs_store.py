"""Table `output_positions`: how far the output of programs was taken in. Inside the transactions of `store`."""

from collections.abc import Mapping, Sequence
from typing import Final

import apsw

from actors.event_logger.event_table import EventTable, Stored
from actors.event_logger.outputs_core import OutputPosition, Skipped
from actors.event_logger.records import Event

TABLE: Final = """
CREATE TABLE output_positions (
    program TEXT NOT NULL,
    inode INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    base INTEGER NOT NULL,
    mark BLOB NOT NULL,
    head BLOB NOT NULL,
    length INTEGER NOT NULL,
    skipped_lines INTEGER NOT NULL,
    skipped_bytes INTEGER NOT NULL,
    skipped_offset INTEGER NOT NULL,
    PRIMARY KEY (program, inode)
) STRICT, WITHOUT ROWID;
"""
_COLUMNS: Final = "program, inode, rank, offset, base, mark, head, length, skipped_lines, skipped_bytes, skipped_offset"


class OvertakenError(Exception):
    """Somebody else has taken in more of a file than this process knows of: a successor of a life that was frozen."""


def read_positions(connection: apsw.Connection) -> list[OutputPosition]:
    """Return how far every file was taken in."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM output_positions")  # noqa: S608 - names of columns
    return [
        OutputPosition(program, inode, rank, offset, base, mark, head, length, Skipped(*skipped))
        for program, inode, rank, offset, base, mark, head, length, *skipped in rows
    ]


def take_in(
    connection: apsw.Connection,
    log: EventTable,
    events: Sequence[Event],
    positions: Sequence[OutputPosition],
    gone: Sequence[tuple[str, int]],
    known: Mapping[tuple[str, int], int],
) -> list[Stored]:
    """Add events together with how far the files were read for them; `known` is how far, as this process stored it.

    Raises:
        OvertakenError: the table knows of more; roll back, and read the positions anew.
    """
    for position in positions:
        key = position.program, position.inode
        row = connection.execute(
            "SELECT base + offset FROM output_positions WHERE program = ? AND inode = ?", key
        ).fetchone()
        if row is not None and row[0] > known.get(key, 0) and not _holds(connection, events):
            raise OvertakenError(position.program)
    stored = log.append(connection, events)
    connection.executemany(
        f"INSERT OR REPLACE INTO output_positions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        [_values(position) for position in positions],
    )
    connection.executemany("DELETE FROM output_positions WHERE program = ? AND inode = ?", gone)
    return stored


def _holds(connection: apsw.Connection, events: Sequence[Event]) -> bool:
    """Tell whether these very events are there: a commit that is tried again, because it seemed to fail."""
    find = "SELECT EXISTS (SELECT 1 FROM events WHERE id = ?)"
    return bool(events) and bool(connection.execute(find, (events[0].id,)).get)


def _values(item: OutputPosition) -> tuple[object, ...]:
    place = (item.program, item.inode, item.rank, item.offset, item.base)
    return (*place, item.mark, item.head, item.length, *item.skipped)
