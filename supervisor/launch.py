"""From settings to a running launcher: takes the ground, chooses the port, runs the shell."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

from actors.runtime import paths
from protocol.errors import EXIT_FAILED, EXIT_OK, ErrorCode, LocalError
from protocol.names import LAUNCHER
from protocol.severity import Severity
from supervisor import ground
from supervisor.configuration import tell_configuration
from supervisor.ground import Ground, StoppedError
from supervisor.model import Say
from supervisor.port import ProcessControl
from supervisor.programs import Roster
from supervisor.records import Records
from supervisor.settings import Settings
from supervisor.shell import GroundLostError, Shell
from supervisor.signals import Signals
from supervisor.takeover import OverBudgetError


def run(settings: Settings) -> int:
    """Take the data directory, supervise until the system is stopped, and return the exit code.

    Raises:
        LocalError: another launcher has the data directory, or a directory cannot be trusted.
    """
    signals = Signals()
    while True:
        try:
            return _run_once(settings, signals)
        except GroundLostError:
            settings = replace(settings, successor=False)


def _run_once(settings: Settings, signals: Signals) -> int:
    try:
        taken = ground.take(settings)
    except StoppedError:
        return EXIT_OK
    except OSError as error:
        raise LocalError(ErrorCode.FAILED, f"cannot start in {settings.data_dir}: {error}", "") from error
    pinned = _with_pinned_config(settings, taken)
    roster = Roster(pinned, taken)
    pinned = replace(pinned, definitions=(*pinned.definitions, *roster.definitions()))
    shell: Shell | None = None

    def drop_inherited() -> None:
        if shell is not None:
            shell.close_inherited()

    try:
        shell = Shell(pinned, taken, _process_control(taken, drop_inherited), signals, roster)
        if not settings.successor:
            tell_configuration(settings, Records(taken.runtime_dir))
        return shell.run()
    except OverBudgetError:
        return EXIT_FAILED
    except GroundLostError:
        raise
    except Exception as error:  # noqa: BLE001 - the one catch-all: whoever survives starts a successor
        message = f"the launcher crashed: {type(error).__name__}: {error}"
        said = Say(Severity.CRITICAL, "launcher_crashed", message, LAUNCHER)
        Records(taken.runtime_dir).say(said, traceback=traceback.format_exc())
        return EXIT_FAILED


def _process_control(taken: Ground, drop_inherited: Callable[[], None]) -> ProcessControl:
    if sys.platform != "linux" or taken.portable:
        from supervisor.portable import PortableControl  # noqa: PLC0415 - psutil, which the other one does without

        return PortableControl()
    from supervisor.posix import PosixControl  # noqa: PLC0415 - exists on Linux alone

    return PosixControl(drop_inherited)


def _with_pinned_config(settings: Settings, taken: Ground) -> Settings:
    """Have every process of this run read the configuration that was checked, from tmpfs.

    A file that is edited, damaged or on a stalled disk meanwhile must not keep a process from being restarted, or a
    successor of this launcher from starting.
    """
    if settings.config is None:
        return settings
    pinned = os.path.join(taken.runtime_dir, paths.CONFIG_FILE)
    paths.write_atomically(pinned, settings.config, sync=False)
    return replace(settings, config_path=pinned)
