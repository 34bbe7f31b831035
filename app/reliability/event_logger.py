"""The event log, for a host application: events in, durable when the call returns; events, and diagnostics, out.

    logger = EventLogger()
    await logger.log_event("INFO", "llm", "model_loaded", "mistral is ready", {"seconds": 4.2})
    errors = await logger.get_events(component="llm", level="ERROR", hours=24)
    bundle = await logger.create_diagnostics_bundle()

    logging.getLogger().addHandler(ReliabilityHandler())  # the host's own logging lands here too

Calls that come together travel together: concurrent `log_event` calls are gathered into batches of which a few are
under way at once, and each call returns when its own event is durable. If event_logger does not answer within a
second, the events are kept in the spool until it does, each once.
"""

import asyncio
import json
import logging
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from app.reliability._batches import BATCH_ROWS_MAX, OP, Batch, Gatherer
from app.reliability._child import run_relctl
from app.reliability._cli.session import ABSENT
from app.reliability._durable import DurableCaller
from app.reliability._durable_core import State
from app.reliability._event_rows import Row, attributes_of, make_row
from app.reliability._outbox import EXIT_FLUSH_S, SPLIT_CODES, Outbox
from protocol.errors import NotDurable, ProtocolError, ReliabilityError
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.limits import ID_BYTES
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity, parse_severity, severity_of_level

if TYPE_CHECKING:
    from app.reliability.async_client import AsyncClient

__all__ = ["EventLogger", "ReliabilityHandler"]

TIMEOUT_S: Final = 5.0
BATCHES_UNDER_WAY_MAX: Final = 4
QUERY_PATIENCE_S: Final = 1.0
PAGE_EVENTS_MAX: Final = 1000
OFFLINE_TIMEOUT_S: Final = 60.0
BUNDLE_TIMEOUT_S: Final = 300.0


