"""The frame of every command: imported when asked for, with the global options before or after its name."""

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import click

from app.reliability._cli.output import Output
from app.reliability._cli.session import Ports, Session

P = ParamSpec("P")
R = TypeVar("R")

COMMANDS: Final = {
    "up": "up",
    "down": "down",
    "ensure": "ensure",
    "ps": "ps",
    "health": "health",
    "logs": "logs",
    "search": "logs",
    "emit": "emit",
    "checkpoint-info": "checkpoints",
    "checkpoint": "checkpoints",
    "restart-status": "restarts",
    "db-stats": "database",
    "maintenance": "database",
    "diagnostics": "diagnostics",
    "restart": "control",
    "stop": "control",
    "start": "control",
    "run": "run",
    "attach": "attach",
    "why": "why",
    "service": "service",
}
"""Where each command lives: a module beside this one, and in it an attribute of the command's name."""

_META: Final = "app.reliability.cli."


def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a global option that was given; the one nearer to the end of the line wins."""
    if value is not None:
        context.meta[f"{_META}{parameter.name}"] = value


def global_options() -> list[click.Parameter]:
    """Return the options that stand before a command's name as well as after it."""
    valued: dict[str, Any] = {"default": None, "expose_value": False, "callback": remember}
    flag: dict[str, Any] = {"is_flag": True, **valued}
    return [
        click.Option(
            ["--data-dir"], metavar="DIR", help="Data directory [default: RELCTL_DATA_DIR, else ./data].", **valued
        ),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="How long to wait.",
            **valued,
        ),
        click.Option(["--json"], help="Write JSON, errors too.", **flag),
        click.Option(["--no-color"], help="No colour, not even on a terminal (as NO_COLOR).", **flag),
        click.Option(["-q", "--quiet"], help="Say nothing but errors; the exit code tells.", **flag),
    ]


class RelctlCommand(click.Command):
    """One command, with the global options."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Add the global options behind the command's own."""
        keywords["params"] = [*(keywords.get("params") or []), *global_options()]
        super().__init__(*arguments, **keywords)


class RelctlGroup(click.Group):
    """All commands; none is imported before it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"app.reliability._cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is an error that names the nearest."""
        if args and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"There is no command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


def command_name(arguments: Sequence[str]) -> str | None:
    """Return the command that a command line names, also when it cannot be parsed."""
    words = iter(arguments)
    for word in words:
        if word in {"--data-dir", "--timeout"}:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def pass_session(function: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Call a command's function with its `Session`, made of the global options, and close it afterwards."""

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        session = _session(click.get_current_context())
        try:
            return function(session, *arguments, **keywords)
        finally:
            session.close()

    return call


def _session(context: click.Context) -> Session:
    from actors.runtime.paths import data_directory

    given = {name.removeprefix(_META): value for name, value in context.meta.items() if name.startswith(_META)}
    output = Output(json="json" in given, quiet="quiet" in given, no_color="no_color" in given)
    ports = context.find_object(Ports) or Ports()
    return Session(data_directory(given.get("data_dir")), given.get("timeout"), output, ports)
