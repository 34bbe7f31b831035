"""`[health]` of reliability.toml."""

from dataclasses import dataclass

from actors.runtime.config import bounded


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """Settings of health_monitor; every one has a default.

    Attributes:
        check_timeout_s: a check that takes longer hangs, which is a finding.
        clear_after_s: how long disk and memory must be better before they are called so.
        hysteresis_percent: how far a figure must get back past its bound.
        disk_interval_s: between two looks at the file system of the data directory.
        disk_warning_mib: free space below which it is a warning.
        disk_critical_mib: free space below which it is critical.
        memory_interval_s: between two looks at the memory.
        memory_raise_after_s: how long memory must be short before it is called so.
        memory_warning_percent: available memory below which it is a warning.
        memory_critical_percent: available memory below which the system may soon kill processes.
        pressure_some_percent: share of ten seconds in which some process waited for memory: a warning above it.
        pressure_full_percent: share in which all did: critical above it.
        database_interval_s: between two reads and writes of the database.
        database_warning_s: a read or write that takes longer is a warning.
        process_interval_s: between two looks at the processes; a request for the health looks anew.
        history_interval_s: between two samples of every check in the history; changes are recorded at once.
        history_days: how long the history is kept.
    """

    check_timeout_s: float = bounded(5.0, 0.1, 3600.0)
    clear_after_s: float = bounded(30.0, 0.0, 86400.0)
    hysteresis_percent: float = bounded(10.0, 0.0, 100.0)
    disk_interval_s: float = bounded(10.0, 0.1, 86400.0)
    disk_warning_mib: int = bounded(1024, 0, 2**40)
    disk_critical_mib: int = bounded(512, 0, 2**40)
    memory_interval_s: float = bounded(5.0, 0.1, 86400.0)
    memory_raise_after_s: float = bounded(10.0, 0.0, 3600.0)
    memory_warning_percent: float = bounded(10.0, 0.0, 100.0)
    memory_critical_percent: float = bounded(5.0, 0.0, 100.0)
    pressure_some_percent: float = bounded(20.0, 0.0, 100.0)
    pressure_full_percent: float = bounded(30.0, 0.0, 100.0)
    database_interval_s: float = bounded(10.0, 0.1, 86400.0)
    database_warning_s: float = bounded(1.0, 0.001, 3600.0)
    process_interval_s: float = bounded(2.0, 0.1, 3600.0)
    history_interval_s: float = bounded(300.0, 1.0, 86400.0)
    history_days: float = bounded(30.0, 1.0, 3650.0)
