"""`relctl ps`: every process, read from the liveness board, so also while nobody answers."""

import sys
from typing import TYPE_CHECKING, Any

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import banner, label, read_board
from app.reliability._cli.output import Output, duration, size
from app.reliability._cli.session import Session, not_running
from protocol.errors import ReliabilityError
from protocol.names import BROKER

if TYPE_CHECKING:
    from actors.runtime.board_view import ProcessView


@click.command(cls=RelctlCommand, short_help="Show every process: state, uptime, restarts, memory.")
@pass_session
def ps(session: Session) -> None:
    """Show every process of the system.

    RESTARTS counts those of the rolling period, and how many are allowed. PROGRESS is how long ago the process's own
    loop turned last. MEMORY is its proportional share (PSS).
    """
    reading = read_board(session)
    if reading is None:
        raise not_running(session.data_dir)
    answer = session.ask_or_absent(BROKER, "ping")
    rows = [_row(view) for view in reading.views]
    if session.output.json:
        offline = label(reading.age_s) if isinstance(answer, ReliabilityError) else {}
        session.output.document({"processes": rows, **offline})
        return
    if isinstance(answer, ReliabilityError):
        session.output.text(banner(session.output, answer, "the liveness board", reading.age_s))
    _table(session.output, rows)


def _row(view: "ProcessView") -> dict[str, Any]:
    return {
        "name": view.name,
        "kind": str(view.kind),
        "pid": view.pid or None,
        "state": str(view.state),
        "incarnation": view.incarnation,
        "uptime_s": view.uptime_s,
        "restarts_in_period": view.restarts_in_period,
        "restarts_left": view.restarts_left,
        "progress_age_s": view.progress_age_s,
        "pss_bytes": pss_bytes(view.pid) if view.pid else None,
    }


def _table(output: Output, rows: list[dict[str, Any]]) -> None:
    header = ("NAME", "STATE", "PID", "UPTIME", "RESTARTS", "PROGRESS", "MEMORY")
    cells = [
        (
            row["name"],
            output.status(row["state"]),
            str(row["pid"] or "-"),
            duration(row["uptime_s"]),
            f"{row['restarts_in_period']} of {row['restarts_in_period'] + row['restarts_left']}",
            "-" if row["progress_age_s"] is None else f"{duration(row['progress_age_s'])} ago",
            size(row["pss_bytes"]),
        )
        for row in rows
    ]
    output.table(header, cells, right=("PID", "UPTIME", "PROGRESS", "MEMORY"))


def pss_bytes(pid: int) -> int | None:
    """Return a process's proportional share of memory; None if it is gone or may not be looked at."""
    if sys.platform != "linux":
        return _pss_elsewhere(pid)
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _pss_elsewhere(pid: int) -> int | None:
    """Return what psutil has that comes nearest: memory that is freed when the process ends."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return None
    return int(getattr(memory, "pss", memory.uss))
