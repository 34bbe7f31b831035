"""The chain that every event is part of, its daily roots and its head. Pure.

hash(n) = SHA-256(hash(n-1) || msgpack [seq, id, timestamp_ms, severity, component, event_type, message, attributes])
over the texts as they are stored; before the first stands `GENESIS`. A *segment* is a run of places with one day's
name. A closed one has a *root*, which outlives its events, and the newest event of all is named by the *head*, which is
kept outside the database. Both are sealed with a key: whoever does not have it cannot change an event and mend the
chain behind it. (Who uses the owner's account has the key as well: against that nothing here helps.)
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Final

import msgpack

from actors.event_logger.records import Event
from actors.runtime.digests import SHA256_BYTES, hmac_sha256, sha256

GENESIS: Final = bytes(SHA256_BYTES)
KEY_BYTES: Final = 32
DAY_MS: Final = 86_400_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
CLOCK_AHEAD_DAYS_MAX: Final = 7
"""A segment whose day is further ahead of the clock than this was named by a clock that went wrong."""

LOST_TYPE: Final = "events_lost"
"""Type of the event that stands behind a gap, and owns up to it."""


def link(previous: bytes, seq: int, event: Event) -> bytes:
    """Return the hash of `event` at place `seq`, behind the event whose hash is `previous`."""
    return sha256(previous + _PACKER.pack((seq, *event)))


def link_all(previous: bytes, first_seq: int, events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Return rows ``(seq, *event, hash)`` of events at consecutive places behind `previous`."""
    pack, rows = _PACKER.pack, []
    for seq, event in enumerate(events, first_seq):
        previous = sha256(previous + pack((seq, *event)))
        rows.append((seq, *event, previous))
    return rows


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of places with one day's name; closed when `last_seq` is there.

    Attributes:
        day: ``YYYY-MM-DD``, UTC, when its first event was committed; no two segments have the same.
        first_seq: place of its first event.
        first_prev_hash: hash of the event before that one.
        last_seq: place of its last event.
        last_hash: hash of that one.
        count: events in it, which are fewer than the places if some were lost.
        mac: seal over all of these.
    """

    day: str
    first_seq: int
    first_prev_hash: bytes
    last_seq: int | None = None
    last_hash: bytes | None = None
    count: int | None = None
    mac: bytes | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing is added any more."""
        return self.last_seq is not None


def close(segment: Segment, last_seq: int, last_hash: bytes, count: int, key: bytes) -> Segment:
    """Return `segment` closed and sealed."""
    mac = _root_mac(key, segment.day, segment.first_seq, segment.first_prev_hash, last_seq, last_hash, count)
    return Segment(segment.day, segment.first_seq, segment.first_prev_hash, last_seq, last_hash, count, mac)


def is_sealed(root: Segment, key: bytes) -> bool:
    """Tell whether a closed segment's seal is that of `key`."""
    fields = (root.day, root.first_seq, root.first_prev_hash, root.last_seq, root.last_hash, root.count)
    return root.mac == _root_mac(key, *fields)


def root_line(root: Segment) -> bytes:
    """Return a closed segment's line in the file of roots."""
    fields = {
        "day": root.day,
        "first_seq": root.first_seq,
        "last_seq": root.last_seq,
        "first_prev_hash": root.first_prev_hash.hex(),
        "last_hash": (root.last_hash or b"").hex(),
        "count": root.count,
        "mac": (root.mac or b"").hex(),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def parse_root(line: bytes) -> Segment:
    """Parse a line of the file of roots.

    Raises:
        ValueError: it is none.
    """
    try:
        fields = json.loads(line)
        hashes = [bytes.fromhex(fields[name]) for name in ("first_prev_hash", "last_hash", "mac")]
        first_seq, last_seq, count = (int(fields[name]) for name in ("first_seq", "last_seq", "count"))
        day = str(fields["day"])
        date.fromisoformat(day)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no root: {error!r}") from None
    return Segment(day, first_seq, hashes[0], last_seq, hashes[1], count, hashes[2])


@dataclass(frozen=True, slots=True)
class Head:
    """The newest event, as the database had it when this was written.

    Attributes:
        seq: its place.
        hash: its hash.
        boot_id: the boot in which this was written: only a reboot can have lost what was committed.
        mac: seal over these.
    """

    seq: int
    hash: bytes
    boot_id: str
    mac: bytes


def seal_head(seq: int, event_hash: bytes, boot_id: str, key: bytes) -> Head:
    """Return the head for the newest event."""
    return Head(seq, event_hash, boot_id, _mac(key, ("head", seq, event_hash, boot_id)))


def is_head_sealed(head: Head, key: bytes) -> bool:
    """Tell whether a head's seal is that of `key`."""
    return head.mac == _mac(key, ("head", head.seq, head.hash, head.boot_id))


def head_text(head: Head) -> bytes:
    """Return the head's file."""
    fields = {"seq": head.seq, "hash": head.hash.hex(), "boot_id": head.boot_id, "mac": head.mac.hex()}
    return json.dumps(fields).encode() + b"\n"


def parse_head(text: bytes) -> Head:
    """Parse the head's file.

    Raises:
        ValueError: it is none.
    """
    try:
        fields = json.loads(text)
        seq, boot_id = int(fields["seq"]), str(fields["boot_id"])
        return Head(seq, bytes.fromhex(fields["hash"]), boot_id, bytes.fromhex(fields["mac"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no head: {error!r}") from None


def day_of(wall_ms: int) -> str:
    """Return the UTC day of a wall time; times that no calendar has are its first and its last day."""
    return _day(wall_ms // DAY_MS)


@lru_cache(2)
def _day(number: int) -> str:
    try:
        return date.fromordinal(_EPOCH + number).isoformat()
    except (ValueError, OverflowError):
        return "0001-01-01" if number < 0 else "9999-12-31"


def next_day(present: str | None, wall_ms: int, taken: Callable[[str], bool]) -> str | None:
    """Return the day of the segment to begin now; None to go on with the one of day `present`.

    A clock set back goes on with what it has: no day comes twice (`taken`). Only if the present day is further ahead
    than `CLOCK_AHEAD_DAYS_MAX`, it was a mistake, and the log returns to the clock's own day.
    """
    today = day_of(wall_ms)
    if present is None:
        return today
    later = today > present or days_between(today, present) > CLOCK_AHEAD_DAYS_MAX
    return today if later and not taken(today) else None


def days_between(earlier: str, later: str) -> int:
    """Return how many days `later` is after `earlier`."""
    return date.fromisoformat(later).toordinal() - date.fromisoformat(earlier).toordinal()


def _root_mac(
    key: bytes,
    day: str,
    first_seq: int,
    first_prev_hash: bytes,
    last_seq: int | None,
    last_hash: bytes | None,
    count: int | None,
) -> bytes:
    return _mac(key, ("root", day, first_seq, first_prev_hash, last_seq, last_hash, count))


def _mac(key: bytes, fields: tuple[object, ...]) -> bytes:
    return hmac_sha256(key, _PACKER.pack(fields))


_PACKER: Final = msgpack.Packer(use_bin_type=True)
