"""What it costs a program that its output is read: `python benchmarks/outputs.py [--megabytes N] [--rounds N]`.

A program writes 100 MB of lines a second to its own file, with nobody about and with event_logger reading behind it, in
turns. Reported: how long it took with us to how long it took without (limit 1.10), the time it spent in write(), how
much disk the file took at most, and what event_logger's memory grew by. A second run writes as fast as it can.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors.runtime.programs import ProgramSpec, output_path, save

ROOT = Path(__file__).resolve().parent.parent
CAP_MIB = 64
LIMIT = 1.10
WRITER = """
import os, sys, time
path, megabytes, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
block = (b"%0127d" % 7 + b"\\n") * 8192  # a MiB
descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
began = time.monotonic()
busy = 0.0
for number in range(megabytes):
    start = time.monotonic()
    os.write(descriptor, block)
    busy += time.monotonic() - start
    due = began + (number + 1) / rate if rate else 0
    time.sleep(max(0.0, due - time.monotonic()))
print(time.monotonic() - began, busy)
"""


def run(directory: Path, megabytes: int, rate: float, *, tailed: bool) -> dict[str, float]:
    """Write once; returns what it took."""
    data = Path(tempfile.mkdtemp(dir=directory))
    (data / "journal").mkdir()
    path = Path(output_path(str(data), "noisy"))
    path.parent.mkdir(parents=True)
    taker = None
    if tailed:
        save(str(data), [ProgramSpec("noisy", ("x",), "/")], {"noisy": 16})
        command = [
            sys.executable,
            "-m",
            "tests.actors.event_logger.output_taker",
            str(data / "reliability.db"),
            str(data),
        ]
        taker = subprocess.Popen([*command, "100", "1"], cwd=ROOT, stdout=subprocess.PIPE)
        assert taker.stdout is not None
        taker.stdout.readline()
    before = _rss(taker)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(megabytes), str(rate)], stdout=subprocess.PIPE, text=True
    )
    allocated = memory = 0
    while writer.poll() is None:
        if path.exists():
            allocated = max(allocated, path.stat().st_blocks * 512)
        memory = max(memory, _rss(taker))
        time.sleep(0.02)
    assert writer.stdout is not None
    took, busy = map(float, writer.stdout.read().split())
    cpu = _cpu(taker)
    if taker is not None:
        taker.kill()
        taker.wait()
    shutil.rmtree(data)
    return {"took": took, "busy": busy, "disk": allocated / 2**20, "memory": (memory - before) / 2**20, "cpu": cpu}


def _rss(process: "subprocess.Popen[bytes] | None") -> int:
    if process is None:
        return 0
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096


def _cpu(process: "subprocess.Popen[bytes] | None") -> float:
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure; 1 if the program is slowed by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    failed = False
    for rate in (100.0, 0.0):
        results: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(options.rounds):
            for tailed in (False, True):
                results[tailed].append(run(options.directory, options.megabytes, rate, tailed=tailed))

        def median(tailed: bool, key: str, found: dict[bool, list[dict[str, float]]] = results) -> float:
            return statistics.median(item[key] for item in found[tailed])

        ratio = median(True, "took") / median(False, "took")
        print(
            json.dumps(
                {
                    "rate_mb_s": rate or "as fast as it can",
                    "megabytes": options.megabytes,
                    "alone_s": round(median(False, "took"), 3),
                    "tailed_s": round(median(True, "took"), 3),
                    "ratio": round(ratio, 3),
                    "in_write_alone_s": round(median(False, "busy"), 3),
                    "in_write_tailed_s": round(median(True, "busy"), 3),
                    "disk_mib_max": round(max(item["disk"] for item in results[True])),
                    "cap_mib": CAP_MIB,
                    "memory_grown_mib": round(max(item["memory"] for item in results[True]), 1),
                    "event_logger_cpu_s": round(median(True, "cpu"), 2),
                }
            )
        )
        failed |= rate == 100.0 and ratio > LIMIT
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
