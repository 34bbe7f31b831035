"""Windows' Task Scheduler.

A task is a copy of the file that it was registered from, and may be changed without it: so what the Scheduler says of a
task right after that is kept beside the file, to know a person's changes later.
"""

import os
from typing import Final
from xml.etree import ElementTree as ET

from app.reliability._service import files, windows
from app.reliability._service.managers import State, insist, run_tool, tool
from app.reliability._service.model import Release, Service
from protocol.errors import ErrorCode, LocalError

_NAMESPACE: Final = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
_HINT: Final = "A start at boot needs an administrator's terminal; --at-login does not."


class WindowsManager:
    """See `Manager`."""

    platform = "windows"

    def refuse_absent(self) -> None:
        """Raise a LocalError where there is no schtasks."""
        if tool("schtasks") is None:
            hint = "It is in %SystemRoot%\\System32, which has to be in PATH."
            raise LocalError(ErrorCode.FAILED, "there is no schtasks", hint)

    def paths(self, name: str) -> list[str]:
        """Return the paths of the files that the tasks are registered from."""
        directory = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
        return [os.path.join(directory, "relctl", f"{task}.xml") for task in windows.task_names(name)]

    def render(self, service: Service, release: Release) -> dict[str, str]:
        """Return the text of each file, by path."""
        texts = windows.render(service, release)
        return {path: texts[os.path.basename(path)] for path in self.paths(service.name)}

    def changed_outside(self, name: str) -> str:
        """Return the tasks that are not what was registered, as XML; nothing if there are none."""
        changed = []
        for task, path in zip(windows.task_names(name), self.paths(name), strict=True):
            now = _query(task)
            if now is not None and now != files.read(_registered(path)):
                changed.append(now)
        return "\n".join(changed)

    def enable(self, service: Service) -> None:
        """Register both tasks."""
        tasks = windows.task_names(service.name)
        for task, path in zip(tasks, self.paths(service.name), strict=True):
            insist(_schtasks("/Create", "/TN", task, "/XML", path, "/F"), hint=_HINT)
            files.write({_registered(path): _query(task) or ""})

    def reload(self, name: str) -> None:
        """Have the tasks be what the files say; without a file there is no task."""
        for task, path in zip(windows.task_names(name), self.paths(name), strict=True):
            if not os.path.exists(path):
                if os.path.exists(_registered(path)) and _query(task) is not None:
                    run_tool(_schtasks("/Delete", "/TN", task, "/F"))
                files.remove([_registered(path)])
            else:
                run_tool(_schtasks("/Create", "/TN", task, "/XML", path, "/F"))
                files.write({_registered(path): _query(task) or ""})

    def start(self, service: Service, timeout_s: float) -> None:
        """Run the task now; the Scheduler cannot tell when it is ready."""
        insist(_schtasks("/Run", "/TN", service.name), timeout_s, "It is installed; `relctl ps` shows what runs.")

    def start_again(self, name: str) -> None:
        """Run the task."""
        insist(_schtasks("/Run", "/TN", name))

    def start_at_boot(self) -> str:
        """Return nothing: the task itself says when it starts."""
        return ""

    def disable(self, name: str) -> None:
        """Delete both tasks. What runs goes on: ending a task would only kill its first process."""
        for task in reversed(windows.task_names(name)):
            if _query(task) is not None:
                insist(_schtasks("/Delete", "/TN", task, "/F"), hint=_HINT)

    def state(self, name: str) -> State:
        """Return what the tasks' XML says; whether one runs is said in the user's language alone."""
        try:
            texts = [_query(task) for task in windows.task_names(name)]
        except LocalError as error:
            return State(detail=error.message)
        trees = [_parse(text) for text in texts if text is not None]
        if len(trees) < len(texts) or any(tree is None for tree in trees):
            return State(enabled=False, detail="not registered" if not trees else "one of two tasks is registered")
        found = [tree for tree in trees if tree is not None]
        enabled = all(tree.findtext(f"{_NAMESPACE}Settings/{_NAMESPACE}Enabled", "true") == "true" for tree in found)
        boot = found[0].find(f"{_NAMESPACE}Triggers/{_NAMESPACE}BootTrigger") is not None
        return State(enabled, at_boot=boot, detail="whether it runs: `relctl ps`")

    def advice(self, name: str) -> str:
        """Return the command that shows the task."""
        return f"schtasks /Query /TN {name} /V"


def _registered(path: str) -> str:
    return f"{path.removesuffix('.xml')}.registered"


def _schtasks(*words: str) -> list[str]:
    return [tool("schtasks") or "schtasks", *words]


def _query(task: str) -> str | None:
    """Return a task as XML; None if there is no such task."""
    said = run_tool(_schtasks("/Query", "/TN", task, "/XML"))
    return None if said.code else said.out.replace("\r\n", "\n").strip()


def _parse(text: str) -> "ET.Element | None":
    try:
        return ET.fromstring(text[text.index("<Task") :])  # noqa: S314 - the Scheduler's own words
    except (ET.ParseError, ValueError):
        return None
