"""Saving what can be read of a damaged database into a new file, row by row where it must be.

Every table with a rowid is copied in slices, each one statement and one transaction. A slice that meets damage, or a
row that the new table refuses, is halved until single rows are left: those are lost, all others are saved. Tables,
indexes and `schema_versions` come over as they are, so every owner finds its own version. Rows that carry a digest are
their owners' to verify: a flipped bit in a value is no damage that SQLite could see.
"""

import os
import struct
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from actors.runtime.database import PAGE_BYTES

SLICE_ROWS_MAX: Final = 10_000
PROBES_MAX: Final = 200_000
"""Statements spent in damaged ranges of one table; past it the rest of them counts as lost."""
DAMAGED_ROWS_MAX: Final = 1000
"""Rowids of which each is tried where there is damage; if all of them are lost, strides are taken past it."""
_ROWID_MAX: Final = 2**63 - 1
_PROGRESS_STEPS: Final = 20_000
_WRITING: Final = frozenset(
    {apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_TRUNCATE, apsw.SQLITE_IOERR_DELETE}
)
_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = struct.Struct(">16sHBBBBBBIIIIIIIIIII")
"""The first 72 bytes of a database file without its application_id (https://www.sqlite.org/fileformat.html)."""
_CREATE: Final = ("CREATE TABLE ", "CREATE INDEX ", "CREATE UNIQUE INDEX ")
_UNREADABLE: Final = (apsw.CorruptError, apsw.IOError, apsw.NotADBError)
_REFUSED: Final = (apsw.ConstraintError, apsw.MismatchError)

Progress = Callable[[str, int], None]
"""Called with the table that is being saved, and how many of its rows are."""


@dataclass(slots=True)
class TableReport:
    """What became of one table.

    Attributes:
        rows: saved.
        lost: known to be lost; None if rows were lost and nobody can say how many.
    """

    rows: int = 0
    lost: int | None = 0


@dataclass(slots=True)
class SalvageReport:
    """What became of a database.

    Attributes:
        tables: by name.
        schema_readable: whether its tables could be found at all.
        complete: whether everything was looked at; False if time ran out.
        refused: indexes that could not be made anew.
    """

    tables: dict[str, TableReport] = field(default_factory=dict)
    schema_readable: bool = True
    complete: bool = True
    refused: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows saved in all tables."""
        return sum(table.rows for table in self.tables.values())

    @property
    def lost(self) -> int | None:
        """Rows lost in all tables; None if nobody can say."""
        counts = [table.lost for table in self.tables.values()]
        if not (self.schema_readable and self.complete) or None in counts:
            return None
        return sum(count for count in counts if count is not None)


def salvage(
    source: str, target: str, application_id: int, must_stop: Callable[[], bool], progress: Progress
) -> SalvageReport:
    """Save what can be read of `source` (and its -wal) into the new file `target`; `source` stays as it is.

    Args:
        source: the damaged database, which nobody writes to.
        target: a path where no file is yet. It is not synced.
        application_id: of the new file.
        must_stop: asked often; once it returns True the report is not complete.
        progress: told how far it is.

    Raises:
        apsw.Error: the new file cannot be written.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(target, flags=flags)
    headed = _Headed(source, application_id)  # lives as long as the connection
    try:
        connection.pragma("page_size", PAGE_BYTES)
        connection.pragma("journal_mode", "MEMORY")
        connection.pragma("synchronous", "OFF")
        connection.pragma("temp_store", "MEMORY")
        connection.pragma("application_id", application_id)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        # A damaged entry of the schema is passed over instead of hiding all others.
        connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        report = SalvageReport()
        location = f"file:{urllib.parse.quote(source)}?mode=ro"
        schema = _attach(connection, location) or _attach(connection, f"{location}&vfs={headed.name}")
        report.schema_readable = bool(schema)
        connection.set_progress_handler(must_stop, _PROGRESS_STEPS)
        _Salvage(connection, report, must_stop, progress).run(schema)
        connection.set_progress_handler(None)
        return report
    finally:
        connection.close(True)


class _Headed(apsw.VFS):
    """Shows a file whose header is lost as if it had the one that all of ours have; the file stays as it is."""

    name: Final = "relctl-headed"

    def __init__(self, source: str, application_id: int) -> None:
        """Make the header of `source`. The list of free pages is given up: it is of no use to who only reads."""
        pages = os.stat(source).st_size // PAGE_BYTES
        self._source = source
        self._header = _HEADER.pack(_MAGIC, PAGE_BYTES, 2, 2, 0, 64, 32, 32, 1, pages, 0, 0, 1, 4, 0, 0, 1, 0, 0) + (
            application_id.to_bytes(4) + bytes(20) + (1).to_bytes(4) + apsw.SQLITE_VERSION_NUMBER.to_bytes(4)
        )
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's
        """Open one file; the database is shown with its header."""
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _HeadedFile(name, flags, self._header if filename == self._source else b"")


