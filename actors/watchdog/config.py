"""`[watchdog]` of reliability.toml."""

from dataclasses import dataclass

from actors.runtime.config import bounded


@dataclass(frozen=True, slots=True)
class WatchdogConfig:
    """Settings of the watchdog; every one has a default. Timeouts are each process's own, in `[supervision]`.

    Attributes:
        evidence_files_max: pieces of evidence that are kept; the oldest go first.
    """

    evidence_files_max: int = bounded(50, 1, 10_000)
