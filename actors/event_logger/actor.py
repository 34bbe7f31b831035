"""event_logger at work: requests in, groups committed, journals drained, the WAL checkpointed, events published.

Wired here from `writing` (the worker thread commits), `reading` (the reader answers queries), `wal_keeping` (the
checkpointer moves the WAL into the database), `upkeep` (the filer writes the files behind the table) and
`search_follower` (the search index follows the table), `outputs` (what programs print becomes events): threads of their
own, so that none waits for another's disk.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from actors.event_logger.config import EventLoggerConfig, EventsConfig
from actors.event_logger.core import PublishBudget, Trouble, TroubleReport
from actors.event_logger.filer import Filer
from actors.event_logger.journals import JournalDrain
from actors.event_logger.maintenance import Maintenance
from actors.event_logger.outputs import Outputs
from actors.event_logger.outputs_files import OutputReader
from actors.event_logger.queries import query, read_restarts, restart_status
from actors.event_logger.reading import Reading
from actors.event_logger.records import derived_id, parse_event, parse_events, parse_restart
from actors.event_logger.rows import parse_rows
from actors.event_logger.search_follower import SearchFollower
from actors.event_logger.search_index import SearchIndex
from actors.event_logger.searching import SEARCH_FILE
from actors.event_logger.spooled import Spooled
from actors.event_logger.store import SCHEMA, EventStore
from actors.event_logger.upkeep import Filing, Retention
from actors.event_logger.verifying import Verifying
from actors.event_logger.wal_keeping import WalKeeping
from actors.event_logger.writing import Writing
from actors.runtime.actor import Actor, Context
from actors.runtime.database import Database
from actors.runtime.database_problem import PASSING, DatabaseError
from actors.runtime.liveness import Board
from actors.runtime.operations import Operation, Request
from protocol.errors import ProtocolError
from protocol.limits import MIB
from protocol.severity import Severity

PUBLISH_BURST_S: Final = 2.0

_CONTAINED: Final = "contained, as it stands and in any case of its letters, in message, component, type or attributes"
_FILTERS: Final = {
    "text": f"str? {_CONTAINED}",
    "component": "str?",
    "since": "str? RFC 3339",
    "until": "str? RFC 3339",
    "level": "str? LEVEL (and worse) or A..B",
    "grep": "str? regular expression on the message",
    "limit": "int? events, the newest",
    "reverse": "bool? newest first",
    "after_seq": "int? only later ones, the oldest of them",
    "before_seq": "int? only earlier ones",
}
_EVENT: Final = {
    "severity": "any name or number",
    "component": "str",
    "event_type": "str",
    "message": "str",
    "attributes": "map?",
    "id": "any? 32 hexadecimal digits or 16 bytes; written once per id",
    "timestamp": "str? RFC 3339",
    "timestamp_ms": "int? since 1970 UTC, instead of timestamp",
}


_RESTART: Final = {
    "name": "str of the program",
    "reason": "str",
    "exit_code": "int?",
    "id": _EVENT["id"],
    "timestamp": "str? RFC 3339",
    "timestamp_ms": "int? since 1970 UTC, instead of timestamp",
}
_ROWS: Final = (
    "Write events, all of them at once, from one raw frame: msgpack, an array of rows [id (16 bytes), timestamp_ms,"
    " severity_number, component, event_type, message, attributes (text of a JSON object)]. Answers seqs, null for an"
    " id of another event."
)


class EventLogger(Actor):
    """The event log's owner."""

    def __init__(
        self,
        path: str,
        journal_dir: str,
        board: Board,
        config: EventLoggerConfig,
        wall_ms: Callable[[], int],
        events: EventsConfig | None = None,
    ) -> None:
        """Wire an event log at `path`; `wall_ms` is the wall clock for what has no time of its own."""
        self._path = path
        self._board = board
        self._wall_ms = wall_ms
        store = EventStore(Database(path, SCHEMA), wall_ms)
        per_second_max = config.publish_per_second_max
        budget = PublishBudget(per_second_max, int(per_second_max * PUBLISH_BURST_S))
        self._wal = WalKeeping(Database(path, SCHEMA), store.database, config.wal_warning_mib * MIB)
        self._writing = Writing(
            store, JournalDrain(journal_dir, store), budget, wall_ms, self._note, self._wal.committed
        )
        self._spooled = Spooled(
            store,
            os.path.dirname(path),
            os.path.dirname(journal_dir),
            wall_ms,
            self._writing.submit,
            self._note,
            self._writing.on_stored,
        )
        reader = OutputReader(os.path.dirname(path), config.output_lines_per_second_max, wall_ms)
        self._outputs = Outputs(
            store, reader, os.path.dirname(journal_dir), self._writing.submit, self._note, self._writing.on_stored
        )
        self._reading = Reading(path)
        self._filing = Filing(Filer(path, store.files))
        self._verifying = Verifying(store, self._filing.rebuild, self._writing.submit, wall_ms)
        days_kept = (events or EventsConfig()).retention_days
        search_path = os.path.join(os.path.dirname(path), SEARCH_FILE)
        self._search = SearchFollower(SearchIndex(search_path, path))
        self._retention = Retention(store, days_kept, self._writing.submit, self._log)
        self._maintenance = Maintenance(path, wall_ms)
        self._trouble = TroubleReport()
        self._problem: DatabaseError | None = None
        self._stop_steps = self._stop()

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        search = _FILTERS | {"text": f"str {_CONTAINED}"}
        return (
            Operation("emit", "Write one event; answered once it is committed.", _EVENT, self._emit),
            Operation(
                "emit_many", "Write events, all of them at once.", {"events": "list of maps as emit"}, self._emit_many
            ),
            Operation("emit_rows", _ROWS, {}, self._emit_rows),
            Operation(
                "record_restart", "Write that a program was restarted by others.", _RESTART, self._record_restart
            ),
            Operation("query", "Return events.", _FILTERS, self._query),
            Operation("search", "Return events that contain a text.", search, self._query),
            Operation("restart_status", "Return restarts and budgets.", {"name": "str?"}, self._restart_status),
            *self._verifying.operations(),
            *self._maintenance.operations(),
        )

    def on_start(self, context: Context) -> None:
        """Begin; the first drain opens the database."""
        self._context = context
        for part in (
            self._writing,
            self._spooled,
            self._outputs,
            self._reading,
            self._wal,
            self._filing,
            self._search,
            self._maintenance,
        ):
            part.start(context)
        self._verifying.start(context)

    def on_tick(self, context: Context, now: float) -> None:
        """Drain what the journals have, checkpoint when it is due, tell followers where the log ends."""
        self._writing.tick(now)
        self._spooled.tick(now)
        self._outputs.tick(now)
        self._filing.tick(now, self._writing.last_seq)
        self._retention.tick(now)
        self._search.tick(now, self._writing.last_seq)
        self._wal.tick(now)
        self._maintenance.tick(now, self._writing.last_seq)

    def _log(self, severity: Severity, event_type: str, message: str, **attributes: Any) -> None:
        self._context.log(severity, event_type, message, **attributes)

    def on_drain(self, context: Context) -> bool:
        """Commit what was accepted, take in the journals once more, leave the WAL empty."""
        return next(self._stop_steps, True)

    def status(self) -> Mapping[str, Any]:
        """Return how the database and the queues are."""
        problem = self._problem
        return {
            "database": {
                "path": self._path,
                "problem": problem and {"code": problem.code, "message": problem.message, "hint": problem.hint},
                **self._wal.status(),
            },
            "events": {
                "last_seq": self._writing.last_seq or None,
                "pending": self._writing.pending_events,
                **self._filing.status(),
            },
            "search": self._search.status(),
            "spool": self._spooled.status(),
            "outputs": self._outputs.status(),
            "reads": self._reading.status(),
            "maintenance": self._maintenance.status(),
            "journal_entries_refused": self._writing.refused_entries,
        }

    # --- requests ---

    def _emit(self, request: Request) -> object:
        return self._writing.accept([parse_event(request.arguments, derived_id(request.id), self._wall_ms())], request)

    def _emit_many(self, request: Request) -> object:
        return self._writing.accept(parse_events(request.arguments, request.id, self._wall_ms()), request)

    def _emit_rows(self, request: Request) -> object:
        if len(request.raw) != 1:
            raise ProtocolError("emit_rows takes one raw frame, of rows")
        return self._writing.accept(parse_rows(request.raw[0]), request)

    def _record_restart(self, request: Request) -> object:
        entry = parse_restart(request.arguments, derived_id(request.id), self._wall_ms())
        return self._writing.record(entry, request)

    def _query(self, request: Request) -> object:
        return self._reading.answer(request, query, request.arguments, then=self._search.on_answer)

    def _restart_status(self, request: Request) -> object:
        name = request.arguments.get("name")
        records = [record for _, record in self._board.occupied()]
        return self._reading.answer(
            request, read_restarts, name, then=lambda history: restart_status(records, history, name)
        )

    # --- the database ---

    def _note(self, outcome: Any) -> None:
        """Take in how a write ended, and tell of a change; a fault that is not the world's ends the process."""
        if isinstance(outcome, Exception) and not isinstance(outcome, DatabaseError):
            raise outcome
        self._reading.tables_exist()
        self._problem = outcome if isinstance(outcome, DatabaseError) else None
        if self._problem is None:
            self._filing.ready()
            self._search.ready()
        if self._problem is not None and self._problem.problem in PASSING:
            return  # tried again by whoever wrote; the repair tells of itself
        match self._trouble.note(failed=self._problem is not None, now=self._context.now()):
            case Trouble.BEGAN if self._problem is not None:
                message = f"events cannot be written: {self._problem.message}"
                self._context.log(Severity.ERROR, "database_unavailable", message, problem=self._problem.problem)
            case Trouble.ENDED:
                self._context.log(Severity.NOTICE, "database_available", "events can be written again")

    def _stop(self) -> Iterator[bool]:
        """The steps of a stop; each turn of the loop looks whether the present one is over."""
        self._spooled.stop()
        self._outputs.stop()
        self._maintenance.stop()
        while self._is_working():
            yield False
        self._writing.drain()
        while self._is_working():
            yield False
        self._filing.tick(self._context.now(), self._writing.last_seq)
        self._search.stop()
        while self._is_working():
            yield False
        self._wal.checkpoint(truncate=True)
        while self._is_working():
            yield False

    def _is_working(self) -> bool:
        parts = (
            self._writing,
            self._spooled,
            self._outputs,
            self._wal,
            self._filing,
            self._search,
            self._maintenance,
        )
        return not all(part.idle for part in parts)
