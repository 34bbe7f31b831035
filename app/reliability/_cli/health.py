"""`relctl health`: is all well? Follows the monitoring-plugins convention in exit codes and first line."""

from typing import Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.output import STATUS_COLORS, Output, duration, printable
from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import HEALTH_MONITOR

EXIT_CODES: Final = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}
BADNESS: Final = {"ok": 0, "unknown": 1, "warning": 2, "critical": 3}
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
    answer = session.ask_or_absent(HEALTH_MONITOR, "health")
    if isinstance(answer, ReliabilityError):
        from app.reliability._cli.offline_health import offline_health

        report, note = offline_health(session, answer)
    else:
        report, note = answer, ""
    if name is not None:
        report = only(report, name)
    if session.output.json:
        session.output.document(report)
    else:
        _show(session.output, report, note)
    return EXIT_CODES.get(report["status"], EXIT_CODES["unknown"])


def only(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a report that is about `name`.

    Raises:
        LocalError: there is no such check; the message lists them.
    """
    found = [check for check in report["checks"] if check["name"] == name]
    if not found:
        known = ", ".join(check["name"] for check in report["checks"])
        raise LocalError(ErrorCode.USAGE, f"there is no check {name!r}", f"Checks: {known}.")
    return report | {"status": found[0]["status"], "checks": found}


def _show(output: Output, report: dict[str, Any], note: str) -> None:
    status = report["status"]
    head = output.style(status.upper(), STATUS_COLORS.get(status), bold=True)
    line = f"{head} - {printable(_headline(report['checks']))}"
    if not output.terminal:
        line += _performance_data(report["checks"])
    lines = [line]
    lines += [note] if note else []
    width = max((len(check["name"]) for check in report["checks"]), default=0)
    for check in report["checks"]:
        age = f" ({duration(check['age_s'])} ago)" if (check["age_s"] or 0) > _STALE_S else ""
        lines.append(f"  {output.mark(check['status'])} {check['name']:{width}}  {printable(check['message'])}{age}")
    lines += [f"  degraded: {printable(str(item))}" for item in report.get("degraded", [])]
    output.text("\n".join(lines))


def _headline(checks: list[dict[str, Any]]) -> str:
    """Return what is wrong, the worst first; or that nothing is."""
    bad = sorted(
        (check for check in checks if check["status"] != "ok"), key=lambda check: -BADNESS.get(check["status"], 1)
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
