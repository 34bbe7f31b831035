"""`relctl up`: become the launcher, or start one in the background and wait until everything is ready."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import BoardReading, read_board
from app.reliability._cli.output import duration
from app.reliability._cli.session import Session
from app.reliability._notify import VARIABLES
from protocol.errors import EXIT_LOCKED, EXIT_USAGE, ErrorCode, LocalError

if TYPE_CHECKING:
    from actors.runtime.board_view import ProcessView

START_TIMEOUT_S: Final = 30.0
LOG_BYTES_MAX: Final = 1024 * 1024
"""A log that is larger at a start is turned over to ``launcher.log.1``."""
LOG_LINES_SHOWN_MAX: Final = 12
_LOG_BYTES_READ_MAX: Final = 16 * 1024
_ERROR_CODES: Final = {EXIT_USAGE: ErrorCode.CONFIGURATION, EXIT_LOCKED: ErrorCode.LOCKED}
"""What the launcher's exit code says about a start that failed."""


@click.command(cls=RelctlCommand, short_help="Start the system.")
@click.option("--detach", is_flag=True, help="In the background; returns once every process is ready.")
@click.option("--config", type=click.Path(dir_okay=False), metavar="FILE", help="Configuration file.")
@click.option("--portable", is_flag=True, help="Use the portable ports (no fork, TCP instead of local sockets).")
@pass_session
def up(session: Session, detach: bool, config: str | None, portable: bool) -> None:
    """Start the system: in the foreground until Ctrl-C, or with --detach in the background.

    A system that runs already is left as it is.
    """
    command = launcher_command(session.data_dir, config, portable=portable)
    if not detach:
        _become(command)
    reading = read_board(session)
    if reading is not None and reading.stopping:
        _await_stop(session)
    elif reading is not None and _launcher(reading) is not None:
        _report(session, reading, 0.0, already_running=True)
        return
    began = session.ports.monotonic()
    reading = start_detached(session, command)
    _report(session, reading, session.ports.monotonic() - began, already_running=False)
    not_ready = [view for view in reading.views if view.state != "ready" and not _rests(view)]
    if not_ready:
        raise _not_whole(not_ready)


def _await_stop(session: Session) -> None:
    """Wait until a stop that is under way is over, since who starts after it wants to have it running.

    Raises:
        LocalError: it takes too long.
    """
    session.output.progress("Waiting for the stop that is under way ...")
    timeout_s = session.timeout_s(START_TIMEOUT_S)
    if not session.wait_until(lambda: (reading := read_board(session)) is None or not reading.anybody_runs, timeout_s):
        message = f"the system is still being stopped after {duration(timeout_s)}"
        raise LocalError(ErrorCode.DEADLINE_PASSED, message, "`relctl down` ends it whatever happens.")


def launcher_command(data_dir: str, config: str | None, *, portable: bool) -> list[str]:
    """Return the command line of a launcher for `data_dir`, whatever the working directory will be."""
    root = os.path.abspath(__file__)
    for _ in range(4):
        root = os.path.dirname(root)
    command = [sys.executable, "-P", os.path.join(root, "launcher.py"), "--data-dir", data_dir]
    if config is not None:
        command += ["--config", os.path.abspath(config)]
    return [*command, "--portable"] if portable else command


def _become(command: list[str]) -> NoReturn:
    """Turn this process into the launcher, so that signals and Ctrl-C reach it directly."""
    sys.stdout.flush()
    if sys.platform == "win32":
        process = subprocess.Popen(command)  # exec would end this process at once, and the shell not wait
        while True:
            try:
                sys.exit(process.wait())
            except KeyboardInterrupt:  # the launcher got it too, and is stopping
                continue
    else:
        os.execv(command[0], command)  # noqa: S606 - without a shell is how it is meant


