"""What SQLite itself has to say, as events of the process in which it says it.

SQLite calls its log for what no error code tells: a write-ahead log recovered after a crash (283, the sign that
somebody died), a file renamed or unlinked while in use, an I/O error with its place, damage with its page. What merely
repeats an error that the caller gets anyway (busy, a constraint, an interrupted statement) is left out.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import apsw

KINDS_MAX: Final = 32
"""Different messages remembered; what comes beyond them within an interval is counted only."""
REPEAT_INTERVAL_S: Final = 600.0
"""The same message is reported again after this time, with the number of times that it came meanwhile."""
_CHARACTERS_MAX: Final = 500
_NOTICE_RECOVER: Final = frozenset({apsw.SQLITE_NOTICE_RECOVER_WAL, apsw.SQLITE_NOTICE_RECOVER_ROLLBACK})
_ERRORS: Final = frozenset(
    {
        apsw.SQLITE_CANTOPEN,
        apsw.SQLITE_CORRUPT,
        apsw.SQLITE_FULL,
        apsw.SQLITE_IOERR,
        apsw.SQLITE_NOMEM,
        apsw.SQLITE_NOTADB,
        apsw.SQLITE_PROTOCOL,
    }
)
_SEVERITIES: Final = {apsw.SQLITE_NOTICE: "NOTICE", apsw.SQLITE_WARNING: "WARN"} | dict.fromkeys(_ERRORS, "ERROR")

Log = Callable[..., None]
"""``log(severity, event_type, message, **attributes)``; never blocks, never raises."""


@dataclass(slots=True)
class _Kind:
    reported_at: float
    repeats: int = 0


class Deduplication:
    """Lets each message through once an interval. Time is an argument."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._kinds: dict[tuple[int, str], _Kind] = {}

    def take(self, code: int, message: str, now: float) -> int | None:
        """Take in a message; return None to keep it back, else how often it was kept back since it was reported."""
        key = code, message
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= KINDS_MAX:
                self._kinds = {k: v for k, v in self._kinds.items() if now - v.reported_at < REPEAT_INTERVAL_S}
            if len(self._kinds) >= KINDS_MAX:
                return None
            self._kinds[key] = _Kind(now)
            return 0
        if now - kind.reported_at < REPEAT_INTERVAL_S:
            kind.repeats += 1
            return None
        repeats, kind.repeats, kind.reported_at = kind.repeats, 0, now
        return repeats


def log_to(log: Log, clock: Callable[[], float] = time.monotonic) -> Callable[[int, str], None]:
    """Return what SQLite may call with a code and a message, from any thread; it does not use SQLite."""
    deduplication = Deduplication()
    lock = threading.Lock()

    def handler(code: int, message: str) -> None:
        severity = _SEVERITIES.get(code & 0xFF)
        if severity is None:
            return
        text = message[:_CHARACTERS_MAX]
        with lock:
            repeats = deduplication.take(code, text, clock())
        if repeats is None:
            return
        attributes: dict[str, Any] = {"sqlite_code": code} | ({"repeats": repeats} if repeats else {})
        event_type = "database_recovered" if code in _NOTICE_RECOVER else f"sqlite_{severity.lower()}"
        log(severity, event_type, f"SQLite: {text}", **attributes)

    return handler


def install(log: Log) -> None:
    """Have SQLite's log of this process go to `log`."""
    apsw.config(apsw.SQLITE_CONFIG_LOG, log_to(log))
