"""Reading the event log: for the actor itself, and for relctl when no actor answers. Connections are READONLY."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import apsw

from actors.event_logger.records import Event, EventFilter, event_document, format_timestamp, parse_filter
from actors.event_logger.searching import SEARCH_FILE, Conditions, Search
from actors.runtime.database import READ_S_MAX, reading
from actors.runtime.liveness import LauncherRecord, ProcessState
from protocol.errors import ErrorCode, LocalError
from protocol.limits import KIB
from protocol.severity import Severity

RESULT_BYTES_MAX: Final = 160 * KIB
"""What one reply on the control lane carries, with room for its encoding."""
SEQ_MAX: Final = 2**63 - 1
HISTORY_MAX: Final = 50
"""Restarts returned for one process, the newest."""
_SELECT: Final = "SELECT seq, id, timestamp_ms, severity, component, event_type, message, attributes FROM events"


def read_events(path: str, wanted: EventFilter, *, bytes_max: int = RESULT_BYTES_MAX) -> dict[str, Any]:
    """Return ``{"events": [...], "more": bool, "next_seq": int | None}`` from the database at `path`.

    Of more events than fit, those that the limit would drop first are left out and `more` is true; ask again with
    `next_seq` as `before_seq` (or as `after_seq`, if that was given) to get them. A search for a text says in `index`
    how far the index helped (`Search`), and stops after a while: `more` is true then, even if no event was found yet.

    Raises:
        DatabaseError: it cannot be read.
        LocalError: the pattern is no regular expression.
    """
    with reading(path, READ_S_MAX) as connection:
        if not _has_table(connection, "events"):
            return {"events": [], "more": False, "next_seq": None}
        if wanted.grep is not None:
            _load_regexp(connection, wanted.grep)
        if wanted.text is not None:
            index_path = os.path.join(os.path.dirname(path), SEARCH_FILE)
            return Search(connection, index_path, wanted, _conditions(wanted), bytes_max).run(time.monotonic)
        statement, values = _statement(wanted)
        documents: list[dict[str, Any]] = []
        size_bytes = 0
        more = False
        for seq, event_id, timestamp_ms, severity, *texts in connection.execute(statement, values):
            event = Event(event_id, timestamp_ms, Severity(severity), *texts)
            size_bytes += event.size_bytes + 100
            if len(documents) == wanted.limit or (documents and size_bytes > bytes_max):
                more = True
                break
            documents.append(event_document(seq, event))
    next_seq = documents[-1]["seq"] if more and documents else None
    if wanted.reverse != (wanted.after_seq is None):
        documents.reverse()
    return {"events": documents, "more": more, "next_seq": next_seq}


def query(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the operations `query` and `search` would answer to `arguments`, from the database at `path`.

    Raises:
        ProtocolError: an argument is wrong.
        DatabaseError, LocalError: as `read_events`.
    """
    return read_events(path, parse_filter(arguments))


def undrained(data_dir: str, runtime_dir: str, arguments: dict[str, Any], now_ms: int) -> list[dict[str, Any]]:
    """Return events of journals and spool that no table has yet, as `query` returns events; their seq is None.

    Oldest first; `arguments` are those of `query`, of which limit and places do not count.

    Raises:
        ProtocolError: an argument is wrong.
    """
    from actors.event_logger.undrained import read_undrained  # noqa: PLC0415 - for offline views alone

    return read_undrained(data_dir, runtime_dir, parse_filter(arguments), now_ms)


