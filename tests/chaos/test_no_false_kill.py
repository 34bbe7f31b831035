"""Nobody is killed for a suspended laptop, a starved machine, a changed clock or a slow disk."""

import ctypes.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.conftest import CONFIG
from tests.chaos.system import PROCESSES, System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

BUSY_LOOPS = 8
BUSY_S = float(os.environ.get("CHAOS_BUSY_S", "12"))
"""The promise is a minute: CHAOS_BUSY_S=60."""


def nobody_was_replaced(system: System, before: dict[str, object]) -> None:
    assert system.identities() == before
    system.wait_whole(5)
    assert system.identities() == before


def test_a_suspended_laptop(shared_system: System) -> None:
    shared_system.wait_whole(10)
    before = shared_system.identities()
    for name in PROCESSES:
        os.kill(before[name].pid, signal.SIGSTOP)
    time.sleep(10)  # the length of the suspension is what is tested
    for name in PROCESSES:
        os.kill(before[name].pid, signal.SIGCONT)
    time.sleep(4)  # two hang timeouts in which a false verdict would fall
    nobody_was_replaced(shared_system, dict(before))


def test_a_starved_machine(shared_system: System) -> None:
    shared_system.wait_whole(10)
    before = shared_system.identities()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_LOOPS)]
    try:
        deadline = time.monotonic() + BUSY_S
        while time.monotonic() < deadline:
            assert shared_system.identities() == before
            time.sleep(0.5)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    nobody_was_replaced(shared_system, dict(before))


@contextmanager
def stalling_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system of its own on a loop device, and its mount point, which `fsfreeze` stalls."""
    tools = [
        shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") for tool in ("mkfs.ext4", "fsfreeze")
    ]
    if os.geteuid() != 0 or not all(tools):
        pytest.skip("needs root, mkfs.ext4 and fsfreeze")
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * 1024 * 1024)
    subprocess.run([str(tools[0]), "-q", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no loop device")
    try:
        yield mount, Path(str(tools[1]))
    finally:
        subprocess.run([str(tools[1]), "--unfreeze", str(mount)], capture_output=True, check=False)
        wait_until(
            lambda: subprocess.run(["umount", str(mount)], capture_output=True, check=False).returncode == 0,
            10,
            "umount",
        )


def test_a_disk_that_stalls_for_ten_seconds(tmp_path: Path) -> None:
    with stalling_disk(tmp_path) as (mount, fsfreeze), running(config=CONFIG, data_dir=mount) as system:
        before = system.identities()
        subprocess.run([str(fsfreeze), "--freeze", str(mount)], check=True)
        try:
            stall_ends = time.monotonic() + 10
            while time.monotonic() < stall_ends:
                for name in PROCESSES:
                    start = time.monotonic()
                    assert system.answers(name, 2.0), f"{name} does not answer while the disk stalls"
                    assert time.monotonic() - start < 1.0, f"{name} answers late while the disk stalls"
                assert system.identities() == before
        finally:
            subprocess.run([str(fsfreeze), "--unfreeze", str(mount)], check=True)
        nobody_was_replaced(system, dict(before))
        assert system.relctl("emit", "INFO", "test", "after_stall", "written").returncode == 0
        system.stop()


@contextmanager
def clean_shared_memory(part: str) -> Iterator[None]:
    """Remove what libfaketime leaves in shared memory for every process that is killed under it."""
    before = set(Path("/dev/shm").glob(f"*{part}*"))
    yield
    for item in set(Path("/dev/shm").glob(f"*{part}*")) - before:
        item.unlink(missing_ok=True)


def faketime_library() -> str | None:
    for folder in ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"):
        path = f"{folder}/libfaketimeMT.so.1"
        if os.path.exists(path):
            return path
    return ctypes.util.find_library("faketimeMT")


def test_the_wall_clock_is_set_forward_and_back(tmp_path: Path) -> None:
    library = faketime_library()
    if library is None:
        pytest.skip("needs libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with clean_shared_memory("faketime"), running(config=CONFIG, environment=environment) as system:
        before = system.identities()
        for offset in ("+3h", "-2d", "+400d", "+0"):
            clock.write_text(offset)
            time.sleep(2.5)  # more than one hang timeout under each clock
            assert system.identities() == before, f"after the clock was set {offset}"
            assert system.relctl("health").returncode in (0, 1)
        nobody_was_replaced(system, dict(before))
        system.stop()
