"""What is installed, and how a file that was installed is known again.

The second line of each file is a seal: what was asked for, and a digest of all other lines. By it a later release knows
what it would write today (`stale` if that differs), and whether a person has changed the file since (`edited`).
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from protocol.errors import ErrorCode, LocalError

NAME_DEFAULT: Final = "relctl"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SEAL: Final = "relctl-seal "
_SEAL_LINE: Final = 1


class FileState(StrEnum):
    """How a file stands to what would be written."""

    MISSING = "missing"
    SAME = "same"
    STALE = "stale"
    EDITED = "edited"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Service:
    """What a person has asked for.

    Attributes:
        name: what the service manager calls it.
        data_dir: absolute data directory.
        config: absolute path of the configuration file, if one was named.
        portable: whether the portable ports are to be used.
        directory: where `command` runs.
        command: a program to supervise, as `main`; may be empty.
        path: PATH of the person, so that programs are found at boot that are found now.
        runtime_dir: RELCTL_RUNTIME_DIR of the person, if it is set.
        user: whose it is, as the Task Scheduler names people.
        at_login: it is to start when that one logs in, not at boot.
    """

    name: str
    data_dir: str
    config: str | None = None
    portable: bool = False
    directory: str | None = None
    command: tuple[str, ...] = ()
    path: str = ""
    runtime_dir: str | None = None
    user: str = ""
    at_login: bool = False

    def __post_init__(self) -> None:
        """Refuse what no service manager's file can hold.

        Raises:
            LocalError: it names the word.
        """
        check_name(self.name)
        for word in (self.data_dir, self.config, self.directory, *self.command, self.path, self.runtime_dir, self.user):
            if word is not None:
                check_word(word)

    def run_words(self) -> list[str]:
        """Return the arguments of relctl for the service itself."""
        words = ["--data-dir", self.data_dir, "service", "run"]
        if self.config is not None:
            words += ["--config", self.config]
        if self.portable:
            words.append("--portable")
        if self.directory is not None:
            words += ["--directory", self.directory]
        return [*words, "--", *self.command] if self.command else words

    def check_words(self) -> list[str]:
        """Return the arguments of relctl for the check of every minute."""
        return ["--data-dir", self.data_dir, "service", "check", "--name", self.name]

    def environment(self) -> dict[str, str]:
        """Return the variables that the service needs."""
        values = {"PATH": self.path, "RELCTL_RUNTIME_DIR": self.runtime_dir or ""}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class Release:
    """Where relctl is: an absolute interpreter, and the path of `entry.py`."""

    python: str
    entry: str

    def __post_init__(self) -> None:
        """Refuse what no service manager's file can hold.

        Raises:
            LocalError: it names the word.
        """
        check_word(self.python)
        check_word(self.entry)

    def command(self, words: list[str]) -> list[str]:
        """Return the whole command line."""
        return [self.python, "-P", self.entry, *words]


def check_name(name: str) -> None:
    """Raise a LocalError if `name` cannot be the name of a service."""
    if not _NAME.fullmatch(name):
        hint = "Use letters, digits, '-', '_' and '.', at most 64."
        raise LocalError(ErrorCode.USAGE, f"{name!r} cannot be the name of a service", hint)


def check_word(word: str) -> None:
    """Raise a LocalError if `word` has characters that a line of a file cannot hold."""
    try:
        word.encode()
    except UnicodeEncodeError:
        fit = False
    else:
        fit = word.isprintable()
    if not fit:
        message = f"{word!r} has characters that a service manager's file cannot hold"
        raise LocalError(ErrorCode.REFUSED, message, "Use names without control characters, in UTF-8.")


def seal(text: str, service: Service, opening: str, closing: str = "") -> str:
    """Return `text` with its seal as the second line, between `opening` and `closing`, which make it a comment."""
    lines = text.split("\n")
    content = json.dumps({"service": asdict(service), "sha256": _digest(lines)}, sort_keys=True)
    shielded = content.replace("-", "\\u002d")  # two of them end a comment of XML
    lines.insert(_SEAL_LINE, f"{opening}{_SEAL}{shielded}{closing}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal says: what was asked for, and whether the file is still what was written."""

    service: Service
    intact: bool


def read_seal(text: str) -> Seal | None:
    """Return the seal of a file's text; None if it is no file of ours."""
    lines = text.replace("\r\n", "\n").split("\n")
    if len(lines) <= _SEAL_LINE or _SEAL not in lines[_SEAL_LINE]:
        return None
    line = lines.pop(_SEAL_LINE)
    try:
        values: Any = json.loads(line[line.index("{") : line.rindex("}") + 1])
        asked = values["service"]
        known = {name: asked[name] for name in Service.__slots__ if name in asked}
        service = Service(**known | {"command": tuple(asked["command"])})
        return Seal(service, values["sha256"] == _digest(lines))
    except (ValueError, KeyError, TypeError, LocalError):
        return None


def judge(found: str | None, wanted: str | None) -> FileState:
    """Return how a file's text, None if there is none, stands to what would be written."""
    if found is None:
        return FileState.MISSING
    if found == wanted:
        return FileState.SAME
    sealed = read_seal(found)
    if sealed is None:
        return FileState.FOREIGN
    return FileState.STALE if sealed.intact else FileState.EDITED


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
