"""`relctl down`: stop everything, whoever started it, also when the launcher is dead or hangs."""

import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.output import duration
from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import LAUNCHER

if TYPE_CHECKING:
    from actors.runtime.identity import ProcessIdentity

STOP_TIMEOUT_S: Final = 60.0
ASK_TIMEOUT_S: Final = 4.0
"""For the launcher to say that the stop is durable; it waits 2 s for a stalled disk itself."""
TERMINATE_S: Final = 5.0
"""Without a launcher: from SIGTERM to SIGKILL."""
KILL_S: Final = 5.0
"""From SIGKILL to giving up."""
DISK_S: Final = 2.0
"""For the durable marker, before the processes are ended all the same."""


class _Population:
    """Every process of the system that was seen on the board, and which of them still run.

    A board is read again each time: a survivor may have started a successor meanwhile.
    """

    def __init__(self, session: Session) -> None:
        """Start with nobody."""
        self._session = session
        self._names: dict[ProcessIdentity, str] = {}

    def seen(self) -> "dict[ProcessIdentity, str]":
        """Return everybody who was ever seen running, with names."""
        return dict(self._names)

    def running(self) -> "dict[ProcessIdentity, str]":
        """Return who runs, with names."""
        from actors.runtime.identity import ProcessIdentity

        board = self._session.board()
        if board is not None:
            with board:
                for slot, record in board.occupied():
                    own = slot.process.read()
                    for source in (record, own):
                        if source is not None and source.pid:
                            identity = ProcessIdentity(source.pid, source.start_time, board.boot_id)
                            if identity.is_running():
                                self._names[identity] = record.name
        return {identity: name for identity, name in self._names.items() if identity.is_running()}


@click.command(cls=RelctlCommand, short_help="Stop the system.")
@pass_session
def down(session: Session) -> None:
    """Stop the whole system and wait until nothing of it is left. It stays stopped until `relctl up`.

    The launcher does it in order. If it cannot be asked or does not get done, every process is ended one by one.
    """
    population = _Population(session)
    running = population.running()
    if not running:
        _refuse_unseen(session)
        _report(session, {}, 0.0, None)
        return
    began = session.ports.monotonic()
    end = began + session.timeout_s(STOP_TIMEOUT_S)
    forced = _ask(session, population, end)
    if forced is not None:
        _end_each(session, population, forced, end)
    left = population.running()
    if left:
        names = ", ".join(f"{name} (pid {identity.pid})" for identity, name in left.items())
        raise LocalError(
            ErrorCode.DEADLINE_PASSED, f"still running: {names}", "Run `relctl down` again, with more --timeout."
        )
    _report(session, population.seen(), session.ports.monotonic() - began, forced)


def _ask(session: Session, population: _Population, end: float) -> str | None:
    """Have the launcher stop everything; returns None once nothing is left, else why it has to be done without it."""
    run = session.run_info()
    if run is None:
        return "there is no run.json"
    try:
        session.ports.call_launcher(run, "down", min(ASK_TIMEOUT_S, _left_s(session, end) / 2))
    except ReliabilityError as error:
        return str(error)
    left_s = _left_s(session, end)

    def launcher_left() -> bool:
        running = population.running()
        session.output.progress(f"Stopping: {', '.join(running.values())} ..." if running else "")
        return LAUNCHER not in running.values()

    in_time = session.wait_until(launcher_left, left_s - min(TERMINATE_S + KILL_S, left_s / 2))
    session.output.progress("")
    if not population.running():
        return None
    return "the launcher left before the others did" if in_time else "the launcher did not get done"


def _end_each(session: Session, population: _Population, why: str, end: float) -> None:
    """End every process by its identity: the launcher at once, the others after a chance to leave by themselves."""
    from actors.runtime.signalling import KILL, signaller

    run = session.run_info()
    send = signaller(portable=run is not None and run.portable).send
    session.output.note(f"The launcher cannot do it ({why}); ending each process.")
    _forbid_restoring(session, why)
    asked: set[ProcessIdentity] = set()

    def left_after_asking() -> bool:
        running = population.running()
        for identity, name in running.items():
            if identity not in asked:
                asked.add(identity)
                send(identity, KILL if name == LAUNCHER else signal.SIGTERM)
        return not running

    def left_after_killing() -> bool:
        running = population.running()
        for identity in running:
            send(identity, KILL)
        return not running

    if not session.wait_until(left_after_asking, min(TERMINATE_S, _left_s(session, end) / 2)):
        session.wait_until(left_after_killing, min(KILL_S, _left_s(session, end)))


def _forbid_restoring(session: Session, why: str) -> None:
    """Say on the board and in files that this stop is meant: survivors and thawed processes obey."""
    from actors.runtime.control_client import caller_name
    from actors.runtime.journal import Journal, new_entry
    from actors.runtime.paths import JOURNAL_DIR, STOP_MARKER_FILE, write_atomically

    board = session.board(writable=True)
    if board is not None:
        with board:
            board.stopping = True
    user = caller_name() or "an unnamed user"
    runtime_dir = session.runtime_dir()
    entry = new_entry(
        "event",
        severity="WARN",
        component=LAUNCHER,
        event_type="stop_forced",
        message=f"relctl down by {user}, without the launcher: {why}",
        attributes={"user": user},
    )
    Journal(os.path.join(runtime_dir, JOURNAL_DIR), "relctl").append(entry)
    marker = json.dumps({"at": entry["at"], "by": f"relctl down by {user}"}).encode()
    write_atomically(os.path.join(runtime_dir, STOP_MARKER_FILE), marker, sync=False)
    on_disk = os.path.join(session.data_dir, STOP_MARKER_FILE)
    durable = threading.Thread(target=write_atomically, args=(on_disk, marker), kwargs={"sync": True}, daemon=True)
    durable.start()
    durable.join(DISK_S)


def _refuse_unseen(session: Session) -> None:
    """Raise if a launcher runs although the board shows nobody: it was deleted, or replaced by an unreadable one."""
    from actors.runtime.filelock import FileLock
    from actors.runtime.paths import INSTANCE_LOCK_FILE

    path = os.path.join(session.data_dir, INSTANCE_LOCK_FILE)
    if not os.path.exists(path):
        return
    with FileLock(path) as lock:
        if lock.acquire():
            return
    run = session.run_info()
    raise LocalError(
        ErrorCode.LOCKED,
        f"a launcher holds {path}, but its liveness board cannot be read",
        f"It is probably pid {run.pid}; end it with `kill`." if run else "End it with `kill`.",
    )


def _report(session: Session, stopped: "dict[ProcessIdentity, str]", took_s: float, forced: str | None) -> None:
    if session.output.json:
        names = list(stopped.values())
        session.output.document({"stopped": names, "took_s": round(took_s, 3), "forced": forced})
    elif stopped:
        session.output.text(
            f"Stopped {len(stopped)} processes in {duration(took_s)}. `relctl up --detach` starts them again."
        )
    else:
        session.output.text("Nothing is running.")


def _left_s(session: Session, end: float) -> float:
    return max(0.0, end - session.ports.monotonic())
