"""`[event_logger]` and `[events]` of reliability.toml."""

from dataclasses import dataclass

from actors.runtime.config import bounded


@dataclass(frozen=True, slots=True)
class EventLoggerConfig:
    """Settings of event_logger; every one has a default.

    Attributes:
        publish_per_second_max: events published to followers; the rest they fetch by themselves.
        wal_warning_mib: size of the write-ahead log from which on it is reported: somebody holds it up.
    """

    publish_per_second_max: float = bounded(200.0, 0.0, 100_000.0)
    wal_warning_mib: int = bounded(64, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """`[events]`: what is kept of the log.

    Attributes:
        retention_days: days that events are kept.
    """

    retention_days: int = bounded(90, 1, 36_500)
