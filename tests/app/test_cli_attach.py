"""`relctl attach`: every byte once, through restarts, whoever is dead."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from actors.runtime import paths
from actors.runtime.programs import output_path
from app.reliability._cli.following import Follower
from tests.app.cli_fakes import Relctl

ROOT = Path(__file__).parents[2]


class Program:
    """What a supervised program does to its files."""

    def __init__(self, data_dir: Path, name: str = "api") -> None:
        self.path = Path(output_path(str(data_dir), name))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = -1
        self.begin()

    def begin(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        for rank in range(5, 0, -1):
            former = Path(f"{self.path}.{rank - 1}") if rank > 1 else self.path
            if former.exists():
                former.rename(f"{self.path}.{rank}")
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, data: bytes) -> None:
        assert os.write(self._descriptor, data) == len(data)


def test_it_shows_the_last_lines_of_several_lives_as_they_were_written(relctl: Relctl) -> None:
    api = Program(relctl.data_dir)
    api.write(b"one\ntwo\nthr")
    api.begin()
    api.write("four é \x1b[31mred\x1b[0m\nfi".encode())
    shown = relctl("attach", "api", "-n", "3", "--no-follow")
    assert (shown.code, shown.out) == (0, "thr\nfour é \x1b[31mred\x1b[0m\nfi")
    assert relctl("attach", "api", "-n", "0", "--no-follow").out == ""
    assert relctl("attach", "api", "-n", "100", "--no-follow").out.startswith("one\ntwo\nthr\nfour")
    lines = relctl("--json", "attach", "api", "-n", "2", "--no-follow").lines
    assert lines == [{"name": "api", "line": "four é \x1b[31mred\x1b[0m"}, {"name": "api", "line": "fi"}]


def test_what_was_given_back_to_the_disk_is_not_shown(relctl: Relctl) -> None:
    api = Program(relctl.data_dir)
    with open(api.path, "ab") as file:
        file.truncate(1 << 20)
    api.write(b"first\nsecond\n")
    assert relctl("attach", "api", "-n", "9", "--no-follow").out == "first\nsecond\n"


def test_an_unknown_name_is_one_clear_error(relctl: Relctl) -> None:
    missing = relctl("attach", "nope")
    assert missing.code == 1
    assert "no program 'nope'" in missing.err
    Program(relctl.data_dir, "api")
    Program(relctl.data_dir, "db")
    assert relctl("--json", "attach", "nope").error == {
        "code": "service_unknown", "message": "there is no program 'nope'", "hint": "There are api, db."
    }  # fmt: skip
    relctl.place_all()
    assert "prints nothing" in relctl("attach", "broker").err
    assert relctl("attach", "../../etc").code == 1


def test_following_misses_and_doubles_nothing_across_restarts(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    api = Program(tmp_path)
    follower = Follower(str(api.path))
    follower.last_lines(0)
    done = threading.Event()
    written: list[bytes] = []

    def write() -> None:
        for number in range(3000):
            data = b"line %d" % number + b"\n" * generator.randrange(2)
            api.write(data)
            written.append(data)
            if generator.random() < 0.01:
                api.begin()
                time.sleep(0.004)  # who begins five lives between two looks outruns what is kept
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    found = b""
    while True:
        last = done.is_set()
        found += b"".join(follower.read())
        if last:
            break
    writer.join()
    follower.close()
    assert found == b"".join(written)
    assert follower.lives > 5


def test_a_file_that_was_cut_is_followed_from_its_beginning(tmp_path: Path) -> None:
    api = Program(tmp_path)
    api.write(b"before\n" * 100)
    follower = Follower(str(api.path))
    assert follower.last_lines(1) == [b"before\n"]
    os.truncate(api.path, 0)
    api.write(b"after\n")
    assert b"".join(follower.read()) == b"after\n"
    follower.close()


def test_ctrl_c_ends_it_with_130_and_the_program_is_none_the_wiser(tmp_path: Path) -> None:
    api = Program(tmp_path)
    api.write(b"hello\n")
    environment = os.environ | {paths.RUNTIME_DIR_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-m", "app.reliability.cli", "--data-dir", str(tmp_path), "attach", "api"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello\n"
    api.write(b"live\n")
    assert process.stdout.readline() == b"live\n"
    api.begin()
    api.write(b"again\n")
    assert process.stdout.readline() == b"again\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert error == b"--- api was restarted ---\n"


@pytest.mark.parametrize("lines", ["-1", "many"])
def test_a_wrong_count_is_a_usage_error(relctl: Relctl, lines: str) -> None:
    assert relctl("attach", "api", "-n", lines).code == 2
