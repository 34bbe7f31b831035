"""Paths, locks, journals, identity, configuration and arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.runtime import journal, paths
from actors.runtime.arguments import ProcessArguments
from actors.runtime.config import ConfigFile, SupervisionConfig
from actors.runtime.filelock import FileLock
from actors.runtime.identity import ProcessIdentity, boot_id, identity_of, own_identity
from protocol.errors import ErrorCode, LocalError

ROOT = Path(__file__).parents[3]


def test_run_info_survives_its_file_and_newer_keys() -> None:
    run = paths.RunInfo("e", "b", "v", "c", "/r", 1, True, "0.1", paths.Curve("a", "b", "c", "d"))
    values = json.loads(run.to_json()) | {"from_a_newer_release": 1}
    assert paths.RunInfo.from_json(json.dumps(values)) == run
    assert "secret" not in repr(run)
    for text in ("", "[]", "{}", '{"endpoint": 1}'):
        with pytest.raises(ValueError):  # noqa: PT011 - any ValueError means "not a run.json"
            paths.RunInfo.from_json(text)


def test_the_runtime_directorys_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.RUNTIME_DIR_VARIABLE, str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    assert paths.read_run_info(str(data)) is None
    runtime = paths.prepare_runtime_directory(str(data))
    old = paths.RunInfo("old", "b", "v", "c", runtime, 1)
    (data / paths.RUN_FILE).write_text(old.to_json())
    assert paths.read_run_info(str(data)) == old
    new = paths.RunInfo("new", "b", "v", "c", runtime, 1)
    Path(runtime, paths.RUN_FILE).write_text(new.to_json())
    assert paths.read_run_info(str(data)) == new
    Path(runtime, paths.RUN_FILE).write_text("{torn")
    assert paths.read_run_info(str(data)) == old


def test_a_runtime_directory_that_others_may_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.RUNTIME_DIR_VARIABLE, str(tmp_path))
    runtime = paths.prepare_runtime_directory(str(tmp_path / "data"))
    assert Path(runtime).stat().st_mode & 0o777 == 0o700
    os.chmod(runtime, 0o755)
    with pytest.raises(LocalError) as caught:
        paths.prepare_runtime_directory(str(tmp_path / "data"))
    assert caught.value.code == ErrorCode.REFUSED


def test_a_linked_runtime_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LocalError):
        paths.make_private_directory(str(tmp_path / "link"))


def test_a_socket_path_that_would_be_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv(paths.RUNTIME_DIR_VARIABLE, str(long))
    with pytest.raises(LocalError, match="too long"):
        paths.prepare_runtime_directory(str(tmp_path))


def test_the_token_is_made_once_and_owner_only(tmp_path: Path) -> None:
    token = paths.read_or_make_token(str(tmp_path))
    assert len(token) == 32
    assert paths.read_or_make_token(str(tmp_path)) == token
    assert (tmp_path / paths.TOKEN_FILE).stat().st_mode & 0o777 == 0o600


def test_atomic_write_leaves_no_temporary_behind(tmp_path: Path) -> None:
    for sync in (False, True):
        paths.write_atomically(str(tmp_path / "f"), b"new", sync=sync)
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_lock_is_exclusive_and_goes_with_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from actors.runtime.filelock import FileLock\n"
            "lock = FileLock(sys.argv[1]); print(lock.acquire(), flush=True); sys.stdin.read()",
            path,
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        lock = FileLock(path)
        assert not lock.acquire()
        holder.kill()
        holder.wait()
        assert lock.acquire()
        assert lock.held
        lock.release()
        assert not lock.held


def test_a_forked_child_that_closes_its_copy_leaves_the_lock_with_the_parent(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    assert lock.acquire()
    child = os.fork()
    if child == 0:
        lock.close_inherited()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not FileLock(lock.path).acquire()
    lock.release()


def test_journal_entries_return_in_order_and_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    log = journal.Journal(str(tmp_path), "launcher")
    log.append({"n": 1})
    with open(log.path, "ab") as file:
        file.write(b'{"n": 2, "torn')
    log.append({"n": 3})
    assert [entry["n"] for entry in log.entries()] == [1, 3]


def test_a_journal_that_nobody_drains_is_bounded(tmp_path: Path) -> None:
    log = journal.Journal(str(tmp_path), "launcher")
    for number in range(30):
        log.append({"n": number, "padding": "x" * 200_000})
    assert sum(item.stat().st_size for item in tmp_path.iterdir()) < 3 * journal.JOURNAL_BYTES_MAX
    numbers = [entry["n"] for entry in log.entries()]
    assert numbers == list(range(numbers[0], 30))


def test_parsing_stops_at_the_last_whole_line() -> None:
    data = b'{"a":1}\nnot json\n[1]\n{"b":2}\n{"c":'
    entries, taken = journal.parse_lines(data)
    assert entries == [{"a": 1}, {"b": 2}]
    assert data[taken:] == b'{"c":'


def test_identity_is_not_the_pid_alone() -> None:
    own = own_identity()
    assert own.is_running()
    assert not ProcessIdentity(own.pid, own.start_time + 1, own.boot_id).is_running()
    assert not ProcessIdentity(own.pid, own.start_time, "another boot").is_running()
    assert identity_of(0) is None
    assert boot_id() == boot_id()


def test_a_zombie_counts_as_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identity_of(child.pid)
    assert identity is not None
    assert identity.is_running()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.is_running()
    child.communicate()


def config(text: str, tmp_path: Path) -> ConfigFile:
    path = tmp_path / "reliability.toml"
    path.write_text(text)
    return ConfigFile.load(str(path))


@pytest.mark.parametrize(
    ("settings", "told", "untold"),
    [
        ({}, 1.0, 0.5),
        ({"hang_timeout_s": 60.0}, 1.0, 0.5),
        ({"hang_timeout_s": 4.0}, 0.8, 0.5),
        ({"hang_timeout_s": 0.5}, 0.5, 0.5),
        ({"tick_s": 0.1}, 0.2, 0.1),
    ],
)
def test_survivors_tick_half_as_often_where_they_are_told_of_exits(
    settings: dict[str, float], told: float, untold: float
) -> None:
    supervision = SupervisionConfig(**settings)  # type: ignore[arg-type]
    assert supervision.survivor_tick_s(told_of_exits=True) == told
    assert supervision.survivor_tick_s(told_of_exits=False) == untold


def test_configuration_has_defaults_and_takes_values(tmp_path: Path) -> None:
    assert ConfigFile.load(None).section("supervision", SupervisionConfig) == SupervisionConfig()
    file = config("[supervision]\nrestart_max = 5\nhang_timeout_s = 2\n", tmp_path)
    section = file.section("supervision", SupervisionConfig)
    file.finish()
    assert (section.restart_max, section.hang_timeout_s) == (5, 2.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[supervision]\nrestart_maximum = 5", "restart_maximum"),
        ("[supervision]\nrestart_max = 'many'", "restart_max"),
        ("[supervision]\nrestart_max = true", "restart_max"),
        ("[supervision]\nrestart_max = -1", "restart_max"),
        ("[supervision]\nhang_timeout_s = 0.0", "hang_timeout_s"),
        ("[supervison]\n", "supervison"),
        ("supervision = 3", "supervision"),
        ("not toml", "not TOML"),
    ],
)
def test_every_configuration_error_names_its_place(text: str, named: str, tmp_path: Path) -> None:
    def read() -> None:
        file = config(text, tmp_path)
        file.section("supervision", SupervisionConfig)
        file.finish()

    with pytest.raises(LocalError, match=named) as caught:
        read()
    assert caught.value.exit_code == 2


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"nowhere\.toml"):
        ConfigFile.load(str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("config_path", [None, "/a b/c.toml"])
def test_arguments_are_the_same_by_exec_as_by_fork(portable: bool, config_path: str | None) -> None:
    arguments = ProcessArguments("health_monitor", 4, 17, "/data dir", "/run", config_path, portable)
    assert ProcessArguments.from_argv(arguments.to_argv()) == arguments
