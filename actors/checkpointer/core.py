"""What checkpoints are, the chain that they make, and the requests to keep them. Pure.

**Chain.** Every checkpoint of a name has the next number (`seq`) and a hash over the hash before it and its own
description, which contains the payload's digest. Where checkpoints were removed, a `Gap` holds the two hashes at its
ends, so the whole chain from 1 to the newest can be checked.

**Runs** and recovery: see `runs`.

**Retention**: see `retention`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from actors.runtime.digests import SHA256_BYTES, sha256
from actors.runtime.handover import is_state_name
from protocol.codec import pack
from protocol.errors import ErrorCode, ProtocolError
from protocol.limits import MIB
from protocol.names import NAME_LENGTH_MAX, is_valid_name

GENESIS: Final = bytes(SHA256_BYTES)
"""The hash before the first checkpoint of a name."""
PAYLOAD_BYTES_MAX: Final = 64 * MIB


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


@dataclass(frozen=True, slots=True)
class Holder:
    """The process of a run: see `actors.runtime.identity`."""

    pid: int
    start_time: int
    boot_id: str


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
