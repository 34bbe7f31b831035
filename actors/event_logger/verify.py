"""Is the event log what was written? Pure: over rows, lines, roots and the head, wherever they come from.

What a finding says:

========== =====================================================================================================
kind       meaning
========== =====================================================================================================
lost       events that a power cut took, as the log itself has noted, or the head tells after a reboot
removed    places without an event
changed    an event, or its hash, is not what was chained
reordered  lines that are not in the order of their places
truncated  the end is missing: the head, a root or a file knows of later events, and no power cut explains it
resealed   a chain that holds, but is not the one that root or head were sealed over; or a seal of another key
differs    table and file tell different things of one place
damaged    a line, a root or the head that cannot be read
missing    a file, a root, the head or the key is not there
========== =====================================================================================================
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from actors.event_logger.chain import GENESIS, LOST_TYPE, Head, Segment, is_head_sealed, is_sealed, link
from actors.event_logger.lines import parse_line
from actors.event_logger.records import Event
from protocol.names import EVENT_LOGGER

FINDINGS_MAX: Final = 500
"""More are counted, not listed."""


class Kind(StrEnum):
    """What is wrong."""

    LOST = "lost"
    REMOVED = "removed"
    CHANGED = "changed"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    RESEALED = "resealed"
    DIFFERS = "differs"
    DAMAGED = "damaged"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    Attributes:
        kind: what.
        seq: the place; None if it is about no single one.
        where: ``table``, ``roots``, ``head``, ``key`` or the name of a file.
        message: a sentence for people.
    """

    kind: Kind
    seq: int | None
    where: str
    message: str

    def document(self) -> dict[str, Any]:
        """Return it as relctl and the operation tell it."""
        return {"kind": self.kind.value, "seq": self.seq, "where": self.where, "message": self.message}


@dataclass(slots=True)
class ChainCheck:
    """Follows one chain, slice by slice.

    Attributes:
        where: as in `Finding`.
        seq: the last place seen.
        hash: its hash; None if it is not known, and nothing can be said of the next one's link.
        checked: events seen.
    """

    where: str
    seq: int
    hash: bytes | None
    checked: int = 0

    def take(self, seq: int, event: Event, found_hash: bytes | None) -> Iterator[Finding]:
        """Check the next event."""
        self.checked += 1
        if seq <= self.seq:
            yield Finding(Kind.REORDERED, seq, self.where, f"{seq} stands behind {self.seq}")
            return
        if seq > self.seq + 1:
            yield self._gap(seq, event)
        if found_hash is None:
            yield Finding(Kind.CHANGED, seq, self.where, f"event {seq} has no hash")
        elif self.hash is not None and link(self.hash, seq, event) != found_hash:
            yield Finding(Kind.CHANGED, seq, self.where, f"event {seq} is not what was chained behind {self.seq}")
        self.seq, self.hash = seq, found_hash

    def skip(self) -> None:
        """Take note of a place whose event cannot be read."""
        self.seq, self.hash = self.seq + 1, None

    def _gap(self, seq: int, event: Event) -> Finding:
        first, last = self.seq + 1, seq - 1
        count = last - first + 1
        cause = owned_up(event, first, last)
        if cause is not None:
            kind = Kind.LOST if cause == "power_cut" else Kind.TRUNCATED
            after = "after a power cut" if cause == "power_cut" else "from a database that was damaged or cut short"
            return Finding(kind, first, self.where, f"{count} events were lost {after}, as event {seq} tells")
        self.hash = None
        return Finding(Kind.REMOVED, first, self.where, f"{count} events are missing from {first} on")


def owned_up(event: Event, first: int, last: int) -> str | None:
    """Return the cause that an event gives for places that are skipped before it; None if it gives none for these."""
    if event.component != EVENT_LOGGER or event.event_type != LOST_TYPE:
        return None
    try:
        told = json.loads(event.attributes)
        return str(told["cause"]) if (told["first_seq"], told["last_seq"]) == (first, last) else None
    except (ValueError, KeyError, TypeError):
        return None


