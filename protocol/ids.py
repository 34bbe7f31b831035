"""Ids that sort by the time at which they were made: UUIDs of version 7 (RFC 9562). Pure."""

from typing import Final

ID_BYTES: Final = 16
RANDOMNESS_BYTES: Final = 10
"""What `uuid7` is given; 74 bits of it are used."""
_TIME_MS_MAX: Final = (1 << 48) - 1


def uuid7(unix_ms: int, randomness: bytes) -> bytes:
    """Return the 16 bytes of a UUIDv7 made at `unix_ms` (milliseconds since 1970) from `RANDOMNESS_BYTES` random bytes.

    A time before 1970 or past the year 10889 is cut to what the id can hold: a wrong clock keeps nobody from writing.

    Raises:
        ValueError: `randomness` has another length.
    """
    if len(randomness) != RANDOMNESS_BYTES:
        raise ValueError(f"{len(randomness)} random bytes given, {RANDOMNESS_BYTES} wanted")
    made = bytearray(min(max(unix_ms, 0), _TIME_MS_MAX).to_bytes(6) + randomness)
    made[6] = 0x70 | made[6] & 0x0F
    made[8] = 0x80 | made[8] & 0x3F
    return bytes(made)


def unix_ms_of(made: bytes) -> int:
    """Return the time that a UUIDv7 was made at."""
    return int.from_bytes(made[:6])
