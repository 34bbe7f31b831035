"""The machine's checks on real files, a real small disk and a really locked database."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.health_monitor.checks import (
    DatabaseCheck,
    check_disk,
    check_memory,
    disk_spec,
    machine_checks,
    memory_spec,
    recent_repair,
    size,
)
from actors.health_monitor.config import HealthConfig
from actors.health_monitor.core import CheckSpec, HealthCore, Observation, Status
from actors.health_monitor.queries import read_history
from actors.health_monitor.store import SCHEMA, HealthStore, HistoryRow
from actors.runtime.database import Database
from actors.runtime.database_repair import Repair
from tests.actors.conftest import resize

HOLDER = """
import os, signal, sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("holding", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def judged(spec: CheckSpec, *observations: Observation) -> Status:
    """The status after these observations, an hour between each two."""
    core = HealthCore([spec], 0.0)
    for number, observation in enumerate(observations):
        core.finished(spec.name, observation, number * 3600.0)
        core.finished(spec.name, observation, number * 3600.0 + 1800)
    return core.findings(0.0)[0].status


def proc(directory: Path, *, available_mib: int, some: float | None = 0.0, full: float = 0.0) -> str:
    """A /proc with this memory of 1000 MiB."""
    (directory / "meminfo").write_text(
        f"MemTotal:       {1000 * 1024} kB\nMemFree:     12 kB\nMemAvailable:  {available_mib * 1024} kB\n"
        "Buffers: 0 kB\n"
    )
    if some is not None:
        (directory / "pressure").mkdir(exist_ok=True)
        (directory / "pressure" / "memory").write_text(
            f"some avg10={some:.2f} avg60=0.00 avg300=0.00 total=0\n"
            f"full avg10={full:.2f} avg60=0.00 avg300=0.00 total=0\n"
        )
    return str(directory)


def test_the_data_directorys_file_system_is_measured(tmp_path: Path) -> None:
    found = check_disk(str(tmp_path))
    status = os.statvfs(tmp_path)
    assert found.value is not None
    assert abs(found.value - status.f_bavail * status.f_frsize) < 2**30
    assert str(tmp_path) in found.message


def test_a_disk_that_fills_up_is_a_warning_then_critical_and_well_again_with_hysteresis(small_disk: Path) -> None:
    spec = disk_spec(HealthConfig(disk_warning_mib=6, disk_critical_mib=3))
    resize(small_disk, "10m")
    filling = small_disk / "filling"
    seen = []
    observations = []
    for mib in (1, 5, 8, 6, 5, 0):
        filling.write_bytes(b"x" * (mib << 20))
        observations.append(check_disk(str(small_disk)))
        seen.append(judged(spec, *observations))
    ok, warning, critical = Status.OK, Status.WARNING, Status.CRITICAL
    assert seen == [ok, warning, critical, warning, warning, ok]


def test_a_missing_directory_is_a_finding_not_an_answer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_disk(str(tmp_path / "gone"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    ("available_mib", "some", "full", "status"),
    [
        (500, 0.0, 0.0, Status.OK),
        (99, 0.0, 0.0, Status.WARNING),
        (49, 0.0, 0.0, Status.CRITICAL),
        (500, 25.0, 0.0, Status.WARNING),
        (500, 60.0, 31.0, Status.CRITICAL),
        (99, None, 0.0, Status.WARNING),
    ],
)
def test_memory_is_judged_by_what_is_available_and_by_pressure(
    tmp_path: Path, available_mib: int, some: float | None, full: float, status: Status
) -> None:
    found = check_memory(proc(tmp_path, available_mib=available_mib, some=some, full=full))
    assert found.value == available_mib << 20
    assert ("pressure" in found.message) is (some is not None)
    assert judged(memory_spec(HealthConfig()), found) is status


def test_this_machines_memory_can_be_told() -> None:
    found = check_memory()
    assert found.value is not None
    assert found.value > 0
    assert 0 < found.measures["available"] <= 100


def test_the_database_is_written_and_read(tmp_path: Path) -> None:
    check = DatabaseCheck(str(tmp_path / "reliability.db"), 1.0)
    for _ in range(2):
        found = check()
        assert found.status is Status.OK
        assert found.unit == "s"
        assert "written in" in found.message


def test_a_repair_of_the_database_is_a_warning_for_a_week(tmp_path: Path) -> None:
    path = str(tmp_path / "reliability.db")
    check = DatabaseCheck(path, 1.0)
    check()
    Repair(path, None, lambda: False, lambda *_, **__: None).run("a test", certain=True)
    found = check()
    assert found.status is Status.WARNING
    assert "0 rows lost; the damaged file is kept as reliability.db.damaged-" in found.message
    assert recent_repair(path, time.time_ns() // 1_000_000 + 8 * 86_400_000) == ""


def test_a_locked_database_is_critical_and_names_the_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "reliability.db")
    check = DatabaseCheck(path, 0.3)
    check()
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            began = time.monotonic()
            found = check()
            assert time.monotonic() - began < 2.0
            assert found.status is Status.CRITICAL
            assert "locked by another process" in found.message
            if sys.platform == "linux":
                assert f"pid {holder.pid}" in found.message
        finally:
            holder.send_signal(signal.SIGKILL)
    assert check().status is Status.OK


def test_a_database_of_somebody_else_is_critical(tmp_path: Path) -> None:
    path = tmp_path / "reliability.db"
    path.write_bytes(b"no database" * 1000)
    found = DatabaseCheck(str(path), 0.3)()
    assert found.status is Status.CRITICAL
    assert "not a database of this system" in found.message


def test_the_settings_reach_the_checks(tmp_path: Path) -> None:
    config = HealthConfig(disk_interval_s=3, memory_interval_s=4, database_interval_s=5, check_timeout_s=6)
    specs = [spec for spec, _ in machine_checks(str(tmp_path), str(tmp_path / "x.db"), config)]
    assert [(spec.name, spec.interval_s, spec.timeout_s) for spec in specs] == [
        ("disk", 3, 6),
        ("memory", 4, 6),
        ("database", 5, 6),
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (10 * 2**30, "10 GiB"),
        (1023 * 2**30, "1023 GiB"),
        (2**41, "2 TiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_the_history_is_kept_and_pruned(tmp_path: Path) -> None:
    path = str(tmp_path / "reliability.db")
    store = HealthStore(Database(path, SCHEMA))
    store.record(
        [HistoryRow(1_000, "disk", "ok", "m", 1.5, "bytes"), HistoryRow(2_000, "memory", "ok", "m", None, "")], 0
    )
    store.record([HistoryRow(3_000, "disk", "warning", "full", 0.5, "bytes")], keep_from_ms=1_500)
    store.database.close()
    assert [row["timestamp"] for row in read_history(path)["history"]] == [
        "1970-01-01T00:00:03.000Z",
        "1970-01-01T00:00:02.000Z",
    ]
    assert read_history(path, "disk")["history"] == [
        {
            "name": "disk",
            "status": "warning",
            "message": "full",
            "value": 0.5,
            "unit": "bytes",
            "timestamp": "1970-01-01T00:00:03.000Z",
        }
    ]
    assert len(read_history(path, limit=1)["history"]) == 1
