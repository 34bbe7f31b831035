"""What checkpoints are, which of them are kept, whose they are, and which one answers after a crash. Pure.

**Chain.** Every checkpoint of a name has the next number (`seq`) and a hash over the hash before it and its own
description, which contains the payload's digest. Where checkpoints were removed, a `Gap` holds the two hashes at its
ends, so the whole chain from 1 to the newest can be checked.

**Runs.** A run is one life of an application under a name, begun by `CrashRecoveryManager.start` and, if it ends well,
ended by `stop`. The name belongs to the run that began last, as long as its process lives and has not ended it. An
older run whose process still saves is refused meanwhile (`taken_over`), and takes the name back afterwards:

============================ =========================== ==============================================
the run that saves is        the newest run              then
============================ =========================== ==============================================
none (a shell script)        any                         counts as the newest run's
unknown                      any                         begins now, as the newest
the newest                   itself                      saved
older                        ended, or its process dead  becomes the newest again
older                        lives                       refused; from the spool (already acknowledged)
                                                         kept in the history, below the newest run's
============================ =========================== ==============================================

**Recovery.** Of the asking run its own newest state; before it has saved one, and for who asks without a run: nothing
if the last run was ended, else the newest state there is. The newest is that of the highest run, therein of the highest
`seq`; damaged ones are passed over.

**Retention.** See `plan_thinning`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from actors.runtime.digests import SHA256_BYTES, sha256
from actors.runtime.handover import is_state_name
from protocol.codec import pack
from protocol.errors import ErrorCode, ProtocolError, ReliabilityError
from protocol.limits import MIB
from protocol.names import NAME_LENGTH_MAX, is_valid_name

GENESIS: Final = bytes(SHA256_BYTES)
"""The hash before the first checkpoint of a name."""
PAYLOAD_BYTES_MAX: Final = 64 * MIB
RUNS_KEPT_MAX: Final = 50
"""Runs of a name that are remembered, the newest."""
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS


class Format(StrEnum):
    """What a payload is."""

    MSGPACK = "msgpack"
    BYTES = "bytes"


class Encoding(StrEnum):
    """How a payload is stored."""

    STORED = "stored"
    ZLIB = "zlib"


@dataclass(frozen=True, slots=True)
class Description:
    """What the chain says of one checkpoint, and `hash_of` covers."""

    name: str
    seq: int
    id: bytes
    sha256: bytes
    timestamp_ms: int


def hash_of(before: bytes, described: Description) -> bytes:
    """Return the chain's hash at a checkpoint; `before` is the one of its predecessor."""
    fields = [described.name, described.seq, described.id, described.sha256, described.timestamp_ms]
    return sha256(before + pack(fields))


@dataclass(frozen=True, slots=True)
class Link:
    """A checkpoint's place in the chain, as stored."""

    described: Description
    prev_hash: bytes
    hash: bytes

    @property
    def holds(self) -> bool:
        """Whether the description is the one that was saved."""
        return hash_of(self.prev_hash, self.described) == self.hash


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers without checkpoints.

    Attributes:
        first_seq: the first of them.
        last_seq: the last of them.
        prev_hash: the chain's hash before the first.
        last_hash: the chain's hash at the last.
        lost: they vanished; else they were thinned out.
    """

    first_seq: int
    last_seq: int
    prev_hash: bytes
    last_hash: bytes
    lost: bool = False


def broken_links(links: Iterable[Link], gaps: Iterable[Gap]) -> list[int]:
    """Return the numbers at which a name's chain does not hold; links and gaps may come in any order."""
    pieces = [(link.described.seq, link.described.seq, link.prev_hash, link.hash, link.holds) for link in links]
    pieces += [(gap.first_seq, gap.last_seq, gap.prev_hash, gap.last_hash, True) for gap in gaps]
    expected_seq, before = 1, GENESIS
    broken = []
    for first, last, prev_hash, last_hash, holds in sorted(pieces):
        if first != expected_seq or prev_hash != before or not holds:
            broken.append(first)
        expected_seq, before = last + 1, last_hash
    return broken