def check_roots(
    roots: Sequence[Segment], damaged: Sequence[int], days: Sequence[Segment], key: bytes | None
) -> Iterator[Finding]:
    """Check the roots in the file against each other, their seals, and the closed segments that the table has."""
    for number in damaged:
        yield Finding(Kind.DAMAGED, None, "roots", f"line {number} cannot be read")
    by_day = {root.day: root for root in roots}
    previous: Segment | None = None
    for root in by_day.values():
        if key is not None and not is_sealed(root, key):
            yield Finding(Kind.RESEALED, root.first_seq, "roots", f"the root of {root.day} is not sealed with our key")
        before = GENESIS if previous is None else previous.last_hash
        begins_late = previous is None and root.first_seq != 1
        if not damaged and (root.first_prev_hash != before or begins_late):
            yield Finding(Kind.REMOVED, root.first_seq, "roots", f"a root before that of {root.day} is missing")
        previous = root
    for day in days:
        if not day.closed:
            continue
        if key is not None and not is_sealed(day, key):
            text = f"the table's root of {day.day} is not sealed with our key"
            yield Finding(Kind.RESEALED, day.first_seq, "table", text)
        if day.day in by_day and by_day[day.day] != day:
            text = f"the roots of {day.day} in table and file differ"
            yield Finding(Kind.RESEALED, day.first_seq, "roots", text)
    known = {day.day for day in days}
    for root in by_day.values():
        if root.day not in known:
            yield Finding(Kind.TRUNCATED, root.first_seq, "table", f"the table does not know the closed day {root.day}")


def check_end(segment: Segment, where: str, seq: int, found_hash: bytes | None) -> Iterator[Finding]:
    """Check that a closed segment ended where its root says."""
    if segment.last_seq is None:
        return
    if seq < segment.last_seq:
        text = f"{segment.day} ends at {seq}, not at {segment.last_seq}"
        yield Finding(Kind.TRUNCATED, seq + 1, where, text)
    elif found_hash is not None and found_hash != segment.last_hash:
        text = f"the chain of {segment.day} is not the one that its root was sealed over"
        yield Finding(Kind.RESEALED, segment.last_seq, where, text)


def check_head(
    head: Head | None, key: bytes | None, last_seq: int, hash_there: bytes | None, boot_id: str
) -> Iterator[Finding]:
    """Check the end of the table (`last_seq`) against the head; `hash_there` is the table's at the head's place."""
    if key is None:
        yield Finding(Kind.MISSING, None, "key", "the key is missing: no seal can be checked")
    if head is None:
        if last_seq:
            yield Finding(Kind.MISSING, None, "head", "the head is missing: a cut at the end would not be seen")
        return
    if key is not None and not is_head_sealed(head, key):
        yield Finding(Kind.RESEALED, head.seq, "head", "the head is not sealed with our key")
        return
    if head.seq > last_seq:
        lost = head.seq - last_seq
        if head.boot_id != boot_id:
            yield Finding(Kind.LOST, last_seq + 1, "table", f"{lost} events lost after a power cut")
        else:
            text = f"{lost} events are missing at the end, and the machine was not restarted since"
            yield Finding(Kind.TRUNCATED, last_seq + 1, "table", text)
    elif hash_there is not None and hash_there != head.hash:
        text = f"event {head.seq} is not the one that the head was sealed over"
        yield Finding(Kind.RESEALED, head.seq, "table", text)


class FileCheck:
    """Follows the lines of one segment's file, beside the table's rows of the same places."""

    def __init__(self, segment: Segment, name: str) -> None:
        """Check the file called `name`."""
        self.chain = ChainCheck(name, segment.first_seq - 1, segment.first_prev_hash)

    def take(self, lines: Iterable[bytes], table: dict[int, bytes | None]) -> Iterator[Finding]:
        """Check lines; `table` has the hashes of the places that they are expected to have."""
        for raw in lines:
            try:
                line = parse_line(raw)
            except ValueError:
                self.chain.skip()
                yield Finding(
                    Kind.DAMAGED, self.chain.seq, self.chain.where, f"the line of {self.chain.seq} is damaged"
                )
                continue
            yield from self.chain.take(line.seq, line.event, line.hash)
            if line.seq in table and table[line.seq] != line.hash:
                text = f"table and file have different hashes of event {line.seq}"
                yield Finding(Kind.DIFFERS, line.seq, self.chain.where, text)
