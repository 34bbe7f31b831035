"""The tables of health_monitor: every statement that writes them stands here; `queries` reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from actors.runtime.database import Database, Migration, Schema
from protocol.names import HEALTH_MONITOR

SCHEMA: Final = Schema(
    HEALTH_MONITOR,
    (
        Migration(
            """
            CREATE TABLE health_history (
                id INTEGER PRIMARY KEY,
                timestamp_ms INTEGER NOT NULL,
                name TEXT NOT NULL,
                status TEXT NOT NULL,
                message TEXT NOT NULL,
                value REAL,
                unit TEXT NOT NULL
            ) STRICT;
            CREATE INDEX health_history_by_name ON health_history (name, id);
            CREATE TABLE health_probe (
                id INTEGER PRIMARY KEY CHECK (id = 1),
                written_ms INTEGER NOT NULL
            ) STRICT;
            """,
            usable_from=1,
        ),
    ),
)

PRUNED_ROWS_MAX: Final = 1000
"""Old rows deleted in one transaction, several times what one adds."""
WRITE_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """How one check stood at one time."""

    timestamp_ms: int
    name: str
    status: str
    message: str
    value: float | None
    unit: str


class HealthStore:
    """Writes the history; the only one that does."""

    def __init__(self, database: Database) -> None:
        """Write through `database`, whose schema is `SCHEMA`."""
        self.database = database

    def record(self, rows: Sequence[HistoryRow], keep_from_ms: int) -> None:
        """Commit `rows`, and delete some of what is older than `keep_from_ms`.

        Raises:
            DatabaseError: nothing is stored.
        """

        def work(connection: apsw.Connection) -> None:
            connection.executemany(
                "INSERT INTO health_history (timestamp_ms, name, status, message, value, unit)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(row.timestamp_ms, row.name, row.status, row.message, row.value, row.unit) for row in rows],
            )
            connection.execute(
                "DELETE FROM health_history WHERE timestamp_ms < ?"
                " AND id IN (SELECT id FROM health_history ORDER BY id LIMIT ?)",
                (keep_from_ms, PRUNED_ROWS_MAX),
            )

        self.database.write(work, WRITE_PATIENCE_S)


def write_probe(database: Database, now_ms: int, patience_s: float) -> None:
    """Commit one small row, to see whether that works.

    Raises:
        DatabaseError: it does not.
    """

    def work(connection: apsw.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO health_probe (id, written_ms) VALUES (1, ?)", (now_ms,))

    database.write(work, patience_s)
