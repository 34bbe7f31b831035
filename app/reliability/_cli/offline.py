"""What the files say when nobody answers: the liveness board's view, and how old it is."""

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
        stopped: whether it was stopped on purpose, and nobody runs any more.
    """

    views: "list[ProcessView]"
    age_s: float
    stopped: bool


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
        return BoardReading(views, max(0, now_ms - last_ms) / 1000, board.stopping and not any(view.pid for view in views))


def label(age_s: float) -> dict[str, Any]:
    """Return what marks JSON as an offline view."""
    return {"offline": True, "age_s": round(age_s, 3)}


def banner(output: Output, error: "ReliabilityError", source: str, age_s: float) -> str:
    """Return the line that marks text as an offline view, and says why."""
    head = output.style("Offline view", "yellow", bold=True)
    return f"{head} from {source}, {duration(age_s)} old: {error.message}"
