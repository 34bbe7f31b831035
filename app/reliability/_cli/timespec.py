"""Times as people write them (``-S``, ``-U``), after systemd.time(7). Pure: the present is an argument.

=========================== ======================================================
form                        meaning
=========================== ======================================================
2026-11-01 10:00:30         local time; seconds, minutes or the whole time may be left out
10:00                       today at this time
now, today, yesterday,      the present moment; midnight of that day
tomorrow
-1h30min, 2 days ago, +5s   before or after now
@1798790400                 seconds since 1970, UTC
2026-11-01T10:00:30.5Z      RFC 3339, with Z or an offset
=========================== ======================================================
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS_S: Final = {
    ("ms", "msec"): 0.001,
    ("", "s", "sec", "second", "seconds"): 1,
    ("m", "min", "minute", "minutes"): 60,
    ("h", "hr", "hour", "hours"): 3600,
    ("d", "day", "days"): 86400,
    ("w", "week", "weeks"): 7 * 86400,
    ("M", "month", "months"): 30.44 * 86400,
    ("y", "year", "years"): 365.25 * 86400,
}
_UNIT_S: Final = {name: seconds for names, seconds in _UNITS_S.items() for name in names}
_PART: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_CLOCK: Final = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?$")
_DAYS: Final = {"today": 0, "yesterday": -1, "tomorrow": 1}
_EXAMPLES: Final = "try '2026-11-01 10:00', '10:00', 'yesterday', '-1h', '2 days ago' or '@1798790400'"


def parse_time(text: str, now: datetime) -> datetime:
    """Return the moment that `text` names, in UTC.

    Args:
        text: one of the forms above; times without an offset are of the machine's time zone.
        now: the present moment, with a time zone.

    Raises:
        ValueError: none of the forms; the message gives examples.
    """
    text = text.strip()
    try:
        return _parse(text, now).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no time; {_EXAMPLES}") from None


def _parse(text: str, now: datetime) -> datetime:
    """Return the moment; a naive one is local time, which only `astimezone` resolves rightly across a summer time."""
    if text == "now":
        return now
    local_midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if text in _DAYS:
        return local_midnight + timedelta(days=_DAYS[text])
    if text.startswith("@"):
        return datetime.fromtimestamp(float(text[1:]), UTC)
    if text.startswith(("-", "+")):
        return now + (1 if text[0] == "+" else -1) * _parse_span(text[1:])
    if text.endswith(" ago"):
        return now - _parse_span(text.removesuffix(" ago"))
    if _CLOCK.match(text):
        return datetime.fromisoformat(f"{local_midnight:%Y-%m-%d} {text.zfill(5) if text.count(':') == 1 else text}")
    return datetime.fromisoformat(text)


def _parse_span(text: str) -> timedelta:
    """Return the length of ``1h 30min``; a bare number is seconds."""
    seconds, position = 0.0, 0
    text = text.rstrip()
    while position < len(text) or position == 0:
        part = _PART.match(text, position)
        if part is None:
            raise ValueError(text)
        number, unit = part.groups()
        if unit not in _UNIT_S:
            raise ValueError(text)
        seconds += float(number) * _UNIT_S[unit]
        position = part.end()
    return timedelta(seconds=seconds)


def local_time(timestamp: str) -> str:
    """Return an RFC 3339 time as people read it: local, to the second; as it stands if it is none."""
    try:
        return f"{datetime.fromisoformat(timestamp).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return timestamp
