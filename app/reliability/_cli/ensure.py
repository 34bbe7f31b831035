"""`relctl ensure`: the regular check of cron or the Task Scheduler. It starts what should run and does not.

===================================================== ============================================================
what is found                                         what follows
===================================================== ============================================================
a launcher whose loop turns                           nothing, and nothing is said
a stop that a person asked for                        nothing; it says so
a launcher that is missing or stands still, and       they bring it back; it waits for that, and goes on with the
others whose loops turn                               next row if nothing comes of it
a launcher that stands still, and nobody else does    it is watched for the hang timeout, killed, and another one
any better                                            started
no launcher, and nobody else                          one is started
===================================================== ============================================================

Whoever acts holds `DATA/ensure.lock`, so that several checks at once start one system.
"""

import os
from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.output import duration
from app.reliability._cli.session import Session
from app.reliability._start import Condition, Finding, look_at
from protocol.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from actors.runtime.identity import ProcessIdentity

START_TIMEOUT_S: Final = 60.0
RECOVERY_S: Final = 12.0
"""What survivors are given to bring a launcher back, beyond twice the hang timeout."""
LOCK_FILE: Final = "ensure.lock"
_INTERVAL_S: Final = 0.1


@click.command(cls=RelctlCommand, short_help="Start the system if it should run and does not; for cron.")
@click.option("--config", type=click.Path(dir_okay=False), metavar="FILE", help="Configuration file, as of `up`.")
@click.option("--portable", is_flag=True, help="Use the portable ports, as of `up`.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]", type=click.UNPROCESSED)
@pass_session
def ensure(session: Session, config: str | None, portable: bool, command: tuple[str, ...]) -> None:
    """Start the system if it should run and does not. For cron and the Task Scheduler, every minute.

    Says nothing and ends within a blink if all is well. What a person stopped stays stopped. FILE and COMMAND are those
    of a start; they do not change a system that runs.
    """
    finding = look(session)
    if finding.condition in {Condition.RUNNING, Condition.STOPPED}:
        _report(session, finding.condition)
        return
    from actors.runtime.filelock import FileLock

    os.makedirs(session.data_dir, mode=0o700, exist_ok=True)
    timeout_s = session.timeout_s(START_TIMEOUT_S)
    with FileLock(os.path.join(session.data_dir, LOCK_FILE)) as lock:
        if not session.wait_until(lock.acquire, timeout_s, _INTERVAL_S):
            raise LocalError(ErrorCode.LOCKED, f"another `relctl ensure` has been busy for {timeout_s:g} s", "")
        again = look(session)
        if again.condition in {Condition.RUNNING, Condition.STOPPED}:  # the other one was faster
            _report(session, again.condition)
            return
        _act(session, again, launcher_words(session, config, command, portable=portable))


def launcher_words(session: Session, config: str | None, command: tuple[str, ...], *, portable: bool) -> list[str]:
    """Return the command line of the launcher to be started: on the ports of the last one, if nobody says otherwise."""
    from app.reliability._cli.up import launcher_command

    run = session.run_info()
    words = launcher_command(session.data_dir, config, portable=portable or (run is not None and run.portable))
    return [*words, "--", *command] if command else words


def look(session: Session) -> Finding:
    """Return which row of the module's table is true now."""
    return look_at(session.data_dir, session.runtime_dir(), session.now_ms())


def _act(session: Session, finding: Finding, words: list[str]) -> None:
    """Bring the system to run; the lock is held.

    Raises:
        LocalError: it cannot be.
    """
    why = "It did not run"
    if finding.condition is Condition.RECOVERING:
        what = "hung" if finding.launcher else "was missing"
        session.output.progress(f"The launcher {what}; waiting for the others to bring it back ...")
        if _await_recovery(session, finding):
            _report(session, Condition.RECOVERING, f"The launcher {what}; the others have brought it back.")
            return
        why = f"The launcher {what}, and the others did not bring it back"
        finding = look(session)
    if finding.condition is not Condition.MISSING and finding.launcher is not None:
        if not _stands_still(session, finding):
            _report(session, Condition.RUNNING)
            return
        why = f"The launcher (pid {finding.launcher.pid}) stood still, and so did everybody else"
        _kill(session, finding.launcher)
    _start(session, words, why)


def _await_recovery(session: Session, finding: Finding) -> bool:
    patience_s = 2 * finding.hang_timeout_s + RECOVERY_S
    if finding.retry_in_s > patience_s:
        message = f"the launcher has died too often; it is tried again in {duration(finding.retry_in_s)}"
        raise LocalError(ErrorCode.FAILED, message, "`relctl up --detach` starts it now; see `relctl logs launcher`.")
    return session.wait_until(lambda: look(session).condition is Condition.RUNNING, patience_s, _INTERVAL_S)


def _stands_still(session: Session, finding: Finding) -> bool:
    """Watch the launcher for its hang timeout; tell whether its loop has not turned once, by our own clock."""
    session.output.progress("The launcher stands still; watching it ...")

    def turned() -> bool:
        now = look(session)
        return now.condition is Condition.RUNNING or (now.launcher, now.tick) != (finding.launcher, finding.tick)

    moved = session.wait_until(turned, finding.hang_timeout_s, _INTERVAL_S)
    return not moved or look(session).launcher is None


def _kill(session: Session, launcher: "ProcessIdentity") -> None:
    from actors.runtime.signalling import KILL, signaller

    run = session.run_info()
    signaller(portable=run is not None and run.portable).send(launcher, KILL)
    if not session.wait_until(lambda: not launcher.is_running(), 5.0):
        raise LocalError(
            ErrorCode.FAILED,
            f"the launcher (pid {launcher.pid}) stands still and cannot be killed",
            "It waits in the kernel, for a disk perhaps: see `dmesg`.",
        )


def _start(session: Session, words: list[str], why: str) -> None:
    from app.reliability._cli.up import start_detached

    began = session.ports.monotonic()
    reading = start_detached(session, words)
    took_s = session.ports.monotonic() - began
    ready = sum(view.state == "ready" for view in reading.views)
    pid = next((view.pid for view in reading.views if view.kind == "launcher"), None)
    message = f"{why}; started it: {ready} processes ready, launcher pid {pid}."
    _report(session, Condition.MISSING, message, started=True, pid=pid, took_s=round(took_s, 3))


def _report(session: Session, condition: Condition, message: str = "", **more: Any) -> None:
    session.output.progress("")
    if session.output.json:
        state = str(condition) if condition in {Condition.RUNNING, Condition.STOPPED} else str(Condition.RUNNING)
        session.output.document({"state": state, "started": False, "message": message} | more)
        return
    if condition is Condition.STOPPED:
        message = "The system was stopped on purpose and stays so; `relctl up --detach` starts it."
    if message:
        session.output.text(message)
