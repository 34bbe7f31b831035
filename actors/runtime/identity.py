"""Who a process is: never the pid alone.

A pid is reused; (pid, start time, boot id) is not. Before anything is signalled, the identity that was recorded is
checked against the process that has the pid now (see `actors.runtime.signalling`).
"""

import os
import sys
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, once.

    Attributes:
        pid: process id.
        start_time: start of the process in units of its system (Linux: clock ticks since boot, field 22 of its stat).
        boot_id: the boot in which the pair was true.
    """

    pid: int
    start_time: int
    boot_id: str

    def is_running(self) -> bool:
        """Tell whether exactly this process exists and is no zombie."""
        return self.boot_id == boot_id() and start_time_of(self.pid) == self.start_time


def identity_of(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has `pid` now, or None if there is none (a zombie counts as none)."""
    start_time = start_time_of(pid)
    return None if start_time is None else ProcessIdentity(pid, start_time, boot_id())


def own_identity() -> ProcessIdentity:
    """Return the calling process's identity."""
    identity = identity_of(os.getpid())
    if identity is None:
        raise RuntimeError("the running process is not in the process table")
    return identity


if sys.platform == "linux":

    def start_time_of(pid: int) -> int | None:
        """Return the start time of the process that has `pid` now; None if there is none or only a zombie is left."""
        fields = stat_fields(pid)
        return None if fields is None or fields[0] in "ZX" else int(fields[19])

    def stat_fields(pid: int) -> list[str] | None:
        """Return /proc/PID/stat from the state (field 3) on, or None if there is no such process."""
        if pid <= 0:
            return None
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                text = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return text.rsplit(b")", 1)[1].decode("ascii").split()

    @lru_cache(maxsize=1)
    def boot_id() -> str:
        """Return a text that is the same for all processes of one boot and different for every boot."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()

else:
    import psutil

    def start_time_of(pid: int) -> int | None:
        """Return the start time of the process that has `pid` now; None if there is none or only a zombie is left."""
        if pid <= 0:
            return None
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return round(process.create_time() * 100)
        except psutil.NoSuchProcess:
            return None

    @lru_cache(maxsize=1)
    def boot_id() -> str:
        """Return a text that is the same for all processes of one boot and different for every boot."""
        return f"boot-{round(psutil.boot_time() / 10)}"
