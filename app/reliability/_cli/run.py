"""`relctl run -- COMMAND...`: have a running system supervise one more program, until the system is stopped."""

import os
import re
import shutil
from typing import TYPE_CHECKING, Any, Final

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.programs import known_programs, output_of, state_of
from app.reliability._cli.session import Session
from protocol.errors import EXIT_FAILED, EXIT_OK, ErrorCode, LocalError, ReliabilityError, RemoteError

if TYPE_CHECKING:
    from app.reliability._cli.following import Follower

RUN_TIMEOUT_S: Final = 10.0
INTERVAL_S: Final = 0.05
NAMES_TRIED_MAX: Final = 100
_SIGNALLED: Final = 128
"""As a shell has it: the exit code of a program that a signal killed is this and the signal's number."""
_ENDED: Final = re.compile(r"(exited with code|killed by signal) (\d+)")
_OVER: Final = frozenset({"stopped", "quarantined"})


def _parse_environment(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    wrong = next((item for item in value if "=" not in item or item.startswith("=")), None)
    if wrong is not None:
        raise click.BadParameter(f"{wrong!r} is not KEY=VALUE")
    return dict(item.split("=", 1) for item in value)


@click.command(
    cls=RelctlCommand,
    short_help="Run a command under supervision.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--name", metavar="NAME", help="What to call it [default: after the command].")
@click.option(
    "--restart",
    type=click.Choice(["on-failure", "always", "never"]),
    default="on-failure",
    show_default=True,
    help="What follows when it ends by itself.",
)
@click.option(
    "--ready",
    type=click.Choice(["started", "notify"]),
    default="started",
    show_default=True,
    help="What makes it ready: that it runs, or its own word (sd_notify).",
)
@click.option("--after", multiple=True, metavar="X", help="Start it when program X is ready; may be repeated.")
@click.option("--directory", type=click.Path(file_okay=False), metavar="D", help="Run it there [default: here].")
@click.option(
    "--env", multiple=True, callback=_parse_environment, metavar="K=V", help="A variable for it; may be repeated."
)
@click.option("--wait", is_flag=True, help="Show its output, and end with its exit code when it has ended.")
@click.argument("command", nargs=-1, required=True, metavar="COMMAND...", type=click.UNPROCESSED)
@pass_session
def run(session: Session, /, name: str | None, wait: bool, command: tuple[str, ...], **options: Any) -> int:
    """Run COMMAND under supervision: it outlives this shell, and is restarted when it fails or hangs.

    It is forgotten when the system is stopped; what is to be there at every start stands as [program.NAME] in
    reliability.toml. `relctl attach NAME` shows its output, `relctl why NAME` what became of it.

    With --wait the exit code is COMMAND's own, 128 and the signal's number if a signal killed it.
    """
    fields = _fields(session, name, command, **options)
    follower = _begin_to_follow(session, fields["name"]) if wait and name is not None else None
    answer = _ask(session, fields, free_to_choose=name is None)
    if not wait:
        _report(session, answer)
        return EXIT_OK
    from app.reliability._cli.following import Follower

    return _wait(session, answer["name"], follower or Follower(output_of(session, answer["name"])), answer)


def _fields(
    session: Session,
    name: str | None,
    command: tuple[str, ...],
    restart: str,
    ready: str,
    after: tuple[str, ...],
    directory: str | None,
    env: dict[str, str],
) -> dict[str, Any]:
    """Return the request's program, checked as the launcher will.

    Raises:
        LocalError: it names what is wrong.
    """
    from dataclasses import replace

    from actors.runtime.programs import from_fields, to_fields

    where = os.path.abspath(directory or os.curdir)
    if not os.path.isdir(where):
        raise LocalError(ErrorCode.USAGE, f"{where} is no directory", "")
    word = command[0]
    # The launcher's PATH is that of its own start. A path with a slash is one from the program's directory.
    found = shutil.which(word) if os.sep not in word else None
    known = known_programs(session)
    fields = {
        "name": name or free_name(word, known),
        "command": [os.path.abspath(found) if found else word, *command[1:]],
        "directory": where,
        "environment": env,
        "after": list(after),
        "restart": restart,
        "ready": ready,
    }
    return to_fields(replace(from_fields(fields), transient=True))


def free_name(word: str, known: list[str]) -> str:
    """Return what a command is called if nobody says so: after its file, with a number if that name is taken."""
    from actors.runtime.programs import NAME_LENGTH_MAX, is_program_name

    stem = re.sub(r"[^a-z0-9_-]+", "-", os.path.basename(word).lower()).strip("-_")[: NAME_LENGTH_MAX - 4] or "program"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, NAMES_TRIED_MAX))
    return next((name for name in names if is_program_name(name) and name not in known), f"{stem}-{os.getpid() % 1000}")


