"""The units of systemd's user manager: the system, and a check of it every minute.

What is decided here, and why, is ADR 0013.
"""

from typing import Final

from app.reliability._service.model import Release, Service, seal

START_TIMEOUT_S: Final = 180
"""Longer than the launcher itself waits for any process of its own, each start and its repetitions included."""
STOP_TIMEOUT_S: Final = 90
"""Longer than `relctl down` takes at most, whatever hangs."""
WATCHDOG_S: Final = 60
"""Far more than the watchdog's own hang timeout: it comes first, and this is for the day when it hangs as well."""
RESTART_DELAY_S: Final = 2
"""Survivors bring a launcher back within this time, so that there is one to join."""
RESTART_MAX: Final = 5
RESTART_PERIOD_S: Final = 300
CHECK_INTERVAL_S: Final = 60

_HEAD: Final = "# Written by `relctl service install`, which does not replace it once you have changed it.\n"


def file_names(name: str) -> tuple[str, str, str]:
    """Return the names of the units: the service, the check, the timer of the check."""
    return f"{name}.service", f"{name}-check.service", f"{name}-check.timer"


def render(service: Service, release: Release) -> dict[str, str]:
    """Return the text of each unit, by its name."""
    texts = (_service(service, release), _check(service, release), _timer(service))
    return {name: seal(text, service, "# ") for name, text in zip(file_names(service.name), texts, strict=True)}


def quote(word: str) -> str:
    """Return a word of a unit as systemd reads it: in quotes, with no escape and no specifier of its own."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def command_line(words: list[str]) -> str:
    """Return the value of an Exec line; `$` stays as it is in the executable's path, where it means nothing."""
    first, *others = words
    return " ".join([quote(first), *(quote(word).replace("$", "$$") for word in others)])


def _environment(service: Service) -> str:
    return "".join(f"Environment={quote(f'{name}={value}')}\n" for name, value in service.environment().items())


def _text(word: str) -> str:
    """Return a word as part of a description, whose last character must not continue the line."""
    return word.replace("%", "%%").replace("\\", "/")


def _service(service: Service, release: Release) -> str:
    down = release.command(["--data-dir", service.data_dir, "down"])
    return f"""{_HEAD}
[Unit]
Description=relctl keeps the system in {_text(service.data_dir)} running
StartLimitIntervalSec={RESTART_PERIOD_S}
StartLimitBurst={RESTART_MAX}

[Service]
Type=notify
NotifyAccess=all
ExecStart={command_line(release.command(service.run_words()))}
ExecStop={command_line(down)}
TimeoutStartSec={START_TIMEOUT_S}
TimeoutStopSec={STOP_TIMEOUT_S}
WatchdogSec={WATCHDOG_S}
WatchdogSignal=SIGKILL
Restart=on-failure
RestartSec={RESTART_DELAY_S}
KillMode=process
OOMPolicy=continue
UMask=0077
{_environment(service)}
[Install]
WantedBy=default.target
"""


def _check(service: Service, release: Release) -> str:
    return f"""{_HEAD}
[Unit]
Description=Check that relctl runs in {_text(service.data_dir)}, if it should

[Service]
Type=oneshot
ExecStart={command_line(release.command(service.check_words()))}
TimeoutStartSec={START_TIMEOUT_S}
KillMode=process
UMask=0077
{_environment(service)}"""


def _timer(service: Service) -> str:
    return f"""{_HEAD}
[Unit]
Description=Check every minute that relctl runs in {_text(service.data_dir)}

[Timer]
OnActiveSec={CHECK_INTERVAL_S}
OnUnitInactiveSec={CHECK_INTERVAL_S}
AccuracySec=10

[Install]
WantedBy=timers.target
"""