def verify_log(data_dir: str, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Return whether the event log in `data_dir` is what was written, from its table, files, roots and head.

    ``{"complete": bool, "checked": events, "finding_count": int, "findings": [{"kind", "seq", "where", "message"}],
    "spoilt_days": [days whose file alone is wrong], "broken_days": [days whose events in the table are not what was
    written]}``. The kinds are those of `actors.event_logger.verify`; `lost`
    alone is no sign of tampering. It reads in short slices, beside a running system or without one, until `stop` says
    so.

    Raises:
        DatabaseError: the table cannot be read.
        OSError: the files cannot be looked for.
    """
    from actors.event_logger import verification  # noqa: PLC0415 - a host that only queries has no need of it

    return verification.verify_log(data_dir, stop)


def read_restarts(path: str, name: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return the newest restarts of each process (or of `name`), newest first, from the database at `path`.

    Raises:
        DatabaseError: it cannot be read.
    """
    statement = (
        "SELECT name, timestamp_ms, reason, exit_code, signal, recovery_ms, incarnation, charged, manual, evidence FROM"
        " (SELECT *, row_number() OVER (PARTITION BY name ORDER BY timestamp_ms DESC, incarnation DESC) AS place"
        " FROM restart_records WHERE ?1 IS NULL OR name = ?1) WHERE place <= ?2 ORDER BY name, place"
    )
    history: dict[str, list[dict[str, Any]]] = {}
    with reading(path, READ_S_MAX) as connection:
        if not _has_table(connection, "restart_records"):
            return {}
        for process, timestamp_ms, *values, charged, manual, evidence in connection.execute(
            statement, (name, HISTORY_MAX)
        ):
            reason, exit_code, signal, recovery_ms, incarnation = values
            history.setdefault(process, []).append(
                {
                    "timestamp": format_timestamp(timestamp_ms),
                    "reason": reason,
                    "exit_code": exit_code,
                    "signal": signal,
                    "recovery_ms": recovery_ms,
                    "incarnation": incarnation,
                    "charged": bool(charged),
                    "manual": bool(manual),
                    "evidence": evidence,
                }
            )
    return history


def restart_status(
    records: Iterable[LauncherRecord], history: dict[str, list[dict[str, Any]]], name: str | None = None
) -> dict[str, Any]:
    """Join what the board says of each process with its restarts in the table: the answer of `restart_status`.

    A process that only one of the two knows is listed too; without a record its budget is null.
    """
    known = {record.name: record for record in records if name is None or record.name == name}
    processes = []
    for process in [*known, *(other for other in history if other not in known)]:
        record = known.get(process)
        processes.append(
            {
                "name": process,
                "restarts_in_period": record.restarts_in_period if record else None,
                "restarts_left": record.restarts_left if record else None,
                "quarantined": record.state == ProcessState.QUARANTINED if record else False,
                "history": history.get(process, []),
            }
        )
    return {"processes": processes}


def _has_table(connection: apsw.Connection, name: str) -> bool:
    """Tell whether the log has begun: until its first write is through, maybe behind another's lock, it is empty."""
    statement = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    return connection.execute(statement, (name,)).fetchone() is not None


def _statement(wanted: EventFilter) -> tuple[str, tuple[object, ...]]:
    conditions = _conditions(wanted)
    order = "DESC" if wanted.after_seq is None else "ASC"
    after_seq = -1 if wanted.after_seq is None else wanted.after_seq
    before_seq = SEQ_MAX if wanted.before_seq is None else wanted.before_seq
    # Text is put together from constants; every value is bound.
    statement = f"{_SELECT} WHERE seq > ? AND seq < ? AND {conditions.sql} ORDER BY seq {order} LIMIT ?"
    return statement, (after_seq, before_seq, *conditions.values, wanted.limit + 1)


def _conditions(wanted: EventFilter) -> Conditions:
    """Return what is asked of an event whatever its place and its text."""
    conditions: list[tuple[str, object]] = []
    if wanted.component is not None:
        conditions.append(("component = ?", wanted.component))
    if wanted.since_ms is not None:
        conditions.append(("timestamp_ms >= ?", wanted.since_ms))
    if wanted.until_ms is not None:
        conditions.append(("timestamp_ms <= ?", wanted.until_ms))
    if wanted.low > Severity.TRACE:
        conditions.append(("severity >= ?", int(wanted.low)))
    if wanted.high < Severity.FATAL:
        conditions.append(("severity <= ?", int(wanted.high)))
    if wanted.grep is not None:
        conditions.append(("message REGEXP ?", wanted.grep))
    sql = " AND ".join(text for text, _ in conditions) or "TRUE"
    return Conditions(sql, tuple(value for _, value in conditions))


def _load_regexp(connection: apsw.Connection, pattern: str) -> None:
    """Give the connection REGEXP. SQLite's own takes linear time; Python's could hold the interpreter for hours."""
    from apsw import sqlite_extra  # noqa: PLC0415 - costs tens of milliseconds, and few queries need it

    try:
        sqlite_extra.load(connection, "regexp")
        connection.execute("SELECT '' REGEXP ?", (pattern,)).get  # noqa: B018 - raises for a wrong pattern
    except sqlite_extra.NotAvailable:
        raise LocalError(
            ErrorCode.FAILED, "this apsw comes without SQLite's regexp extension", "Use `search`."
        ) from None
    except apsw.SQLError as error:
        raise LocalError(ErrorCode.USAGE, f"{pattern!r} is no regular expression: {error}") from None
