"""`relctl restart|stop|start NAME`: asked of the launcher directly, so they work while the broker is down."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.output import duration
from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import LAUNCHER

if TYPE_CHECKING:
    from actors.runtime.liveness import LauncherRecord

CONTROL_TIMEOUT_S: Final = 30.0
"""Covers a process that has to be killed after its stop timeout, and its start."""
SUCCESSION_S: Final = 3.0
"""A launcher that died is back within this time; until then it is asked again."""
_RETRY_INTERVAL_S: Final = 0.05
_QUARANTINED: Final = "quarantined"


@dataclass(frozen=True, slots=True)
class Operation:
    """What the launcher is asked for.

    Attributes:
        name: the operation's.
        target: the state in which it is done.
        done: the word for that.
        new_life: whether only a new incarnation will do.
    """

    name: str
    target: str
    done: str
    new_life: bool = False


RESTART: Final = Operation("restart", "ready", "restarted", new_life=True)
STOP: Final = Operation("stop", "stopped", "stopped")
START: Final = Operation("start", "ready", "started")


@click.command(cls=RelctlCommand, short_help="Restart one process; lifts a quarantine.")
@click.argument("name")
@pass_session
def restart(session: Session, name: str) -> None:
    """Restart the process NAME and wait until it is ready.

    Costs nothing of its restart budget, and lifts a quarantine.
    """
    _perform(session, RESTART, name)


@click.command(cls=RelctlCommand, short_help="Stop one process until it is started again.")
@click.argument("name")
@pass_session
def stop(session: Session, name: str) -> None:
    """Stop the process NAME; it stays stopped until it is started again. `relctl down` stops everything."""
    _perform(session, STOP, name)


@click.command(cls=RelctlCommand, short_help="Start one process that was stopped.")
@click.argument("name")
@pass_session
def start(session: Session, name: str) -> None:
    """Start the process NAME and wait until it is ready. `relctl up` starts everything."""
    _perform(session, START, name)


def _perform(session: Session, operation: Operation, name: str) -> None:
    """Ask the launcher, wait until the board shows the process in its target state, and say what happened."""
    if name == LAUNCHER:
        raise click.UsageError("The launcher stands above all others: `relctl down` and `relctl up` stop and start it.")
    timeout_s = session.timeout_s(CONTROL_TIMEOUT_S)
    began = session.ports.monotonic()
    before = _record(session, name)
    reply = _ask_launcher(session, operation.name, name, timeout_s)
    session.output.progress(f"{name} is {reply['state']} ...")
    last = before

    def settled() -> bool:
        nonlocal last
        last = _record(session, name)
        return last is not None and _is_settled(operation, before, last)

    in_time = session.wait_until(settled, timeout_s - (session.ports.monotonic() - began))
    took_s = session.ports.monotonic() - began
    session.output.progress("")
    if last is None or not in_time or last.state != operation.target:
        raise _failure(operation, name, last, took_s)
    already = operation is not RESTART and before is not None and before.state == operation.target
    _report(session, operation.done if not already else "", last, took_s)


def _is_settled(operation: Operation, before: "LauncherRecord | None", now: "LauncherRecord") -> bool:
    """Tell whether there is nothing more to wait for: the target is reached, or a new quarantine."""
    same_life = before is not None and now.incarnation <= before.incarnation
    if operation.new_life and same_life:
        return False
    if now.state == _QUARANTINED:
        return not (same_life and before is not None and before.state == _QUARANTINED)
    return now.state == operation.target


def _ask_launcher(session: Session, op: str, name: str, timeout_s: float) -> dict[str, Any]:
    """Ask the launcher, again while it is being replaced: to be asked twice does no harm."""
    end = session.ports.monotonic() + min(SUCCESSION_S, timeout_s)
    while True:
        try:
            return session.ports.call_launcher(session.running_info(), op, timeout_s, name=name)
        except ReliabilityError as error:
            retry = error.code == ErrorCode.NOT_RUNNING and session.ports.monotonic() < end and _somebody_runs(session)
            if not retry:
                raise
        session.ports.sleep(_RETRY_INTERVAL_S)


def _somebody_runs(session: Session) -> bool:
    from app.reliability._cli.offline import read_board

    reading = read_board(session)
    return reading is not None and reading.anybody_runs


def _record(session: Session, name: str) -> "LauncherRecord | None":
    board = session.board()
    if board is None:
        return None
    with board:
        found = board.find(name)
        return None if found is None else found[1]


def _failure(operation: Operation, name: str, last: "LauncherRecord | None", took_s: float) -> LocalError:
    if last is None:
        return LocalError(ErrorCode.FAILED, f"{name} is not on the liveness board", "See `relctl ps`.")
    why = f": {last.reason}" if last.reason else ""
    if last.state == _QUARANTINED:
        message = f"{name} failed again and is quarantined{why}"
        return LocalError(
            ErrorCode.FAILED, message, f"`relctl restart-status {name}` and `relctl logs {name}` tell more."
        )
    message = f"{name} is {last.state}, not {operation.target}, after {duration(took_s)}{why}"
    return LocalError(
        ErrorCode.DEADLINE_PASSED, message, f"The launcher goes on with it; `relctl logs {name}` tells more."
    )


def _report(session: Session, done: str, last: "LauncherRecord", took_s: float) -> None:
    """Say what came of it; nothing was `done` if all was as wanted before."""
    if session.output.json:
        process = {"name": last.name, "state": last.state, "pid": last.pid or None, "incarnation": last.incarnation}
        session.output.document({**process, "took_s": round(took_s, 3)})
        return
    pid = f", pid {last.pid}" if last.pid else ""
    state = session.output.status(last.state)
    what = f"{done} in {duration(took_s)}: {state}" if done else f"was {state} already"
    session.output.text(f"{last.name} {what}{pid}")
