"""`relctl attach NAME`: what a program prints, as it prints it; from its files, so it works with everything dead."""

import sys
from typing import Final, NoReturn

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.following import Follower
from app.reliability._cli.programs import output_of, require_program
from app.reliability._cli.session import Session

LINES_DEFAULT: Final = 10
INTERVAL_S: Final = 0.05


@click.command(cls=RelctlCommand, short_help="Show what a program prints, live.")
@click.argument("name")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    metavar="N",
    default=LINES_DEFAULT,
    show_default=True,
    help="Begin with the last N lines.",
)
@click.option("--no-follow", is_flag=True, help="Show these, and end.")
@pass_session
def attach(session: Session, name: str, lines: int, no_follow: bool) -> None:
    """Show the output of the program NAME as it comes, across its restarts, until Ctrl-C. The program goes on.

    Works from files alone, whoever is dead. `relctl logs NAME` shows the same as events, with times.
    """
    require_program(session, name)
    follower, printer = Follower(output_of(session, name)), Printer(session, name)
    try:
        printer.write(b"".join(follower.last_lines(lines)))
        if not no_follow:
            _follow(session, follower, printer)
        printer.end()
    finally:
        follower.close()


def _follow(session: Session, follower: Follower, printer: "Printer") -> NoReturn:
    while True:
        show_new(follower, printer)
        session.ports.sleep(INTERVAL_S)


def show_new(follower: Follower, printer: "Printer") -> None:
    """Show what has come since."""
    lives = follower.lives
    for data in follower.read():
        if follower.lives != lives:
            lives = follower.lives
            printer.new_life()
        printer.write(data)


class Printer:
    """Writes output as it stands for people, and one JSON object a line for programs."""

    def __init__(self, session: Session, name: str) -> None:
        """Write the output of `name`."""
        self._output = session.output
        self._name = name
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Write what the program wrote."""
        if not self._output.json:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line)

    def new_life(self) -> None:
        """Tell people that another life begins."""
        self.end()
        self._output.note(f"--- {self._name} was restarted ---")

    def end(self) -> None:
        """Write what has no end."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        self._output.line({"name": self._name, "line": line.decode("utf-8", "replace")})
