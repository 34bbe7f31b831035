"""What holds for every test: it leaves no process behind, even when it fails."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.paths import RUNTIME_DIR_VARIABLE

GRACE_S = 2.0
"""A process that has been killed may take this long to be gone."""


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start, also where pytest was started in the background, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def children() -> set[int]:
    """Direct children of this process that are not zombies of a `Popen` still to be collected."""
    found = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found |= {int(pid) for pid in task.read_text().split()}
        except OSError:
            continue
    return {pid for pid in found if not is_zombie(pid)}


def is_zombie(pid: int) -> bool:
    """Whether `pid` has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def users(directory: str) -> dict[int, str]:
    """Every process that has a liveness board below `directory` mapped: no renamed or orphaned one can hide."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            lines = Path("/proc", entry, "maps").read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if directory in line:
                found[int(entry)] = line.split(maxsplit=5)[-1]
    return found


@pytest.fixture(autouse=True, scope="session")
def runtime_parent() -> Iterator[str]:
    """Keep the runtime directories of this run's systems apart from any others; short enough for socket paths."""
    directory = tempfile.mkdtemp(prefix="rt-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    os.environ[RUNTIME_DIR_VARIABLE] = directory
    yield directory
    del os.environ[RUNTIME_DIR_VARIABLE]
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left_by_a_module(runtime_parent: str) -> Iterator[None]:
    """Fail the module's last test if it leaves a child of ours, or a process of a system that it started."""
    if not Path("/proc/self/task").exists():
        yield
        return
    children_before = children()
    yield
    deadline = time.monotonic() + GRACE_S
    while True:
        left_children = children() - children_before
        left = users(runtime_parent)
        if not left_children and not left:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    titles = {
        pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") for pid in left_children | set(left)
    }
    for pid in titles:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    pytest.fail(f"processes left behind (now killed): {titles}, boards {left}")
