"""launchd, in the domain of a user who is logged in."""

import os

from app.reliability._service import launchd
from app.reliability._service.managers import State, insist, run_tool, tool
from app.reliability._service.model import Release, Service
from protocol.errors import ErrorCode, LocalError


class LaunchdManager:
    """See `Manager`."""

    platform = "macos"

    def refuse_absent(self) -> None:
        """Raise a LocalError where nobody is logged in at the screen, as by ssh alone."""
        path = tool("launchctl")
        reason = "there is no launchctl" if path is None else ""
        if path is not None and (said := run_tool([path, "print", _domain()])).code:
            reason = said.reason
        if reason:
            hint = "Log in at the screen; or see `relctl service install --print --platform cron`."
            raise LocalError(ErrorCode.FAILED, f"launchd has no domain of this user: {reason}", hint)

    def paths(self, name: str) -> list[str]:
        """Return the paths of the agents."""
        directory = os.path.expanduser("~/Library/LaunchAgents")
        return [os.path.join(directory, file) for file in launchd.file_names(name)]

    def render(self, service: Service, release: Release) -> dict[str, str]:
        """Return the text of each agent, by path."""
        texts = launchd.render(service, release)
        return {path: texts[os.path.basename(path)] for path in self.paths(service.name)}

    def changed_outside(self, name: str) -> str:
        """Return nothing: there is nothing but the files."""
        return ""

    def enable(self, service: Service) -> None:
        """Let both be loaded at a login."""
        os.makedirs(service.data_dir, mode=0o700, exist_ok=True)  # for the log
        for label in _labels(service.name):
            insist(_launchctl("enable", f"{_domain()}/{label}"))

    def reload(self, name: str) -> None:
        """Do nothing: what is loaded stays as it is until a login."""

    def start(self, service: Service, timeout_s: float) -> None:
        """Load both; one that is loaded goes on as it is, as unloading would stop everything."""
        hint = f"It is installed. See `{self.advice(service.name)}`."
        for label, path in zip(_labels(service.name), self.paths(service.name), strict=True):
            if run_tool(_launchctl("print", f"{_domain()}/{label}")).code:
                insist(_launchctl("bootstrap", _domain(), path), timeout_s, hint)
        insist(_launchctl("kickstart", f"{_domain()}/{service.name}"), timeout_s, hint)

    def start_again(self, name: str) -> None:
        """Start the service if it does not run."""
        insist(_launchctl("kickstart", f"{_domain()}/{name}"))

    def start_at_boot(self) -> str:
        """Return that an agent starts at a login only."""
        return "It starts once you log in; with automatic login that is at boot."

    def disable(self, name: str) -> None:
        """Unload both; the launcher, or who follows it, is told to stop and stops everything."""
        for label in reversed(_labels(name)):
            if not run_tool(_launchctl("print", f"{_domain()}/{label}")).code:
                insist(_launchctl("bootout", f"{_domain()}/{label}"), 2.0 * launchd.EXIT_TIMEOUT_S)

    def state(self, name: str) -> State:
        """Return what `launchctl print` says."""
        try:
            said = run_tool(_launchctl("print", f"{_domain()}/{name}"))
            disabled = run_tool(_launchctl("print-disabled", _domain()))
        except LocalError as error:
            return State(detail=error.message)
        lines = [line.strip() for line in said.out.splitlines()]
        off = any(f'"{name}" => {word}' in disabled.out for word in ("disabled", "true"))
        enabled = os.path.exists(self.paths(name)[0]) and not off
        if said.code:
            return State(enabled, running=False, at_boot=False, detail="not loaded")
        detail = ", ".join(line for line in lines if line.startswith(("state =", "pid =", "last exit code =")))
        return State(enabled, running="state = running" in lines, at_boot=False, detail=detail)

    def advice(self, name: str) -> str:
        """Return the command that shows how launchd sees it."""
        return f"launchctl print {_domain()}/{name}"


def _labels(name: str) -> list[str]:
    return [file.removesuffix(".plist") for file in launchd.file_names(name)]


def _domain() -> str:
    return f"gui/{os.getuid()}"


def _launchctl(*words: str) -> list[str]:
    return [tool("launchctl") or "launchctl", *words]
