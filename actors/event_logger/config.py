"""`[event_logger]` of reliability.toml."""

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
