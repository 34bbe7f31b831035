"""The agents of launchd: the system, and a check of it every minute."""

import os
import plistlib
from typing import Any, Final

from app.reliability._service.model import Release, Service, seal

THROTTLE_S: Final = 10
"""launchd starts nothing more often. Survivors are faster: what it starts then joins their launcher."""
EXIT_TIMEOUT_S: Final = 90
CHECK_INTERVAL_S: Final = 60
LOG_FILE: Final = "launcher.log"
_UMASK: Final = 0o077


def file_names(name: str) -> tuple[str, str]:
    """Return the names of the files: the service, the check. Without the ending they are the labels."""
    return f"{name}.plist", f"{name}-check.plist"


def render(service: Service, release: Release) -> dict[str, str]:
    """Return the text of each file, by its name."""
    log = os.path.join(service.data_dir, LOG_FILE)
    common: dict[str, Any] = {
        "AbandonProcessGroup": True,  # programs and survivors outlive the launcher
        "Umask": _UMASK,
        "EnvironmentVariables": service.environment(),
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    main = common | {
        "Label": service.name,
        "ProgramArguments": release.command(service.run_words()),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ExitTimeOut": EXIT_TIMEOUT_S,
    }
    check = common | {
        "Label": f"{service.name}-check",
        "ProgramArguments": release.command(service.check_words()),
        "StartInterval": CHECK_INTERVAL_S,
    }
    return {
        name: seal(plistlib.dumps(values).decode(), service, "<!-- ", " -->")
        for name, values in zip(file_names(service.name), (main, check), strict=True)
    }
