"""Every bound that peers must agree on, named, with its unit last."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

ID_BYTES_MIN: Final = 8
ID_BYTES_MAX: Final = 32
ID_BYTES: Final = 16
"""Length of the random request ids that our own client makes."""

HEADER_BYTES_MAX: Final = 4 * KIB
HEADER_ENTRIES_MAX: Final = 16
ERROR_TEXT_CHARACTERS_MAX: Final = 500

CONTROL_FRAME_BYTES_MAX: Final = 256 * KIB
CONTROL_MESSAGE_BYTES_MAX: Final = 512 * KIB
CONTROL_FRAMES_MAX: Final = 12
"""MAXMSGSIZE of the transport is per frame, so count and total are checked as well."""

BULK_FRAME_BYTES_MAX: Final = 65 * MIB
BULK_MESSAGE_BYTES_MAX: Final = 66 * MIB
BULK_FRAMES_MAX: Final = 12

NESTING_MAX: Final = 32
"""Depth of maps and arrays in arguments and results."""

DEADLINE_MS_MAX: Final = 15 * 60 * 1000
"""A deadline further away than this is cut to it."""
DEADLINE_DEFAULT_S: Final = 30.0
"""For requests without a header of ours."""

WINDOW_MAX: Final = 1024
"""Requests that one worker may take at once."""

WORKER_HEARTBEAT_INTERVAL_S: Final = 3.0
"""A multiple of the ticks of all of us: who wakes up for a tick sends and takes in heartbeats in the same turn."""
WORKER_HEARTBEAT_LIVENESS: Final = 4
"""A worker or broker unheard of for this many intervals is taken off the routes. Nobody is killed for it."""

TOPIC_BODY_BYTES_MAX: Final = 128 * KIB
TOPICS_MAX: Final = 256
