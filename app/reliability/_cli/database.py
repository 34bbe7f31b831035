"""`relctl db-stats` and `relctl maintenance`: how the database is, and looking after it."""

import os
import time
from typing import Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import banner, database, label
from app.reliability._cli.output import Output, duration, printable, size
from app.reliability._cli.session import Session
from protocol.errors import EXIT_FAILED, EXIT_INTEGRITY, EXIT_OK, ErrorCode, LocalError, ReliabilityError
from protocol.names import EVENT_LOGGER

ROWS_BUDGET_S: Final = 0.15
LIMIT_S: Final = 1.0
MAINTENANCE_TIMEOUT_S: Final = 900.0
_LOOK_INTERVAL_S: Final = 0.1


@click.command(cls=RelctlCommand, short_help="Show the database: sizes, pages, log, pragmas, tables.")
@pass_session
def db_stats(session: Session) -> None:
    """Show how large the database is, what is free in it, its log, its pragmas and tables, and the last maintenance.

    It is read from the file; event_logger is asked how far the log has been moved into it.
    """
    from actors.runtime.database_maintenance import read_record
    from actors.runtime.database_stats import stats_of

    answer = session.ask_or_absent(EVENT_LOGGER, "status")
    absence = answer if isinstance(answer, ReliabilityError) else None
    missing = absence or LocalError(ErrorCode.FAILED, "there is no database yet", "")
    path, age_s = database(session, missing)
    stats = stats_of(path, ROWS_BUDGET_S, LIMIT_S)
    record = read_record(session.data_dir)
    stats["last_maintenance"] = record.last if record else None
    stats["wal_backlog_bytes"] = None
    if not isinstance(answer, ReliabilityError):
        stats["wal_backlog_bytes"] = answer.get("database", {}).get("wal_backlog_bytes")
    if session.output.json:
        session.output.document(stats | (label(age_s) if absence else {}))
        return
    if absence:
        session.output.text(banner(session.output, absence, "the database", age_s))
    _show(session.output, stats)


@click.command(cls=RelctlCommand, short_help="Check, analyse and tidy up the database.")
@click.option("--light", is_flag=True, help="Only what is done every day: statistics, and emptying the log.")
@pass_session
def maintenance(session: Session, light: bool) -> int:
    """Check the database, have it analysed, vacuum it if that pays, and empty its log.

    Nobody who writes waits longer than two seconds for it: a VACUUM that would take longer is rolled back. Ctrl-C
    leaves it to go on in the background. Where no system runs, it is done by this command itself.
    """
    kind = "light" if light else "whole"
    end = session.ports.monotonic() + session.timeout_s(MAINTENANCE_TIMEOUT_S)
    try:
        begun = session.client().call(EVENT_LOGGER, "maintenance", by=_user(), kind=kind, timeout=5.0)
    except ReliabilityError as error:
        if error.code != ErrorCode.NOT_RUNNING:
            raise
        result = _by_ourselves(session, kind, error)
    else:
        result = _follow(session, int(begun["run"]), end)
    session.output.progress("")
    if session.output.json:
        session.output.document(result)
    else:
        _report(session.output, result)
    return _exit_code(result)


def _follow(session: Session, run: int, end: float) -> dict[str, Any]:
    """Wait for a run of event_logger's and return its result."""
    while session.ports.monotonic() < end:
        status = session.ask(EVENT_LOGGER, "maintenance_status")
        if status["run"] < run:
            raise LocalError(ErrorCode.FAILED, "event_logger was restarted during the maintenance", "Begin it again.")
        if status["run"] > run or not status["running"]:
            result: dict[str, Any] = status["last"]
            return result
        session.output.progress(_progress(status["progress"]))
        session.ports.sleep(_LOOK_INTERVAL_S)
    raise LocalError(
        ErrorCode.DEADLINE_PASSED, "the maintenance is not over yet; it goes on", "`relctl db-stats` shows its result."
    )


def _by_ourselves(session: Session, kind: str, absence: ReliabilityError) -> dict[str, Any]:
    """Do it without a system: nobody else is there to do it."""
    import threading

    from actors.runtime.database_maintenance import Kind, Run, first_record, read_record, write_record

    path, _ = database(session, absence)
    run = Run(path, Kind(kind), _user(), _wall_ms)
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(run.run()), name="maintenance")
    thread.start()
    try:
        while thread.is_alive():
            session.output.progress(_progress(run.progress))
            thread.join(_LOOK_INTERVAL_S)
    finally:
        run.stop()
        thread.join()
    record = read_record(session.data_dir) or first_record(_wall_ms())
    write_record(session.data_dir, record.done(Kind(kind), _wall_ms(), results[0]))
    return results[0]


def _progress(progress: dict[str, Any]) -> str:
    if not progress:
        return "maintenance ..."
    phase = progress.get("phase") or {}
    table = f" {phase['table']}" if "table" in phase else ""
    return f"maintenance, step {progress['number']} of {progress['of']}: {progress['step']}{table} ..."


def _report(output: Output, result: dict[str, Any]) -> None:
    from actors.runtime.database_maintenance import summary

    word = output.style("done", "green", bold=True) if result["ok"] else output.style("not all done", "red", bold=True)
    output.text(f"Maintenance {word} in {duration(result['took_s'])}: {printable(summary(result))}")


def _exit_code(result: dict[str, Any]) -> int:
    from actors.runtime.database_maintenance import found_damage

    if any(found_damage(step) for step in result["steps"]):
        return EXIT_INTEGRITY
    return EXIT_OK if result["ok"] else EXIT_FAILED


def _show(output: Output, stats: dict[str, Any]) -> None:
    pragmas = ", ".join(f"{name}={value}" for name, value in stats["pragmas"].items())
    backlog = stats["wal_backlog_bytes"]
    lines = [
        f"{output.style(stats['path'], bold=True)}  {size(stats['bytes'])}, SQLite {stats['sqlite_version']}",
        f"  pages  {stats['page_count']} of {stats['page_size']} bytes, {stats['free_pages']} free"
        f" ({stats['free_percent']} %)",
        f"  log    {size(stats['wal_bytes'])}"
        + (f", {size(backlog)} of it not yet in the file" if backlog is not None else ""),
        f"  pragmas  {pragmas}",
    ]
    last = stats["last_maintenance"]
    if last:
        from actors.runtime.database_maintenance import summary

        ago = duration(max(0.0, (_wall_ms() - last["at_ms"]) / 1000))
        lines.append(f"  last maintenance  {ago} ago ({last['kind']}): {printable(summary(last))}")
    if stats["last_repair"]:
        from actors.runtime.database_report import describe

        lines.append(f"  {output.style('repaired', 'yellow')}  {printable(describe(stats['last_repair']))}")
    output.text("\n".join(lines))
    rows = [[table["name"], "-" if table["rows"] is None else str(table["rows"])] for table in stats["tables"]]
    output.table(["TABLE", "ROWS"], rows, right=["ROWS"])


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else "?"


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
