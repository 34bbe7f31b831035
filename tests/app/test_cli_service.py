"""`relctl service`: a service manager's files, what becomes of a person's changes, and what the manager then runs."""

import configparser
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.identity import own_identity
from app.reliability._service import joining, systemd
from app.reliability._service.model import Release, Service, read_seal
from app.reliability._start import Condition, Finding
from protocol.errors import LocalError
from tests.app.cli_fakes import Relctl
from tests.app.service_machine import Machine
from tests.chaos.system import ROOT, running, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the service manager of Linux")

HOSTILE = '/a b/100%n/$HOME/${x}/it\'s "q"/back\\slash/ü;&|'
UNITS = ["relctl.service", "relctl-check.service", "relctl-check.timer"]


def _unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def _words(line: str) -> list[str]:
    """Read an Exec line as systemd does."""
    first, *others = [word.replace("%%", "%") for word in shlex.split(line)]
    return [first, *(word.replace("$$", "$") for word in others)]


def test_units_say_what_was_asked_for_whatever_the_paths() -> None:
    service = Service("relctl", HOSTILE, f"{HOSTILE}/c", True, HOSTILE, ("run", HOSTILE, "%n", "--"), f"{HOSTILE}:/bin")
    texts = systemd.render(service, Release(f"{HOSTILE}/python", f"{HOSTILE}/entry.py"))
    assert list(texts) == UNITS
    assert all(read_seal(text) is not None and read_seal(text).service == service for text in texts.values())  # type: ignore[union-attr]
    unit = _unit(texts["relctl.service"])
    first = [f"{HOSTILE}/python", "-P", f"{HOSTILE}/entry.py", "--data-dir", HOSTILE]
    tail = ["--config", f"{HOSTILE}/c", "--portable", "--directory", HOSTILE, "--", "run", HOSTILE, "%n", "--"]
    assert _words(unit["Service"]["ExecStart"]) == [*first, "service", "run", *tail]
    assert _words(unit["Service"]["ExecStop"]) == [*first, "down"]
    assert shlex.split(unit["Service"]["Environment"]) == [f"PATH={HOSTILE}:/bin".replace("%", "%%")]
    kept = {"Type": "notify", "NotifyAccess": "all", "KillMode": "process", "Restart": "on-failure", "UMask": "0077"}
    assert kept.items() <= dict(unit["Service"]).items()
    assert unit["Service"]["OOMPolicy"] == "continue"  # one program that takes too much must not end all
    assert int(unit["Service"]["WatchdogSec"]) >= 60
    assert _words(_unit(texts["relctl-check.service"])["Service"]["ExecStart"])[-4:] == [
        "service", "check", "--name", "relctl",
    ]  # fmt: skip
    assert _unit(texts["relctl-check.timer"])["Timer"]["OnUnitInactiveSec"] == "60"


@pytest.mark.parametrize("path", ["/a\nb", "/a\x1b[2J", "/a\udcff", "/a\0b", "/a\u2028b"])
def test_what_no_line_can_hold_is_refused(path: str) -> None:
    with pytest.raises(LocalError, match="cannot hold"):
        Service("relctl", path)
    with pytest.raises(LocalError, match="cannot hold"):
        Release(path, "/entry.py")


@pytest.mark.parametrize("name", ["", "../x", "a b", "a%i", "x@y", "-x", "a" * 65, "a\n"])
def test_a_name_is_a_name(name: str, machine: Machine, relctl: Relctl) -> None:
    for verb in ("install", "status", "uninstall"):
        assert relctl("service", verb, f"--name={name}").code == 2
    assert machine.calls() == []


def test_systemd_itself_finds_no_fault(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("there is no systemd-analyze")
    home = tmp_path / "ho me %x $y"
    home.mkdir()
    python = home / "python"
    python.symlink_to(sys.executable)
    service = Service("relctl", str(home), str(home), False, str(home), ("sleep", "%n", HOSTILE), "/bin:/usr/bin")
    texts = systemd.render(service, Release(str(python), str(home)))
    for name, text in texts.items():
        (home / name).write_text(text)
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(home)}
    words = [tool, "--user", "--man=no", "verify", *(str(home / name) for name in UNITS)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "relctl" in line]) == (0, [])


