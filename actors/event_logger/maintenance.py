"""Maintenance of reliability.db, until there is a backup actor: light once a day, whole once a week, or when asked for.

The work is done by children, one after the other; a thread of its own waits for them and holds no lease: each step has
a bound of its own, past which its child is ended. At rest this costs one comparison a tick.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from actors.runtime.actor import Context
from actors.runtime.database import report_damage
from actors.runtime.database_maintenance import (
    Kind,
    Record,
    Run,
    first_record,
    found_damage,
    read_record,
    summary,
    write_record,
)
from actors.runtime.operations import Operation, Request
from actors.runtime.side_worker import side_worker
from protocol.errors import ErrorCode, ReliabilityError
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

TOPIC: Final = "state.maintenance"
"""``{"run", "running", "progress", "ok"}``."""
LOOK_INTERVAL_S: Final = 60.0
QUIET_S: Final = 60.0
"""Without a new event for so long, the system counts as quiet."""
BY_SCHEDULE: Final = "schedule"


class Maintenance:
    """When maintenance is done, and how far it is. Loop thread."""

    def __init__(self, path: str, wall_ms: Callable[[], int]) -> None:
        """Maintain the database at `path`; `wall_ms` is the calendar's clock."""
        self._path = path
        self._data_dir = os.path.dirname(path)
        self._wall_ms = wall_ms
        self._record: Record | None = None
        self._run: Run | None = None
        self._number = 0
        self._told: object = None
        self._look_at = 0.0
        self._last_seq = 0
        self._written_at = 0.0
        self._stopping = False

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        return (
            Operation(
                "maintenance",
                "Begin maintenance of the database: check, analyse, vacuum if it pays, empty the log.",
                {"by": "str? who asks", "kind": "str? whole or light"},
                self._begin_asked,
            ),
            Operation("maintenance_status", "Return how far it is, and the last result.", {}, self._tell_status),
        )

    def start(self, context: Context) -> None:
        """Begin; what was done in earlier lives is read first."""
        self._context = context
        self._look_at = self._written_at = context.now()
        self._worker = side_worker(context, f"{EVENT_LOGGER}-maintenance", 2)
        self._worker.submit(self._recall, on_done=self._on_recalled, what="recall maintenance")

    def tick(self, now: float, last_seq: int) -> None:
        """Begin what is due; `last_seq` tells whether anything is being written."""
        if self._run is not None:
            self._publish(self._run.progress)
        if last_seq != self._last_seq:
            self._last_seq, self._written_at = last_seq, now
        if now < self._look_at or self._record is None or self._run is not None or self._stopping:
            return
        self._look_at = now + LOOK_INTERVAL_S
        kind = self._record.due(self._wall_ms(), quiet=now - self._written_at >= QUIET_S)
        if kind is not None:
            self._begin(kind, BY_SCHEDULE)

    def stop(self) -> None:
        """Have what is under way roll back."""
        self._stopping = True
        if self._run is not None:
            self._run.stop()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._run is None

    def status(self) -> Mapping[str, Any]:
        """Return what `status` tells of it."""
        record = self._record
        return {
            "running": self._run is not None,
            "light_at_ms": record and record.light_at_ms,
            "whole_at_ms": record and record.whole_at_ms,
        }

    # --- requests ---

    def _begin_asked(self, request: Request) -> dict[str, Any]:
        if self._run is not None:
            raise ReliabilityError(
                ErrorCode.BUSY, "maintenance is under way already", "Ask for `maintenance_status` to see how far it is."
            )
        try:
            kind = Kind(request.arguments.get("kind", Kind.WHOLE))
        except ValueError:
            raise ReliabilityError(ErrorCode.BAD_REQUEST, "kind is whole or light", "") from None
        self._begin(kind, request.arguments.get("by", "a client"))
        return {"run": self._number}

    def _tell_status(self, _request: Request) -> dict[str, Any]:
        progress = self._run.progress if self._run is not None else {}
        return {
            "run": self._number,
            "running": self._run is not None,
            "progress": progress,
            "last": self._record and self._record.last,
        }

    # --- runs ---

    def _begin(self, kind: Kind, by: str) -> None:
        self._number += 1
        run = self._run = Run(self._path, kind, by, self._wall_ms)
        self._worker.submit(self._work, run, kind, on_done=partial(self._on_finished, by), what="maintenance")

    def _work(self, run: Run, kind: Kind) -> Record:
        result = run.run()
        record = (self._record or first_record(self._wall_ms())).done(kind, self._wall_ms(), result)
        try:
            write_record(self._data_dir, record)
        except OSError:  # a full disk: it is done again after the next start
            return record
        return record

    def _on_finished(self, by: str, outcome: Any) -> None:
        self._run = None
        if isinstance(outcome, Exception):
            raise outcome
        self._record = outcome
        result: dict[str, Any] = outcome.last
        severity = Severity.NOTICE if result["ok"] else Severity.WARN
        text = summary(result)
        message = f"maintenance of {os.path.basename(self._path)} ({result['kind']}, asked for by {by}): {text}"
        self._context.log(severity, "maintenance_finished", message, **result)
        self._publish({}, ok=result["ok"])
        if any(found_damage(step) for step in result["steps"]):
            report_damage(self._path, text)

    def _publish(self, progress: dict[str, Any], ok: bool | None = None) -> None:
        if (self._number, progress, ok) != self._told:
            self._told = self._number, progress, ok
            running = self._run is not None
            self._context.publish(TOPIC, {"run": self._number, "running": running, "progress": progress, "ok": ok})

    def _recall(self) -> Record:
        record = read_record(self._data_dir)
        if record is None:
            record = first_record(self._wall_ms())
            try:
                write_record(self._data_dir, record)
            except OSError:
                return record
        return record

    def _on_recalled(self, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        if self._record is None:
            self._record = outcome
