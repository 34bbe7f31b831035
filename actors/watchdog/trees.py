"""A program's processes, what they hold of the memory, and what else is to be seen of the first of them.

What is read here may wait for another process's memory map: for threads, never for a message loop.
"""

import os
import sys
from typing import Any, Final

from actors.runtime.identity import ProcessIdentity, stat_fields

ITEMS_MAX: Final = 64
"""Threads and open files that are listed; there may be more."""
COMMAND_CHARACTERS_MAX: Final = 4096
_STATE, _PARENT, _SESSION = 0, 1, 3
"""Places in /proc/PID/stat, counted from the state (field 3) on."""
_USER_TIME, _SYSTEM_TIME = 11, 12
_KIB: Final = 1024

if sys.platform == "linux":

    def tree_of(root: int) -> set[int]:
        """Return `root`, who descends from it, and who is in a session of one of these."""
        parents: dict[int, tuple[int, int]] = {}
        for name in os.listdir("/proc"):
            if name.isdecimal():
                fields = stat_fields(int(name))
                if fields is not None and fields[_STATE] not in "ZX":
                    parents[int(name)] = int(fields[_PARENT]), int(fields[_SESSION])
        found, before = {root} & set(parents), -1
        while len(found) != before:
            before = len(found)
            found |= {pid for pid, (parent, session) in parents.items() if parent in found or session in found}
        return found

    def memory_of(pid: int) -> int:
        """Return what a process holds of the memory, bytes: its share of what it shares, if the system says."""
        rollup = _read(f"/proc/{pid}/smaps_rollup")
        for line in rollup.splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * _KIB
        return resident_of(pid)

    def resident_of(pid: int) -> int:
        """Return what a process has in memory, bytes, shared or not."""
        fields = _read(f"/proc/{pid}/statm").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0

    def facts_of(identity: ProcessIdentity) -> dict[str, Any]:
        """Return what is to be seen of a process: command line, threads, open files."""
        folder, ticks = f"/proc/{identity.pid}", os.sysconf("SC_CLK_TCK")
        threads = []
        tasks = _list(f"{folder}/task")
        for task in tasks[:ITEMS_MAX]:
            stat = _read(f"{folder}/task/{task}/stat")
            name, _, rest = stat.partition("(")[2].rpartition(")")
            fields = rest.split()
            if fields:
                cpu_s = (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / ticks
                waits_in = _read(f"{folder}/task/{task}/wchan").strip("0")
                threads.append(
                    {"id": int(task), "name": name, "state": fields[0], "waits_in": waits_in, "cpu_s": cpu_s}
                )
        files = _list(f"{folder}/fd")
        command = _read(f"{folder}/cmdline")[:COMMAND_CHARACTERS_MAX]
        return {
            "command": command.rstrip("\0").split("\0"),
            "threads": threads,
            "threads_count": len(tasks),
            "open_files": {number: _link(f"{folder}/fd/{number}") for number in files[:ITEMS_MAX]},
            "open_files_count": len(files),
            "memory_bytes": resident_of(identity.pid),
        }

    def _read(path: str) -> str:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def _list(path: str) -> list[str]:
        try:
            return sorted(os.listdir(path), key=int)
        except OSError:
            return []

    def _link(path: str) -> str:
        try:
            return os.readlink(path)
        except OSError:
            return ""

else:
    import psutil

    def tree_of(root: int) -> set[int]:
        """Return `root` and who descends from it."""
        try:
            return {root} | {child.pid for child in psutil.Process(root).children(recursive=True)}
        except psutil.Error:
            return set()

    def memory_of(pid: int) -> int:
        """Return what a process has in memory, bytes."""
        return resident_of(pid)

    def resident_of(pid: int) -> int:
        """Return what a process has in memory, bytes, shared or not."""
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0

    def facts_of(identity: ProcessIdentity) -> dict[str, Any]:
        """Return what is to be seen of a process: command line and threads."""
        try:
            process = psutil.Process(identity.pid)
            return {"command": process.cmdline(), "threads_count": process.num_threads()}
        except psutil.Error:
            return {}


def tree_memory(root: int, limit_bytes: int) -> int:
    """Return what the tree of `root` holds of the memory, bytes; it is looked at closely only if it may be too much."""
    pids = tree_of(root)
    resident = sum(map(resident_of, pids))
    return resident if resident <= limit_bytes else sum(map(memory_of, pids))