@dataclass(frozen=True, slots=True)
class _Log:
    """The launcher's log, and where this start's part of it begins."""

    path: str
    begin: int

    @classmethod
    def open(cls, data_dir: str) -> "tuple[_Log, BinaryIO]":
        """Open the log of `data_dir` for appending."""
        from actors.runtime.paths import LAUNCHER_LOG_FILE

        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        path = os.path.join(data_dir, LAUNCHER_LOG_FILE)
        if os.path.exists(path) and os.path.getsize(path) > LOG_BYTES_MAX:
            os.replace(path, f"{path}.1")
        file = open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
        return cls(path, os.fstat(file.fileno()).st_size), file

    def tail(self) -> str:
        """Return the last lines that this start wrote."""
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.begin, size - _LOG_BYTES_READ_MAX))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if line.strip()).strip()


def start_detached(session: Session, command: list[str]) -> BoardReading:
    """Start a launcher in the background and wait until no process is on its way any more.

    A program that was not asked to run, or has ended, is on no way.

    Raises:
        LocalError: it ended, saying why; or time is up.
    """
    timeout_s = session.timeout_s(START_TIMEOUT_S)
    log, file = _Log.open(session.data_dir)
    with file:
        process = _spawn(command, file)
    reading: BoardReading | None = None

    def settled() -> bool:
        nonlocal reading
        code = process.poll()
        reading = read_board(session)
        if code is not None and (code != EXIT_LOCKED or reading is None or _launcher(reading) is None):
            raise _failure(log, code)
        if reading is None or _launcher(reading) is None:
            return False
        waiting = [
            view.name for view in reading.views if view.state not in {"ready", "quarantined"} and not _rests(view)
        ]
        session.output.progress(f"Waiting for {', '.join(waiting)} ..." if waiting else "")
        return not waiting

    try:
        if session.wait_until(settled, timeout_s) and reading is not None:
            return reading
    finally:
        session.output.progress("")
        process.returncode = 0 if process.returncode is None else process.returncode  # it goes on without us
    states = ", ".join(f"{view.name} {view.state}" for view in reading.views) if reading else "no liveness board yet"
    message = f"not everything is ready after {duration(timeout_s)}: {states}"
    raise LocalError(ErrorCode.DEADLINE_PASSED, message, f"It goes on starting; see `relctl ps` and {log.path}.")


def _spawn(command: list[str], output: BinaryIO) -> "subprocess.Popen[bytes]":
    """Start `command` so that it outlives this process, its terminal and its working directory.

    What a service manager has told this process, or a launcher its program, is meant for that one alone.
    """
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=os.path.abspath(os.sep),
        env=environment,
        **options,
    )


def _rests(view: "ProcessView") -> bool:
    """Tell whether it is a program that need not run: it has ended as it may, or waits for others."""
    return view.kind == "program" and view.state == "stopped"


def _launcher(reading: BoardReading) -> "ProcessView | None":
    """Return the launcher that runs, or None."""
    return next((view for view in reading.views if view.kind == "launcher" and view.pid), None)


def _report(session: Session, reading: BoardReading, took_s: float, *, already_running: bool) -> None:
    launcher = _launcher(reading)
    pid = launcher.pid if launcher else None
    if session.output.json:
        processes = [{"name": view.name, "state": str(view.state), "pid": view.pid or None} for view in reading.views]
        session.output.document(
            {"already_running": already_running, "pid": pid, "took_s": round(took_s, 3), "processes": processes}
        )
    elif already_running:
        session.output.text(f"Already running, launcher pid {pid}. `relctl ps` shows the processes.")
    else:
        ready = sum(view.state == "ready" for view in reading.views)
        session.output.text(f"Started in {duration(took_s)}: {ready} processes ready, launcher pid {pid}.")


def _failure(log: _Log, code: int) -> LocalError:
    said = "\n".join(log.tail().splitlines()[-LOG_LINES_SHOWN_MAX:])
    message = said.removeprefix("launcher: ") or f"the launcher ended with exit code {code} and said nothing"
    return LocalError(_ERROR_CODES.get(code, ErrorCode.FAILED), message, f"Its output is in {log.path}.")


def _not_whole(views: "list[ProcessView]") -> LocalError:
    names = ", ".join(f"{view.name} is {view.state}" for view in views)
    return LocalError(ErrorCode.FAILED, names, "`relctl restart NAME` lifts a quarantine; see `relctl restart-status`.")
