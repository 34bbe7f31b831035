"""The output of programs on its way into the table. The loop's half.

Reading is for a thread of its own: a disk that stalls under an output holds up neither the loop nor anybody's events.
What was read is committed by the thread that writes, together with how far it was read; until that is done nothing
more is read.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final

from actors.event_logger.core import ATTEMPT_PATIENCE_S, Trouble, TroubleReport
from actors.event_logger.outputs_core import OutputPosition
from actors.event_logger.outputs_files import OutputReader, Taken
from actors.event_logger.outputs_store import OvertakenError, read_positions, take_in
from actors.event_logger.spooled import Submit
from actors.event_logger.store import EventStore, Stored
from actors.runtime.actor import Context
from actors.runtime.database_problem import DatabaseError
from actors.runtime.programs import PROGRAMS_FILE, load
from actors.runtime.side_worker import side_worker
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity

RETRY_S: Final = 1.0
GROWING_PAUSE_S: Final = 0.1
"""Between two looks at an output that grows fast: it may exceed its cap by what comes meanwhile."""
LAST_LOOK_S: Final = 1.0
"""What a stop waits for the last words of programs; a disk that stalls holds it up no longer."""


class Phase(StrEnum):
    """What is under way."""

    IDLE = "idle"
    LOADING = "loading"
    READING = "reading"
    COMMITTING = "committing"


class Outputs:
    """Looks at the output of programs every tick, and as fast as it comes while there is more."""

    def __init__(
        self,
        store: EventStore,
        reader: OutputReader,
        runtime_dir: str,
        submit: Submit,
        note: Callable[[Any], None],
        on_stored: Callable[[Sequence[Stored]], None],
    ) -> None:
        """Commit into `store`, by `submit`, what `reader` reads; `note` is told how each write ended."""
        self._store = store
        self._reader = reader
        self._runtime_dir = runtime_dir
        self._submit = submit
        self._note = note
        self._on_stored = on_stored
        self._phase = Phase.IDLE
        self._known: dict[tuple[str, int], int] | None = None
        self._pending: Taken | None = None
        self._caps: dict[str, int] = {}
        self._caps_version: tuple[int, int] | None = None
        self._again_at = 0.0
        self._looked = False
        self._stopping = threading.Event()
        self._stop_by: float | None = None
        self._last_look = False
        self._ended = False
        self._lines = 0
        self._trouble = TroubleReport()

    def start(self, context: Context) -> None:
        """Begin."""
        self._context = context
        self._worker = side_worker(context, f"{EVENT_LOGGER}-outputs", 1)

    def stop(self) -> None:
        """Take in what is there once more, and begin nothing further."""
        self._stop_by = self._context.now() + LAST_LOOK_S
        self._ended = self._has_nothing_to_do()
        self._stopping.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way; in a stop, whether all is taken in or time is up."""
        if self._stop_by is None or self._phase is Phase.COMMITTING:
            return self._phase is Phase.IDLE
        self._ended |= self._context.now() >= self._stop_by
        if not self._ended and self._phase is Phase.IDLE:
            self._step()
        return self._ended

    def status(self) -> dict[str, Any]:
        """Return what was taken in by this life."""
        return {"lines": self._lines, "programs": len(self._caps), "phase": str(self._phase)}

    def tick(self, now: float) -> None:
        """Begin what is due. Looks at tmpfs only."""
        if self._phase is Phase.IDLE and self._stop_by is None and now >= self._again_at:
            self._read_caps()
            if not self._has_nothing_to_do():
                self._step()

    # --- what is under way ---

    def _step(self) -> None:
        if self._known is None:
            self._phase = Phase.LOADING
            self._submit("read how far outputs were read", self._on_loaded, self._load)
        elif self._pending is not None:
            self._commit(self._pending)
        else:
            self._read()

    def _load(self) -> list[OutputPosition] | None:
        """Return how far outputs were read; None if there is none, so that no thread need be begun for it."""
        positions = self._store.write(read_positions, ATTEMPT_PATIENCE_S)
        return positions if positions or self._reader.has_any else None

    def _on_loaded(self, outcome: Any) -> None:
        self._phase = Phase.IDLE
        if isinstance(outcome, DatabaseError):
            self._failed()
        elif isinstance(outcome, Exception):
            raise outcome
        elif outcome is None and not self._caps:
            self._looked, self._ended = True, self._stop_by is not None
        else:
            positions: list[OutputPosition] = outcome or []
            self._known = {(item.program, item.inode): item.total for item in positions}
            self._read(positions=positions)

    def _read(self, pause_s: float = 0.0, positions: Sequence[OutputPosition] | None = None) -> None:
        self._phase = Phase.READING
        self._last_look = self._stop_by is not None
        read = partial(self._on_thread, dict(self._caps), pause_s, positions, last=self._last_look)
        self._worker.submit(read, on_done=self._on_read, what="read the output of programs")

    def _on_thread(
        self, caps: Mapping[str, int], pause_s: float, positions: Sequence[OutputPosition] | None, *, last: bool
    ) -> Taken:
        if positions is not None:
            self._reader.restore(positions)
        if pause_s:
            self._stopping.wait(pause_s)
        return self._reader.read(caps, last=last)

    def _on_read(self, outcome: Any) -> None:
        self._phase = Phase.IDLE
        if isinstance(outcome, Exception):
            if not isinstance(outcome, OSError):
                raise outcome
            self._tell(f"programs cannot be read: {outcome}")
            self._failed()
            return
        self._tell(outcome.failed)
        if outcome.empty:
            self._go_on(outcome)
        elif not self._ended:
            self._commit(outcome)

    def _commit(self, taken: Taken) -> None:
        self._phase = Phase.COMMITTING
        self._pending = taken
        work = partial(
            take_in,
            log=self._store.log,
            events=taken.events,
            positions=taken.positions,
            gone=taken.gone,
            known=dict(self._known or {}),
        )
        done = partial(self._on_committed, taken)
        self._submit("commit the output of programs", done, self._store.write, work, ATTEMPT_PATIENCE_S)

    def _on_committed(self, taken: Taken, outcome: Any) -> None:
        self._phase = Phase.IDLE
        if isinstance(outcome, OvertakenError):
            self._known = self._pending = None
            self._failed()
            return
        self._note(outcome)
        if isinstance(outcome, DatabaseError):
            self._failed()
            return
        self._pending = None
        if self._known is not None:
            self._known.update({(item.program, item.inode): item.total for item in taken.positions})
            for key in taken.gone:
                self._known.pop(key, None)
        self._lines += len(taken.events)
        self._on_stored(outcome)
        self._go_on(taken)

    def _go_on(self, taken: Taken) -> None:
        """Look again at once, soon, or at the next tick."""
        if self._ended:
            return
        if taken.more:
            self._read()
        elif self._stop_by is not None:
            self._ended = self._last_look
            if not self._ended:
                self._read()
        elif taken.growing:
            self._read(GROWING_PAUSE_S)
        else:
            self._looked = True

    def _failed(self) -> None:
        """Try again later, or leave it to the next life."""
        self._ended = self._stop_by is not None
        self._again_at = self._context.now() + RETRY_S
        if not self._ended:  # a full disk must not be made fuller by what waits
            self._phase = Phase.READING
            trim = partial(self._reader.trim, dict(self._caps))
            self._worker.submit(trim, on_done=self._on_trimmed, what="give back the disk of old output")

    def _on_trimmed(self, outcome: Any) -> None:
        self._phase = Phase.IDLE
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome

    # --- small things ---

    def _has_nothing_to_do(self) -> bool:
        """Tell whether there are no programs, and what earlier ones left was looked through."""
        return self._looked and not self._caps

    def _read_caps(self) -> None:
        """Look what is kept of each program's output, if that has changed."""
        try:
            status = os.stat(os.path.join(self._runtime_dir, PROGRAMS_FILE))
            version = status.st_ino, status.st_mtime_ns
        except OSError:
            version = None
        if version != self._caps_version:
            self._caps_version = version
            self._caps = {name: spec.output_bytes_max for name, spec in load(self._runtime_dir).items()}
            self._looked = False

    def _tell(self, failed: str) -> None:
        match self._trouble.note(failed=bool(failed), now=self._context.now()):
            case Trouble.BEGAN:
                self._context.log(Severity.WARN, "output_unreadable", f"the output of {failed}")
            case Trouble.ENDED:
                self._context.log(Severity.NOTICE, "output_readable", "the output of every program is read again")
