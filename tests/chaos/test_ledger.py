"""Nothing acknowledged is ever lost: an outside ledger against the tables and the files, over hundreds of kill -9.

A host streams events and checkpoints (`ledger_host`) while the owners, the broker, the host itself, the whole system
are killed. `LEDGER_KILLS` says how often (default 300), `RELCTL_TEST_SEED` in which order; a soak is a larger number:
``LEDGER_KILLS=5000 pytest tests/chaos/test_ledger.py --timeout=7200``.
"""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import pytest

from actors.runtime.paths import DATABASE_FILE
from tests.chaos.conftest import CONFIG
from tests.chaos.ledger_host import NAME
from tests.chaos.system import ROOT, System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
KILLS = int(os.environ.get("LEDGER_KILLS", "300"))
SEED = int(os.environ.get("RELCTL_TEST_SEED", random.randrange(10**6)))
PATIENCE_S = 20.0
LOOKBACK = 40
"""The whole system is killed once in so many kills."""
VICTIMS = (
    (("event_logger",), 8),
    (("checkpointer",), 8),
    (("broker",), 5),
    (("event_logger", "checkpointer"), 3),
    (("event_logger", "checkpointer", "broker"), 2),
    (("launcher", "event_logger"), 1),
    (("host",), 6),
)
RETENTION = "\n[checkpoints]\ncount_max = 1000000\ntotal_mib_max = 100000\n"


class Ledger:
    """What hosts were promised."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self.entries: list[dict[str, Any]] = []

    def read(self) -> int:
        """Take in what is new; returns how many promises there are. The last line of a killed host may be torn."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.entries += [json.loads(line) for line in lines]
        return len(self.entries)

    def wait_for_more(self, count: int) -> None:
        """Wait until so many further promises are made."""
        enough = self.read() + count
        wait_until(lambda: self.read() >= enough, PATIENCE_S, f"{count} more promises after {enough - count}")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The entries of one kind."""
        return [entry for entry in self.entries if entry["kind"] == kind]


class Hosts:
    """One host at a time."""

    def __init__(self, system: System, ledger: Path) -> None:
        self._system = system
        self._ledger = ledger
        self._runs = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin another life."""
        self._runs += 1
        command = [sys.executable, "-m", "tests.chaos.ledger_host", str(self._system.data_dir), str(self._ledger)]
        with open(self._system.data_dir / "host.err", "ab") as errors:
            self._process = subprocess.Popen(
                [*command, f"run{self._runs}"], cwd=ROOT, env=self._system.environment, stderr=errors
            )

    def kill(self) -> None:
        """End it."""
        assert self._process is not None
        early = self._process.poll()
        self._process.kill()
        self._process.wait()
        complaint = (self._system.data_dir / "host.err").read_text()
        assert early is None, f"the host gave up by itself: {complaint[-3000:]}"


def kill(system: System, hosts: Hosts, names: tuple[str, ...], draw: random.Random) -> None:
    if "host" in names:
        hosts.kill()
        hosts.start()
        return
    before = {name: system.pid(name) for name in names}
    for name in draw.sample(names, len(names)):
        if before[name]:
            os.kill(before[name], signal.SIGKILL)
    for name in names:
        wait_until(lambda name=name: system.replaced(name, before[name]), PATIENCE_S, f"{name} again")


def kill_everybody(system: System, hosts: Hosts) -> None:
    for identity in system.identities().values():
        try:
            os.kill(identity.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    hosts.kill()
    wait_until(lambda: not system.processes(), PATIENCE_S, "everybody dead")
    system.start()
    hosts.start()


def rows(system: System, statement: str) -> list[Any]:
    connection = apsw.Connection(str(system.data_dir / DATABASE_FILE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(connection.execute(statement))
    finally:
        connection.close()


def lines(system: System) -> list[dict[str, Any]]:
    found = []
    for path in sorted((system.data_dir / "events").glob("events-*.jsonl*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            found += [json.loads(line) for line in file]
    return found


def test_nothing_acknowledged_is_lost_or_doubled_over_hundreds_of_kills(tmp_path: Path) -> None:
    print(f"RELCTL_TEST_SEED={SEED} LEDGER_KILLS={KILLS}")
    draw = random.Random(SEED)
    ledger = Ledger(tmp_path / "ledger")
    with running(config=CONFIG + RETENTION) as system:
        hosts = Hosts(system, tmp_path / "ledger")
        hosts.start()
        for number in range(KILLS):
            ledger.wait_for_more(draw.choice((1, 5, 30)))
            if number % LOOKBACK == LOOKBACK - 1:
                kill_everybody(system, hosts)
            else:
                kill(system, hosts, draw.choices(*zip(*VICTIMS, strict=True))[0], draw)
        hosts.kill()
        ledger.read()
        system.wait_whole(PATIENCE_S)
        wait_until(lambda: not spooled(system), PATIENCE_S, "the spools are drained")
        verified = system.relctl("logs", "verify", "--json", timeout_s=60.0)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        system.stop()
        check_events(system, ledger)
        check_checkpoints(system, ledger)
        assert rows(system, "PRAGMA integrity_check") == [("ok",)]


def spooled(system: System) -> list[Path]:
    return [path for path in (system.data_dir / "spool").rglob("*.spool") if path.stat().st_size > 0]


def check_events(system: System, ledger: Ledger) -> None:
    found = rows(system, f"SELECT message, seq, lower(hex(id)) FROM events WHERE component = '{NAME}'")
    assert [message for message, count in Counter(row[0] for row in found).items() if count > 1] == []
    places = {row[0]: (row[1], row[2]) for row in found}
    for entry in ledger.of("event"):
        assert entry["message"] in places, f"lost: {entry}"
        seq, event_id = places[entry["message"]]
        assert entry["id"].replace("-", "") == event_id
        assert entry["seq"] in (None, seq)
    written = lines(system)
    assert [line["seq"] for line in written] == [seq for (seq,) in rows(system, "SELECT seq FROM events ORDER BY seq")]


def order(entry: dict[str, Any]) -> tuple[int, int]:
    """The place of a state among all that were written."""
    return int(entry["run"].removeprefix("run")), entry["n"]


def check_checkpoints(system: System, ledger: Ledger) -> None:
    found = rows(system, f"SELECT lower(hex(id)), seq, lower(hex(sha256)) FROM checkpoints WHERE name = '{NAME}'")
    places = {row[0]: row[1:] for row in found}
    assert len(places) == len(found)
    last: dict[str, Any] = {}
    newest_n = 0
    for entry in ledger.entries:
        if entry["kind"] == "recovered" and last:
            # What came back is the last state promised, or a later one: a host may be cut off after the commit.
            assert entry["n"] is not None, f"nothing recovered after {last}"
            assert order(entry) >= order(last), (entry, last)
        if entry["kind"] == "checkpoint":
            assert entry["id"] in places, f"lost: {entry}"
            seq, sha256 = places[entry["id"]]
            assert entry["seq"] in (None, seq)
            assert entry["sha256"] == sha256
            last = entry
            newest_n = max(newest_n, entry["n"])
    assert newest_n > 0
