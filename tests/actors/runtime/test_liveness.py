"""The liveness board: readers are never misled, whatever happens to a writer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.runtime.liveness import (
    BOARD_BYTES,
    HEADER_BYTES,
    Board,
    BoardError,
    LauncherRecord,
    ProcessRecord,
    WatchdogRecord,
)

LONG = LauncherRecord(
    "n" * 48, "watchdog", 2**22, 2**62, 2**40, "quarantined", 2**50, 2**50, 10**4, 10**4, 2**50, 2**40, 2**40, "r" * 300
)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.create(str(tmp_path / "board"))


def test_records_return_as_they_were_even_at_full_length(board: Board) -> None:
    slot = board.slots[63]
    assert slot.process.read() is None
    process = ProcessRecord(2**22, 2**62, 2**40, "stopping", "w" * 200, 2**50, True, "1.2.3")
    watchdog = WatchdogRecord(2**40, "hung", "c" * 300, 2**50, "e" * 100)
    slot.process.write(process)
    slot.launcher.write(LONG)
    slot.watchdog.write(watchdog)
    assert (slot.process.read(), slot.launcher.read(), slot.watchdog.read()) == (process, LONG, watchdog)
    assert board.slots[62].process.read() is None


def test_a_record_that_does_not_fit_is_refused_and_the_old_one_stays(board: Board) -> None:
    slot = board.slots[1]
    slot.process.write(ProcessRecord(1, 2, 3, "ready"))
    with pytest.raises(ValueError, match="does not fit"):
        slot.process.write(ProcessRecord(1, 2, 3, "ready", "w" * 1000))
    assert slot.process.read() == ProcessRecord(1, 2, 3, "ready")


def test_counters_and_activity(board: Board) -> None:
    slot = board.slots[5]
    slot.beat(100)
    slot.beat(200)
    slot.advance(3)
    slot.set_activity("op vacuum é" + "x" * 200)
    beat = slot.read_beat()
    assert (beat.tick, beat.progress, beat.tick_ms) == (2, 3, 200)
    assert slot.read_activity().startswith("op vacuum é")


def test_a_writer_killed_halfway_leaves_the_previous_record(board: Board) -> None:
    slot = board.slots[1]
    slot.process.write(ProcessRecord(1, 2, 3, "ready"))
    start = HEADER_BYTES + 4096
    with open(board.path, "r+b") as file:  # the spare buffer after one write is the first one, at 192
        file.seek(start + 192)
        file.write(b"\xff" * 300)
    assert slot.process.read() == ProcessRecord(1, 2, 3, "ready")


def test_a_damaged_record_reads_as_none(board: Board) -> None:
    slot = board.slots[1]
    slot.process.write(ProcessRecord(1, 2, 3, "ready"))
    with open(board.path, "r+b") as file:
        file.seek(HEADER_BYTES + 4096 + 832 + 9)
        file.write(b"\xff")
    assert slot.process.read() is None


def test_readers_never_see_a_torn_record_while_another_process_writes(board: Board) -> None:
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from actors.runtime.liveness import Board, ProcessRecord\n"
            "slot = Board(sys.argv[1], writable=True).slots[4]\n"
            "number = 0\n"
            "while True:\n"
            "    number += 1\n"
            "    slot.process.write(ProcessRecord(number, number, number, 'ready', 'x' * (number % 200), number))\n"
            "    slot.beat(number)\n",
            board.path,
        ],
        cwd=ROOT,
    )
    try:
        slot = board.slots[4]
        seen = set()
        while len(seen) < 2000:
            assert writer.poll() is None
            record = slot.process.read()
            if record is None:
                assert not seen, "a record that was there cannot be gone"
                continue
            assert record.pid == record.start_time == record.lease_until_ms
            assert len(record.lease_what) == record.pid % 200
            seen.add(record.pid)
    finally:
        writer.kill()
        writer.wait()
    last = slot.process.read()
    assert last is not None
    assert last.pid >= max(seen)


def test_a_frozen_writer_never_blocks_a_reader(board: Board) -> None:
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from actors.runtime.liveness import Board, ProcessRecord\n"
            "slot = Board(sys.argv[1], writable=True).slots[4]\n"
            "while True: slot.process.write(ProcessRecord(1, 2, 3, 'ready'))\n",
            board.path,
        ],
        cwd=ROOT,
    )
    try:
        while board.slots[4].process.read() is None:
            assert writer.poll() is None
        for _ in range(50):
            os.kill(writer.pid, signal.SIGSTOP)
            assert board.slots[4].process.read() == ProcessRecord(1, 2, 3, "ready")
            os.kill(writer.pid, signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "board"
    with pytest.raises(FileNotFoundError):
        Board(str(path), writable=False)
    path.write_bytes(b"short")
    with pytest.raises(BoardError, match="bytes"):
        Board(str(path), writable=False)
    path.write_bytes(b"x" * BOARD_BYTES)
    with pytest.raises(BoardError, match="version"):
        Board(str(path), writable=False)


def test_a_board_of_an_earlier_boot_is_refused(board: Board) -> None:
    with open(board.path, "r+b") as file:
        file.seek(64)
        file.write(b"another-boot")
    with pytest.raises(BoardError, match="reboot"):
        Board(board.path, writable=False)


def test_header_flags_and_lookup(board: Board) -> None:
    board.epoch = 7
    board.stopping = True
    other = Board(board.path, writable=False)
    assert (other.epoch, other.stopping) == (7, True)
    board.slots[2].launcher.write(LONG)
    found = other.find(LONG.name)
    assert found is not None
    assert found[0].number == 2
    assert other.find("nobody") is None


def test_a_reader_cannot_write(board: Board) -> None:
    reader = Board(board.path, writable=False)
    with pytest.raises(TypeError):
        reader.slots[1].beat(1)


def test_a_record_is_read_anew_as_soon_as_it_has_changed(board: Board) -> None:
    slot, other = board.slots[5], Board(board.path, writable=True)
    slot.process.write(ProcessRecord(1, 2, 3, "starting"))
    first = slot.process.read()
    assert slot.process.read() is first
    other.slots[5].process.write(ProcessRecord(1, 2, 3, "ready"))
    assert slot.process.read() == ProcessRecord(1, 2, 3, "ready")
    other.close()
