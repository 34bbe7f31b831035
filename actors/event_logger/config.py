"""`[event_logger]` and `[events]` of reliability.toml."""

from dataclasses import dataclass

from actors.event_logger.outputs_core import LINES_PER_SECOND_MAX
from actors.runtime.config import bounded


@dataclass(frozen=True, slots=True)
class EventLoggerConfig:
    """Settings of event_logger; every one has a default.

    Attributes:
        publish_per_second_max: events published to followers; the rest they fetch by themselves.
        wal_warning_mib: size of the write-ahead log from which on it is reported: somebody holds it up.
        output_lines_per_second_max: lines of each program's output that become events, after a burst of ten times as
            many; the rest is counted, and stays in the program's own file.
    """

    publish_per_second_max: float = bounded(200.0, 0.0, 100_000.0)
    wal_warning_mib: int = bounded(64, 1, 1_000_000)
    output_lines_per_second_max: float = bounded(LINES_PER_SECOND_MAX, 0.0, 100_000.0)


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """`[events]`: what is kept of the log.

    Attributes:
        retention_days: days that events are kept.
    """

    retention_days: int = bounded(90, 1, 36_500)
