"""`relctl logs verify`: is the event log what was written?"""

import os
import time
from typing import Any, Final

from app.reliability._cli.output import printable
from app.reliability._cli.session import Session
from protocol.errors import EXIT_FAILED, EXIT_INTEGRITY, EXIT_OK, ErrorCode, LocalError

LOST: Final = "lost"
"""The one kind of finding that a power cut explains and the log itself tells of: no sign that anybody changed it."""
MISSING: Final = "missing"
FILES_LAG_S: Final = 2.0
"""How far the files may be behind the table."""
SHOWN_MAX: Final = 20
"""Findings told to people; JSON has all that are kept."""
VERIFY_TIMEOUT_S: Final = 600.0
_PROGRESS: Final = "|/-\\"

PROVES: Final = (
    "Checked: every event against the chain of hashes, table against files, days against their sealed roots, the end"
    " against the head that is kept outside the database."
)
CANNOT: Final = (
    "It cannot tell what somebody did who uses this account and rewrote everything with the key in DATA/keys, nor"
    " whether an event was true; and what never reached the log is not missed. Copy DATA/events/roots.jsonl elsewhere"
    " now and then: against a copy, a rewritten past shows."
)


def verify(session: Session) -> int:
    """Check the whole event log in `session`'s data directory from its files; returns the exit code."""
    from actors.event_logger import queries
    from actors.runtime.paths import DATABASE_FILE

    if not os.path.exists(os.path.join(session.data_dir, DATABASE_FILE)):
        message = f"there is no event log in {session.data_dir}"
        raise LocalError(ErrorCode.INTEGRITY if _had_one(session.data_dir) else ErrorCode.FAILED, message, "")
    end = time.monotonic() + session.timeout_s(VERIFY_TIMEOUT_S)
    turns = 0

    def stop() -> bool:
        nonlocal turns
        turns += 1
        session.output.progress(f"Verifying {_PROGRESS[turns % len(_PROGRESS)]}")
        return time.monotonic() > end

    try:
        report = queries.verify_log(session.data_dir, stop)
        if _may_be_to_come(report):
            session.ports.sleep(FILES_LAG_S)
            report = queries.verify_log(session.data_dir, stop)
    finally:
        session.output.progress("")
    verdict = verdict_of(report)
    if session.output.json:
        session.output.document({"verdict": verdict, **report, "proves": PROVES, "cannot_tell": CANNOT})
    else:
        _show(session, verdict, report)
    return {"intact": EXIT_OK, "unfinished": EXIT_FAILED}.get(verdict, EXIT_INTEGRITY)


def verdict_of(report: dict[str, Any]) -> str:
    """Return ``intact``, ``violated``, or ``unfinished`` if nothing was found so far but not all was looked at.

    Events that a power cut took, and that the log tells of itself, leave it intact. Findings that are counted but not
    listed count as violations.
    """
    listed = report["findings"]
    if report["finding_count"] > len(listed) or any(finding["kind"] != LOST for finding in listed):
        return "violated"
    return "intact" if report["complete"] else "unfinished"


def _may_be_to_come(report: dict[str, Any]) -> bool:
    """Tell whether all that is wrong is that files are missing, which in a system's first second is no wonder."""
    kinds = {finding["kind"] for finding in report["findings"]}
    return MISSING in kinds and kinds <= {MISSING, LOST}


def _had_one(data_dir: str) -> bool:
    """Tell whether files of the event log are there though its table is not."""
    folder = os.path.join(data_dir, "events")
    return os.path.isdir(folder) and bool(os.listdir(folder))


def _show(session: Session, verdict: str, report: dict[str, Any]) -> None:
    output, count = session.output, report["finding_count"]
    color = {"intact": "green", "unfinished": "yellow"}.get(verdict, "red")
    lost = sum(finding["kind"] == LOST for finding in report["findings"])
    heads = {
        "intact": f"{report['checked']} events are as they were written.",
        "violated": f"{report['checked']} events checked; {count - lost} things are not as they were written.",
        "unfinished": f"Time was up after {report['checked']} events; nothing was wrong so far. Give more --timeout.",
    }
    lines = [f"{output.style(verdict.upper(), color, bold=True)} - {heads[verdict]}"]
    lines += [
        f"  {item['kind']:9} {item['where']}: {printable(item['message'])}" for item in report["findings"][:SHOWN_MAX]
    ]
    if count > SHOWN_MAX:
        lines.append(f"  ... and {count - SHOWN_MAX} more")
    if report["spoilt_days"]:
        lines.append(f"Only the files of {', '.join(report['spoilt_days'])} are wrong; the table has these days whole.")
    output.text("\n".join([*lines, "", PROVES, CANNOT]))
