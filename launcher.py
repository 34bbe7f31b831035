"""`python launcher.py`: starts everything and keeps it running. The composition root: what is supervised stands here.

It opens no ZeroMQ socket and no database, and starts no thread: so it can fork, and there is little that it can die of.
"""

import os
import sys
import time
from typing import Any

STARTED_AT = time.monotonic()
SOURCE_ROOT = os.path.dirname(os.path.abspath(__file__))
if SOURCE_ROOT not in sys.path:  # so it is under -P, which keeps a host's own modules from shadowing ours
    sys.path.insert(0, SOURCE_ROOT)

from actors.checkpointer.config import CheckpointsConfig  # noqa: E402
from actors.event_logger.config import EventLoggerConfig, EventsConfig  # noqa: E402
from actors.health_monitor.config import HealthConfig  # noqa: E402
from actors.runtime import paths  # noqa: E402
from actors.runtime.config import ConfigFile, SupervisionConfig  # noqa: E402
from actors.runtime.liveness import BROKER_SLOT, FIRST_ACTOR_SLOT, WATCHDOG_SLOT, ProcessKind  # noqa: E402
from actors.runtime.process import TITLE_PREFIX  # noqa: E402
from actors.runtime.programs import MAIN, ProgramSpec, check_together, parse_programs  # noqa: E402
from actors.watchdog.config import WatchdogConfig  # noqa: E402
from broker.config import BrokerConfig  # noqa: E402
from protocol import names  # noqa: E402
from protocol.errors import ErrorCode, LocalError  # noqa: E402
from supervisor.launch import run  # noqa: E402
from supervisor.options import Options, parse  # noqa: E402
from supervisor.settings import Definition, Settings  # noqa: E402

ACTORS = (names.EVENT_LOGGER, names.HEALTH_MONITOR, names.CHECKPOINTER)
"""Every actor but the watchdog, in the order of starting; a new one is added here."""

SECTIONS = {
    "supervision": SupervisionConfig,
    "broker": BrokerConfig,
    "event_logger": EventLoggerConfig,
    "events": EventsConfig,
    "health": HealthConfig,
    "checkpoints": CheckpointsConfig,
    "watchdog": WatchdogConfig,
}
"""The tables that reliability.toml may have; all are checked before anything is started."""


def definitions() -> tuple[Definition, ...]:
    """Return what is supervised, in the order of starting. A stop takes the actors from the end, the broker last."""
    count = len(ACTORS)
    broker = Definition(names.BROKER, ProcessKind.BROKER, "broker.__main__", BROKER_SLOT, stop_rank=count + 1)
    watchdog = Definition(
        names.WATCHDOG, ProcessKind.WATCHDOG, "actors.watchdog.__main__", WATCHDOG_SLOT, stop_rank=count
    )
    actors = [
        Definition(name, ProcessKind.ACTOR, f"actors.{name}.__main__", FIRST_ACTOR_SLOT + place, count - 1 - place)
        for place, name in enumerate(ACTORS)
    ]
    return broker, watchdog, *actors


def main(argv: list[str] | None = None) -> int:
    """Run the launcher and return its exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        settings = _settings(options)
        os.umask(0o077)
        _show_role()
        return run(settings)
    except LocalError as error:
        if not (options.successor and error.code == ErrorCode.LOCKED):
            print(f"launcher: {error.message}. {error.hint}".rstrip(), file=sys.stderr)  # noqa: T201 - its one line
        return error.exit_code


def _config_path(given: str | None, data_dir: str) -> str | None:
    """Return the configuration file to read. The default does not hang on the working directory, but on DATA."""
    if given is not None:
        return os.path.abspath(given)
    for directory in (data_dir, os.path.dirname(data_dir)):
        path = os.path.join(directory, paths.CONFIG_FILE)
        if os.path.exists(path):
            return path
    return None


def _settings(options: Options) -> Settings:
    """Return the settings, the whole configuration being checked.

    Raises:
        LocalError: it names what is wrong.
    """
    data_dir = paths.data_directory(options.data_dir)
    path = _config_path(options.config, data_dir)
    config = ConfigFile.load(path)
    programs = parse_programs(config.table("program"), os.path.dirname(path or data_dir))
    if options.command:
        programs = (*programs, ProgramSpec(MAIN, tuple(options.command), os.getcwd()))
        check_together(programs)
    sections: dict[str, Any] = {name: config.section(name, kind) for name, kind in SECTIONS.items()}
    config.finish()
    return Settings(
        data_dir=data_dir,
        config=None if path is None else _content(path),
        config_path=path,
        portable=options.portable or sys.platform != "linux",
        successor=options.successor,
        supervision=sections["supervision"],
        evidence_files_max=sections["watchdog"].evidence_files_max,
        definitions=definitions(),
        started_at=STARTED_AT,
        sections=sections,
        programs=programs,
    )


def _content(path: str) -> bytes:
    with open(path, "rb") as file:  # not pathlib, which this process needs for nothing else, and its forks neither
        return file.read()


def _show_role() -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:  # only cosmetic
        return
    setproctitle(f"{TITLE_PREFIX}{names.LAUNCHER}")


if __name__ == "__main__":
    sys.exit(main())
