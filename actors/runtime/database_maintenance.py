"""What maintenance of a database of ours does, in which order, each step by a child; and what is remembered of it.

Whole: a quick check; if it finds damage, that is reported to be repaired and nothing else is done. Then ANALYZE, VACUUM
if it pays and there is space for it, and the write-ahead log emptied into the file. Light: PRAGMA optimize and the log.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from actors.runtime.database_child import Child
from actors.runtime.database_report import read_json
from actors.runtime.paths import write_atomically
from protocol.errors import ErrorCode, LocalError

RECORD_FILE: Final = "maintenance.json"
"""In DATA: when maintenance was last done, and with which result."""
STEP_S_MAX: Final = {"integrity": 600.0, "optimize": 60.0, "analyze": 300.0, "vacuum": 120.0, "checkpoint": 120.0}
"""What each step may take; then it is ended, which rolls it back."""
DAY_MS: Final = 86_400_000
INTERVAL_MS: Final = {"light": DAY_MS, "whole": 7 * DAY_MS}
FIRST_AFTER_MS: Final = 3_600_000
"""A new installation is left in peace for so long."""
PATIENCE_MS: Final = 6 * 3_600_000
"""So long maintenance that is due waits for a moment in which nothing is written; then it is done nevertheless."""


class Kind(StrEnum):
    """How much is done."""

    LIGHT = "light"
    WHOLE = "whole"


STEPS: Final[dict[Kind, tuple[tuple[str, ...], ...]]] = {
    Kind.LIGHT: (("optimize",), ("checkpoint",)),
    Kind.WHOLE: (("integrity",), ("analyze",), ("vacuum", "--when-it-pays"), ("checkpoint",)),
}


@dataclass(frozen=True, slots=True)
class Record:
    """When each kind was last done, in wall milliseconds, and the last result."""

    light_at_ms: int
    whole_at_ms: int
    last: dict[str, Any] | None = field(default=None)

    def done(self, kind: Kind, now_ms: int, result: dict[str, Any]) -> "Record":
        """Return the record after a run; the whole does what the light one does."""
        return Record(now_ms, now_ms if kind is Kind.WHOLE else self.whole_at_ms, result)

    def due(self, now_ms: int, *, quiet: bool) -> Kind | None:
        """Return what is due now; None if nothing is, or if it can wait for a quieter moment.

        A time in the future is one from before the clock was set back: it counts as now.
        """
        for kind, at_ms in ((Kind.WHOLE, self.whole_at_ms), (Kind.LIGHT, self.light_at_ms)):
            overdue_ms = now_ms - min(at_ms, now_ms) - INTERVAL_MS[kind]
            if overdue_ms >= (0 if quiet else PATIENCE_MS):
                return kind
        return None


def first_record(now_ms: int) -> Record:
    """Return the record of a new installation."""
    return Record(now_ms - DAY_MS + FIRST_AFTER_MS, now_ms)


def read_record(data_dir: str) -> Record | None:
    """Return what is remembered; None if nothing is."""
    found = read_json(os.path.join(data_dir, RECORD_FILE))
    if found is None:
        return None
    try:
        return Record(int(found["light_at_ms"]), int(found["whole_at_ms"]), found.get("last"))
    except (KeyError, TypeError, ValueError):
        return None


def write_record(data_dir: str, record: Record) -> None:
    """Remember.

    Raises:
        OSError: it cannot be written.
    """
    content = {"light_at_ms": record.light_at_ms, "whole_at_ms": record.whole_at_ms, "last": record.last}
    write_atomically(os.path.join(data_dir, RECORD_FILE), json.dumps(content).encode(), sync=False)


class Run:
    """One maintenance under way. `run` blocks; `stop` from any other thread.

    Attributes:
        progress: the step, and what it says of itself; replaced as a whole.
    """

    def __init__(self, path: str, kind: Kind, by: str, wall_ms: Callable[[], int]) -> None:
        """Set up the maintenance of the database at `path`, on behalf of `by`."""
        self.progress: dict[str, Any] = {}
        self._path = path
        self._kind = kind
        self._by = by
        self._wall_ms = wall_ms
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._stopped = False

    def run(self) -> dict[str, Any]:
        """Do every step, and return ``{"kind", "by", "at_ms", "took_s", "ok", "steps": [{"step", "took_s", ...}]}``.

        A step has a ``result`` or an ``error``; one that fails does not keep the next from being done, but damage does.
        """
        at_ms, began = self._wall_ms(), time.monotonic()
        steps: list[dict[str, Any]] = []
        for number, (operation, *options) in enumerate(STEPS[self._kind]):
            if self._stopped:
                break
            self.progress = {"step": operation, "number": number + 1, "of": len(STEPS[self._kind])}
            step_began = time.monotonic()
            done = self._step(operation, options)
            steps.append({"step": operation, "took_s": round(time.monotonic() - step_began, 3), **done})
            if found_damage(done):
                break
        ok = not self._stopped and all("error" not in step and not found_damage(step) for step in steps)
        took_s = round(time.monotonic() - began, 3)
        return {"kind": self._kind.value, "by": self._by, "at_ms": at_ms, "took_s": took_s, "ok": ok, "steps": steps}

    def stop(self) -> None:
        """Have the present step roll back, and begin no other."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.stop()

    def _step(self, operation: str, options: list[str]) -> dict[str, Any]:
        try:
            with self._lock:
                if self._stopped:
                    raise LocalError(ErrorCode.DRAINING, "maintenance was stopped", "")
                child = self._child = Child(self._path, operation, options, self._on_progress)
            try:
                return {"result": child.wait(STEP_S_MAX[operation])}
            finally:
                with self._lock:
                    self._child = None
                child.close()
        except LocalError as error:
            return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}

    def _on_progress(self, said: dict[str, Any]) -> None:
        self.progress = self.progress | {"phase": said}


def found_damage(step: dict[str, Any]) -> bool:
    """Tell whether a step of a run found the database damaged."""
    error: dict[str, Any] = step.get("error") or {}
    result: dict[str, Any] = step.get("result") or {}
    return result.get("ok") is False or error.get("code") == ErrorCode.INTEGRITY


def summary(result: dict[str, Any]) -> str:
    """Return for people what a run did."""
    return "; ".join(_describe(step) for step in result["steps"]) or "nothing was done"


def _describe(step: dict[str, Any]) -> str:
    if "error" in step:
        return f"{step['step']} failed: {step['error']['message']}"
    result = step["result"]
    match step["step"]:
        case "integrity":
            return "integrity ok" if result["ok"] else f"damaged: {result['messages'][0]}"
        case "vacuum" if result["vacuumed"]:
            return f"vacuum {result['bytes_before']} -> {result['bytes_after']} bytes"
        case "vacuum":
            return f"no vacuum ({result['reason'].replace('_', ' ')})"
        case "checkpoint":
            return "log emptied" if result["truncated"] else "log in use, not emptied"
        case name:
            return f"{name} done"
