"""Putting a service manager's files in place: all of them or none, and never over what a person has written."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from actors.runtime.paths import sync_directory
from protocol.errors import ErrorCode, LocalError

_KEPT_MAX: Final = 1000
_BYTES_MAX: Final = 1024 * 1024


def read(path: str) -> str | None:
    """Return the text at `path`; None if there is nothing. A link is no file of ours, whatever it leads to.

    Raises:
        LocalError: it cannot be read.
    """
    try:
        if os.path.islink(path):
            return f"a link to {os.readlink(path)}"
        with open(path, "rb") as file:
            return _decoded(file.read(_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LocalError(ErrorCode.FAILED, f"{path} cannot be read: {error.strerror}", "") from error


@dataclass(frozen=True, slots=True)
class Undo:
    """How it was before: for each path its text, or None."""

    before: Mapping[str, str | None]

    def __call__(self) -> None:
        """Put everything back."""
        for path, text in self.before.items():
            if text is None:
                _unlink(path)
        write({path: text for path, text in self.before.items() if text is not None})


def write(texts: Mapping[str, str]) -> None:
    """Put every text at its path, durably: first all beside their places, then all into them.

    Raises:
        LocalError: nothing is changed but for directories that were made.
    """
    staged: dict[str, str] = {}
    path = ""
    try:
        for path, text in texts.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.{os.getpid()}.tmp"
            staged[temporary] = path
            with open(temporary, "wb", opener=_open_new) as file:
                file.write(_encoded(path, text))
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in list(staged.items()):
            os.replace(temporary, path)
            del staged[temporary]
        for directory in {os.path.dirname(path) for path in texts}:
            if os.name == "posix":
                sync_directory(directory)
    except OSError as error:
        hint = "Make its directory writable, or see what is to be written with --print."
        raise LocalError(ErrorCode.FAILED, f"{path} cannot be written: {error.strerror}", hint) from error
    finally:
        for temporary in staged:
            _unlink(temporary)


def keep(path: str) -> str:
    """Give what is at `path` another name beside it, under which no service manager reads it; returns that name.

    Raises:
        LocalError: it cannot be kept.
    """
    for number in range(1, _KEPT_MAX):
        kept = f"{path}.kept-{number}"
        if os.path.lexists(kept):
            continue
        try:
            os.rename(path, kept)
        except OSError as error:
            raise LocalError(ErrorCode.FAILED, f"{path} cannot be kept: {error.strerror}", "") from error
        return kept
    raise LocalError(ErrorCode.FAILED, f"there are {_KEPT_MAX} copies of {path}", "Remove some of them.")


def remove(paths: list[str]) -> None:
    """Remove files that may be gone.

    Raises:
        LocalError: one of them cannot be removed.
    """
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LocalError(ErrorCode.FAILED, f"{path} cannot be removed: {error.strerror}", "") from error


def _encoded(path: str, text: str) -> bytes:
    """Return a file's bytes. The Task Scheduler wants UTF-16."""
    if path.endswith(".xml"):
        return b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass")
    return text.encode("utf-8", "surrogateescape")


def _decoded(data: bytes) -> str:
    if data.startswith(b"\xff\xfe"):
        return data[2:].decode("utf-16-le", "replace")
    return data.decode("utf-8", "surrogateescape")


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
