"""`relctl restart-status`: who was restarted, when and why, and what the budget still allows."""

import os
from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import banner, database, label
from app.reliability._cli.output import Output, duration, printable
from app.reliability._cli.session import Session
from app.reliability._cli.timespec import local_time
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import EVENT_LOGGER, LAUNCHER

if TYPE_CHECKING:
    from actors.runtime.liveness import LauncherRecord

HISTORY_SHOWN_MAX: Final = 20
"""Restarts told to people; JSON has all that are kept at hand."""


@click.command("restart-status", cls=RelctlCommand, short_help="Show who was restarted, when and why.")
@click.argument("name", required=False)
@pass_session
def restart_status(session: Session, name: str | None) -> None:
    """Show how many restarts each process has left; with NAME, tell the story of its restarts."""
    report, answer, records = restart_report(session, name)
    processes = report["processes"]
    if name is not None and not processes:
        known = ", ".join(record.name for record in records)
        raise LocalError(
            ErrorCode.SERVICE_UNKNOWN, f"nothing is known of {name!r}", f"Known: {known}." if known else ""
        )
    if session.output.json:
        session.output.document(report)
        return
    if isinstance(answer, ReliabilityError):
        session.output.text(banner(session.output, answer, "the event log's database", report["age_s"]))
    if name is None:
        _table(session.output, processes)
    else:
        _story(session, processes[0], next((record for record in records if record.name == name), None))


def restart_report(
    session: Session, name: str | None
) -> "tuple[dict[str, Any], dict[str, Any] | ReliabilityError, list[LauncherRecord]]":
    """Return what is known of restarts, how event_logger answered, and what the board holds.

    Raises:
        ReliabilityError: it answered with an error, or neither it nor its database can be read.
    """
    arguments = {} if name is None else {"name": name}
    answer = session.ask_or_absent(EVENT_LOGGER, "restart_status", **arguments)
    records = _records(session)
    report = _offline_report(session, records, name, answer) if isinstance(answer, ReliabilityError) else answer
    return report, answer, records


def undrained_restarts(session: Session, name: str) -> list[dict[str, Any]]:
    """Return the restarts of `name` that stand in the launcher's journal, newest first: the table may lack them yet."""
    return _undrained(session.runtime_dir()).get(name, [])


def _offline_report(
    session: Session, records: "list[LauncherRecord]", name: str | None, absence: ReliabilityError
) -> dict[str, Any]:
    """Return the answer of event_logger, from its database, the board, and what it has not drained yet."""
    from actors.event_logger import queries

    path, age_s = database(session, absence)
    history = queries.read_restarts(path, name)
    for process, entries in _undrained(session.runtime_dir()).items():
        if name is None or process == name:
            known = {(entry["incarnation"], entry["timestamp"]) for entry in history.get(process, [])}
            fresh = [entry for entry in entries if (entry["incarnation"], entry["timestamp"]) not in known]
            history[process] = [*fresh, *history.get(process, [])]
    return {**queries.restart_status(records, history, name), **label(age_s)}


def _undrained(runtime_dir: str) -> dict[str, list[dict[str, Any]]]:
    """Return the restarts in the launcher's journal, newest first: event_logger's own end is told there first."""
    from actors.runtime.journal import Journal
    from actors.runtime.paths import JOURNAL_DIR

    entries = list(Journal(os.path.join(runtime_dir, JOURNAL_DIR), LAUNCHER).entries())
    recoveries = {
        entry.get("restart_id"): entry.get("recovery_ms") for entry in entries if entry.get("kind") == "recovery"
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in reversed(entries):
        if entry.get("kind") == "restart":
            same = ("reason", "exit_code", "signal", "incarnation", "charged", "manual", "evidence")
            restart = {"timestamp": entry["at"], "recovery_ms": recoveries.get(entry["id"])}
            found.setdefault(entry["name"], []).append(restart | {key: entry.get(key) for key in same})
    return found


def _records(session: Session) -> "list[LauncherRecord]":
    board = session.board()
    if board is None:
        return []
    with board:
        return [record for _, record in board.occupied()]


def _table(output: Output, processes: list[dict[str, Any]]) -> None:
    rows = []
    for process in processes:
        last = process["history"][0] if process["history"] else None
        budget = output.status("quarantined") if process["quarantined"] else _budget(process)
        rows.append(
            (
                process["name"],
                budget,
                local_time(last["timestamp"]) if last else "-",
                duration(last["recovery_ms"] / 1000) if last and last["recovery_ms"] is not None else "-",
                printable(last["reason"]) if last else "never restarted",
            )
        )
    output.table(("NAME", "RESTARTS", "LAST", "BACK AFTER", "REASON"), rows, right=("BACK AFTER",))


def _story(session: Session, process: dict[str, Any], record: "LauncherRecord | None") -> None:
    """Tell what state the process is in, what its budget allows, and each restart with its reason and cost."""
    output = session.output
    name, history = process["name"], process["history"]
    state = f" is {output.status(record.state)}" if record else " is not on the liveness board"
    lines = [f"{output.style(name, bold=True)}{state}; {_budget(process)} restarts of the period are used."]
    if record is not None and record.retry_at_ms:
        wait = duration(max(0, record.retry_at_ms - session.now_ms()) / 1000)
        lines.append(f"It is tried again in {wait}; `relctl restart {name}` does so now and lifts a quarantine.")
    if not history:
        lines.append("It was never restarted.")
    for entry in history[:HISTORY_SHOWN_MAX]:
        lines += ["", *_restart(session, entry)]
    if len(history) > HISTORY_SHOWN_MAX:
        lines.append(f"... and {len(history) - HISTORY_SHOWN_MAX} before; --json shows them.")
    output.text("\n".join(lines))


def _restart(session: Session, entry: dict[str, Any]) -> list[str]:
    """Return the lines on one restart."""
    recovery_ms = entry["recovery_ms"]
    back = f"ready again after {duration(recovery_ms / 1000)}" if recovery_ms is not None else ""
    charge = "by hand, not charged" if entry.get("manual") else "not charged" if entry.get("charged") is False else ""
    head = f"{local_time(entry['timestamp'])}  {session.output.style(printable(entry['reason']), bold=True)}"
    ended = [f"exit code {entry['exit_code']}"] if entry["exit_code"] is not None else []
    ended += [f"signal {entry['signal']}"] if entry["signal"] is not None else []
    life = f"life {entry['incarnation']}" if entry.get("incarnation") else ""
    lines = [head, "                     " + ", ".join(part for part in (back, *ended, life, charge) if part)]
    if entry.get("evidence"):
        from actors.runtime.paths import EVIDENCE_DIR

        lines.append(
            f"                     evidence: {os.path.join(session.runtime_dir(), EVIDENCE_DIR, entry['evidence'])}"
        )
    return lines


def _budget(process: dict[str, Any]) -> str:
    used, left = process["restarts_in_period"], process["restarts_left"]
    return "-" if used is None or left is None else f"{used} of {used + left}"
