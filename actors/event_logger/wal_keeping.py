"""The write-ahead log, checkpointed on a thread of its own; no other process does."""

from functools import partial
from typing import Any, Final

from actors.event_logger.core import Trouble, TroubleReport, Wal
from actors.runtime.actor import Context
from actors.runtime.database import PAGE_BYTES, Database, WalState
from actors.runtime.database_problem import DatabaseError
from actors.runtime.side_worker import side_worker
from protocol.limits import MIB
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

CHECKPOINTS_QUEUED_MAX: Final = 2


class WalKeeping:
    """Checkpoints when it is due, and reports a log that somebody holds up."""

    def __init__(self, database: Database, written: Database, warning_bytes: int) -> None:
        """Checkpoint through `database`, a connection of its own; `written` is the one that commits."""
        self._database = database
        self._written = written
        self._warning_bytes = warning_bytes
        self._trouble = TroubleReport()

    def start(self, context: Context) -> None:
        """Begin."""
        self._context = context
        self._wal = Wal(context.now())
        self._worker = side_worker(context, f"{EVENT_LOGGER}-checkpointer", CHECKPOINTS_QUEUED_MAX)

    @property
    def idle(self) -> bool:
        """Whether no checkpoint is under way."""
        return self._worker.idle

    def status(self) -> dict[str, int]:
        """Return the log's size, and how much of it the database file does not have yet."""
        return {
            "wal_bytes": self._wal.pages * PAGE_BYTES,
            "wal_backlog_bytes": self._wal.backlog_pages * PAGE_BYTES,
        }

    def committed(self) -> None:
        """Take note of a commit."""
        self._wal.committed(self._written.wal_pages)

    def tick(self, now: float) -> None:
        """Checkpoint if it is due."""
        if self._worker.idle and self._wal.is_due(now):
            self.checkpoint(truncate=False)
            self._context.submit(self._written.release_memory, what="release memory")
        size_bytes = self._wal.pages * PAGE_BYTES
        if self._trouble.note(failed=size_bytes > self._warning_bytes, now=now) is Trouble.BEGAN:
            message = f"the write-ahead log has grown to {size_bytes // MIB} MiB: a reader or a slow disk holds it up"
            self._context.log(Severity.WARN, "wal_large", message, wal_bytes=size_bytes)

    def checkpoint(self, *, truncate: bool) -> None:
        """Begin a checkpoint."""
        checkpoint = partial(self._database.checkpoint, truncate=truncate)
        self._worker.submit(checkpoint, on_done=self._on_checkpointed, what="checkpoint")

    def _on_checkpointed(self, outcome: Any) -> None:
        if isinstance(outcome, WalState):
            self._wal.checkpointed(outcome.pages, outcome.checkpointed_pages)
        elif isinstance(outcome, Exception) and not isinstance(outcome, DatabaseError):
            raise outcome
