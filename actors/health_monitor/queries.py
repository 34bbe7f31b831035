"""Reading the history of health: for the actor, and for relctl when no actor answers. Connections are READONLY."""

from datetime import UTC, datetime
from typing import Any, Final

from actors.runtime.database import reading

HISTORY_ROWS_MAX: Final = 1000
_COLUMNS: Final = ("timestamp_ms", "name", "status", "message", "value", "unit")


def read_history(path: str, name: str | None = None, limit: int = 100) -> dict[str, Any]:
    """Return ``{"history": [...]}``, the newest rows (of check `name`) first, from the database at `path`.

    Raises:
        DatabaseError: it cannot be read.
    """
    statement = (
        f"SELECT {', '.join(_COLUMNS)} FROM health_history"  # noqa: S608 - names of columns
        " WHERE ?1 IS NULL OR name = ?1 ORDER BY id DESC LIMIT ?2"
    )
    with reading(path) as connection:
        rows = connection.execute(statement, (name, max(0, min(limit, HISTORY_ROWS_MAX)))).fetchall()
    history = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    for entry in history:
        entry["timestamp"] = _timestamp(entry.pop("timestamp_ms"))
    return {"history": history}


def read_probe(path: str) -> None:
    """Read one small row, to see whether that works.

    Raises:
        DatabaseError: it does not.
    """
    with reading(path) as connection:
        connection.execute("SELECT written_ms FROM health_probe").fetchall()


def _timestamp(milliseconds: Any) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
