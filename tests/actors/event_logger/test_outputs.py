"""Output of programs becoming events: each line once, whoever dies when; bounded; in nobody's way."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.event_logger import outputs, outputs_files
from actors.event_logger.actor import EventLogger
from actors.event_logger.config import EventLoggerConfig
from actors.event_logger.outputs_core import UNFINISHED_S, OutputPosition
from actors.event_logger.outputs_files import OutputReader, Taken
from actors.event_logger.queries import read_events
from actors.event_logger.records import EventFilter
from actors.event_logger.store import EventStore
from actors.runtime.database_problem import DatabaseError, Problem
from actors.runtime.liveness import Board
from actors.runtime.programs import ProgramSpec, output_path, save
from protocol.limits import KIB, MIB
from tests.actors.harness import Harness

ROOT = Path(__file__).parents[3]
CAP = 256 * KIB


class Program:
    """What a supervised program does to its files."""

    def __init__(self, data_dir: Path, name: str = "api") -> None:
        self.path = Path(output_path(str(data_dir), name))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = -1
        self.begin()

    def begin(self) -> None:
        """Begin another life, as the child does."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        for rank in range(5, 0, -1):
            former = Path(f"{self.path}.{rank - 1}") if rank > 1 else self.path
            if former.exists():
                former.rename(f"{self.path}.{rank}")
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, data: bytes) -> None:
        assert os.write(self._descriptor, data) == len(data)

    @property
    def allocated(self) -> int:
        return self.path.stat().st_blocks * 512


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A reader, its clock, and what it has stored."""

    def __init__(self, data_dir: Path, per_second_max: float = 1_000_000.0) -> None:
        self.clock = Clock()
        self.data_dir = data_dir
        self.stored: dict[tuple[str, int], OutputPosition] = {}
        self.per_second_max = per_second_max
        self.reader = OutputReader(str(data_dir), per_second_max, lambda: 0, self.clock)

    def read(self, *, last: bool = False) -> Taken:
        """Read once, and store."""
        taken = self.reader.read({"api": CAP}, last=last)
        self.stored.update({(item.program, item.inode): item for item in taken.positions})
        for key in taken.gone:
            self.stored.pop(key, None)
        return taken

    def messages(self) -> list[str]:
        """Read until there is no more."""
        found = []
        while True:
            taken = self.read()
            found += [event.message for event in taken.events]
            if not taken.more:
                return found

    def reborn(self) -> None:
        """Die, and come back with what is stored."""
        self.reader.close()
        self.reader = OutputReader(str(self.data_dir), self.per_second_max, lambda: 0, self.clock)
        self.reader.restore(self.stored.values())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.reader.close()


def test_lines_are_read_as_they_come_and_of_every_life_in_order(bench: Bench, tmp_path: Path) -> None:
    assert bench.messages() == []
    api = Program(tmp_path)
    api.write(b"one\ntw")
    assert bench.messages() == ["one"]
    api.write(b"o\n")
    assert bench.messages() == ["two"]
    for life in range(3):  # faster than anybody looks
        api.write(f"last word {life}".encode())
        api.begin()
        api.write(f"life {life}\n".encode())
    assert bench.messages() == ["last word 0", "life 0", "last word 1", "life 1", "last word 2", "life 2"]
    assert bench.messages() == []


def test_a_line_without_an_end_waits_for_it_and_not_for_ever(bench: Bench, tmp_path: Path) -> None:
    api = Program(tmp_path)
    api.write(b"password: ")
    assert bench.messages() == []
    bench.clock.now += UNFINISHED_S / 2
    assert bench.messages() == []
    bench.clock.now += UNFINISHED_S
    assert bench.messages() == ["password:"]
    api.write(b"secret\n")
    assert bench.messages() == ["secret"]


def test_a_successor_goes_on_where_the_last_commit_was(bench: Bench, tmp_path: Path) -> None:
    api = Program(tmp_path)
    api.write(b"one\nhal")
    assert bench.messages() == ["one"]
    bench.reborn()
    api.write(b"f\n")
    assert bench.messages() == ["half"]
    api.write(b"three\nrest")
    bench.reader.read({})  # read, and killed before the commit
    bench.reborn()
    api.begin()
    assert bench.messages() == ["three", "rest"]


def test_the_inode_of_a_file_that_went_is_not_taken_for_it(bench: Bench, tmp_path: Path) -> None:
    """Ext4 gives a freed inode to the next file: five quick lives, and the present file has a former one's number."""
    api = Program(tmp_path)
    expected, found = [], []
    for life in range(40):
        line = f"hello from life {life}" if life % 2 else "hello"
        expected.append(line)
        api.write(f"{line}\n".encode())
        if life % 3 == 0:
            found += bench.messages()
        if life % 7 == 0:
            bench.reborn()
        api.begin()
    found += bench.messages()
    assert found == expected


