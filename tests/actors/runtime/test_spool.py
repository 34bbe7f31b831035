"""The spool: what append returned from is read, once per id, whatever dies, tears, flips or fills up."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime import spool_reader, spool_writer
from actors.runtime.filelock import lock_now, unlock
from actors.runtime.paths import RUN_FILE, RunInfo
from actors.runtime.spool import SpoolEntry, SpoolReader, SpoolWriter, hint_path, spool_directory
from actors.runtime.spool_format import HEAD_BYTES
from protocol.errors import ErrorCode, NotDurable, ProtocolError
from protocol.ids import unix_ms_of, uuid7
from protocol.limits import MIB
from tests.spine import ROOT, until

SERVICE = "event_logger"
SEED = int(os.environ.get("RELCTL_TEST_SEED", random.randrange(10**6)))
PIECE = 1 << 16


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def writer(data: str) -> SpoolWriter:
    return SpoolWriter(data, SERVICE)


@pytest.fixture
def reader(data: str) -> Iterator[SpoolReader]:
    made = SpoolReader(data, SERVICE)
    yield made
    made.close()


def put(writer: SpoolWriter, number: int, size: int = 0, raw: tuple[bytes, ...] = ()) -> bytes:
    request_id = number.to_bytes(16)
    writer.append("emit", request_id, {"number": number, "text": "x" * size}, raw)
    return request_id


def drain(reader: SpoolReader) -> list[SpoolEntry]:
    """Read everything as an owner would."""
    drained = []
    while entries := reader.read(PIECE):
        drained += entries
        reader.done(entries)
    return drained


def fill(writer: SpoolWriter, kept: list[int], size: int) -> None:
    """Append until that fails."""
    for number in range(10_000):
        put(writer, number, size=size)
        kept.append(number)


def numbers(entries: list[SpoolEntry]) -> list[int]:
    return [entry.arguments["number"] for entry in entries]


def files(data: str, suffix: str = ".spool") -> list[Path]:
    return sorted(Path(spool_directory(data, SERVICE)).glob(f"*{suffix}"))


def test_what_was_appended_is_read_in_order_until_it_is_done(
    data: str, writer: SpoolWriter, reader: SpoolReader
) -> None:
    assert reader.read(PIECE) == []
    assert reader.pending_bytes() == 0
    ids = [put(writer, number, raw=(b"a" * number, b"")) for number in range(100)]
    first = reader.read(PIECE)
    assert first == reader.read(PIECE), "nothing is taken away before it is done"
    assert [entry.id for entry in first] == ids
    assert [entry.raw for entry in first] == [(b"a" * number, b"") for number in range(100)]
    assert {entry.op for entry in first} == {"emit"}
    assert reader.pending_bytes() == files(data)[0].stat().st_size > 0
    reader.done(first[:60])
    assert numbers(reader.read(PIECE)) == list(range(60, 100))
    reader.done(first)
    assert reader.read(PIECE) == []
    assert files(data) == [], "a drained file is removed although its writer lives"
    put(writer, 100)
    assert numbers(drain(reader)) == [100]


def test_read_returns_at_least_one_and_about_what_was_asked_for(writer: SpoolWriter, reader: SpoolReader) -> None:
    for number in range(10):
        put(writer, number, size=1000)
    assert len(reader.read(1)) == 1
    assert len(reader.read(3000)) == 3


def test_what_it_keeps_is_for_the_owner_alone(data: str, writer: SpoolWriter) -> None:
    put(writer, 1)
    assert [os.stat(path).st_mode & 0o777 for path in (data, f"{data}/spool", spool_directory(data, SERVICE))] == [
        0o700
    ] * 3
    assert files(data)[0].stat().st_mode & 0o777 == 0o600


def test_only_plain_data_and_ids_are_kept(writer: SpoolWriter) -> None:
    with pytest.raises(ProtocolError):
        writer.append("emit", b"1" * 16, {"what": object()})
    with pytest.raises(ProtocolError):
        writer.append("emit", b"short", {})
    with pytest.raises(ProtocolError):
        writer.append("save", b"1" * 16, {}, [bytes(67 * MIB)])


def test_threads_share_one_writer(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    def work(start: int) -> None:
        for number in range(start, start + 200):
            put(writer, number)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 1600, 200)]
    for thread in threads:
        thread.start()
    drained: list[int] = []
    while any(thread.is_alive() for thread in threads):  # the owner reads meanwhile
        drained += numbers(drain(reader))
    for thread in threads:
        thread.join()
    drained += numbers(drain(reader))
    assert sorted(drained) == list(range(1600))
    assert reader.damaged == 0
    assert files(data) == []


WRITING = """
import itertools, os, sys, threading
from actors.runtime.spool import SpoolWriter
writer = SpoolWriter(sys.argv[1], "event_logger")
first, size = int(sys.argv[2]), int(sys.argv[3])
counter = itertools.count(first)
def work():
    for number in counter:
        writer.append("emit", number.to_bytes(16), {"number": number, "text": "x" * size})
        os.write(1, b"%d\\n" % number)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
