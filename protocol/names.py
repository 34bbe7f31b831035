"""Names that cross a process boundary: processes, services, operations and topics.

A service is named as the actor that answers it. Our own service names are reserved: a worker that registers one of them
must present the installation's token (see `protocol.messages.WorkerHello`).
"""

from typing import Final

PROTOCOL_VERSION: Final = 1
"""The `v` of every header. A peer that speaks another version is refused with `bad_version`."""

LAUNCHER: Final = "launcher"
BROKER: Final = "broker"
WATCHDOG: Final = "watchdog"
EVENT_LOGGER: Final = "event_logger"
HEALTH_MONITOR: Final = "health_monitor"
CHECKPOINTER: Final = "checkpointer"

RESERVED_SERVICES: Final = frozenset(
    {"broker", "launcher", "health_monitor", "checkpointer", "backup", "event_logger", "updater", "watchdog"}
)
"""Names that only processes of ours may answer, whether or not this release starts them."""

MANAGEMENT_PREFIX: Final = "mmi."
"""Services with this prefix are answered by the broker itself (RFC 8)."""

OP_PING: Final = "ping"
OP_STATUS: Final = "status"
OP_DESCRIBE: Final = "describe"
COMMON_OPS: Final = (OP_PING, OP_STATUS, OP_DESCRIBE)
"""Answered by every service, on its message loop, whatever its worker thread is doing."""

TOPIC_STATE_PREFIX: Final = "state."
"""Topics with this prefix hold a state: their last value is replayed to a new subscriber. Others are passing events."""

NAME_LENGTH_MAX: Final = 48
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def is_valid_name(name: str) -> bool:
    """Tell whether `name` may name a process, service, operation or topic: 1 to 48 of ``[A-Za-z0-9_.-]``."""
    return 0 < len(name) <= NAME_LENGTH_MAX and _NAME_CHARACTERS.issuperset(name)
