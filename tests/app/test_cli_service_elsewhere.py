"""`relctl service` for launchd and the Task Scheduler: by their formats and fakes, as far as that goes."""

import os
import plistlib
import stat
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from app.reliability._cli import service as module
from app.reliability._service import launchd, windows
from app.reliability._service.model import Release, Service, read_seal
from protocol.errors import LocalError
from tests.app.cli_fakes import Relctl
from tests.app.service_machine import Machine

HOSTILE = '/a b/100%n/$HOME/it\'s "q"/<x>&amp;--ü/back\\slash'
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


@pytest.fixture
def mac(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_own_platform", lambda: "macos")
    return machine.directory / "Library" / "LaunchAgents"


@pytest.fixture
def pc(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_own_platform", lambda: "windows")
    return machine.directory / "local" / "relctl"


def test_agents_say_what_was_asked_for_whatever_the_paths() -> None:
    service = Service("relctl", HOSTILE, f"{HOSTILE}/c", True, HOSTILE, ("run", HOSTILE, "--"), f"{HOSTILE}:/bin")
    texts = launchd.render(service, Release(f"{HOSTILE}/python", f"{HOSTILE}/entry.py"))
    assert list(texts) == ["relctl.plist", "relctl-check.plist"]
    main, check = (plistlib.loads(text.encode()) for text in texts.values())
    first = [f"{HOSTILE}/python", "-P", f"{HOSTILE}/entry.py", "--data-dir", HOSTILE, "service"]
    tail = ["--config", f"{HOSTILE}/c", "--portable", "--directory", HOSTILE, "--", "run", HOSTILE, "--"]
    assert main["ProgramArguments"] == [*first, "run", *tail]
    assert check["ProgramArguments"] == [*first, "check", "--name", "relctl"]
    assert (main["Label"], check["Label"], check["StartInterval"]) == ("relctl", "relctl-check", 60)
    assert (main["RunAtLoad"], main["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert main["AbandonProcessGroup"] is check["AbandonProcessGroup"] is True
    assert (main["ThrottleInterval"], main["Umask"]) == (10, 0o077)
    assert main["EnvironmentVariables"] == {"PATH": f"{HOSTILE}:/bin"}
    assert main["StandardErrorPath"] == f"{HOSTILE}/launcher.log"
    for text in texts.values():
        sealed = read_seal(text)
        assert sealed is not None
        assert (sealed.service, sealed.intact) == (service, True)


def test_tasks_say_what_was_asked_for() -> None:
    path = "C:\\Users\\Änn & <Bob>\\it's a dir\\"
    service = Service("relctl", path, command=("run", 'a "b"', ""), user="PC\\Änn & <Bob>")
    texts = windows.render(service, Release(f"{path}pythonw.exe", f"{path}entry.py"))
    main, check = (ET.fromstring(text.encode("utf-16")) for text in texts.values())
    assert main.findtext(f".//{TASK}Command") == f"{path}pythonw.exe"
    arguments = main.findtext(f".//{TASK}Arguments")
    assert arguments is not None
    assert arguments.startswith(f'-P "{path}entry.py" --data-dir "{path}\\" service run')  # a last backslash is doubled
    assert arguments.endswith('run "a \\"b\\"" ""')
    settings = {item.tag.removeprefix(TASK): item.text for item in main.findall(f"{TASK}Settings/*")}
    assert settings["ExecutionTimeLimit"] == "PT0S"
    assert (settings["DisallowStartIfOnBatteries"], settings["StopIfGoingOnBatteries"]) == ("false", "false")
    assert main.findtext(f".//{TASK}RestartOnFailure/{TASK}Interval") == "PT1M"
    assert [item.tag.removeprefix(TASK) for item in main.findall(f"{TASK}Triggers/*")] == [
        "BootTrigger",
        "LogonTrigger",
    ]
    assert main.findtext(f".//{TASK}LogonType") == "S4U"
    assert main.findtext(f".//{TASK}Principal/{TASK}UserId") == "PC\\Änn & <Bob>"
    assert check.findtext(f".//{TASK}Repetition/{TASK}Interval") == "PT1M"
    sections = ["RegistrationInfo", "Triggers", "Principals", "Settings", "Actions"]
    assert [item.tag.removeprefix(TASK) for item in main] == sections
    later = windows.render(Service("relctl", path, user="x", at_login=True), Release("p", "e"))
    assert "BootTrigger" not in later["relctl.xml"]
    assert "InteractiveToken" in later["relctl.xml"]


@pytest.mark.parametrize("path", ["C:\\%TEMP%", "C:\\$(Arg0)"])
def test_what_the_scheduler_would_replace_is_refused(path: str) -> None:
    with pytest.raises(LocalError, match="variable"):
        windows.render(Service("relctl", path), Release("python", "entry"))


def test_a_mac_is_installed_on_and_left_as_it_was(machine: Machine, mac: Path, relctl: Relctl) -> None:
    domain = f"gui/{os.getuid()}"
    done = relctl("service", "install", "--", "sleep", "9")
    assert (done.code, "once you log in" in done.out) == (0, True)
    assert machine.calls() == [
        f"launchctl enable {domain}/relctl",
        f"launchctl enable {domain}/relctl-check",
        f"launchctl bootstrap {domain} {mac / 'relctl.plist'}",
        f"launchctl bootstrap {domain} {mac / 'relctl-check.plist'}",
        f"launchctl kickstart {domain}/relctl",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in mac.iterdir()} == {0o600}
    report = relctl("--json", "service", "status").json
    assert (report["installed"], report["enabled"], report["running"], report["stale"]) == (True, True, True, False)
    assert report["detail"] == "state = running, pid = 77"
    assert relctl("service", "install", "--", "sleep", "9").code == 0  # what is loaded is not unloaded
    assert not [call for call in machine.calls() if "bootout" in call or "bootstrap" in call]
    assert relctl("service", "check").code == 0
    assert machine.calls() == [f"launchctl kickstart {domain}/relctl"]
    (mac / "relctl.plist").write_text((mac / "relctl.plist").read_text() + "<!-- mine -->\n")
    assert relctl("service", "uninstall").code == 1
    assert relctl("service", "uninstall", "--force").code == 0
    assert machine.calls() == [f"launchctl bootout {domain}/relctl-check", f"launchctl bootout {domain}/relctl"]
    assert [path.name for path in mac.iterdir()] == ["relctl.plist.kept-1"]
    assert relctl("service", "uninstall").out == "Nothing is installed.\n"


def test_a_mac_without_a_login_is_an_error(machine: Machine, mac: Path, relctl: Relctl) -> None:
    machine.fail("print")
    failed = relctl("--json", "service", "install")
    assert (failed.code, "no domain" in failed.error["message"]) == (1, True)
    assert not mac.exists()


def test_a_pc_is_installed_on_and_left_as_it_was(machine: Machine, pc: Path, relctl: Relctl) -> None:
    assert relctl("service", "install", "--", "sleep", "9").code == 0
    assert machine.calls() == [
        f"schtasks /Create /TN relctl /XML {pc / 'relctl.xml'} /F",
        f"schtasks /Create /TN relctl-check /XML {pc / 'relctl-check.xml'} /F",
        "schtasks /Run /TN relctl",
    ]
    assert (pc / "relctl.xml").read_bytes()[:2] == b"\xff\xfe"
    assert ET.parse(pc / "relctl.xml").getroot().findtext(f".//{TASK}Principal/{TASK}UserId") == "HOME-PC\\ann & bob"
    report = relctl("--json", "service", "status").json
    assert (report["installed"], report["enabled"], report["running"], report["at_boot"]) == (True, True, None, True)
    assert (report["stale"], report["edited"]) == (False, False)
    assert relctl("service", "uninstall").code == 0
    assert machine.calls() == ["schtasks /Delete /TN relctl-check /F", "schtasks /Delete /TN relctl /F"]
    assert list(pc.iterdir()) == []
    assert relctl("service", "uninstall").out == "Nothing is installed.\n"
    assert relctl("service", "install", "--print", "--platform", "windows-service").code == 2


def test_a_task_that_was_changed_in_the_scheduler_is_kept(machine: Machine, pc: Path, relctl: Relctl) -> None:
    assert relctl("service", "install", "--no-start").code == 0
    task = machine.directory / "known" / "relctl"
    mine = task.read_text().replace("<Priority>5<", "<Priority>3<")
    task.write_text(mine)
    machine.calls()
    for verb in (["install", "--no-start"], ["uninstall"]):
        refused = relctl("--json", "service", *verb)
        assert (refused.code, refused.error["code"]) == (1, "refused")
    assert machine.calls() == []
    assert relctl("service", "install", "--no-start", "--force").code == 0
    assert "<Priority>5<" in task.read_text()
    assert (pc / "relctl.xml.outside.kept-1").read_text() == mine.strip()


def test_a_pc_that_allows_no_start_at_boot_is_left_as_it_was(machine: Machine, pc: Path, relctl: Relctl) -> None:
    machine.fail("relctl-check")
    failed = relctl("--json", "service", "install")
    assert (failed.code, "--at-login" in failed.error["hint"]) == (1, True)
    assert list(pc.iterdir()) == []
    assert list((machine.directory / "known").iterdir()) == []
    assert relctl("--json", "service", "status").json["installed"] is False
