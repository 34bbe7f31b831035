"""What the files say when nobody answers, and how old that is: the liveness board and the event log's database."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.reliability._cli.output import Output, duration
from app.reliability._cli.session import Session

if TYPE_CHECKING:
    from actors.runtime.board_view import ProcessView
    from protocol.errors import ReliabilityError


@dataclass(frozen=True, slots=True)
class BoardReading:
    """The board at one moment.

    Attributes:
        views: every process of the system.
        age_s: time since the last sign of life of any of them.
        stopping: whether a deliberate stop has begun.
    """

    views: "list[ProcessView]"
    age_s: float
    stopping: bool

    @property
    def anybody_runs(self) -> bool:
        """Whether any process of the system runs."""
        return any(view.pid for view in self.views)


def read_board(session: Session) -> BoardReading | None:
    """Read the whole board; None if there is none."""
    from actors.runtime.board_view import snapshot

    board = session.board()
    if board is None:
        return None
    with board:
        now_ms = session.now_ms()
        views = snapshot(board, now_ms)
        last_ms = max((slot.read_beat().tick_ms for slot, _ in board.occupied()), default=now_ms)
        return BoardReading(views, max(0, now_ms - last_ms) / 1000, board.stopping)


def database(session: Session, absence: "ReliabilityError") -> tuple[str, float]:
    """Return the path of the event log's database and the time since something was last written to it.

    Raises:
        ReliabilityError: there is none, so `absence` is all there is to say.
    """
    from actors.runtime.paths import DATABASE_FILE

    path = os.path.join(session.data_dir, DATABASE_FILE)
    written_at = max(_modified_at(path), _modified_at(f"{path}-wal"))
    if not written_at:
        raise absence
    return path, max(0.0, time.time() - written_at)


def label(age_s: float) -> dict[str, Any]:
    """Return what marks JSON as an offline view."""
    return {"offline": True, "age_s": round(age_s, 3)}


def banner(output: Output, error: "ReliabilityError", source: str, age_s: float) -> str:
    """Return the line that marks text as an offline view, and says why."""
    head = output.style("Offline view", "yellow", bold=True)
    return f"{head} from {source}, {duration(age_s)} old: {error.message}"


def _modified_at(path: str) -> float:
    """Return when a file was last written to; 0 if there is none. Never opens it: see invariant 6 of the design."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
