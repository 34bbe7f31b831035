"""`relctl why NAME`: what became of it last, and why, in plain sentences; from event_logger, or from files."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.logs import Log, Selection
from app.reliability._cli.offline import banner
from app.reliability._cli.output import duration, printable
from app.reliability._cli.restarts import restart_report, undrained_restarts
from app.reliability._cli.session import Session
from app.reliability._cli.timespec import local_time
from app.reliability._cli.why_core import AFTER_S, BEFORE_S, LAST_WORDS_MAX, Facts, Story, tell
from protocol.errors import ErrorCode, LocalError, ReliabilityError

if TYPE_CHECKING:
    from actors.runtime.board_view import ProcessView

EVENTS_MAX: Final = 500
_INDENT: Final = "  "


@click.command(cls=RelctlCommand, short_help="Tell what became of a program, and why.")
@click.argument("name")
@pass_session
def why(session: Session, name: str) -> None:
    """Tell why the process or program NAME ended last: what went before, what it was doing, what was done about it."""
    report, answer, records = restart_report(session, name)
    view = _view(session, name)
    process = report["processes"][0] if report["processes"] else None
    if process is None and view is None:
        known = ", ".join(record.name for record in records)
        hint = f"Known: {known}." if known else ""
        raise LocalError(ErrorCode.SERVICE_UNKNOWN, f"nothing is known of {name!r}", hint)
    facts = _facts(session, name, view, process)
    story = tell(facts, duration)
    offline = isinstance(answer, ReliabilityError)
    if session.output.json:
        marks: dict[str, Any] = {key: report[key] for key in ("offline", "age_s") if key in report}
        document: dict[str, Any] = {
            "name": name,
            "state": facts.state or None,
            "restart": facts.restart,
            **asdict(story),
            **marks,
        }
        session.output.document(document)
        return
    if isinstance(answer, ReliabilityError) and offline:
        session.output.text(banner(session.output, answer, "the event log's database", report.get("age_s", 0.0)))
    _show(session, story, facts)


def _view(session: Session, name: str) -> "ProcessView | None":
    from app.reliability._cli.offline import read_board

    reading = read_board(session)
    return None if reading is None else next((view for view in reading.views if view.name == name), None)


def _facts(session: Session, name: str, view: "ProcessView | None", process: dict[str, Any] | None) -> Facts:
    history = [] if process is None else process["history"]
    restart = max(
        [*undrained_restarts(session, name), *history[:1]], key=lambda entry: entry["timestamp"], default=None
    )
    events: list[dict[str, Any]] = []
    words: list[str] = []
    evidence = None
    if restart is not None:
        at = datetime.fromisoformat(restart["timestamp"])
        events = _events(session, at)
        words = _last_lines(session, name, restart, view) or _last_output(session, name, at)
        evidence = _evidence(session, restart.get("evidence") or "")
    return Facts(
        name=name,
        now=datetime.now(UTC),
        state=view.state if view else "",
        reason=view.reason if view else "",
        restart=restart,
        restarts_in_period=view.restarts_in_period if view else None,
        restarts_left=view.restarts_left if view else None,
        retry_in_s=view.retry_in_s if view else None,
        evidence=evidence,
        events=events,
        last_words=words,
        after=_after(session, name),
    )


def _events(session: Session, at: datetime) -> list[dict[str, Any]]:
    """Return what everybody told of in the minute before."""
    since, until = at - timedelta(seconds=BEFORE_S), at + timedelta(seconds=AFTER_S)
    window = {"since": since.isoformat(), "until": until.isoformat(), "level": "NOTICE..FATAL"}
    return _select(session, window, EVENTS_MAX)


def _select(session: Session, filters: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """Return the newest events that fit, oldest first, those included that event_logger has not taken over yet."""
    from actors.event_logger import queries

    found: dict[str, dict[str, Any]] = {}
    with suppress(ReliabilityError):
        for page in Log(session).select(Selection(filters, limit)):
            found.update((event["id"], event) for event in page.events)
        now_ms = time.time_ns() // 1_000_000
        fresh = queries.undrained(session.data_dir, session.runtime_dir(), filters, now_ms)
        found.update((event["id"], event) for event in fresh)
    return sorted(found.values(), key=lambda event: str(event["timestamp"]))[-limit:]


def _last_lines(session: Session, name: str, restart: dict[str, Any], view: "ProcessView | None") -> list[str]:
    """Return the last lines of the life that ended, from its file: each life since has moved that on by one."""
    from actors.runtime.programs import OUTPUTS_KEPT, is_program_name
    from app.reliability._cli.following import Follower
    from app.reliability._cli.programs import output_of

    rank = -1 if view is None else view.incarnation - int(restart.get("incarnation") or 0)
    if not is_program_name(name) or not 0 <= rank <= OUTPUTS_KEPT:
        return []
    follower = Follower(output_of(session, name) + (f".{rank}" if rank else ""))
    try:
        lines = follower.last_lines(LAST_WORDS_MAX, this_life=True)
    finally:
        follower.close()
    return [line.decode("utf-8", "replace").rstrip() for line in lines]


def _last_output(session: Session, name: str, at: datetime) -> list[str]:
    """Return the last lines of output that the log has from before an end, as far as its times can tell."""
    since = (at - timedelta(seconds=BEFORE_S)).isoformat()
    own = _select(session, {"component": name, "since": since, "until": at.isoformat()}, 10 * LAST_WORDS_MAX)
    return [event["message"] for event in own if event["event_type"] == "output"]


def _evidence(session: Session, file: str) -> dict[str, Any] | None:
    """Return what the watchdog kept; None if that is gone."""
    from actors.runtime.paths import EVIDENCE_DIR

    if not file:
        return None
    path = os.path.join(session.runtime_dir(), EVIDENCE_DIR, os.path.basename(file))
    try:
        with open(path, "rb") as handle:
            document: Any = json.load(handle)
    except (OSError, ValueError):
        return None
    return {**document, "path": path} if isinstance(document, dict) else None


def _after(session: Session, name: str) -> tuple[str, ...]:
    from actors.runtime.programs import load

    spec = load(session.runtime_dir()).get(name)
    return () if spec is None else spec.after


def _show(session: Session, story: Story, facts: Facts) -> None:
    output = session.output
    lines = []
    if story.before:
        lines.append("In the minute before:")
        for event in story.before:
            first = printable((event["message"].splitlines() or [""])[0])
            about = event["attributes"].get("name") or event["attributes"].get("process") or event["component"]
            head = f"{_INDENT}{local_time(event['timestamp'])}  {output.style(printable(about), bold=True)}"
            often = f" ({event['times']} times)" if event["times"] > 1 else ""
            lines.append(f"{head}  {first}{often}")
        lines.append("")
    lines.append(output.style(printable(story.what), bold=True))
    lines += [printable(text) for text in (*story.why, *story.doing, *story.done)]
    if facts.evidence is not None:
        lines.append(f"Evidence: {facts.evidence['path']}")
    output.text("\n".join(lines))