class EventLogger:
    """Writes to and reads from the event log of one data directory. For any thread, event loop and forked child."""

    def __init__(self, data_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """Name the system; nothing is opened. Without `data_dir` it is RELCTL_DATA_DIR's, or ./data's.

        Args:
            data_dir: the system's.
            timeout_s: what one call may take in all.
        """
        self._caller = DurableCaller(EVENT_LOGGER, data_dir)
        self._timeout_s = timeout_s
        self._pipes: dict[tuple[int, asyncio.AbstractEventLoop], _Pipe] = {}
        self._client: AsyncClient | None = None
        self._outbox = Outbox(self._caller, timeout_s, _dropped_row)

    async def log_event(
        self,
        level: str | int,
        component: str,
        event_type: str,
        message: str,
        details_dict: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write one event, and return once it is durable.

        Args:
            level: TRACE, DEBUG, INFO, NOTICE, WARN, ERROR, CRITICAL or FATAL.
            component: what it is about.
            event_type: what happened, for machines.
            message: what happened, for people.
            details_dict: the rest; values that JSON has no form for become their text.

        Returns:
            ``{"id", "seq", "spooled"}``; seq is None while it is only spooled.

        Raises:
            NotDurable: nobody keeps it; the hint says what to do.
            ProtocolError: no such level, an empty name, details larger than 64 KiB.
        """
        row = make_row(_new_id(), _wall_ms(), level, component, event_type, message, details_dict)
        return await self._pipe().write(row)

    def log(
        self,
        level: str | int,
        component: str,
        event_type: str,
        message: str,
        details_dict: Mapping[str, Any] | None = None,
    ) -> str:
        """Queue one event, from any thread, and return its id; `flush` tells when all that is queued is durable.

        It waits only while the queue is full.

        Raises:
            NotDurable: the queue stays full; the event is not taken.
            ProtocolError: as `log_event`.
        """
        row = make_row(_new_id(), _wall_ms(), level, component, event_type, message, details_dict)
        if not self._outbox.put(row, self._timeout_s):
            raise NotDurable(f"too many events wait to be written to {self._caller.data_dir}")
        return row[0].hex()

    def flush(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until every event that `log` has queued is durable.

        Raises:
            NotDurable: they are not, within `timeout_s`; they stay queued.
        """
        self._outbox.flush(timeout_s)

    async def get_events(
        self,
        component: str | None = None,
        level: str | None = None,
        hours: float | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return events, oldest first, as `relctl logs --json` shows them.

        If event_logger does not answer within a second, they come from the files, marked ``"offline": True``; what
        is only spooled is among them then, with ``"seq": None``.

        Args:
            component: only its events.
            level: only this one and worse.
            hours: only those of the last so many hours.
            limit: only the newest so many.

        Raises:
            LocalError: neither event_logger nor the files can be read; `not_running` if there never was a log.
            RemoteError: an argument is wrong.
        """
        since = None if hours is None else datetime.now(UTC) - timedelta(hours=hours)
        filters: dict[str, Any] = {
            "component": component,
            "level": None if level is None else parse_level(level),
            "since": None if since is None else since.isoformat(),
        }
        filters = {name: value for name, value in filters.items() if value is not None}
        try:
            return await self._query(filters, limit)
        except ReliabilityError as error:
            if error.code not in ABSENT:
                raise
        return await asyncio.to_thread(self._read_files, filters, limit)

    async def create_diagnostics_bundle(self, output: str | os.PathLike[str] | None = None) -> str:
        """Pack what a person needs who is to help, in a child process, and return the path of the zip.

        It works with every process of the system down.

        Raises:
            LocalError: it could not be made.
        """
        options = () if output is None else ("--output", os.path.join(os.getcwd(), os.fspath(output)))
        data_dir = self._caller.data_dir
        said = await asyncio.to_thread(run_relctl, data_dir, "diagnostics", *options, timeout_s=BUNDLE_TIMEOUT_S)
        return str(json.loads(said)["path"])

    async def close(self) -> None:
        """Have kept what is queued, and close this event loop's connections. The logger may be used again.

        Raises:
            NotDurable: some of it is not kept.
        """
        await asyncio.to_thread(self._outbox.flush, self._timeout_s)
        if self._client is not None:
            await self._client.close()
        await self._caller.close_async()

    def _pipe(self) -> "_Pipe":
        loop = asyncio.get_running_loop()
        key = (os.getpid(), loop)
        pipe = self._pipes.get(key)
        if pipe is None:
            for old in [old for old in self._pipes if old[0] != key[0] or old[1].is_closed()]:
                self._pipes.pop(old)
            pipe = self._pipes[key] = _Pipe(self._caller, self._timeout_s, loop)
        return pipe

    async def _query(self, filters: dict[str, Any], limit: int | None) -> list[dict[str, Any]]:
        """Ask event_logger, newest first, page by page."""
        if self._client is None:
            from app.reliability.async_client import AsyncClient

            self._client = AsyncClient(self._caller.data_dir)
        found: list[dict[str, Any]] = []
        arguments = {**filters, "reverse": True}
        while limit is None or len(found) < limit:
            count = PAGE_EVENTS_MAX if limit is None else min(PAGE_EVENTS_MAX, limit - len(found))
            page = await self._client.call(EVENT_LOGGER, "query", timeout=QUERY_PATIENCE_S, **arguments, limit=count)
            found += page["events"]
            if not page["more"] or not page["events"]:
                break
            arguments["before_seq"] = page["events"][-1]["seq"]
        return found[::-1]

    def _read_files(self, filters: dict[str, Any], limit: int | None) -> list[dict[str, Any]]:
        options = ["-n", "all" if limit is None else str(limit)]
        if "level" in filters:
            options += ["-p", filters["level"]]
        if "since" in filters:
            options += ["-S", filters["since"]]
        if "component" in filters:
            options += ["--", filters["component"]]
        said = run_relctl(self._caller.data_dir, "logs", *options, timeout_s=OFFLINE_TIMEOUT_S)
        return [json.loads(line) for line in said.splitlines()]


class _Pipe:
    """The way of events from one event loop: gathered while others are under way, a few batches at once, in order."""

    def __init__(self, caller: DurableCaller, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._caller = caller
        self._timeout_s = timeout_s
        self._loop = loop
        self._rows: Gatherer[asyncio.Future[dict[str, Any]]] = Gatherer()
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._used = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def write(self, row: Row) -> dict[str, Any]:
        """Send one row with those that come at the same time, and return what became of it.

        Raises:
            NotDurable, RemoteError: as `EventLogger.log_event`.
        """
        while self._rows.full:
            room = self._loop.create_future()
            self._waiting.append(room)
            await room
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._rows.add(row, future)
        if not self._scheduled and len(self._tasks) < self._under_way_max():
            self._scheduled = True
            self._loop.call_soon(self._begin)
        return await future

    def _begin(self) -> None:
        """Send as many batches as may be under way, and let in who waits for room."""
        self._scheduled = False
        while len(self._rows) and len(self._tasks) < self._under_way_max():
            task = self._loop.create_task(self._send(self._rows.take()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        let_in = 0
        while self._waiting and not self._rows.full and let_in < BATCH_ROWS_MAX:
            room = self._waiting.popleft()
            if not room.done():
                room.set_result(None)
                let_in += 1

    def _under_way_max(self) -> int:
        """Return how many batches may be under way: one before there is a connection, and to the spool.

        Elsewhere several could overtake each other on threads of their own; on one connection they keep their order.
        """
        return BATCHES_UNDER_WAY_MAX if self._used and self._caller.owner.state is State.ANSWERING else 1

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._used = True
        self._tasks.discard(task)
        self._begin()

    async def _send(self, batch: Batch["asyncio.Future[dict[str, Any]]"]) -> None:
        try:
            answer = await self._caller.call_async(
                OP, os.urandom(ID_BYTES), {}, [batch.frame()], timeout=self._timeout_s
            )
        except ReliabilityError as error:
            if len(batch.rows) > 1 and error.code in SPLIT_CODES:
                for half in batch.halves():
                    await self._send(half)
                return
            for future in batch.waiters:
                _settle(future, _same(error))
        else:
            for future, outcome in zip(batch.waiters, batch.outcomes(answer), strict=True):
                _settle(future, outcome)
        finally:
            for future in batch.waiters:
                future.cancel()  # those that are not settled: this task was cancelled


class ReliabilityHandler(logging.Handler):
    """Brings a host's stdlib logging into the event log, and never holds the host up.

    A record becomes an event: its logger the component, its level the severity, its text the message; where it was
    logged, its `extra` fields and the traceback of its exception are attributes. Records wait in a bounded queue for a
    thread of this handler's own; what finds it full is dropped, counted in `dropped`, and told of in the log as soon as
    there is room. The end of the program waits a moment for the last ones.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        component: str | None = None,
        event_type: str = "log",
        level: int | str = logging.NOTSET,
    ) -> None:
        """Log to the system of `data_dir`.

        Args:
            data_dir: as for `EventLogger`.
            component: of every event, instead of the logger's name.
            event_type: of every event.
            level: records below it are passed over.
        """
        super().__init__(level)
        self._component = component
        self._event_type = event_type
        self._caller = DurableCaller(EVENT_LOGGER, data_dir)
        self._outbox = Outbox(self._caller, TIMEOUT_S, _dropped_row)

    @property
    def dropped(self) -> int:
        """Records that were dropped and not told of yet."""
        return self._outbox.dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record. Never waits; what goes wrong goes to `handleError`, as with any handler."""
        try:
            details = _details(record)
            row = make_row(
                _new_id(),
                int(record.created * 1000),
                int(severity_of_level(record.levelno)),
                self._component or record.name or "root",
                self._event_type,
                record.getMessage(),
                None,
            )
            self._outbox.put((*row[:6], _attributes(details)))
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - logging's rule: a log call never raises into the host
            self.handleError(record)

    def flush(self) -> None:
        """Wait a moment until what is queued is durable; what is not stays queued."""
        try:
            self._outbox.flush(EXIT_FLUSH_S)
        except NotDurable:
            return

    def close(self) -> None:
        """Flush, and let go."""
        self.flush()
        self._caller.close()
        super().close()


def parse_level(level: str) -> str:
    """Return `level` by its own name.

    Raises:
        ProtocolError: there is none such.
    """
    try:
        return parse_severity(level).name
    except ValueError as error:
        raise ProtocolError(str(error)) from None


_RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _details(record: logging.LogRecord) -> dict[str, Any]:
    """Return what else a record tells."""
    details: dict[str, Any] = {
        "file": record.pathname,
        "line": record.lineno,
        "function": record.funcName,
        "process": record.process,
        "thread": record.threadName,
    }
    details.update({key: value for key, value in vars(record).items() if key not in _RECORD_FIELDS})
    if record.exc_info and record.exc_info[0] is not None:
        kind, error, trace = record.exc_info
        details["exception"] = {
            "type": f"{kind.__module__}.{kind.__qualname__}",
            "message": str(error),
            "traceback": "".join(traceback.format_exception(kind, error, trace))[-_TRACEBACK_CHARACTERS_MAX:],
        }
    elif record.exc_text:
        details["exception"] = {"traceback": record.exc_text[-_TRACEBACK_CHARACTERS_MAX:]}
    if record.stack_info:
        details["stack"] = record.stack_info[-_TRACEBACK_CHARACTERS_MAX:]
    return details


_TRACEBACK_CHARACTERS_MAX: Final = 8 * 1024


def _attributes(details: dict[str, Any]) -> str:
    """Return the attributes' text; of what is too large, that which always fits."""
    try:
        return attributes_of(details)
    except ProtocolError as error:
        kept = ("file", "line", "function", "process", "thread", "exception")
        return attributes_of({key: details[key] for key in kept if key in details} | {"left_out": error.message})


def _dropped_row(count: int) -> Row:
    program = os.path.basename(sys.argv[0]) or "a program"
    message = f"{count} events of {program} were dropped: they came faster than they could be kept"
    details = {"count": count, "process": os.getpid()}
    return make_row(_new_id(), _wall_ms(), Severity.WARN, EVENT_LOGGER, "events_dropped", message, details)


def _settle(future: "asyncio.Future[dict[str, Any]]", outcome: "dict[str, Any] | ReliabilityError") -> None:
    if future.done():
        return
    if isinstance(outcome, ReliabilityError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _same(error: ReliabilityError) -> ReliabilityError:
    """Return another one like it: each waiter's has a traceback of its own."""
    if isinstance(error, NotDurable):
        return NotDurable(error.message, error.hint)
    if isinstance(error, ProtocolError):
        return ProtocolError(error.message, error.code)
    return type(error)(error.code, error.message, error.hint)


def _new_id() -> bytes:
    return uuid7(_wall_ms(), os.urandom(RANDOMNESS_BYTES))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
