"""How the system is while nobody answers: what the liveness board says of our own processes."""

from typing import TYPE_CHECKING, Any

from app.reliability._cli.health import BADNESS
from app.reliability._cli.offline import BoardReading, banner, label, read_board
from app.reliability._cli.session import Session
from protocol.errors import ReliabilityError

if TYPE_CHECKING:
    from actors.runtime.board_view import ProcessView


def offline_health(session: Session, absence: ReliabilityError) -> tuple[dict[str, Any], str]:
    """Return a report of our own processes alone, in the shape of health_monitor's, and the line that tells people so.

    Nobody answering is at least a warning. A system that was stopped on purpose, or never started, is neither well nor
    ill: unknown.
    """
    reading = read_board(session)
    if reading is None:
        checks = [_made("system", "unknown", f"nothing runs on {session.data_dir}")]
        return {"status": "unknown", "checks": checks, "degraded": [], "offline": True, "age_s": None}, ""
    checks = _checks(reading, absence)
    status = max((check["status"] for check in checks), key=BADNESS.__getitem__)
    report = {"status": status, "checks": checks, "degraded": [], **label(reading.age_s)}
    return report, banner(session.output, absence, "the liveness board", reading.age_s)


def _checks(reading: BoardReading, absence: ReliabilityError) -> list[dict[str, Any]]:
    checks = [_of_process(view, reading.age_s) for view in reading.views]
    if reading.stopping and not reading.anybody_runs:
        checks = [check if check["status"] == "critical" else check | {"status": "unknown"} for check in checks]
        return [_made("system", "unknown", "stopped on purpose"), *checks]
    if not reading.anybody_runs:
        return [_made("system", "critical", "no process runs, and nobody stopped them on purpose"), *checks]
    return [_made("system", "warning", f"{absence}; disk, memory and database were not looked at"), *checks]


def _of_process(view: "ProcessView", age_s: float) -> dict[str, Any]:
    from actors.runtime.board_view import check_of

    status, message = check_of(view)
    return _made(view.name, str(status), message) | {"age_s": round(age_s, 3)}


def _made(name: str, status: str, message: str) -> dict[str, Any]:
    return {"name": name, "status": status, "message": message, "value": None, "unit": "", "age_s": 0.0}
