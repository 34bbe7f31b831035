"""`relctl health`: is all well? Follows the monitoring-plugins convention in exit codes and first line."""

from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import BoardReading, banner, label, read_board
from app.reliability._cli.output import STATUS_COLORS, Output, duration, printable
from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import HEALTH_MONITOR

if TYPE_CHECKING:
    from actors.runtime.board_view import ProcessView

EXIT_CODES: Final = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}
_BADNESS: Final = {"ok": 0, "unknown": 1, "warning": 2, "critical": 3}
"""Which status speaks for all: something known to be bad counts more than something not known."""
_PERFORMANCE_UNITS: Final = {"bytes": "B", "B": "B", "s": "s", "%": "%"}
_HEADLINE_CHECKS_MAX: Final = 3
_STALE_S: Final = 60.0
"""A check older than this says so to people."""


@click.command(cls=RelctlCommand, short_help="Tell whether all is well, by exit code too.")
@click.argument("name", required=False)
@pass_session
def health(session: Session, name: str | None) -> int:
    """Tell whether all is well; with NAME, how that one check or process is.

    Exit code: 0 ok, 1 warning, 2 critical, 3 unknown. While nobody answers, the liveness board tells how our own
    processes are.
    """
    report, absence = session.ask_or_absent(HEALTH_MONITOR, "health")
    if report is None:
        report = offline_report(read_board(session), session.data_dir, absence)
    if name is not None:
        report = only(report, name)
    if session.output.json:
        session.output.document(report)
    else:
        _show(session.output, report, absence)
    return EXIT_CODES.get(report["status"], EXIT_CODES["unknown"])


def offline_report(reading: BoardReading | None, data_dir: str, absence: ReliabilityError | None) -> dict[str, Any]:
    """Return a report of our own processes alone, in the shape of health_monitor's.

    Nobody answering is at least a warning. A system that was stopped on purpose, or never started, is neither well nor
    ill: unknown.
    """
    if reading is None:
        checks = [_made("system", "unknown", f"nothing runs on {data_dir}")]
        return {"status": "unknown", "checks": checks, "degraded": [], "offline": True, "age_s": None}
    checks = [_of_process(view, reading.age_s) for view in reading.views]
    if reading.stopped:
        checks = [check if check["status"] == "critical" else check | {"status": "unknown"} for check in checks]
        checks.append(_made("system", "unknown", "stopped on purpose"))
    elif not any(view.pid for view in reading.views):
        checks.append(_made("system", "critical", "no process runs, and nobody stopped them on purpose"))
    else:
        checks.append(_made("system", "warning", f"{absence}; disk, memory and database were not looked at"))
    return {"status": worst(checks), "checks": checks, "degraded": [], **label(reading.age_s)}


def worst(checks: list[dict[str, Any]]) -> str:
    """Return the status that speaks for all checks; unknown for none."""
    return max(
        (str(check["status"]) for check in checks), key=lambda status: _BADNESS.get(status, 1), default="unknown"
    )


def only(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a report that is about `name`.

    Raises:
        LocalError: there is no such check; the message lists them.
    """
    found = [check for check in report["checks"] if check["name"] == name]
    if not found:
        known = ", ".join(check["name"] for check in report["checks"])
        raise LocalError(ErrorCode.USAGE, f"there is no check {name!r}", f"Checks: {known}.")
    return report | {"status": worst(found), "checks": found}


def _of_process(view: "ProcessView", age_s: float) -> dict[str, Any]:
    from actors.runtime.board_view import check_of

    status, message = check_of(view)
    return _made(view.name, str(status), message) | {"age_s": round(age_s, 3)}


def _made(name: str, status: str, message: str) -> dict[str, Any]:
    return {"name": name, "status": status, "message": message, "value": None, "unit": "", "age_s": 0.0}


def _show(output: Output, report: dict[str, Any], absence: ReliabilityError | None) -> None:
    status = report["status"]
    head = output.style(status.upper(), STATUS_COLORS.get(status), bold=True)
    line = f"{head} - {printable(_headline(report['checks']))}"
    if not output.terminal:
        line += _performance_data(report["checks"])
    lines = [line]
    if report.get("offline") and report["age_s"] is not None and absence is not None:
        lines.append(banner(output, absence, "the liveness board", report["age_s"]))
    width = max((len(check["name"]) for check in report["checks"]), default=0)
    for check in report["checks"]:
        age = f" ({duration(check['age_s'])} ago)" if (check["age_s"] or 0) > _STALE_S else ""
        lines.append(f"  {output.mark(check['status'])} {check['name']:{width}}  {printable(check['message'])}{age}")
    lines += [f"  degraded: {printable(str(item))}" for item in report.get("degraded", [])]
    output.text("\n".join(lines))


def _headline(checks: list[dict[str, Any]]) -> str:
    """Return what is wrong, the worst first; or that nothing is."""
    bad = sorted(
        (check for check in checks if check["status"] != "ok"), key=lambda check: -_BADNESS.get(check["status"], 1)
    )
    if bad:
        return "; ".join(f"{check['name']}: {check['message']}" for check in bad[:_HEADLINE_CHECKS_MAX])
    return f"all {len(checks)} checks are ok" if len(checks) != 1 else f"{checks[0]['name']} is ok"


def _performance_data(checks: list[dict[str, Any]]) -> str:
    """Return the figures as monitoring plugins give them to their caller: ``| 'label'=value[UOM]``."""
    figures = [
        f"'{check['name']}'={check['value']}{_PERFORMANCE_UNITS.get(check['unit'] or '', '')}"
        for check in checks
        if isinstance(check["value"], int | float) and not isinstance(check["value"], bool)
    ]
    return f" | {' '.join(figures)}" if figures else ""
