"""The launcher's command line.

What is usual is read without argparse, which would stay in the launcher and so in the memory of all that it forks: one
MiB and more. Whatever is not usual (help, an abbreviation, a mistake) is argparse's, whose word counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.runtime import paths


@dataclass(slots=True)
class Options:
    """What the launcher is told.

    Attributes:
        config: configuration file, if one was named.
        data_dir: data directory, if one was named.
        portable: whether to use the portable ports.
        successor: whether a survivor has started it.
        command: what to supervise besides the system.
    """

    config: str | None = None
    data_dir: str | None = None
    portable: bool = False
    successor: bool = False
    command: Sequence[str] = ()


def parse(argv: Sequence[str]) -> Options:
    """Return what `argv`, without the program's name, says; exits with help or a usage error where it says no such."""
    return _usual(argv) or _unusual(argv)


def _usual(argv: Sequence[str]) -> Options | None:
    """Return the meaning of an `argv` of whole options, each with its value; None if there is anything else in it."""
    options = Options()
    words = iter(argv)
    for word in words:
        match word:
            case "--portable":
                options.portable = True
            case "--successor":
                options.successor = True
            case "--config" | "--data-dir":
                value = next(words, "")
                if not value or value.startswith("-"):
                    return None
                setattr(options, word[2:].replace("-", "_"), value)
            case "--":
                options.command = list(words)
                return options if options.command else None
            case _:
                return None
    return options


def _unusual(argv: Sequence[str]) -> Options:
    import argparse  # noqa: PLC0415 - see above

    parser = argparse.ArgumentParser(prog="launcher.py", description="Start the system and keep it running.")
    config = f"configuration (default: {paths.CONFIG_FILE} in or beside the data directory)"
    parser.add_argument("--config", metavar="FILE", help=config)
    data = f"data directory (default: ${paths.DATA_DIR_VARIABLE}, else ./data)"
    parser.add_argument("--data-dir", metavar="DIR", help=data)
    portable = "exec, psutil and TCP instead of fork, pidfd and local sockets"
    parser.add_argument("--portable", action="store_true", help=portable)
    parser.add_argument("--successor", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="a program to supervise, as `main`")
    return Options(**vars(parser.parse_args(argv)))
