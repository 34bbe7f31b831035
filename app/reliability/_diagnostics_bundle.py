"""What is in a diagnostics bundle and how it is sealed: rendered, redacted, bounded, hashed, zipped, scanned, named."""

import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from actors.runtime.redaction import Redactor
from protocol.errors import ErrorCode, LocalError
from protocol.limits import MIB

ENTRY_BYTES_MAX: Final = 4 * MIB
BUNDLE_BYTES_MAX: Final = 48 * MIB
"""Of all entries together, before they are compressed."""
ENTRIES_MAX: Final = 300
MANIFEST: Final = "manifest.json"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON values, one a line; of too many the last are kept."""

    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Text:
    """Text; of too much the end is kept, in whole lines."""

    text: str


Content = Document | Lines | Text


@dataclass(frozen=True, slots=True)
class Failure:
    """What is missing, and why."""

    what: str
    why: str


class Findings:
    """What one collector has found so far. It may be left over: after `close` nothing more is taken.

    Attributes:
        notes: what it could not find.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.notes: list[str] = []
        self._entries: list[tuple[str, Content]] = []
        self._taken: list[tuple[str, Content]] | None = None

    def add(self, name: str, content: Content) -> None:
        """Put an entry called `name` into the bundle."""
        self._entries.append((name, content))

    def note(self, text: str) -> None:
        """Say that something is missing."""
        if self._taken is None:
            self.notes.append(text)

    def close(self) -> None:
        """Take what there is."""
        if self._taken is None:
            self._taken = list(self._entries)

    def taken(self) -> list[tuple[str, Content]]:
        """Return what was there when it was closed."""
        return self._taken or []


@dataclass(frozen=True, slots=True)
class Sealed:
    """A finished zip: its size, its entries, and what was left out at last."""

    bytes: int
    entries: int
    failures: tuple[Failure, ...]


def seal(
    path: str, entries: Iterable[tuple[str, Content]], redactor: Redactor, failures: Sequence[Failure], at: datetime
) -> Sealed:
    """Write the bundle and give it its name, unless a known secret is in it.

    Raises:
        LocalError: a known secret is in it; nothing is left.
        OSError: it cannot be written; nothing is left.
    """
    from actors.runtime.version import VERSION

    rendered, left_out = _render(entries, redactor)
    listed = [{"name": name, "bytes": len(data), "sha256": _sha256(data)} for name, data in rendered.items()]
    manifest = {
        "format": FORMAT,
        "created": at.isoformat(timespec="seconds"),
        "version": VERSION,
        "redactions": redactor.count,
        "not_collected": [asdict(failure) for failure in (*failures, *left_out)],
        "entries": listed,
    }
    rendered[MANIFEST] = _json(redactor.value(manifest), indent=1)
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with open(descriptor, "w+b") as file:
            _write_zip(file, rendered, at)
            file.flush()
            os.fsync(file.fileno())
            _refuse_leaks(file, redactor)
            size_bytes = os.fstat(file.fileno()).st_size
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return Sealed(size_bytes, len(rendered), tuple(left_out))


def _render(entries: Iterable[tuple[str, Content]], redactor: Redactor) -> tuple[dict[str, bytes], list[Failure]]:
    """Return the bytes of each entry, redacted and within the bounds, and what had no room."""
    rendered: dict[str, bytes] = {}
    left_out: list[Failure] = []
    left_bytes = BUNDLE_BYTES_MAX
    for name, content in entries:
        shown_name = redactor.text(name).replace("<", "").replace(">", "")
        bound_bytes = min(ENTRY_BYTES_MAX, left_bytes)
        data, is_whole = _bytes_of(content, redactor, bound_bytes)
        if data is None or len(rendered) >= ENTRIES_MAX:
            left_out.append(Failure(shown_name, "there is no room for it"))
            continue
        if not is_whole:
            left_out.append(Failure(shown_name, f"only its last {len(data)} bytes are here"))
        while shown_name in rendered:
            shown_name += "_"
        rendered[shown_name] = data
        left_bytes -= len(data)
    return rendered, left_out


def _bytes_of(content: Content, redactor: Redactor, bytes_max: int) -> tuple[bytes | None, bool]:
    """Return an entry's bytes, None if they cannot be within bounds, and whether they are all of it."""
    match content:
        case Document(value):
            data = _json(redactor.value(value), indent=1)
            return (data, True) if len(data) <= bytes_max else (None, False)
        case Lines(values):
            lines: list[bytes] = []
            for value in reversed(values):
                line = _json(redactor.value(value))
                bytes_max -= len(line)
                if bytes_max < 0:
                    return b"".join(reversed(lines)), False
                lines.append(line)
            return b"".join(reversed(lines)), True
        case Text(text):
            data = redactor.text(text).encode("utf-8", "replace")
            if len(data) <= bytes_max:
                return data, True
            return data[len(data) - bytes_max :].partition(b"\n")[2], False


def _json(value: Any, indent: int | None = None) -> bytes:
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, default=str)
    return text.encode("utf-8", "replace") + b"\n"


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _write_zip(file: Any, rendered: dict[str, bytes], at: datetime) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in rendered.items():
            about = zipfile.ZipInfo(name, at.timetuple()[:6])
            about.compress_type = zipfile.ZIP_DEFLATED
            about.external_attr = 0o600 << 16
            archive.writestr(about, data)


def _refuse_leaks(file: Any, redactor: Redactor) -> None:
    """Read the finished zip once more as its receiver will.

    Raises:
        LocalError: a known secret is in it.
    """
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        for about in archive.infolist():
            if redactor.leaks(archive.read(about).decode("utf-8", "replace")) or redactor.leaks(about.filename):
                raise LocalError(
                    ErrorCode.FAILED,
                    f"a secret of the configuration would be in {redactor.text(about.filename)}: no bundle was made",
                    "This is a defect of ours, or the secret is a word as common as a field's name; please report it.",
                )
