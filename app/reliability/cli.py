"""relctl: how a person or a script asks the system how it is, and changes it.

Exit codes: `health` 0 ok, 1 warning, 2 critical, 3 unknown (its usage errors too). The others 0 done, 1 failed,
2 usage, 10 broker unreachable, 11 another instance or locked, 12 integrity failure, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from app.reliability._cli.commands import RelctlGroup, command_name, global_options
from app.reliability._cli.output import Output
from app.reliability._cli.session import Ports
from protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ErrorCode, LocalError, ReliabilityError

HEALTH_UNKNOWN: Final = 3


def print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """Print the version and leave."""
    if value:
        from actors.runtime.version import VERSION

        click.echo(f"relctl {VERSION}")
        context.exit()


VERSION_OPTION: Final = click.Option(
    ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Show the version."
)

relctl: Final = RelctlGroup(
    name="relctl",
    help="Look after the system that keeps your application alive.",
    epilog="`relctl COMMAND --help` tells more. The global options may stand before or after COMMAND.",
    params=[*global_options(), VERSION_OPTION],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND [ARGUMENTS]...",
)


def main() -> NoReturn:
    """Run relctl on the process's own command line."""
    if "_RELCTL_COMPLETE" in os.environ:
        relctl.main(prog_name="relctl")  # click's shell completion
    code = run(sys.argv[1:])
    # All is said (click flushes what it writes) and closed. Python's own way out, module by module, would take a fifth
    # of the time of `relctl health`.
    os._exit(code)


def run(arguments: Sequence[str], ports: Ports | None = None) -> int:
    """Run one command line; returns the exit code. Tests put fakes into `ports`."""
    _prepare_streams()
    health = command_name(arguments) == "health"
    output = Output(json="--json" in arguments, no_color="--no-color" in arguments)
    try:
        with relctl.make_context("relctl", list(arguments), obj=ports) as context:
            result: Any = relctl.invoke(context)
        return result if isinstance(result, int) else EXIT_OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        output.error(_usage_error(error))
        code = EXIT_USAGE
    except ReliabilityError as error:
        output.error(error)
        code = error.exit_code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)  # behind the ^C that the terminal shows
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_OK  # whoever read has seen enough
    except OSError as error:  # the world's fault, not ours: a full disk, a directory that may not be read
        output.error(LocalError(ErrorCode.FAILED, str(error), ""))
        code = EXIT_FAILED
    except Exception:
        if not health:
            raise
        # To a monitoring system a defect of ours is "unknown"; Python's own exit code, 1, would tell it "warning".
        sys.excepthook(*sys.exc_info())
        code = EXIT_FAILED
    return HEALTH_UNKNOWN if health else code


def _prepare_streams() -> None:
    """Have both streams take every character; one that was closed before the start takes it to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _usage_error(error: click.ClickException) -> LocalError:
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path} --help` shows how." if context else "`relctl --help` shows how."
    return LocalError(ErrorCode.USAGE, error.format_message(), hint)


if __name__ == "__main__":
    main()
