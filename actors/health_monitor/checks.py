"""The machine's checks: what each looks at. Each has its own thread and may hang; the core decides what that means."""

import os
import sys
import time
from collections.abc import Callable
from typing import Final

from actors.health_monitor.config import HealthConfig
from actors.health_monitor.core import CheckSpec, Grade, Observation, Status, above, below
from actors.health_monitor.queries import read_probe
from actors.health_monitor.store import SCHEMA, write_probe
from actors.runtime.database import Database
from actors.runtime.database_guard import REPAIRED_SUFFIX
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.database_report import describe, last_repair
from protocol.limits import KIB, MIB

if sys.platform != "linux":
    import psutil

PROC: Final = "/proc"
DATABASE_PATIENCE_SHARE: Final = 0.6
"""Of the timeout: a locked database is told as such, before it counts as a check that hangs."""
REPAIR_TOLD_MS: Final = 7 * 86_400_000
"""So long a repair of the database stays a warning; whoever has seen it may remove the report beside the database."""
Check = Callable[[], Observation]


def machine_checks(data_dir: str, database_path: str, config: HealthConfig) -> list[tuple[CheckSpec, Check]]:
    """Return the checks of the machine and its database, with their settings."""
    database = DatabaseCheck(database_path, config.check_timeout_s * DATABASE_PATIENCE_SHARE)
    return [
        (disk_spec(config), lambda: check_disk(data_dir)),
        (memory_spec(config), check_memory),
        (database_spec(config), database),
    ]


def disk_spec(config: HealthConfig) -> CheckSpec:
    """Return how free space is judged."""
    slack = config.hysteresis_percent
    return CheckSpec(
        "disk",
        config.disk_interval_s,
        config.check_timeout_s,
        {"free": Grade(below(config.disk_warning_mib * MIB, slack), below(config.disk_critical_mib * MIB, slack))},
        clear_after_s=config.clear_after_s,
    )


def memory_spec(config: HealthConfig) -> CheckSpec:
    """Return how memory is judged."""
    slack = config.hysteresis_percent
    return CheckSpec(
        "memory",
        config.memory_interval_s,
        config.check_timeout_s,
        {
            "available": Grade(
                below(config.memory_warning_percent, slack), below(config.memory_critical_percent, slack)
            ),
            "some": Grade(warning=above(config.pressure_some_percent, slack)),
            "full": Grade(critical=above(config.pressure_full_percent, slack)),
        },
        raise_after_s=config.memory_raise_after_s,
        clear_after_s=config.clear_after_s,
    )


def database_spec(config: HealthConfig) -> CheckSpec:
    """Return how the database is judged."""
    return CheckSpec(
        "database",
        config.database_interval_s,
        config.check_timeout_s,
        {"latency": Grade(warning=above(config.database_warning_s, config.hysteresis_percent))},
    )


def check_disk(path: str) -> Observation:
    """Look at the free space of the file system that holds `path`, as far as it is ours to use."""
    if sys.platform == "win32":
        usage = psutil.disk_usage(path)
        free, total = usage.free, usage.total
    else:
        status = os.statvfs(path)
        free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    return Observation(f"{size(free)} free of {size(total)} at {path}", free, "bytes", measures={"free": free})


def check_memory(proc: str = PROC) -> Observation:
    """Look at available memory and, on Linux, at how long processes waited for memory (PSI)."""
    available, total = _memory(proc)
    percent = 100 * available / max(total, 1)
    message = f"{size(available)} available of {size(total)} ({percent:.0f} %)"
    measures = {"available": percent}
    pressure = _pressure(proc)
    if pressure:
        measures |= pressure
        message += f", pressure some {pressure['some']:g} % full {pressure['full']:g} % of 10 s"
    return Observation(message, available, "bytes", measures=measures)


class DatabaseCheck:
    """Reads and writes the database as every actor does, over a connection of its own."""

    def __init__(self, path: str, patience_s: float) -> None:
        """Check the database at `path`; nothing is opened yet."""
        self._path = path
        self._patience_s = patience_s
        self._database = Database(path, SCHEMA)

    def __call__(self) -> Observation:
        """Write a row and read it back, and tell how long that took."""
        began = time.monotonic()
        try:
            self._write()
            written = time.monotonic()
            read_probe(self._path)
        except DatabaseError as error:
            return Observation(error.message, status=Status.CRITICAL)
        write_s, read_s = written - began, time.monotonic() - written
        message = f"written in {write_s * 1000:.1f} ms, read in {read_s * 1000:.1f} ms"
        repair = recent_repair(self._path, time.time_ns() // 1_000_000)
        status = Status.OK
        if repair:
            message, status = f"{message}; {repair}", Status.WARNING
        return Observation(message, round(write_s + read_s, 6), "s", status, {"latency": max(write_s, read_s)})

    def _write(self) -> None:
        try:
            write_probe(self._database, time.time_ns() // 1_000_000, self._patience_s)
        except DatabaseError as error:
            if error.problem is not Problem.REPLACED:
                raise
            # After a repair there is another file, which is what is looked at from now on.
            write_probe(self._database, time.time_ns() // 1_000_000, self._patience_s)


def recent_repair(path: str, now_ms: int) -> str:
    """Return what a repair of the last days saved and lost of the database at `path`; empty if there was none."""
    if not os.path.exists(path + REPAIRED_SUFFIX):
        return ""
    report = last_repair(path) or {}
    age_ms = now_ms - int(report.get("at_ms", 0))
    return f"it was damaged and has been replaced: {describe(report)}" if abs(age_ms) < REPAIR_TOLD_MS else ""


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < KIB:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= KIB
    return f"{count:.3g} TiB" if count < 1000 else f"{count:.0f} TiB"


if sys.platform == "linux":

    def _memory(proc: str) -> tuple[int, int]:
        fields = {}
        with open(f"{proc}/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in {"MemTotal", "MemAvailable"}:
                    fields[name] = int(rest.split()[0]) * KIB
                    if len(fields) == 2:
                        break
        return fields["MemAvailable"], fields["MemTotal"]

else:

    def _memory(_proc: str) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total


def _pressure(proc: str) -> dict[str, float]:
    """Return `some` and `full` of the last ten seconds in per cent; nothing where the system does not tell.

    some avg10=0.00 avg60=0.00 avg300=0.00 total=0
    """
    try:
        with open(f"{proc}/pressure/memory", encoding="ascii") as file:
            return {line.split()[0]: float(line.split()[1].removeprefix("avg10=")) for line in file}
    except OSError:
        return {}
