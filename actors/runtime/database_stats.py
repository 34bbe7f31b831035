"""What there is to know of a database without changing it: sizes, pages, pragmas, tables. Within a stated time.

Rows are counted only as far as the time goes. Sizes are those of the system's files (`os.stat`): nothing is opened
twice.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Final

import apsw

from actors.runtime.database import reading
from actors.runtime.database_guard import SHM_SUFFIX, WAL_SUFFIX
from actors.runtime.database_report import last_repair

TABLES_MAX: Final = 500
_PROGRESS_STEPS: Final = 10_000
_FILE_PRAGMAS: Final = ("journal_mode", "encoding", "auto_vacuum", "user_version", "application_id", "schema_version")
_CONNECTION_PRAGMAS: Final = ("synchronous", "cache_size", "temp_store", "busy_timeout", "foreign_keys")


def read_stats(
    connection: apsw.Connection, path: str, rows_budget_s: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Return what is known of the database at `path`, over a connection to it.

    ``tables`` has ``{"name", "rows"}``: rows are null where the budget had run out. ``connection_pragmas`` are
    those of this connection: every connection has its own.
    """
    page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
    free = connection.pragma("freelist_count")
    pragmas = {name: connection.pragma(name) for name in _FILE_PRAGMAS}
    return {
        "path": path,
        "bytes": _size(path),
        "wal_bytes": _size(path + WAL_SUFFIX),
        "shm_bytes": _size(path + SHM_SUFFIX),
        "page_size": page_size,
        "page_count": page_count,
        "free_pages": free,
        "free_bytes": free * page_size,
        "free_percent": round(100 * free / page_count, 1) if page_count else 0.0,
        "pragmas": pragmas,
        "connection_pragmas": {name: connection.pragma(name) for name in _CONNECTION_PRAGMAS},
        "sqlite_version": apsw.sqlite_lib_version(),
        "analyzed": bool(
            connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_stat1')").get
        ),
        "tables": _tables(connection, clock() + rows_budget_s, clock),
    }


def stats_of(path: str, rows_budget_s: float, limit_s: float) -> dict[str, Any]:
    """Return the same of a database of ours, over a READONLY connection, with its schema versions and last repair.

    Raises:
        DatabaseError: it cannot be read.
    """
    with reading(path, limit_s) as connection:
        stats = read_stats(connection, path, rows_budget_s)
        versions: dict[Any, Any] = dict(connection.execute("SELECT owner, version FROM schema_versions ORDER BY 1"))
    return stats | {"schema_versions": versions, "last_repair": last_repair(path)}


def _tables(connection: apsw.Connection, until: float, clock: Callable[[], float]) -> list[dict[str, Any]]:
    names = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            " ORDER BY name LIMIT ?",
            (TABLES_MAX,),
        )
    ]
    late = object()
    connection.set_progress_handler(lambda: clock() > until, _PROGRESS_STEPS, id=late)
    tables: list[dict[str, Any]] = []
    try:
        for name in names:
            rows = None
            if clock() <= until:
                try:
                    quoted = name.replace('"', '""')
                    rows = connection.execute(f'SELECT count(*) FROM "{quoted}"').get  # noqa: S608 - of the schema
                except (apsw.InterruptError, apsw.SQLError):  # a virtual table whose module is not here
                    rows = None
            tables.append({"name": name, "rows": rows})
    finally:
        connection.set_progress_handler(None, id=late)
    return tables


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
