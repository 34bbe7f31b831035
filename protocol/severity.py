"""How severe an event is: the names and numbers of OpenTelemetry's log data model."""

from enum import IntEnum
from typing import Final


class Severity(IntEnum):
    """A level; its value is `severity_number` of an event, its name `severity_text`. Higher is worse."""

    TRACE = 1
    DEBUG = 5
    INFO = 9
    NOTICE = 10
    WARN = 13
    ERROR = 17
    CRITICAL = 18
    FATAL = 21


_ALIASES: Final = {
    "WARNING": Severity.WARN,
    "ERR": Severity.ERROR,
    "CRIT": Severity.CRITICAL,
    "ALERT": Severity.CRITICAL,
    "EMERG": Severity.FATAL,
}

_LOGGING_LEVELS: Final = (
    (60, Severity.FATAL),
    (50, Severity.CRITICAL),
    (40, Severity.ERROR),
    (30, Severity.WARN),
    (25, Severity.NOTICE),
    (20, Severity.INFO),
    (10, Severity.DEBUG),
)


def parse_severity(text: str) -> Severity:
    """Return the level called `text`, in any case; syslog's names count too.

    Raises:
        ValueError: there is no such level; the message lists them.
    """
    name = text.strip().upper()
    found = _ALIASES.get(name) or Severity.__members__.get(name)
    if found is None:
        raise ValueError(f"{text!r} is no level; levels are {', '.join(Severity.__members__)}")
    return found


def parse_severity_range(text: str) -> tuple[Severity, Severity]:
    """Return lowest and highest level of `text`: ``LEVEL`` means it and worse, ``A..B`` both and all between.

    Either end of ``A..B`` may be left out, and they may stand in either order.

    Raises:
        ValueError: a level does not exist.
    """
    if ".." not in text:
        return parse_severity(text), Severity.FATAL
    first, _, second = text.partition("..")
    low = parse_severity(first) if first.strip() else Severity.TRACE
    high = parse_severity(second) if second.strip() else Severity.FATAL
    return min(low, high), max(low, high)


def severity_of_level(level: int) -> Severity:
    """Return what a level number of Python's `logging` means, where DEBUG is 10 and CRITICAL 50."""
    for least, severity in _LOGGING_LEVELS:
        if level >= least:
            return severity
    return Severity.TRACE
