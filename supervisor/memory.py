"""What outlives the launcher: restarts.json, on tmpfs for its own death, and a durable copy in DATA for a reboot.

``{"revision": N, "processes": {NAME: {"incarnation", "paid", "wanted", "quarantined", "restarts": [{"boot",
"mono_ms", "wall_s"}]}}}``. The copy of higher revision is believed, entry by entry: what is damaged is not there. A
charge of this boot is dated by the monotonic clock, one of another boot by the wall clock within bounds
(`budget.age_s`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.runtime.paths import write_atomically
from supervisor.budget import age_s
from supervisor.copies import DurableCopies
from supervisor.model import Remembered


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on the three clocks: monotonic and wall seconds, and the boot in which the former is true."""

    now: float
    wall_s: float
    boot: str


def encode(revision: int, remembered: Mapping[str, Remembered], at: Moment) -> bytes:
    """Return the file's content."""
    processes = {
        name: {
            "incarnation": past.incarnation,
            "paid": past.paid,
            "wanted": past.wanted,
            "quarantined": past.quarantined,
            "restarts": [
                {
                    "boot": at.boot,
                    "mono_ms": math.ceil(charge * 1000),  # never earlier than it was
                    "wall_s": round(at.wall_s - (at.now - charge), 3),
                }
                for charge in past.charges
            ],
        }
        for name, past in remembered.items()
    }
    return json.dumps({"revision": revision, "processes": processes}).encode()


def decode(data: bytes, at: Moment, period_s: float) -> tuple[int, dict[str, Remembered]]:
    """Return revision and processes of a file, with charges dated on this boot's monotonic clock.

    Raises:
        ValueError: not the file's format at all.
    """
    content: Any = json.loads(data)
    if not isinstance(content, dict) or not isinstance(content.get("processes"), dict):
        raise ValueError("not a restart journal")  # noqa: TRY004 - of the text, not of an argument
    return _whole(content.get("revision")), {
        name: _process(fields, at, period_s)
        for name, fields in content["processes"].items()
        if isinstance(fields, dict)
    }


def latest(copies: list[bytes], at: Moment, period_s: float) -> tuple[int, dict[str, Remembered]]:
    """Return the content of the copy with the highest revision, the first of equals; nothing if none can be read."""
    best: tuple[int, dict[str, Remembered]] = (0, {})
    found = False
    for data in copies:
        try:
            read = decode(data, at, period_s)
        except ValueError:
            continue
        if not found or read[0] > best[0]:
            best, found = read, True
    return best


def _process(fields: dict[str, Any], at: Moment, period_s: float) -> Remembered:
    restarts = fields.get("restarts")
    charges = [_charge(entry, at, period_s) for entry in restarts] if isinstance(restarts, list) else []
    return Remembered(
        incarnation=_whole(fields.get("incarnation")),
        charges=tuple(sorted(charge for charge in charges if charge is not None)),
        paid=_whole(fields.get("paid")),
        wanted=fields.get("wanted") is not False,
        quarantined=fields.get("quarantined") is True,
    )


def _charge(entry: Any, at: Moment, period_s: float) -> float | None:
    try:
        if entry["boot"] == at.boot:
            return float(min(entry["mono_ms"] / 1000, at.now))
        return at.now - age_s(float(entry["wall_s"]), at.wall_s, period_s)
    except (KeyError, TypeError, ValueError):
        return None


def _whole(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


class RestartsFile:
    """The file and its durable copy."""

    def __init__(self, path: str, durable_path: str, copies: DurableCopies) -> None:
        """Keep `path`, on tmpfs, and have `copies` keep `durable_path` up with it."""
        self._path = path
        self._durable_path = durable_path
        self._copies = copies
        self._revision = 0

    def load(self, at: Moment, period_s: float) -> dict[str, Remembered]:
        """Return what was remembered. Reads the disk: at the start only."""
        copies = []
        for path in (self._path, self._durable_path):
            try:
                with open(path, "rb") as file:
                    copies.append(file.read())
            except OSError:
                continue
        self._revision, remembered = latest(copies, at, period_s)
        return remembered

    def save(self, remembered: Mapping[str, Remembered], at: Moment) -> None:
        """Remember. On tmpfs when this returns, on disk as soon as that takes it.

        Raises:
            OSError: there is no room on tmpfs.
        """
        self._revision += 1
        write_atomically(self._path, encode(self._revision, remembered, at), sync=False)
        self._copies.request(self._path, self._durable_path)