def test_print_touches_nothing(machine: Machine, relctl: Relctl) -> None:
    shown = relctl("--json", "service", "install", "--print", "--no-start", "--", "sleep", "1")
    assert list(shown.json["files"]) == UNITS
    assert "### relctl-check.timer\n" in relctl("service", "install", "--print").out
    cron = relctl("service", "install", "--print", "--platform", "cron", "--", "date", "+%s 'x'").out.splitlines()
    assert [line.split(" cd ")[0] for line in cron] == ["@reboot", "* * * * *"]
    words = shlex.split(cron[1].replace("\\%", "%"))
    assert words[-4:] == ["ensure", "--", "date", "+%s 'x'"]
    assert relctl("service", "install", "--print", "--platform", "beos").code == 2
    assert relctl("service", "install", "--platform", "cron").code == 2
    assert (machine.calls(), machine.files()) == ([], {})


def test_install_status_uninstall(machine: Machine, relctl: Relctl) -> None:
    assert relctl("service", "uninstall").out == "Nothing is installed.\n"
    assert machine.calls() == []
    for _ in range(2):  # the second time is as good
        done = relctl("service", "install", "--", "sleep", "9")
        assert (done.code, done.err) == (0, "")
        assert machine.calls() == [
            "systemctl --user daemon-reload",
            "systemctl --user enable relctl.service relctl-check.timer",
            "loginctl enable-linger",
            "systemctl --user reset-failed relctl.service",
            "systemctl --user start relctl.service",
            "systemctl --user start relctl-check.timer",
        ]
    assert sorted(machine.files()) == sorted(UNITS)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in machine.units.iterdir())
    machine.says("ActiveState=active\nSubState=running\nUnitFileState=enabled\nStatusText=6 of 6\nResult=success\n")
    report = relctl("--json", "service", "status").json
    assert (report["installed"], report["enabled"], report["running"]) == (True, True, True)
    assert (report["stale"], report["edited"], report["data_dir"]) == (False, False, str(relctl.data_dir))
    assert "active (running), 6 of 6" in relctl("service", "status").out
    person = machine.units / "relctl.service.d"
    person.mkdir()
    assert sorted(Path(path).name for path in relctl("--json", "service", "uninstall").json["removed"]) == sorted(UNITS)
    assert machine.calls() == [
        "systemctl --user disable --now relctl-check.timer relctl.service",
        "systemctl --user daemon-reload",
    ]
    assert list(machine.units.iterdir()) == [person]
    assert relctl("--json", "service", "status").json["installed"] is False


