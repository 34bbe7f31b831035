"""How relctl speaks: JSON for programs, tables and short paragraphs for people, colour on a terminal only."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

import click

from protocol.errors import ReliabilityError

KIB: Final = 1024
_COLUMN_GAP: Final = "  "
STATUS_COLORS: Final = {
    "ok": "green",
    "ready": "green",
    "warning": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "critical": "red",
    "hung": "red",
    "quarantined": "red",
    "unknown": "magenta",
    "stopped": "bright_black",
}
"""Colours of the words that tell how something is."""
_MARKS: Final = {"ok": "✓", "warning": "!", "critical": "✗", "unknown": "?"}
_MARKS_ASCII: Final = {"ok": "+", "warning": "!", "critical": "x", "unknown": "?"}


class Output:
    """Where a command's words go.

    Attributes:
        json: whether a program is reading: data as JSON, errors as JSON.
        quiet: whether people want to hear of errors only.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, no_color: bool = False) -> None:
        """Decide on colour: never if told so (--no-color, NO_COLOR), else on terminals."""
        self.json = json
        self.quiet = quiet
        self._no_color = no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"

    @property
    def terminal(self) -> bool:
        """Whether a person sees the standard output as it is written."""
        return sys.stdout.isatty()

    def document(self, value: Any) -> None:
        """Write one JSON document: a line, or indented on a terminal."""
        _write(sys.stdout, json.dumps(value, indent=2 if self.terminal else None))

    def line(self, value: Any) -> None:
        """Write one JSON value as one of several lines."""
        _write(sys.stdout, json.dumps(value, separators=(",", ":")))

    def text(self, text: str) -> None:
        """Write a paragraph for people."""
        if not self.quiet:
            _write(sys.stdout, text)

    def note(self, text: str) -> None:
        """Tell people something beside the result, on stderr."""
        if not self.quiet and not self.json:
            _write(sys.stderr, text)

    def progress(self, text: str) -> None:
        """Show on one line of a terminal what is being waited for; an empty text wipes it. Elsewhere nothing."""
        if not self.quiet and not self.json and sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    def error(self, error: ReliabilityError) -> None:
        """Say what went wrong and what to do, on stderr."""
        if self.json:
            report = {"code": error.code, "message": error.message, "hint": error.hint}
            _write(sys.stderr, json.dumps({"error": report}))
            return
        head = self._styled(sys.stderr, "relctl:", fg="red", bold=True)
        _write(sys.stderr, f"{head} {printable(error.message)}")
        if error.hint:
            _write(sys.stderr, f"        {printable(error.hint)}")

    def style(self, text: str, color: str | None = None, *, bold: bool = False) -> str:
        """Return `text` coloured for the standard output, or as it is where colour is off."""
        return self._styled(sys.stdout, text, fg=color, bold=bold)

    def status(self, word: str) -> str:
        """Return a status or state word in its colour."""
        return self.style(word, STATUS_COLORS.get(word))

    def mark(self, status: str) -> str:
        """Return the sign of a status, in its colour."""
        marks = _MARKS if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else _MARKS_ASCII
        return self.style(marks.get(status, "?"), STATUS_COLORS.get(status), bold=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        """Write a table; the columns named in `right` are aligned to the right. Cells may be coloured."""
        widths = [max(_width(row[index]) for row in (header, *rows)) for index in range(len(header))]
        lines = [self.style(_row(header, header, widths, right), bold=True)]
        lines += [_row(row, header, widths, right) for row in rows]
        self.text("\n".join(lines))

    def _styled(self, stream: TextIO, text: str, *, fg: str | None, bold: bool) -> str:
        if self._no_color or not stream.isatty() or not (fg or bold):
            return text
        return click.style(text, fg=fg, bold=bold or None)


def printable(text: str) -> str:
    """Return `text` with control characters made visible: what came in a message must not drive a terminal."""
    if text.isprintable():
        return text
    return "".join(
        item if item.isprintable() or item == "\t" else item.encode("unicode_escape").decode() for item in text
    )


def duration(seconds: float | None) -> str:
    """Return a length of time in at most two units: ``250 ms``, ``4.2 s``, ``3 min 5 s``, ``2 h 3 min``."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    raise AssertionError(f"{seconds} s has no unit")


def size(count: int | None) -> str:
    """Return a number of bytes in the unit that suits it."""
    if count is None:
        return "-"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < KIB:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= KIB
    return f"{number:.1f} TiB"


def _write(stream: TextIO, text: str) -> None:
    click.echo(text, file=stream, color=True)


def _width(cell: str) -> int:
    return len(click.unstyle(cell)) if "\033" in cell else len(cell)


def _row(cells: Sequence[str], header: Sequence[str], widths: Sequence[int], right: Sequence[str]) -> str:
    padded = []
    for cell, name, width in zip(cells, header, widths, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if name in right else cell + space)
    return _COLUMN_GAP.join(padded).rstrip()