def test_a_file_of_the_same_inode_and_another_content_is_read_from_its_beginning(bench: Bench, tmp_path: Path) -> None:
    api = Program(tmp_path)
    api.write(b"before\n" * 10)
    assert len(bench.messages()) == 10
    bench.reader.close()
    data = b"after!\n" * 11
    api.path.write_bytes(data)  # the same inode
    bench.reborn()
    assert len(bench.messages()) == 11


def test_a_flood_is_cut_to_its_rate_and_the_rest_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, per_second_max=100.0)
    api = Program(tmp_path)
    api.write(b"".join(b"line %d\n" % number for number in range(5000)))
    found = bench.messages()
    assert found == [f"line {number}" for number in range(1000)]
    bench.clock.now += 1.0
    api.write(b"after\n")
    taken = bench.read()
    assert taken.events[0].message == "after"
    (told,) = taken.events[1:]
    skipped = b"".join(b"line %d\n" % number for number in range(1000, 5000))
    assert json.loads(told.attributes) == {"lines": 4000, "bytes": len(skipped), "from_offset": 8890}
    assert told.event_type == "output_skipped"
    bench.reader.close()


def test_a_flood_that_does_not_end_is_told_of_now_and_then(tmp_path: Path) -> None:
    bench = Bench(tmp_path, per_second_max=100.0)
    api = Program(tmp_path)
    told = lines = 0
    for _ in range(30):
        api.write(b"x" * 20 + b"\n" + b"y\n" * 2000)
        taken = bench.read()
        lines += sum(event.event_type == "output" for event in taken.events)
        reports = [json.loads(event.attributes)["lines"] for event in taken.events if event.event_type != "output"]
        assert len(reports) <= 1
        told += sum(reports)
        bench.clock.now += 1.0
    taken = bench.read()
    told += sum(json.loads(event.attributes)["lines"] for event in taken.events)
    assert lines + told == 30 * 2001
    assert 1000 + 29 * 100 - 1 <= lines <= 1000 + 29 * 100 + 1
    bench.reader.close()


def test_more_than_one_commit_takes_is_left_for_the_next_and_not_skipped(bench: Bench, tmp_path: Path) -> None:
    api, other = Program(tmp_path), Program(tmp_path, "zebra")
    api.write(b"".join(b"line %d\n" % number for number in range(7001)))
    other.write(b"z\n" * 3000)
    first = bench.read()
    assert len(first.events) == 2000
    assert first.more
    messages = [event.message for event in first.events] + bench.messages()
    assert sorted(messages) == sorted([f"line {number}" for number in range(7001)] + ["z"] * 3000)
    big = b"b" * 8000 + b"\n"
    api.write(big * 1000)
    taken = bench.read()
    assert taken.size_bytes < 4 * MIB
    assert len(taken.events) + len(bench.messages()) == 1000


