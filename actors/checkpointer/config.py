"""`[checkpoints]` of reliability.toml."""

from dataclasses import dataclass

from actors.checkpointer.retention import Retention
from actors.runtime.config import bounded
from protocol.limits import MIB

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class CheckpointsConfig:
    """Settings of checkpointer; every one has a default.

    Attributes:
        keep_all_hours: how far back every checkpoint of a name is kept.
        keep_hourly_hours: how far back one of every hour is kept.
        keep_daily_days: how far back one of every day is kept.
        keep_newest: the newest ones of a name, kept whatever their age.
        count_max: checkpoints of a name.
        total_mib_max: bytes that the checkpoints of a name take.
        inline_kib_max: payloads of at most this size lie in the database, larger ones in files of their own.
        names_max: names that may have checkpoints.
        tidy_interval_s: how often what is no longer kept is looked for and removed.
        compress_after_s: how long nothing must have been saved before older payloads are compressed.
    """

    keep_all_hours: float = bounded(1.0, 0.0, 87_600.0)
    keep_hourly_hours: float = bounded(24.0, 0.0, 87_600.0)
    keep_daily_days: float = bounded(7.0, 0.0, 3650.0)
    keep_newest: int = bounded(20, 1, 100_000)
    count_max: int = bounded(1000, 1, 1_000_000)
    total_mib_max: int = bounded(1024, 1, 2**30)
    inline_kib_max: int = bounded(256, 0, 1024)
    names_max: int = bounded(1000, 1, 100_000)
    tidy_interval_s: float = bounded(60.0, 0.1, 86400.0)
    compress_after_s: float = bounded(5.0, 0.0, 86400.0)

    @property
    def retention(self) -> Retention:
        """What is kept."""
        return Retention(
            keep_all_ms=int(self.keep_all_hours * _HOUR_MS),
            keep_hourly_ms=int(self.keep_hourly_hours * _HOUR_MS),
            keep_daily_ms=int(self.keep_daily_days * 24 * _HOUR_MS),
            keep_newest=self.keep_newest,
            count_max=self.count_max,
            bytes_max=self.total_mib_max * MIB,
        )