class _HeadedFile(apsw.VFSFile):
    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int], header: bytes) -> None:
        self._header = header
        super().__init__("", name, flags)

    def xLock(self, level: int) -> None:  # noqa: N802 - apsw's
        """Take a lock; the last one out asks for one to write, which a file opened to be read cannot have."""
        try:
            super().xLock(level)
        except apsw.IOError:
            raise apsw.BusyError from None

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's
        data = super().xRead(amount, offset)
        if offset < len(self._header):
            shown = self._header[offset : offset + len(data)]
            return shown + data[len(shown) :]
        return data


def _is_of_target(error: BaseException) -> bool:
    """Tell whether an error is one of writing: then it is the new file's, and nothing may count as lost for it."""
    return isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) in _WRITING


def _attach(connection: apsw.Connection, location: str) -> list[tuple[str, str]]:
    """Attach the damaged database and return its schema; if that cannot be read, nothing, and it is not attached."""
    try:
        connection.execute("ATTACH ? AS damaged", (location,))
    except (*_UNREADABLE, apsw.SQLError, apsw.CantOpenError):
        return []
    try:
        connection.pragma("cell_size_check", True)
        if schema := _schema(connection):
            return schema
    except (*_UNREADABLE, apsw.SQLError, apsw.CantOpenError):
        pass
    connection.execute("DETACH damaged")
    return []


def _schema(connection: apsw.Connection) -> list[tuple[str, str]]:
    """Return name and statement of what can be found, tables before indexes."""
    found: dict[str, tuple[str, str]] = {}
    for order in ("ASC", "DESC"):  # from both ends, as far as each goes
        select = f"SELECT type, name, sql FROM damaged.sqlite_schema ORDER BY rowid {order}"  # noqa: S608
        try:
            for kind, name, sql in connection.execute(select):
                usable = isinstance(sql, str) and isinstance(name, str) and sql.startswith(_CREATE)
                if kind in {"table", "index"} and usable and not name.startswith("sqlite_"):
                    found.setdefault(name, (kind, sql))
        except _UNREADABLE:
            continue
        break
    return [(name, sql) for wanted in ("table", "index") for name, (kind, sql) in found.items() if kind == wanted]


