"""systemd's user manager."""

import os
from typing import Final

from app.reliability._service import systemd
from app.reliability._service.managers import State, insist, run_tool, tool
from app.reliability._service.model import Release, Service
from protocol.errors import ErrorCode, LocalError

_WANTS: Final = ("default.target.wants", "timers.target.wants")


class SystemdManager:
    """See `Manager`."""

    platform = "linux"

    def refuse_absent(self) -> None:
        """Raise a LocalError where there is no user manager: a container, another init, a shell without a session."""
        path = tool("systemctl")
        if path is None:
            raise _absent("there is no systemctl")
        said = run_tool([path, "--user", "show", "--property=Version"])
        if said.code:
            raise _absent(said.reason)

    def paths(self, name: str) -> list[str]:
        """Return the paths of the units."""
        directory = os.path.join(_configuration_directory(), "systemd", "user")
        return [os.path.join(directory, file) for file in systemd.file_names(name)]

    def render(self, service: Service, release: Release) -> dict[str, str]:
        """Return the text of each unit, by path."""
        texts = systemd.render(service, release)
        return {path: texts[os.path.basename(path)] for path in self.paths(service.name)}

    def changed_outside(self, name: str) -> str:
        """Return nothing: what is added to a unit has files of its own."""
        return ""

    def enable(self, service: Service) -> None:
        """Enable the service and the timer."""
        insist(_user("daemon-reload"))
        insist(_user("enable", f"{service.name}.service", f"{service.name}-check.timer"))

    def reload(self, name: str) -> None:
        """Have the manager read its units again, and drop what enabled those that are gone."""
        for wanted in self._wanted(name):
            if os.path.islink(wanted) and not os.path.exists(wanted):
                os.unlink(wanted)
        try:
            run_tool(_user("daemon-reload"))
        except LocalError:
            return

    def start(self, service: Service, timeout_s: float) -> None:
        """Start the service, wait until the launcher says ready, and start the timer."""
        hint = f"It is installed. See `{self.advice(service.name)}`."
        run_tool(_user("reset-failed", f"{service.name}.service"))
        try:
            insist(_user("start", f"{service.name}.service"), timeout_s, hint)
        finally:
            insist(_user("start", f"{service.name}-check.timer"), hint=hint)

    def start_again(self, name: str) -> None:
        """Start the service, forgetting how often that failed."""
        run_tool(_user("reset-failed", f"{name}.service"))
        insist(_user("start", "--no-block", f"{name}.service"))

    def start_at_boot(self) -> str:
        """Let the user's services run while the user is not logged in."""
        hint = "`sudo loginctl enable-linger $USER` has it start at boot."
        path = tool("loginctl")
        if path is None:
            return f"It starts once you log in: there is no loginctl. {hint}"
        try:
            said = run_tool([path, "enable-linger"])
        except LocalError as error:
            return f"It starts once you log in: {error.message}. {hint}"
        return f"It starts once you log in: {said.reason} {hint}" if said.code else ""

    def disable(self, name: str) -> None:
        """Stop and disable both."""
        units = [f"{name}-check.timer", f"{name}.service"]
        insist(_user("disable", "--now", *units), 2.0 * systemd.STOP_TIMEOUT_S)

    def state(self, name: str) -> State:
        """Return what `systemctl show` says."""
        properties = "ActiveState,SubState,UnitFileState,MainPID,StatusText,Result"
        try:
            self.refuse_absent()
            said = insist(_user("show", f"{name}.service", f"--property={properties}"))
            timer = run_tool(_user("is-enabled", f"{name}-check.timer"))
        except LocalError as error:
            return State(detail=error.message)
        values = dict(line.split("=", 1) for line in said.out.splitlines() if "=" in line)
        active = values.get("ActiveState", "")
        parts = [f"{active} ({values.get('SubState', '')})", values.get("StatusText", "")]
        if values.get("Result", "success") != "success":
            parts.append(f"last result: {values['Result']}")
        enabled = values.get("UnitFileState") == "enabled" and not timer.code
        running = active in {"active", "reloading", "activating", "deactivating"}
        return State(enabled, running, _lingers(), ", ".join(filter(None, parts)))

    def advice(self, name: str) -> str:
        """Return the command that shows the service's own log."""
        return f"journalctl --user -u {name}"

    def _wanted(self, name: str) -> list[str]:
        directory = os.path.dirname(self.paths(name)[0])
        return [os.path.join(directory, target, unit) for target in _WANTS for unit in systemd.file_names(name)]


def _user(*words: str) -> list[str]:
    return [tool("systemctl") or "systemctl", "--user", *words]


def _absent(reason: str) -> LocalError:
    return LocalError(
        ErrorCode.FAILED,
        f"there is no systemd user manager to be used here: {reason}",
        "Let cron start it: `relctl service install --print --platform cron` shows the lines for `crontab -e`.",
    )


def _configuration_directory() -> str:
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return given if os.path.isabs(given) else os.path.expanduser("~/.config")


def _lingers() -> bool | None:
    path = tool("loginctl")
    if path is None:
        return None
    try:
        said = run_tool([path, "show-user", str(os.getuid()), "--property=Linger"])  # type: ignore[attr-defined,unused-ignore]
    except LocalError:
        return None
    return None if said.code else said.out.strip() == "Linger=yes"