def _ask(session: Session, fields: dict[str, Any], *, free_to_choose: bool) -> dict[str, Any]:
    """Have the launcher run it; under another name if the one that was chosen has been taken meanwhile."""
    info = session.run_info()
    hint = "Start it with `relctl up --detach`."
    if info is None:
        raise LocalError(ErrorCode.NOT_RUNNING, f"nothing runs on {session.data_dir}", hint)
    try:
        return session.ports.call_launcher(info, "run", session.timeout_s(RUN_TIMEOUT_S), program=fields)
    except RemoteError as error:
        taken = free_to_choose and error.code == ErrorCode.USAGE and state_of(session, fields["name"]) is not None
        if not taken:
            raise
        other = free_name(fields["name"], [*known_programs(session), fields["name"]])
        return _ask(session, fields | {"name": other}, free_to_choose=False)
    except ReliabilityError as error:
        if error.code != ErrorCode.NOT_RUNNING:
            raise
        raise LocalError(ErrorCode.NOT_RUNNING, f"nothing runs on {session.data_dir}", hint) from None


def _report(session: Session, answer: dict[str, Any]) -> None:
    name, state = answer["name"], answer["state"]
    if session.output.json:
        session.output.document({"name": name, "state": state})
        return
    session.output.text(f"{name} is {session.output.status(state)}. `relctl attach {name}` shows its output.")


def _begin_to_follow(session: Session, name: str) -> "Follower":
    """Return a follower at the present end of what a program of this name has written so far."""
    from app.reliability._cli.following import Follower

    follower = Follower(output_of(session, name))
    follower.last_lines(0)
    return follower


def _wait(session: Session, name: str, follower: "Follower", answer: dict[str, Any]) -> int:
    """Show the output until the program has ended for good; return its exit code."""
    from app.reliability._cli.attach import Printer, show_new

    printer: Printer = Printer(session, name)
    incarnation = int(answer.get("incarnation", 0))
    session.output.note(f"{name} is {answer['state']}.")
    try:
        while True:
            record = state_of(session, name)
            ended = record is None or (record.state in _OVER and not _waits(record, incarnation))
            show_new(follower, printer)
            if ended:
                break
            session.ports.sleep(INTERVAL_S)
        printer.end()
    finally:
        follower.close()
    if record is None:
        raise LocalError(ErrorCode.FAILED, f"{name} is not supervised any more", "See `relctl ps`.")
    if record.state == "quarantined":
        session.output.note(f"{name} is quarantined: {record.reason}; `relctl why {name}` tells more.")
    return exit_code_of(record.reason)


def _waits(record: Any, incarnation: int) -> bool:
    """Tell whether a program is stopped because its first start waits for others."""
    return bool(record.state == "stopped" and record.incarnation <= incarnation and record.reason.startswith("waits "))


def exit_code_of(reason: str) -> int:
    """Return what a shell would call the exit of a program that ended for `reason`; 1 if it was ended otherwise."""
    found = _ENDED.match(reason)
    if found is None:
        return EXIT_FAILED
    number = int(found.group(2))
    return number if found.group(1).startswith("exited") else _SIGNALLED + number
