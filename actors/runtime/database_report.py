"""What the last repair of a database said of itself (`database_repair` writes it beside the file)."""

import json
import os
from typing import Any

from actors.runtime.database_guard import REPAIRED_SUFFIX


def last_repair(path: str) -> dict[str, Any] | None:
    """Return the report of the last repair of the database at `path`; None if there was none."""
    return read_json(path + REPAIRED_SUFFIX)


def describe(report: dict[str, Any]) -> str:
    """Return for people what a repair saved and lost."""
    lost = report.get("lost")
    loss = "an unknown number of rows lost" if lost is None else f"{lost} rows lost"
    aside = os.path.basename(str(report.get("set_aside", "")))
    return f"{report.get('rows', 0)} rows saved, {loss}; the damaged file is kept as {aside}"


def read_json(path: str) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