def test_what_this_release_would_write_otherwise_is_stale(
    machine: Machine, relctl: Relctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert relctl("service", "install", "--no-start", "--", "sleep", "9").code == 0
    before = machine.files()
    monkeypatch.setattr(systemd, "WATCHDOG_S", 61)
    report = relctl("--json", "service", "status").json
    assert (report["stale"], report["edited"]) == (True, False)
    assert [item["state"] for item in report["files"]] == ["stale", "same", "same"]
    assert relctl("service", "install", "--no-start", "--", "sleep", "9").code == 0
    assert machine.files() != before
    assert relctl("--json", "service", "status").json["stale"] is False
    (machine.units / "relctl-check.timer").unlink()
    report = relctl("--json", "service", "status").json
    assert (report["installed"], report["stale"]) == (False, True)


def test_what_a_person_changed_is_never_lost(machine: Machine, relctl: Relctl) -> None:
    assert relctl("service", "install", "--no-start").code == 0
    path = machine.units / "relctl.service"
    mine = path.read_text().replace("UMask=0077", "UMask=0022")
    path.write_text(mine)
    assert relctl("--json", "service", "status").json["edited"] is True
    for verb in (["install", "--no-start"], ["uninstall"]):
        refused = relctl("--json", "service", *verb)
        assert (refused.code, refused.error["code"]) == (1, "refused")
        assert str(path) in refused.error["message"]
        assert path.read_text() == mine
    assert relctl("service", "install", "--no-start", "--force").code == 0
    assert "UMask=0077" in path.read_text()
    assert (machine.units / "relctl.service.kept-1").read_text() == mine
    path.write_text("[Service]\nExecStart=/bin/true\n")  # not ours at all
    assert relctl("service", "install", "--no-start").code == 1
    done = relctl("--json", "service", "uninstall")
    assert done.json["foreign"] == [str(path)]
    assert sorted(machine.files()) == ["relctl.service", "relctl.service.kept-1"]
    path.unlink()
    path.symlink_to("/dev/null")  # masked
    assert relctl("service", "install", "--no-start").code == 1
    assert path.is_symlink()


def test_two_systems_have_two_names(machine: Machine, relctl: Relctl, tmp_path: Path) -> None:
    assert relctl("service", "install", "--no-start").code == 0
    before = machine.files()
    other = str(tmp_path / "other")
    refused = relctl("--json", "service", "install", "--no-start", "--data-dir", other)
    assert (refused.error["code"], str(relctl.data_dir) in refused.error["message"]) == ("refused", True)
    assert machine.files() == before
    assert relctl("service", "install", "--no-start", "--data-dir", other, "--name", "second").code == 0
    assert relctl("service", "uninstall", "--name", "second").code == 0
    assert machine.files() == before


@pytest.mark.parametrize("word", ["daemon-reload", "enable"])
def test_what_fails_half_way_leaves_all_as_it_was(
    machine: Machine, relctl: Relctl, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fail(word)
    failed = relctl("--json", "service", "install")
    assert (failed.code, failed.error["code"]) == (1, "failed")
    assert f"no {word} today" in failed.error["message"]
    assert machine.files() == {}
    machine.mend(word)
    assert relctl("service", "install", "--no-start").code == 0
    (machine.units / "relctl.service").write_text("[Service]\n")
    before = machine.files()
    machine.fail(word)
    monkeypatch.setattr(systemd, "WATCHDOG_S", 61)
    assert relctl("service", "install", "--force").code == 1
    assert machine.files() == before


def test_a_start_that_fails_is_told_and_the_check_goes_on(machine: Machine, relctl: Relctl) -> None:
    machine.fail("enable-linger")
    done = relctl("service", "install")
    assert done.code == 0
    assert "It starts once you log in: no enable-linger today" in done.out
    machine.calls()
    machine.fail("start")
    failed = relctl("service", "install", "--at-login")
    assert failed.code == 1
    assert "journalctl --user -u relctl" in failed.err
    assert machine.calls()[-1] == "systemctl --user start relctl-check.timer"
    assert sorted(machine.files()) == sorted(UNITS)


def test_without_a_user_manager_it_names_another_way(machine: Machine, relctl: Relctl) -> None:
    machine.fail("show")
    failed = relctl("--json", "service", "install")
    assert failed.code == 1
    assert "no show today" in failed.error["message"]
    assert "--platform cron" in failed.error["hint"]
    assert relctl("--json", "service", "status").json["enabled"] is None
    (machine.bin / "systemctl").unlink()
    assert "there is no systemctl" in relctl("service", "install").err
    assert machine.files() == {}


def test_a_directory_that_cannot_be_written_is_an_error(machine: Machine, relctl: Relctl) -> None:
    machine.units.parent.mkdir(parents=True)
    machine.units.write_text("a file")  # root may write into a read-only directory, but not into a file
    failed = relctl("--json", "service", "install")
    assert (failed.code, failed.error["code"]) == (1, "failed")
    assert "--print" in failed.error["hint"]
    assert machine.calls() == ["systemctl --user daemon-reload"]
    if os.geteuid():
        machine.units.unlink()
        machine.units.mkdir(mode=0o500)
        assert "cannot be written" in relctl("service", "install").err
        assert list(machine.units.iterdir()) == []


def test_the_check_has_the_manager_start_what_is_missing(machine: Machine, relctl: Relctl) -> None:
    assert relctl("service", "check").code == 0
    assert machine.calls() == [
        "systemctl --user reset-failed relctl.service",
        "systemctl --user start --no-block relctl.service",
    ]
    relctl.place_all()
    assert (relctl("service", "check").out, machine.calls()) == ("", [])
    relctl.board.stopping = True
    assert "stopped on purpose" in relctl("service", "check").out
    assert machine.calls() == []


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What was said to a service manager, since the last time."""
    name = f"relctl-manager-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")

        def said() -> list[str]:
            found: list[str] = []
            while True:
                try:
                    found += listener.recv(4096).decode().split("\n")
                except BlockingIOError:
                    return found

        yield said


def _join(conditions: list[Condition], slept: Callable[[float], None] = lambda _: None) -> bool:
    launcher = own_identity()
    steps: Iterator[Condition] = iter(conditions)

    def look() -> Finding:
        condition = next(steps)
        return Finding(condition, launcher if condition is Condition.RUNNING else None)

    def wait_until(done: Callable[[], bool], timeout_s: float, interval_s: float) -> bool:
        return any(done() for _ in range(3))

    return joining.join(look, lambda: False, wait_until, slept)


def test_it_becomes_the_launcher_where_there_is_none(manager: Callable[[], list[str]]) -> None:
    assert _join([Condition.MISSING])
    assert _join([Condition.STOPPED])
    assert _join([Condition.RECOVERING, Condition.FROZEN, Condition.MISSING, Condition.MISSING])
    assert manager() == []
    with pytest.raises(LocalError, match="nobody replaces it"):
        _join([Condition.FROZEN] * 9)


def test_it_speaks_for_a_launcher_that_is_not_the_managers(
    manager: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_in_our_group", lambda _pid: False)
    said: list[Any] = []
    ends = [Condition.RUNNING, Condition.RUNNING, Condition.MISSING, Condition.MISSING, Condition.MISSING]
    assert _join(ends, lambda _: said.append(manager()))
    assert [words[:2] for words in said] == [["WATCHDOG=1", "READY=1"], ["WATCHDOG=1"]]
    assert not _join([Condition.RUNNING, Condition.STOPPED, Condition.STOPPED])


def test_it_hands_over_to_the_successor_of_a_launcher() -> None:
    """As the manager sees it after `kill -9` of the launcher: the service is started again, and joins."""
    with running() as system, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        address = f"\0relctl-test-{os.getpid()}"
        listener.bind(address)
        listener.settimeout(30.0)
        words = ["-m", "app.reliability.cli", "--data-dir", str(system.data_dir), "service", "run"]
        environment = system.environment | {"NOTIFY_SOCKET": "@" + address[1:]}
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment)
        try:
            said = listener.recv(4096).decode().split("\n")
            assert said[:2] == [f"MAINPID={system.pid('launcher')}", "READY=1"]
            barrier, descriptors, _, _ = socket.recv_fds(listener, 4096, 4)
            assert (barrier, len(descriptors)) == (b"BARRIER=1", 1)
            assert process.poll() is None  # who has said it has to be there to be looked up
            os.close(descriptors[0])
            wait_until(lambda: process.poll() == 0, 30, "it has left")
        finally:
            process.kill()
            process.wait()
        system.stop()


def test_who_follows_a_launcher_and_is_told_to_stop_stops_everything() -> None:
    with running() as system:
        words = ["-m", "app.reliability.cli", "--data-dir", str(system.data_dir), "service", "run"]
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=system.environment)
        try:
            wait_until(lambda: _catches_sigterm(process.pid), 30.0, "it follows")
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: process.poll() == 0, 60.0, "it has left")
            assert not system.processes()
        finally:
            process.kill()
            process.wait()


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
