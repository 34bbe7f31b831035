"""The tasks of Windows' Task Scheduler: the system, and a check of it every minute."""

import subprocess
from typing import Final
from xml.sax.saxutils import escape

from app.reliability._service.model import Release, Service, seal
from protocol.errors import ErrorCode, LocalError

RESTART_MAX: Final = 255
"""The most that the schema allows; once a minute, the most often that it allows."""
PRIORITY: Final = 5
"""Normal; a task has less than that by default."""

_SETTINGS: Final = f"""\
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <IdleSettings>
      <StopOnIdleEnd>false</StopOnIdleEnd>
      <RestartOnIdle>false</RestartOnIdle>
    </IdleSettings>
    <Enabled>true</Enabled>
    <WakeToRun>false</WakeToRun>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>{PRIORITY}</Priority>
"""
_RESTART: Final = f"""\
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>{RESTART_MAX}</Count>
    </RestartOnFailure>
"""
_EVERY_MINUTE: Final = """\
    <TimeTrigger>
      <Repetition>
        <Interval>PT1M</Interval>
        <StopAtDurationEnd>false</StopAtDurationEnd>
      </Repetition>
      <StartBoundary>2020-01-01T00:00:00</StartBoundary>
      <Enabled>true</Enabled>
    </TimeTrigger>
"""
_AT_BOOT: Final = """\
    <BootTrigger>
      <Enabled>true</Enabled>
    </BootTrigger>
"""


def task_names(name: str) -> tuple[str, str]:
    """Return the names of the tasks: the service, the check. With ``.xml`` behind they are those of the files."""
    return name, f"{name}-check"


def render(service: Service, release: Release) -> dict[str, str]:
    """Return the text of each file, by its name.

    Raises:
        LocalError: a word would be read as a variable, and there is no way to say that it is none.
    """
    login = f"""\
    <LogonTrigger>
      <Enabled>true</Enabled>
      <UserId>{escape(service.user)}</UserId>
    </LogonTrigger>
"""
    at_start = login if service.at_login else f"{_AT_BOOT}{login}"
    parts = (
        (f"relctl keeps the system in {service.data_dir} running", at_start, _RESTART, service.run_words()),
        (f"Checks that relctl runs in {service.data_dir}, if it should", _EVERY_MINUTE, "", service.check_words()),
    )
    return {
        f"{name}.xml": seal(_task(service, release.command(words), text, triggers, more), service, "<!-- ", " -->")
        for name, (text, triggers, more, words) in zip(task_names(service.name), parts, strict=True)
    }


def _task(service: Service, command: list[str], text: str, triggers: str, more: str) -> str:
    for word in command:
        if "%" in word or "$(" in word:
            message = f"{word!r} would be read as a variable by the Task Scheduler"
            raise LocalError(ErrorCode.REFUSED, message, "Use names without '%' and '$('.")
    logon = "InteractiveToken" if service.at_login else "S4U"
    return f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{escape(text)}</Description>
  </RegistrationInfo>
  <Triggers>
{triggers}  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(service.user)}</UserId>
      <LogonType>{logon}</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
{_SETTINGS}{more}  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(command[0])}</Command>
      <Arguments>{escape(subprocess.list2cmdline(command[1:]))}</Arguments>
    </Exec>
  </Actions>
</Task>
"""