def with_gap(gaps: Sequence[Gap], new: Gap) -> list[Gap]:
    """Return the gaps of a name with one more, neighbours of its kind merged."""
    merged, rest = new, []
    for gap in gaps:
        if gap.lost is new.lost and gap.last_seq + 1 == merged.first_seq:
            merged = replace(merged, first_seq=gap.first_seq, prev_hash=gap.prev_hash)
        elif gap.lost is new.lost and merged.last_seq + 1 == gap.first_seq:
            merged = replace(merged, last_seq=gap.last_seq, last_hash=gap.last_hash)
        else:
            rest.append(gap)
    return [*rest, merged]


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """The process of a run: see `actors.runtime.identity`."""

    pid: int
    start_time: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Run:
    """One life of an application.

    Attributes:
        id: chosen by its client.
        number: place among the runs of its name, from 1.
        ended: whether it ended in a recorded clean stop.
        holder: its process, as far as that is known.
    """

    id: bytes
    number: int
    ended: bool = False
    holder: Holder | None = None


class TakenOver(ReliabilityError):
    """A run saves while a later one has its name."""

    def __init__(self, name: str, holder: Holder | None) -> None:
        """Say who has it."""
        who = f"pid {holder.pid}" if holder else "a process"
        hint = "Give every application, and every worker process of one, a name of its own."
        super().__init__(ErrorCode.REFUSED, f"checkpoints of {name!r} now belong to {who}, which began later", hint)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a recovery may return.

    Attributes:
        reason: `crash`, `same_run`, `clean_stop` or `nothing`.
        run_max: states of this run and earlier ones.
    """

    reason: str
    run_max: int = 0

    @property
    def returns(self) -> bool:
        """Whether there is a state to be returned."""
        return self.reason in {"crash", "same_run"}


class Runs:
    """The runs of one name."""

    def __init__(self, name: str, runs: Iterable[Run], is_alive: Callable[[Holder], bool]) -> None:
        """Begin with what is stored; `is_alive` tells whether a process still runs."""
        self._name = name
        self._by_id = {run.id: run for run in runs}
        self._is_alive = is_alive
        self.changed: dict[bytes, Run] = {}

    @property
    def newest(self) -> Run | None:
        """The run that began last."""
        return max(self._by_id.values(), key=lambda run: run.number, default=None)

    @property
    def newest_number(self) -> int:
        """Its number; 0 if there never was one."""
        newest = self.newest
        return newest.number if newest else 0

    def is_newest(self, run_id: bytes | None) -> bool:
        """Tell whether a run is the newest; none counts as it."""
        newest = self.newest
        return run_id is None or (newest is not None and newest.id == run_id)

    def begin(self, run_id: bytes, holder: Holder | None) -> int:
        """Have a run begin, unless it has; returns its number."""
        known = self._by_id.get(run_id)
        if known is not None:
            if known.holder is None and holder is not None:
                self._put(replace(known, holder=holder))
            return known.number
        self._put(Run(run_id, self.newest_number + 1, holder=holder))
        return self.newest_number

    def end(self, run_id: bytes) -> None:
        """Take in that a run has ended well."""
        self.begin(run_id, None)
        self._put(replace(self._by_id[run_id], ended=True))

    def saves(self, run_id: bytes | None, *, acknowledged: bool) -> int:
        """Return the number under which a run may save.

        Args:
            run_id: the run, None for none.
            acknowledged: its client was told already that the state is kept: it comes from the spool.

        Raises:
            TakenOver: the name belongs to a later run, and the client can be told.
        """
        if run_id is None:
            return self.newest_number
        number = self.begin(run_id, None)
        newest = self.newest
        if newest is None or newest.id == run_id:
            return number
        if acknowledged:
            return number
        if not newest.ended and newest.holder is not None and self._is_alive(newest.holder):
            raise TakenOver(self._name, newest.holder)
        self._put(replace(self._by_id[run_id], number=newest.number + 1))
        return newest.number + 1

    def bound(self, run_id: bytes | None) -> int:
        """Return the highest run whose states concern a recovery asked for by `run_id`."""
        asking = self._by_id.get(run_id) if run_id is not None else None
        return self.newest_number if asking is None else asking.number

    def decide(self, run_id: bytes | None, run_of_newest: int | None) -> Decision:
        """Decide what a recovery returns; `run_of_newest` is that of the newest state within `bound`, None if none."""
        if run_of_newest is None:
            return Decision("nothing")
        asking = self._by_id.get(run_id) if run_id is not None else None
        if asking is not None and run_of_newest == asking.number:
            return Decision("same_run", run_of_newest)
        before = [run for run in self._by_id.values() if asking is None or run.number < asking.number]
        last = max(before, key=lambda run: run.number, default=None)
        if last is not None and last.ended:
            return Decision("clean_stop")
        return Decision("crash", run_of_newest)

    def _put(self, run: Run) -> None:
        self._by_id[run.id] = self.changed[run.id] = run


# --- retention --------------------------------------------------------------------------------------------------------


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


# --- the edge ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handed:
    """A file with a state in it, as its client tells."""

    file: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Save:
    """One state to be kept.

    Attributes:
        id: the client's request id.
        name: whose it is.
        run: the client's run, None for none.
        timestamp_ms: when it was taken.
        format: what the payload is.
        payload: the bytes.
        sha256: its digest as the client computed it, None if it did not.
        acknowledged: whether the client was told already that it is kept.
        handed: the file that it was handed over in, instead of a payload; see `actors.runtime.handover`.
    """

    id: bytes
    name: str
    run: bytes | None
    timestamp_ms: int
    format: Format
    payload: bytes
    sha256: bytes | None = None
    acknowledged: bool = False
    handed: Handed | None = None


def parse_save(
    request_id: bytes, arguments: dict[str, object], raw: Sequence[bytes], now_ms: int, *, acknowledged: bool = False
) -> Save:
    """Parse the arguments of `save`.

    Raises:
        ProtocolError: naming what is wrong.
    """
    handed = None if acknowledged else _parse_handed(arguments)
    if len(raw) != (0 if handed else 1):
        raise ProtocolError("save takes the payload as one raw frame, or else as a file")
    size_bytes = handed.size_bytes if handed else len(raw[0])
    if size_bytes > PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            f"a state of {size_bytes} bytes exceeds the limit of {PAYLOAD_BYTES_MAX}", ErrorCode.TOO_LARGE
        )
    taken_ms = arguments.get("taken_ms")
    if taken_ms is not None and (type(taken_ms) is not int or not 0 <= taken_ms < 2**53):
        raise ProtocolError("taken_ms is not a time in milliseconds since 1970")
    try:
        kind = Format(arguments.get("format", Format.MSGPACK))  # type: ignore[arg-type]
    except ValueError:
        raise ProtocolError(f"format is none of {', '.join(Format)}") from None
    return Save(
        request_id,
        parse_name(arguments.get("name")),
        parse_run(arguments.get("run")),
        now_ms if taken_ms is None else taken_ms,
        kind,
        b"" if handed else raw[0],
        _parse_digest(arguments.get("sha256")),
        acknowledged,
        handed,
    )


def parse_name(value: object) -> str:
    """Return the name of an application.

    Raises:
        ProtocolError: it is none.
    """
    if type(value) is not str or not is_valid_name(value):
        raise ProtocolError(f"name is not 1 to {NAME_LENGTH_MAX} letters, digits or one of _ . -")
    return value


def parse_run(value: object) -> bytes | None:
    """Return a run's id, None for none.

    Raises:
        ProtocolError: it is no id.
    """
    if value is not None and (type(value) is not bytes or len(value) != 16):
        raise ProtocolError("run is not 16 bytes")
    return value


def parse_holder(arguments: dict[str, object]) -> Holder | None:
    """Return the process of a run, None if it is not told.

    Raises:
        ProtocolError: it is told wrongly.
    """
    pid, start_time, boot_id = arguments.get("pid"), arguments.get("start_time"), arguments.get("boot_id")
    if pid is None:
        return None
    if type(pid) is not int or type(start_time) is not int or type(boot_id) is not str or len(boot_id) > 100:
        raise ProtocolError("a process is told by pid, start_time and boot_id")
    return Holder(pid, start_time, boot_id)


def _parse_handed(arguments: dict[str, object]) -> Handed | None:
    name, size_bytes = arguments.get("file"), arguments.get("bytes")
    if name is None and size_bytes is None:
        return None
    if type(name) is not str or not is_state_name(name):
        raise ProtocolError("file is no name of a file that a state can be handed over in")
    if type(size_bytes) is not int or size_bytes < 0:
        raise ProtocolError("bytes is not the size of the file")
    return Handed(name, size_bytes)


def _parse_digest(value: object) -> bytes | None:
    if value is not None and (type(value) is not bytes or len(value) != SHA256_BYTES):
        raise ProtocolError(f"sha256 is not {SHA256_BYTES} bytes")
    return value
