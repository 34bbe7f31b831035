"""What supervision costs and how fast it is, against a cold start of the same Python in the same run.

    python benchmarks/spine.py [recovery] [succession] [idle] [start] [relctl] [--runs N]

Prints one row a claim: the figure, the limit measured beside it, their ratio and the aim. Machines are noisy: compare
ratios, not figures.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.chaos.system import MANY_RESTARTS, PROCESSES, ROOT, SERVICES, System, running, wait_until

IMPORTS = "import zmq, msgpack, apsw"
CLI_IMPORTS = "import click, zmq, msgpack"


def cold_start_s(imports: str) -> float:
    """Time of a whole `python -c imports`, the limit that everything here is measured against."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", imports], check=True)
    return time.perf_counter() - start


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(claim: str, value: float, unit: str, limit: float, aim: float | None) -> None:
    """Print one claim: its figure, the limit of the same run, their ratio and the aim, if it has one."""
    ratio = value / limit
    mark = "" if aim is None else f"  aim <= {aim:5.2f}  {'held' if ratio <= aim else 'MISSED'}"
    print(f"{claim:52} {value:9.2f} {unit:4} limit {limit:8.2f}  ratio {ratio:6.2f}{mark}", flush=True)


def recovery(runs: int) -> None:
    """Kill -9 of every own process but the launcher, until its successor answers.

    Each death meets a system at rest, as nearly all deaths do; and once more one that has just come back from another.
    """
    with running(config=MANY_RESTARTS) as system:
        cold = []
        at_rest: dict[str, list[float]] = {name: [] for name in SERVICES}
        in_a_row: dict[str, list[float]] = {name: [] for name in SERVICES}
        for _ in range(runs):
            cold.append(cold_start_s(IMPORTS) * 1e3)
            for name in SERVICES:
                wait_until(lambda: is_at_rest(system), 10, "a system at rest", interval_s=0.01)
                at_rest[name].append(kill_to_answer_s(system, name) * 1e3)
            for name in SERVICES:
                system.wait_whole(10)
                in_a_row[name].append(kill_to_answer_s(system, name) * 1e3)
        limit = statistics.median(cold)
        for name, values in at_rest.items():
            row(f"kill -9 {name} to answering, median", statistics.median(values), "ms", limit, 0.2)
            row(f"kill -9 {name} to answering, p99", percentile(values, 0.99), "ms", limit, 0.5)
        for name, values in in_a_row.items():
            row(f"the same, {name} as soon as all answer again", statistics.median(values), "ms", limit, None)
        system.stop()


def is_at_rest(system: System) -> bool:
    """Whether every process is ready, and the launcher has the spare and nothing else to do: no copy is under way."""
    launcher = system.pid("launcher")
    children = set(map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()))
    spares = children - {system.pid(name) for name in SERVICES}
    return all(map(system.ready, SERVICES)) and len(spares) == 1 and all(map(waits_as_spare, spares))


def waits_as_spare(pid: int) -> bool:
    """Whether the process is the spare, and has come to its gate."""
    try:
        is_spare = b"spare" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return is_spare and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"
    except OSError:
        return False


def kill_to_answer_s(system: System, name: str) -> float:
    """Kill `name`; return how long until another process answers a ping as `name`."""
    old = system.client.call(name, "status", timeout=2.0)["pid"]
    start = time.perf_counter()
    os.kill(old, signal.SIGKILL)
    while True:
        reply = system.client.call(name, "status", timeout=5.0)
        if reply["pid"] != old:
            return time.perf_counter() - start


def succession(runs: int) -> None:
    """Kill -9 of the launcher, until a successor supervises and answers; nobody else may be restarted."""
    with running(config=MANY_RESTARTS) as system:
        cold, taken = [], []
        for _ in range(runs):
            cold.append(cold_start_s(IMPORTS) * 1e3)
            before = system.identities()
            start = time.perf_counter()
            os.kill(before["launcher"].pid, signal.SIGKILL)
            wait_until(
                lambda before=before: (
                    system.ready("launcher")
                    and system.identity("launcher") != before["launcher"]
                    and system.answers("launcher", 0.2)
                ),
                10,
                "a new launcher",
                interval_s=0.002,
            )
            taken.append((time.perf_counter() - start) * 1e3)
            after = system.identities()
            assert {n: i for n, i in after.items() if n != "launcher"} == {
                n: i for n, i in before.items() if n != "launcher"
            }
            time.sleep(0.6)
        row(
            "kill -9 launcher to supervised again, median", statistics.median(taken), "ms", statistics.median(cold), 4.0
        )
        system.stop()


def idle(_runs: int) -> None:
    """Memory and CPU of all processes while nothing happens."""
    with running(config=MANY_RESTARTS) as system:
        time.sleep(5)
        pids = system.processes()  # the spare as well, which waits to be the next one
        cpu, start = sum(map(cpu_s, pids)), time.perf_counter()
        time.sleep(20)
        used = (sum(map(cpu_s, pids)) - cpu) / (time.perf_counter() - start) * 100
        names = {identity.pid: name for name, identity in system.identities().items()}
        for pid in pids:
            print(f"    {names.get(pid, 'spare'):16} {pss_mib(pid):6.1f} MiB PSS")
        row("idle, PSS of all processes", sum(map(pss_mib, pids)), "MiB", 50.0, 1.0)
        row("idle, CPU of all processes, share of one core", used, "%", 0.5, 1.0)
        system.stop()


def pss_mib(pid: int) -> float:
    """Proportional set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def cpu_s(pid: int) -> float:
    """CPU time that the scheduler has accounted to the threads of `pid`."""
    return sum(
        int(Path(task, "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir()
    )


def start(runs: int) -> None:
    """From `python launcher.py` to every process ready and answering."""
    cold, taken = [], []
    for _ in range(max(3, runs // 4)):
        cold.append(cold_start_s(IMPORTS) * 1e3)
        with running(config=MANY_RESTARTS, start=False) as system:
            begin = time.perf_counter()
            system.start()
            taken.append((time.perf_counter() - begin) * 1e3)
            system.stop()
    row("start to all ready, median", statistics.median(taken), "ms", statistics.median(cold), 8.0)


def relctl(runs: int) -> None:
    """`relctl health` as a whole process."""
    with running(config=MANY_RESTARTS) as system:
        command = [str(Path(sys.executable).parent / "relctl"), "--data-dir", str(system.data_dir), "health"]
        if not os.path.exists(command[0]):
            command[:1] = [sys.executable, "-m", "app.reliability.cli"]
        cold, taken = [], []
        for _ in range(max(9, runs)):
            cold.append(cold_start_s(CLI_IMPORTS) * 1e3)
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, env=system.environment, cwd=ROOT, check=False)
            taken.append((time.perf_counter() - begin) * 1e3)
        row("relctl health, whole process, median", statistics.median(taken), "ms", statistics.median(cold), 1.6)
        system.stop()


CLAIMS: dict[str, Callable[[int], None]] = {
    "recovery": recovery,
    "succession": succession,
    "idle": idle,
    "start": start,
    "relctl": relctl,
}


def main() -> int:
    """Measure the claims named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(CLAIMS)}; all without one")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    print(f"{len(PROCESSES)} processes, {options.runs} runs, Python {sys.version.split()[0]}")
    for name in options.claims or CLAIMS:
        CLAIMS[name](options.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
