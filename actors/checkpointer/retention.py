"""Which checkpoints are kept: see `plan_thinning`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of a name's checkpoints; see `plan_thinning`."""

    keep_all_ms: int
    keep_hourly_ms: int
    keep_daily_ms: int
    keep_newest: int
    count_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Kept:
    """One checkpoint, for the plan.

    Attributes:
        seq: its number.
        timestamp_ms: when it was taken, by a wall clock that may have been wrong.
        stored_bytes: what it takes.
        damaged: whether it is known to be so.
        run: the run it belongs to.
    """

    seq: int
    timestamp_ms: int
    stored_bytes: int
    damaged: bool = False
    run: int = 0


def plan_thinning(kept: Sequence[Kept], retention: Retention) -> list[int]:
    """Return the numbers of a name's checkpoints that are to be removed, lowest first.

    Kept are the newest `keep_newest` whatever their age; all within `keep_all_ms`, the newest of every hour within
    `keep_hourly_ms`, and of every day within `keep_daily_ms`, counted back from the newest. Then the oldest go until
    bounds of number and bytes hold. Never removed are the newest valid one of the highest run, the newest valid one at
    all, and the one of the highest number, which carries the chain on.

    Clocks jump. Age is counted between checkpoints, not from now, so a computer that was off for a month has lost
    nothing. A checkpoint never counts as later than its successor, so one that was taken under a clock that ran ahead
    is as old as what came after it. And what a jump ahead makes old leaves the newest `keep_newest` alone.
    """
    if not kept:
        return []
    newest_first = sorted(kept, key=lambda item: item.seq, reverse=True)
    guarded = _guarded(newest_first)
    stays: list[Kept] = []
    hours: set[int] = set()
    days: set[int] = set()
    now_ms = at_ms = newest_first[0].timestamp_ms
    for place, item in enumerate(newest_first):
        at_ms = min(at_ms, item.timestamp_ms)
        age_ms, hour, day = now_ms - at_ms, at_ms // _HOUR_MS, at_ms // _DAY_MS
        if age_ms <= retention.keep_all_ms or place < retention.keep_newest or item.seq in guarded:
            stay = True
        elif age_ms <= retention.keep_hourly_ms:
            stay = hour not in hours
        else:
            stay = age_ms <= retention.keep_daily_ms and day not in days
        if stay:
            stays.append(item)
            # A representative of its hour and day only once it is no longer kept for its own sake.
            if age_ms > retention.keep_all_ms:
                hours.add(hour)
                days.add(day)
    within = _within_bounds(stays, guarded, retention)
    return sorted(item.seq for item in newest_first if item.seq not in within)


def _guarded(newest_first: Sequence[Kept]) -> set[int]:
    guarded = {newest_first[0].seq}
    valid = [item for item in newest_first if not item.damaged]
    if valid:
        guarded |= {valid[0].seq, max(valid, key=lambda item: (item.run, item.seq)).seq}
    return guarded


def _within_bounds(stays: Sequence[Kept], guarded: set[int], retention: Retention) -> set[int]:
    """Return the numbers of those that fit, the newest first; the guarded ones fit always."""
    within = set(guarded)
    count = len(guarded)
    taken = sum(item.stored_bytes for item in stays if item.seq in guarded)
    for item in stays:
        if item.seq in guarded:
            continue
        count += 1
        taken += item.stored_bytes
        if count > retention.count_max or taken > retention.bytes_max:
            break
        within.add(item.seq)
    return within
