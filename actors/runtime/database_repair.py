"""Replacing a damaged database by what can be saved of it: set aside whole, salvaged, put in its place; in a child.

Exactly one process does it: the one that holds the guard alone (`database_guard`), which waits until no transaction of
ours is under way; a frozen one is killed by the watchdog. From the first rename on a marker beside the file says what
is being done, so whoever comes after a crash goes on where it ended:

1. the marker is written, durably; from now on nobody of ours opens the path;
2. -wal and file are renamed as a pair, -shm is dropped (it is rebuilt from the pair);
3. what can be read is saved into a new file, which is synced;
4. the new file is renamed into place, the report is written, the marker removed.

The others hold the old file open meanwhile and do nothing with it: their next transaction finds another file at the
path and opens that. What was set aside is kept, the newest `KEPT_MAX` of them.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import apsw

from actors.runtime.database import APPLICATION_ID
from actors.runtime.database_guard import (
    REPAIRED_SUFFIX,
    REPAIRING_SUFFIX,
    SHM_SUFFIX,
    WAL_SUFFIX,
    exclusive,
    file_identity,
    lost_its_file,
)
from actors.runtime.database_problem import DatabaseError, Problem, from_os_error, translate
from actors.runtime.database_report import describe, read_json
from actors.runtime.database_salvage import SalvageReport, salvage
from actors.runtime.journal import Journal, new_entry
from actors.runtime.paths import sync_directory, write_atomically

JOURNAL_NAME: Final = "database_repair"
"""Its journal on tmpfs, from which event_logger takes the event; one writer, who holds the guard."""
KEPT_MAX: Final = 3
ATTEMPTS_MAX: Final = 3
"""Repairs that died; past it nothing is salvaged any more, and the system begins with an empty database."""
WAIT_S_MAX: Final = 30.0
"""For transactions under way to end: longer than the watchdog needs to kill a frozen process."""
CHECK_S_MAX: Final = 30.0
SALVAGE_S_MAX: Final = 600.0
_SALVAGED_SUFFIX: Final = "-salvaged"
_DAMAGED_MARK: Final = ".damaged-"
_LOOK_S: Final = 0.02
_PROGRESS_STEPS: Final = 20_000

Say = Callable[..., None]
"""``say(phase, **details)``: how far it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the marker says.

    Attributes:
        aside: name, in the same directory, under which the damaged file is kept.
        reason: what was found damaged.
        attempts: repairs that have begun.
    """

    aside: str
    reason: str
    attempts: int


class Repair:
    """One repair of the database at `path`."""

    def __init__(self, path: str, journal_dir: str | None, must_stop: Callable[[], bool], say: Say) -> None:
        """Set it up; `must_stop` is asked often, the repair can be gone on with later."""
        self._path = path
        self._journal_dir = journal_dir
        self._must_stop = must_stop
        self._say = say

    def run(self, reason: str, *, certain: bool = False) -> dict[str, Any]:
        """Repair it if it is damaged; return what was done.

        Args:
            reason: what somebody met.
            certain: that it is damaged, whatever a check says.

        Raises:
            DatabaseError: nobody may, the disk is full, or it was stopped; the next one goes on with it.
        """
        seen = file_identity(self._path)
        interrupted = os.path.exists(self._path + REPAIRING_SUFFIX)
        if not (certain or interrupted) and self.is_sound():
            return {"repaired": False, "reason": "it is sound"}
        lock = exclusive(self._path)
        try:
            with lock:
                self._wait_for(lock.acquire)
                if not os.path.exists(self._path + REPAIRING_SUFFIX) and (
                    interrupted or file_identity(self._path) != seen
                ):
                    return {"repaired": False, "reason": "another process has repaired it"}
                return self._replace(reason)
        except OSError as error:
            raise from_os_error(error, self._path) from None

    def is_sound(self) -> bool:
        """Tell whether SQLite finds nothing wrong with the file in the time that there is."""
        if lost_its_file(self._path):
            return False
        until = time.monotonic() + CHECK_S_MAX
        try:
            connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
        except apsw.Error:
            return False
        try:
            connection.set_progress_handler(lambda: self._must_stop() or time.monotonic() > until, _PROGRESS_STEPS)
            self._say("checking")
            has_ours = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'schema_versions')"
            ).get
            ours = connection.pragma("application_id") == APPLICATION_ID or not has_ours
            return ours and connection.execute("PRAGMA quick_check(1)").get == "ok"
        except apsw.Error:
            return False
        finally:
            connection.close(True)

    def _wait_for(self, acquire: Callable[[], bool]) -> None:
        until = time.monotonic() + WAIT_S_MAX
        while not acquire():
            if self._must_stop():
                raise DatabaseError(Problem.STOPPED, self._path)
            if time.monotonic() > until:
                raise DatabaseError(Problem.LOCKED, self._path, "a transaction on it does not end")
            time.sleep(_LOOK_S)

    def _replace(self, reason: str) -> dict[str, Any]:
        plan = self._begin(reason)
        began = time.monotonic()
        self._set_aside(plan)
        report = self._salvage(plan)
        self._put_in_place()
        result = self._report(plan, report, time.monotonic() - began)
        os.unlink(self._path + REPAIRING_SUFFIX)
        self._sync()
        self._prune()
        self._tell(plan, result)
        return result

    def _begin(self, reason: str) -> Plan:
        """Write the marker, or go on with the one that is there."""
        found = read_json(self._path + REPAIRING_SUFFIX)
        try:
            plan = Plan(str(found["aside"]), str(found["reason"]), int(found["attempts"]) + 1) if found else None
        except (KeyError, TypeError, ValueError):
            plan = None
        if plan is None:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            name = aside = f"{os.path.basename(self._path)}{_DAMAGED_MARK}{stamp}"
            number = 1
            while os.path.exists(self._beside(aside)) or os.path.exists(self._beside(aside) + WAL_SUFFIX):
                number += 1
                aside = f"{name}-{number}"
            plan = Plan(aside, reason, 1)
        self._mark(plan)
        return plan

    def _mark(self, plan: Plan) -> None:
        write_atomically(self._path + REPAIRING_SUFFIX, json.dumps(asdict(plan)).encode(), sync=True)

    def _set_aside(self, plan: Plan) -> None:
        """Rename what has not been renamed yet. The log goes first: a file without it would look whole."""
        self._say("setting_aside", aside=plan.aside)
        for suffix in (WAL_SUFFIX, "-journal", ""):
            if os.path.exists(self._path + suffix) and not os.path.exists(self._beside(plan.aside) + suffix):
                os.rename(self._path + suffix, self._beside(plan.aside) + suffix)
        _remove(self._path + SHM_SUFFIX)
        self._sync()

    def _salvage(self, plan: Plan) -> SalvageReport:
        target, source = self._path + _SALVAGED_SUFFIX, self._beside(plan.aside)
        for suffix in ("", "-journal", WAL_SUFFIX, SHM_SUFFIX):
            _remove(target + suffix)
        if plan.attempts > ATTEMPTS_MAX:
            return SalvageReport(schema_readable=False, complete=False)
        if not os.path.exists(source) or os.stat(source).st_size == 0:
            # SQLite looks at a log only beside a file that has a page; the log may have them all.
            with open(source, "wb") as file:
                file.write(bytes(4096))
        until = time.monotonic() + SALVAGE_S_MAX
        try:
            report = salvage(
                source,
                target,
                APPLICATION_ID,
                lambda: self._must_stop() or time.monotonic() > until,
                lambda table, rows: self._say("saving", table=table, rows=rows),
            )
        except apsw.Error as error:
            found = translate(error, self._path)
            if found.problem is Problem.FULL:  # no fault of the repair's: it is tried again when there is space
                self._mark(Plan(plan.aside, plan.reason, plan.attempts - 1))
            raise found from None
        if self._must_stop():
            self._mark(Plan(plan.aside, plan.reason, plan.attempts - 1))
            raise DatabaseError(Problem.STOPPED, self._path)
        _remove(source + SHM_SUFFIX)
        if os.path.exists(source + WAL_SUFFIX) and os.stat(source + WAL_SUFFIX).st_size == 0:
            os.unlink(source + WAL_SUFFIX)  # made by opening it
        return report

    def _put_in_place(self) -> None:
        target = self._path + _SALVAGED_SUFFIX
        if os.path.exists(target):
            descriptor = os.open(target, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(target, self._path)
            self._sync()

    def _report(self, plan: Plan, report: SalvageReport, took_s: float) -> dict[str, Any]:
        result = {
            "repaired": True,
            "at_ms": time.time_ns() // 1_000_000,
            "reason": plan.reason,
            "set_aside": self._beside(plan.aside),
            "rows": report.rows,
            "lost": report.lost,
            "complete": report.complete and report.schema_readable,
            "tables": {name: asdict(table) for name, table in report.tables.items()},
            "indexes_refused": report.refused,
            "took_s": round(took_s, 3),
        }
        write_atomically(self._path + REPAIRED_SUFFIX, json.dumps(result).encode(), sync=True)
        return result

    def _tell(self, plan: Plan, result: dict[str, Any]) -> None:
        if self._journal_dir is None:
            return
        attributes = {name: result[name] for name in ("reason", "set_aside", "rows", "lost", "complete", "tables")}
        entry = new_entry(
            "event",
            severity="CRITICAL",
            component="event_logger",
            event_type="database_repaired",
            message=f"{os.path.basename(self._path)} was damaged and has been replaced: {describe(result)}",
            attributes=attributes,
        )
        try:
            Journal(self._journal_dir, JOURNAL_NAME).append(entry)
        except OSError:  # the report stays beside the database
            self._say("event_not_written")

    def _prune(self) -> None:
        """Keep the newest few of what was set aside."""
        directory = os.path.dirname(self._path) or "."
        mark = os.path.basename(self._path) + _DAMAGED_MARK
        names = [name for name in os.listdir(directory) if name.startswith(mark)]
        bases = sorted({name.removesuffix(WAL_SUFFIX).removesuffix("-journal") for name in names})
        for base in bases[:-KEPT_MAX]:
            for suffix in ("", WAL_SUFFIX, "-journal"):
                _remove(self._beside(base) + suffix)

    def _beside(self, name: str) -> str:
        return os.path.join(os.path.dirname(self._path), name)

    def _sync(self) -> None:
        if os.name == "posix":
            sync_directory(os.path.dirname(self._path) or ".")


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