def test_the_oldest_output_gives_its_disk_back_while_the_program_goes_on(bench: Bench, tmp_path: Path) -> None:
    api = Program(tmp_path)
    found, written = [], 0
    for number in range(3000):
        line = b"%06d %s\n" % (number, b"x" * 993)
        api.write(line)
        written += len(line)
        if number % 100 == 99:
            found += bench.messages()
            assert api.allocated <= CAP + CAP // 8 + 100 * 1024
    assert api.path.stat().st_size == written  # offsets keep their meaning
    assert [message[:6] for message in found] == [f"{number:06d}" for number in range(3000)]
    assert api.path.read_bytes()[-CAP // 2 :].count(b"\n") >= 100
    bench.reborn()
    api.write(b"end\n")
    assert bench.messages() == ["end"]


def test_what_was_given_back_unread_is_told(bench: Bench, tmp_path: Path) -> None:
    api = Program(tmp_path)
    for number in range(1000):
        api.write(b"%06d %s\n" % (number, b"x" * 993))
    descriptor = os.open(api.path, os.O_RDWR)
    assert outputs_files.punch(descriptor, 512 * KIB)
    os.close(descriptor)
    messages = bench.messages()
    assert messages[-1] == "524288 bytes of api's output were gone before they were read, from byte 0 on"
    assert messages[1][:6] == f"{512 * KIB // 1001 + 1:06d}"


def test_where_no_hole_can_be_made_the_file_begins_anew(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs_files, "punch", lambda _descriptor, _length: False)
    api = Program(tmp_path)
    found = []
    for number in range(2000):
        api.write(b"%06d %s\n" % (number, b"x" * 993))
        if number % 50 == 49:
            found += bench.messages()
        if number % 300 == 299:
            bench.reborn()
    found += bench.messages()
    assert [message[:6] for message in found] == [f"{number:06d}" for number in range(2000)]
    assert api.path.stat().st_size <= CAP + CAP // 8 + 50 * 1024
    kept = Path(f"{api.path}.0").read_bytes()
    assert CAP // 2 <= len(kept) <= CAP
    both = kept + api.path.read_bytes()
    assert both.splitlines()[-1][:6] == b"001999"


def test_output_that_cannot_be_read_is_no_hindrance_to_that_of_others(bench: Bench, tmp_path: Path) -> None:
    Program(tmp_path, "bad").path.unlink()
    (tmp_path / "programs" / "bad" / "output.log").symlink_to("output.log")
    Program(tmp_path, "good").write(b"fine\n")
    (tmp_path / "programs" / "Not A Program").mkdir()
    taken = bench.read()
    assert [event.message for event in taken.events] == ["fine"]
    assert taken.failed.startswith("bad cannot be read")


def test_the_files_of_a_program_that_is_no_more_are_forgotten(bench: Bench, tmp_path: Path) -> None:
    api = Program(tmp_path)
    api.write(b"one\n")
    assert bench.messages() == ["one"]
    assert bench.stored
    api.path.unlink()
    bench.read()
    assert not bench.stored


# --- in event_logger ---


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Makes event loggers on one data directory."""
    (tmp_path / "journal").mkdir()
    save(str(tmp_path), [ProgramSpec("api", ("x",), "/")], {"api": 16})
    board = Board.create(str(tmp_path / "board"))
    made: list[Harness] = []

    def make(**config: float) -> Harness:
        settings = EventLoggerConfig(**config)  # type: ignore[arg-type]
        database, journal = str(tmp_path / "reliability.db"), str(tmp_path / "journal")
        made.append(Harness(EventLogger(database, journal, board, settings, lambda: time.time_ns() // 1_000_000)))
        return made[-1]

    yield make
    board.close()


def events_of(data_dir: Path, **fields: Any) -> list[dict[str, Any]]:
    wanted = EventFilter(after_seq=0, limit=10**6, **fields)
    try:
        events: list[dict[str, Any]] = read_events(str(data_dir / "reliability.db"), wanted, bytes_max=10**9)["events"]
    except DatabaseError:  # its tables are on their way
        return []
    return events


def test_output_becomes_events_of_the_program(make: Callable[..., Harness], tmp_path: Path) -> None:
    logger, api = make(), Program(tmp_path)
    logger.call("emit", severity="INFO", component="c", event_type="t", message="first")
    api.write(b"hello\n<4>careful\n")
    logger.until(lambda: len(events_of(tmp_path, component="api")) == 2)
    found = [(item["severity_text"], item["event_type"], item["message"]) for item in events_of(tmp_path)]
    assert found == [("INFO", "t", "first"), ("INFO", "output", "hello"), ("WARN", "output", "careful")]
    api.write(b"no end")
    logger.stop()
    assert [item["message"] for item in events_of(tmp_path)][-1] == "no end"
    assert logger.actor.status()["outputs"]["lines"] == 3


def test_where_no_program_ever_ran_no_thread_is_begun(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    board = Board.create(str(tmp_path / "board"))
    settings, before = EventLoggerConfig(), set(threading.enumerate())  # those of other tests are daemons
    logger = Harness(
        EventLogger(str(tmp_path / "reliability.db"), str(tmp_path / "journal"), board, settings, lambda: 0)
    )
    logger.until(lambda: logger.worker.idle and logger.actor.status()["outputs"]["phase"] == "idle")
    for _ in range(20):
        logger.turn()
    assert not any("outputs" in thread.name for thread in set(threading.enumerate()) - before)
    Program(tmp_path).write(b"hello\n")
    save(str(tmp_path), [ProgramSpec("api", ("x",), "/")], {"api": 16})
    logger.until(lambda: len(events_of(tmp_path)) == 1)
    logger.stop()
    board.close()


def test_a_disk_that_stalls_under_an_output_holds_up_nobody(
    make: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, go_on = threading.Event(), threading.Event()
    original = OutputReader.read

    def read(self: OutputReader, *arguments: Any, **keywords: Any) -> Taken:
        stalled.set()
        go_on.wait(30)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(OutputReader, "read", read)
    Program(tmp_path).write(b"late\n")
    logger = make()
    logger.until(stalled.is_set)
    for number in range(20):
        logger.call("emit", severity="INFO", component="c", event_type="t", message=str(number))
    assert logger.longest_turn_s < 0.5
    began = time.monotonic()
    logger.stop()
    assert time.monotonic() - began < 3.0
    assert len(events_of(tmp_path)) == 20
    go_on.set()


def test_the_disk_is_given_back_also_while_nothing_can_be_committed(
    make: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs_files, "BACKLOG_BYTES", MIB)
    monkeypatch.setattr(outputs, "RETRY_S", 0.02)
    full = [True]
    original = EventStore.write

    def write(self: EventStore, work: Any, patience_s: float) -> Any:
        if full[0] and getattr(work, "func", None) is outputs.take_in:
            raise DatabaseError(Problem.FULL, self.database.path)
        return original(self, work, patience_s)

    monkeypatch.setattr(EventStore, "write", write)
    save(str(tmp_path), [ProgramSpec("api", ("x",), "/", output_bytes_max=64 * KIB)], {"api": 16})
    logger, api = make(output_lines_per_second_max=100_000.0), Program(tmp_path)
    api.write(b"first\n")
    logger.until(lambda: any(event_type == "database_unavailable" for _, event_type, _ in logger.logged))
    for number in range(8000):
        api.write(b"%06d %s\n" % (number, b"x" * 993))
        if number % 100 == 99:
            logger.turn()
    logger.until(lambda: api.allocated <= 64 * KIB + MIB + 64 * KIB)
    full[0] = False
    logger.until(lambda: any(event["message"].startswith("007999") for event in events_of(tmp_path)))
    logger.stop()
    found = events_of(tmp_path, component="api")
    assert found[0]["message"] == "first"
    told = sum(len(event["message"]) + 1 for event in found if event["event_type"] == "output")
    skipped = sum(event["attributes"]["bytes"] for event in found if event["event_type"] == "output_skipped")
    assert told + skipped == 8000 * 1001 + 6


def test_a_life_that_was_frozen_takes_nothing_in_twice(make: Callable[..., Harness], tmp_path: Path) -> None:
    frozen, api = make(), Program(tmp_path)
    api.write(b"one\n")
    frozen.until(lambda: len(events_of(tmp_path)) == 1)
    successor = make()
    api.write(b"two\n")
    successor.until(lambda: len(events_of(tmp_path)) == 2)
    api.write(b"three\n")
    for harness in (frozen, successor, frozen, successor):  # thawed, and not yet aware that it was replaced
        for _ in range(30):
            harness.turn()
    frozen.until(lambda: len(events_of(tmp_path)) >= 3)
    assert [item["message"] for item in events_of(tmp_path)] == ["one", "two", "three"]
    frozen.stop()
    successor.stop()


def test_each_line_is_there_once_whenever_event_logger_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    (tmp_path / "journal").mkdir()
    save(str(tmp_path), [ProgramSpec("api", ("x",), "/")], {"api": 16})
    api = Program(tmp_path)
    number, lives = 0, 0
    for _ in range(12):
        taker = _start(tmp_path)
        end = time.monotonic() + generator.uniform(0.0, 0.4)
        while time.monotonic() < end:
            count = generator.randrange(1, 60)
            data = b"".join(b"line %d\n" % item for item in range(number, number + count))
            number += count
            torn = generator.randrange(len(data))
            api.write(data[:torn])
            api.write(data[torn:])
            if generator.random() < 0.02 and lives < 4:
                lives += 1
                api.begin()
            time.sleep(0.002)
        taker.send_signal(signal.SIGKILL)
        taker.wait()
    taker = _start(tmp_path)
    end = time.monotonic() + 20
    while len(events_of(tmp_path, component="api")) < number and time.monotonic() < end:
        time.sleep(0.05)
    taker.kill()
    taker.wait()
    assert [item["message"] for item in events_of(tmp_path)] == [f"line {item}" for item in range(number)]


def _start(data_dir: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.actors.event_logger.output_taker", str(data_dir / "reliability.db")]
    process = subprocess.Popen([*command, str(data_dir)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process
