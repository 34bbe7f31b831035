"""The bounds of a lane's router, each with its unit."""

from dataclasses import dataclass
from typing import Final

from protocol import limits

WAITERS_MAX: Final = 8
"""Peers that may wait for one request: a client that reconnects has a new address and asks again under the same id."""
SERVICES_MAX: Final = 128
WORKERS_MAX: Final = 256
SERVICE_NAME_BYTES_MAX: Final = 128
FOREIGN_WINDOW: Final = 1
"""Requests at once for a worker that said nothing of a window."""
ATTEMPTS_MAX: Final = 2
"""Workers that one request may be given to, because the first was lost."""
ABSENCE_S: Final = 30.0
"""A service that nobody expects, but that was there this recently, is waited for as if it were expected."""
HEARTBEAT_S: Final = limits.WORKER_HEARTBEAT_INTERVAL_S
WORKER_SILENCE_S_MAX: Final = limits.WORKER_HEARTBEAT_INTERVAL_S * limits.WORKER_HEARTBEAT_LIVENESS
LATE_TICK_S: Final = 2 * HEARTBEAT_S
"""Own ticks further apart than this say nothing about the workers: whoever was asleep does not judge others."""
SCAN_INTERVAL_S: Final = 0.005
"""Deadlines are looked at no more often than this."""
DEAD_LETTERS_MAX: Final = 128
DEADLINE_S_MAX: Final = limits.DEADLINE_MS_MAX / 1000


@dataclass(frozen=True, slots=True)
class LaneBounds:
    """What one lane holds at most.

    Attributes:
        frames_max: frames of a message, without its sender's address.
        frame_bytes_max: bytes of a frame.
        message_bytes_max: bytes of a message.
        open_requests_max: requests that wait or are being worked on.
        open_bytes_max: their bytes.
        waiting_per_peer_max: requests of one peer that wait at one service.
        outcomes_max: finished requests whose outcome is kept.
        outcomes_bytes_max: bytes of those outcomes.
        outcome_s_min: how long an outcome is kept at least, if it finds room.
    """

    frames_max: int
    frame_bytes_max: int
    message_bytes_max: int
    open_requests_max: int
    open_bytes_max: int
    waiting_per_peer_max: int
    outcomes_max: int
    outcomes_bytes_max: int
    outcome_s_min: float = 60.0


CONTROL: Final = LaneBounds(
    frames_max=limits.CONTROL_FRAMES_MAX,
    frame_bytes_max=limits.CONTROL_FRAME_BYTES_MAX,
    message_bytes_max=limits.CONTROL_MESSAGE_BYTES_MAX,
    open_requests_max=8192,
    open_bytes_max=32 * limits.MIB,
    waiting_per_peer_max=1024,
    outcomes_max=8192,
    outcomes_bytes_max=8 * limits.MIB,
)
BULK: Final = LaneBounds(
    frames_max=limits.BULK_FRAMES_MAX,
    frame_bytes_max=limits.BULK_FRAME_BYTES_MAX,
    message_bytes_max=limits.BULK_MESSAGE_BYTES_MAX,
    open_requests_max=256,
    open_bytes_max=4 * limits.BULK_MESSAGE_BYTES_MAX,
    waiting_per_peer_max=64,
    outcomes_max=256,
    outcomes_bytes_max=4 * limits.MIB,
)