"""


def start_writing(data: str, first: int, size: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", WRITING, data, str(first), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_whatever_was_acknowledged_survives_kill_9_of_its_writers(data: str, reader: SpoolReader) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    acknowledged: Counter[int] = Counter()
    drained: Counter[int] = Counter()
    for turn in range(5):
        writers = [
            start_writing(data, 10**9 * (turn * 3 + index), draw.choice((10, 5000, 300_000))) for index in range(3)
        ]
        for process in writers:
            assert process.stdout is not None
            process.stdout.readline()
        end = time.monotonic() + draw.uniform(0.0, 0.15)
        while time.monotonic() < end:
            drained.update(numbers(drain_some(reader)))
        for process in writers:
            process.kill()
        for process in writers:
            out, _ = process.communicate()
            lines = out[: out.rfind(b"\n") + 1].split()
            acknowledged.update(int(line) for line in lines)
    drained.update(numbers(drain(reader)))
    assert [number for number in acknowledged if number not in drained] == []
    assert [number for number, count in drained.items() if count > 1] == []
    assert reader.damaged == 0, "a torn tail is no damage"
    assert files(data) == files(data, ".damaged") == []


def drain_some(reader: SpoolReader) -> list[SpoolEntry]:
    entries = reader.read(PIECE)
    reader.done(entries)
    return entries


def test_a_torn_tail_is_passed_over_wherever_it_is_torn(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    whole = files(data)[0].stat().st_size
    put(writer, 2, size=50)
    writer.close()
    path = files(data)[0]
    content = path.read_bytes()
    for end in range(whole, len(content)):
        path.write_bytes(content[:end])
        assert numbers(drain(reader)) == [1]
        assert reader.damaged == 0
        assert files(data) == []


def test_a_torn_tail_larger_than_a_read_does_not_hide_the_files_behind_it(
    data: str, writer: SpoolWriter, reader: SpoolReader
) -> None:
    put(writer, 1, size=3 * PIECE)
    writer.close()
    path = files(data)[0]
    os.truncate(path, path.stat().st_size - 1)
    put(writer, 2)
    assert len(files(data)) == 2
    assert numbers(reader.read(PIECE)) == [2]


def test_a_tail_that_is_still_being_written_is_waited_for(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    put(writer, 2)
    path = files(data)[0]
    content = path.read_bytes()
    os.truncate(path, len(content) - 5)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    assert lock_now(descriptor)  # as a writer that was stopped in the middle holds it
    assert numbers(drain(reader)) == [1]
    assert files(data) == [path]
    os.write(descriptor, content[-5:])
    unlock(descriptor)
    os.close(descriptor)
    assert numbers(drain(reader)) == [2]
    assert files(data) == []


def test_each_flipped_bit_costs_its_record_alone_and_is_told(data: str, writer: SpoolWriter, tmp_path: Path) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    for number in range(5):
        put(writer, number)
    writer.close()
    path = files(data)[0]
    content = path.read_bytes()
    record = len(content) // 5
    for position in [*range(2 * record, 2 * record + HEAD_BYTES), *(draw.randrange(len(content)) for _ in range(60))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        reader = SpoolReader(data, SERVICE)
        hit = position // record
        assert numbers(drain(reader)) == [number for number in range(5) if number != hit], position
        assert reader.damaged == 1
        assert reader.read(PIECE) == []
        assert reader.damaged == 1, "counted once"
        (aside,) = files(data, ".damaged")
        assert aside.read_bytes() == flipped, "kept whole"
        aside.unlink()
        reader.close()


def test_a_record_copied_to_another_place_is_none(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    path = files(data)[0]
    record = path.read_bytes()
    path.write_bytes(record + record)  # a record belongs where it was written
    assert numbers(drain(reader)) == [1]
    assert reader.damaged == 1
    put(writer, 2, raw=(record,))
    (path,) = files(data)
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the head around it is damaged: what is inside must not come to light as if it had been spooled
    path.write_bytes(content)
    assert drain(reader) == []


def test_damaged_files_are_bounded(
    data: str, writer: SpoolWriter, reader: SpoolReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_reader, "DAMAGED_BYTES_MAX", 2500)
    for number in range(5):
        put(writer, number, size=1000)
        (path,) = files(data)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert drain(reader) == []
    assert reader.damaged == 5
    assert len(files(data, ".damaged")) == 2


def test_foreign_files_harm_nobody(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    directory = Path(spool_directory(data, SERVICE))
    (directory / "strange.spool").write_bytes(b"what is this?")
    (directory / ("0" * 32 + ".spool")).write_bytes(b"")
    assert numbers(drain(reader)) == [1]
    assert reader.damaged == 1


@pytest.fixture
def small_disk() -> Iterator[str]:
    """A file system of 256 KiB, where root may mount one."""
    directory = tempfile.mkdtemp(prefix="small-")
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", directory]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        os.rmdir(directory)
        pytest.skip("file systems cannot be mounted here")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)
    os.rmdir(directory)


def test_a_full_disk_is_told_and_costs_nothing_kept(small_disk: str) -> None:
    writer, reader = SpoolWriter(small_disk, SERVICE), SpoolReader(small_disk, SERVICE)
    kept: list[int] = []
    with pytest.raises(NotDurable) as caught:
        fill(writer, kept, size=10_000)
    assert caught.value.code == ErrorCode.NOT_DURABLE
    assert "disk is full" in caught.value.hint
    assert len(kept) > 10
    with pytest.raises(NotDurable):
        put(writer, 99_999, size=100_000)
    os.makedirs(spool_directory(small_disk, SERVICE), exist_ok=True)
    assert numbers(drain(reader)) == kept
    assert reader.damaged == 0
    put(writer, 5, size=10_000)  # there is space again
    assert numbers(drain(reader)) == [5]
    writer.close()
    reader.close()


def test_a_limit_on_file_sizes_is_told_and_nothing_torn_is_left(
    data: str, writer: SpoolWriter, reader: SpoolReader
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        put(writer, 1, size=15_000)
        with pytest.raises(NotDurable, match="cannot be written"):
            put(writer, 2, size=30_000)
        put(writer, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert numbers(drain(reader)) == [1, 3]
    assert reader.damaged == 0


def test_what_is_drained_gives_its_space_back_though_its_writer_keeps_the_file_open(
    data: str, writer: SpoolWriter, reader: SpoolReader
) -> None:
    put(writer, 1, size=100_000)
    (path,) = files(data)
    with open(path, "rb") as held:
        drain(reader)
        assert os.fstat(held.fileno()).st_size == 0
    assert files(data) == []


def test_a_read_only_disk_is_told(small_disk: str) -> None:
    writer = SpoolWriter(small_disk, SERVICE)
    put(writer, 1)
    writer.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(NotDurable) as caught:
        put(writer, 2)
    assert "read-only" in caught.value.hint


def test_a_data_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotDurable, match="cannot be written"):
        put(SpoolWriter(str(tmp_path / "file"), SERVICE), 1)


def test_a_directory_that_others_may_enter_is_refused(data: str, writer: SpoolWriter) -> None:
    os.makedirs(f"{data}/spool", 0o777)
    os.chmod(f"{data}/spool", 0o777)
    with pytest.raises(NotDurable, match="only you may enter"):
        put(writer, 1)


def test_the_spool_is_bounded_and_has_room_again_when_drained(
    data: str, writer: SpoolWriter, reader: SpoolReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_writer, "WRITER_BYTES_MAX", 50_000)
    monkeypatch.setattr(spool_writer, "FILE_BYTES_MAX", 10_000)
    kept: list[int] = []
    with pytest.raises(NotDurable, match="the spool is full"):
        fill(writer, kept, size=1000)
    count = len(kept)
    assert 40 <= count <= 50
    assert len(files(data)) > 3, "files have successors"
    other = SpoolWriter(data, SERVICE)
    put(other, 1000, size=1000)  # the bound is each writer's own
    monkeypatch.setattr(spool_writer, "SPOOL_BYTES_MAX", 60_000)
    elsewhere = SpoolWriter(data, "checkpointer")
    with pytest.raises(NotDurable, match="the spool is full"):
        put(elsewhere, 1, size=20_000)
    assert sorted(numbers(drain(reader))) == [*range(count), 1000]
    put(writer, count, size=1000)
    put(elsewhere, 1, size=20_000)
    assert numbers(drain(reader)) == [count]


def test_a_forked_child_writes_a_file_of_its_own(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with writer._lock:  # the parent forks while another of its threads is in the middle of an append
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            put(writer, 2)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    release.set()
    thread.join()
    assert status == 0
    put(writer, 3)
    assert len(files(data)) == 2
    assert sorted(numbers(drain(reader))) == [1, 2, 3]


def test_a_clock_that_jumps_back_turns_no_order_round(
    data: str, writer: SpoolWriter, reader: SpoolReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_writer, "FILE_BYTES_MAX", 1)
    now_ns = time.time_ns()
    for number in range(6):
        shift_s = -3600 if number % 2 else 7200
        monkeypatch.setattr(time, "time_ns", lambda shift_s=shift_s: now_ns + shift_s * 10**9)
        put(writer, number)
    assert len(files(data)) == 6
    assert numbers(drain(reader)) == list(range(6))


def test_only_one_reads(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    assert len(reader.read(PIECE)) == 1
    other = SpoolReader(data, SERVICE)
    assert other.read(PIECE) == []
    assert other.shut_out
    reader.close()
    assert numbers(drain(other)) == [1]
    assert not other.shut_out
    other.close()


READING = """
import os, sys, time
from actors.runtime.spool import SpoolReader
reader = SpoolReader(sys.argv[1], "event_logger")
print(len(reader.read(1 << 20)), flush=True)
time.sleep(600)
"""


def test_a_reader_that_dies_before_done_has_taken_nothing(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    for number in range(20):
        put(writer, number)
    command = [sys.executable, "-c", READING, data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"20\n"
        assert reader.read(PIECE) == []
        assert reader.shut_out
        process.kill()
    assert numbers(drain(reader)) == list(range(20))


def test_a_stopped_reader_holds_no_writer_up(data: str, writer: SpoolWriter, reader: SpoolReader) -> None:
    put(writer, 1)
    (path,) = files(data)
    descriptor = os.open(path, os.O_RDONLY)
    assert lock_now(descriptor)  # as a reader that was stopped while tidying away holds it
    put(writer, 2)
    assert len(files(data)) == 2
    os.close(descriptor)
    assert numbers(drain(reader)) == [1, 2]


def test_a_spool_that_is_removed_is_made_again(data: str, writer: SpoolWriter) -> None:
    put(writer, 1)
    shutil.rmtree(data)
    put(writer, 2)
    reader = SpoolReader(data, SERVICE)
    assert numbers(drain(reader)) == [2]
    reader.close()


def test_it_reaches_the_disk_by_a_thread_that_then_leaves(
    data: str, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    synchronised = []

    def fsync(descriptor: int) -> None:
        assert go.wait(10)
        synchronised.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in range(10):
        put(writer, number)  # a disk that stands still holds nobody up
    assert synchronised == []
    go.set()
    until(lambda: len(synchronised) >= 2, "file and directory synchronised")
    until(lambda: not any(thread.name == "spool-sync" for thread in threading.enumerate()), "no thread left")


def test_the_owner_is_given_a_hint_on_tmpfs(data: str, tmp_path: Path) -> None:
    runtime_dir = tmp_path / "runtime"
    runtime_dir.mkdir()
    os.mkdir(data)
    run = RunInfo("", "", "", "", str(runtime_dir), 1)
    Path(data, RUN_FILE).write_text(run.to_json())
    writer = SpoolWriter(data, SERVICE)
    hint = Path(hint_path(str(runtime_dir), SERVICE))
    put(writer, 1)
    os.utime(hint, (1, 1))
    put(writer, 2)
    assert hint.stat().st_mtime > 1
    shutil.rmtree(runtime_dir)
    put(writer, 3)  # a hint is all it is


def test_a_stopped_process_that_holds_a_lock_holds_no_other_writer_up(data: str, reader: SpoolReader) -> None:
    process = start_writing(data, 0, 10)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    put(SpoolWriter(data, SERVICE), 10**6)
    drained = set(numbers(drain(reader)))
    assert time.monotonic() - began < 5
    assert 10**6 in drained
    process.kill()
    process.communicate()


def test_uuid7_sorts_by_time_and_is_what_the_standard_says() -> None:
    made = [uuid7(milliseconds, os.urandom(10)) for milliseconds in range(0, 10**13, 10**10)]
    assert made == sorted(made)
    assert {value[6] >> 4 for value in made} == {7}
    assert {value[8] >> 6 for value in made} == {2}
    assert unix_ms_of(made[5]) == 5 * 10**10
    example = uuid7(0x017F22E279B0, bytes.fromhex("0cc3 18c4dc0c0c07398f"))  # RFC 9562, A.6
    assert example.hex() == "017f22e279b07cc398c4dc0c0c07398f"
    assert unix_ms_of(uuid7(-1, bytes(10))) == 0
    assert unix_ms_of(uuid7(1 << 60, bytes(10))) == (1 << 48) - 1
    with pytest.raises(ValueError, match="random bytes"):
        uuid7(0, b"")
