"""Two lines for cron, where there is no service manager that a user may use. They are shown, never installed."""

import shlex

from app.reliability._service.model import Release, Service


def lines(service: Service, release: Release) -> list[str]:
    """Return the lines for `crontab -e`: start at boot, and look every minute. A % would end a command there."""
    words = ["--data-dir", service.data_dir, "ensure"]
    words += ["--config", service.config] if service.config is not None else []
    words += ["--portable"] if service.portable else []
    words += ["--", *service.command] if service.command else []
    return [
        _line("@reboot", service, release.command(service.run_words()), " >/dev/null 2>&1"),
        _line("* * * * *", service, release.command(words), ""),
    ]


def _line(when: str, service: Service, command: list[str], tail: str) -> str:
    variables = [f"{name}={value}" for name, value in service.environment().items()]
    inside = f"cd {shlex.quote(service.directory)} && " if service.directory else ""
    return f"{when} {inside}{shlex.join(['env', *variables, *command])}{tail}".replace("%", "\\%")