class _Salvage:
    """One salvage: tables, then their rows, then indexes."""

    def __init__(
        self, connection: apsw.Connection, report: SalvageReport, must_stop: Callable[[], bool], progress: Progress
    ) -> None:
        self._connection = connection
        self._report = report
        self._must_stop = must_stop
        self._progress = progress
        self._probes = 0

    def run(self, schema: list[tuple[str, str]]) -> None:
        """Save what `schema` names."""
        for name, sql in schema:
            try:
                if sql.startswith("CREATE TABLE"):
                    self._connection.execute(sql)
                    self._report.tables[name] = TableReport()
                    self._table(name)
                else:
                    self._connection.execute(sql)
            except apsw.InterruptError:
                self._report.complete = False
            except _UNREADABLE as error:
                if _is_of_target(error):
                    raise
                self._report.tables.setdefault(name, TableReport()).lost = None
            except (apsw.SQLError, *_REFUSED):
                self._report.refused.append(name)

    def _table(self, name: str) -> None:
        report = self._report.tables[name]
        columns = [row[1] for row in self._connection.execute("SELECT * FROM pragma_table_info(?, 'main')", (name,))]
        self._probes = 0
        try:
            if self._has_no_rowid(name):
                self._keyed(name, columns, report)
            else:
                self._numbered(name, columns, report)
                self._count(name, report)
        finally:
            self._progress(name, report.rows)

    # --- tables with a rowid ---

    def _numbered(self, name: str, columns: list[str], report: TableReport) -> None:
        names = ", ".join(f'"{column}"' for column in columns)
        copy = (
            f'INSERT INTO main."{name}" (rowid, {names}) SELECT rowid, {names} FROM damaged."{name}"'  # noqa: S608 - of a schema
            " WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ?"
        )
        key = next((c for c in columns if self._is_rowid(name, c)), None)
        if key is not None:
            copy = (
                f'INSERT INTO main."{name}" ({names}) SELECT {names} FROM damaged."{name}"'  # noqa: S608 - of a schema
                " WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ?"
            )
        first, last = self._edge(name, "min"), self._edge(name, "max")
        # The first key of a damaged page may be any number: ours begin at 0 or 1.
        position = min(first, 1) if first is not None else 0
        while last is None or position <= last:
            end = _ROWID_MAX if last is None else last
            count = self._copy(copy, position, end, SLICE_ROWS_MAX)
            if count is not None:
                report.rows += count
                if count < SLICE_ROWS_MAX:
                    return
                position = self._last_rowid(name) + 1
                self._progress(name, report.rows)
                continue
            end = min(position + DAMAGED_ROWS_MAX - 1, end)
            position, saved = end + 1, self._halve(copy, position, end, report)
            if not saved:
                found = self._readable_from(name, position, last)
                report.lost = None if found != position else report.lost
                if found is None:
                    return
                position = found

    def _readable_from(self, name: str, position: int, last: int | None) -> int | None:
        """Return a place behind damage from which on rows can be read again; None if there is none, or no time."""
        statement = f'SELECT rowid FROM damaged."{name}" WHERE rowid >= ? ORDER BY rowid LIMIT 1'  # noqa: S608 - of a schema
        stride = 1
        while position <= (_ROWID_MAX if last is None else last) and self._probes <= PROBES_MAX:
            self._probes += 1
            try:
                found: int | None = self._connection.execute(statement, (position,)).get
                return found
            except _UNREADABLE:
                position += stride
                stride *= 2
        return None

    def _copy(self, statement: str, first: int, last: int, limit: int) -> int | None:
        """Copy one range and return how many rows that were; None if it has damage."""
        before = self._connection.total_changes()
        self._connection.execute("BEGIN")
        try:
            self._connection.execute(statement, (first, last, limit))
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, (*_UNREADABLE, *_REFUSED)) and not _is_of_target(error):
                return None
            raise
        return self._connection.total_changes() - before

    def _halve(self, statement: str, first: int, last: int, report: TableReport) -> int:
        """Copy what can be of a range that has damage; return how many rows that were."""
        saved = 0
        ranges = [(first, last)]
        while ranges:
            low, high = ranges.pop()
            self._probes += 1
            if self._probes > PROBES_MAX:
                report.lost = None
                return saved
            count = self._copy(statement, low, high, high - low + 1)
            if count is not None:
                saved += count
                report.rows += count
            elif low == high:
                report.lost = None if report.lost is None else report.lost + 1
            else:
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]
        return saved

    def _edge(self, name: str, which: str) -> int | None:
        """Return the first or last rowid; None if it cannot be read."""
        try:
            value = self._connection.execute(f'SELECT {which}(rowid) FROM damaged."{name}"').get  # noqa: S608 - of a schema
        except _UNREADABLE:
            return None
        if value is None:
            return -1 if which == "max" else 0
        return int(value)

    def _count(self, name: str, report: TableReport) -> None:
        """Correct the loss where the rows can still be counted: an index tells of rows that are gone."""
        try:
            expected = self._connection.execute(f'SELECT count(*) FROM damaged."{name}"').get  # noqa: S608 - of a schema
        except _UNREADABLE:
            return
        report.lost = max(0, expected - report.rows)

    def _is_rowid(self, name: str, column: str) -> bool:
        row = self._connection.execute(
            "SELECT type, pk FROM pragma_table_info(?, 'main') WHERE name = ?", (name, column)
        ).fetchone()
        return row is not None and str(row[0]).upper() == "INTEGER" and row[1] == 1 and self._keys(name) == 1

    def _has_no_rowid(self, name: str) -> bool:
        try:
            self._connection.execute(f'SELECT rowid FROM main."{name}" LIMIT 0')  # noqa: S608 - of a schema
        except apsw.SQLError:
            return True
        return False

    def _keys(self, name: str) -> int:
        count: int = self._connection.execute("SELECT sum(pk > 0) FROM pragma_table_info(?, 'main')", (name,)).get
        return count

    def _last_rowid(self, name: str) -> int:
        value: int = self._connection.execute(f'SELECT max(rowid) FROM main."{name}"').get  # noqa: S608 - of a schema
        return value

    # --- tables without ---

    def _keyed(self, name: str, columns: list[str], report: TableReport) -> None:
        """Copy from both ends, as far as each goes: such tables are small."""
        names = ", ".join(f'"{column}"' for column in columns)
        rows = self._connection.execute(
            "SELECT name FROM pragma_table_info(?, 'main') WHERE pk > 0 ORDER BY pk", (name,)
        ).fetchall()
        keys = [f'"{row[0]}"' for row in rows]
        insert = f'INSERT OR IGNORE INTO main."{name}" ({names}) VALUES ({", ".join("?" * len(columns))})'  # noqa: S608
        for order in ("", " DESC"):
            by = ", ".join(key + order for key in keys)
            select = f'SELECT {names} FROM damaged."{name}" ORDER BY {by}'  # noqa: S608 - of a schema
            try:
                for row in self._connection.execute(select):
                    try:
                        report.rows += self._added(insert, row)
                    except _REFUSED:
                        report.lost = None if report.lost is None else report.lost + 1
            except _UNREADABLE as error:
                if _is_of_target(error):
                    raise
                report.lost = None
                continue
            return

    def _added(self, insert: str, row: tuple[Any, ...]) -> int:
        before = self._connection.total_changes()
        self._connection.execute(insert, row)
        return self._connection.total_changes() - before
