"""-S and -U: every form of the table in the module's docstring, in a fixed time zone with a summer time."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from app.reliability._cli.timespec import parse_time

NOW = datetime(2026, 11, 23, 12, 30, 15, tzinfo=UTC)  # 13:30:15 in Berlin


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not hasattr(time, "tzset"):
        pytest.skip("the time zone of a process cannot be set here")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-01 10:00", "2026-11-01T09:00:00"),
        ("2026-11-01 10:00:30", "2026-11-01T09:00:30"),
        ("2026-07-01 10:00", "2026-07-01T08:00:00"),  # summer time then, though it is winter now
        ("2026-11-01", "2026-10-31T23:00:00"),
        ("10:00", "2026-11-23T09:00:00"),
        ("9:05", "2026-11-23T08:05:00"),
        ("10:00:30", "2026-11-23T09:00:30"),
        ("now", "2026-11-23T12:30:15"),
        ("today", "2026-11-22T23:00:00"),
        ("yesterday", "2026-11-21T23:00:00"),
        ("tomorrow", "2026-11-23T23:00:00"),
        ("-1h", "2026-11-23T11:30:15"),
        ("-1h30min", "2026-11-23T11:00:15"),
        ("-1h 30min", "2026-11-23T11:00:15"),
        ("-90", "2026-11-23T12:28:45"),
        ("+5s", "2026-11-23T12:30:20"),
        ("2 days ago", "2026-11-21T12:30:15"),
        ("1.5 h ago", "2026-11-23T11:00:15"),
        ("@1798790400", "2027-01-01T08:00:00"),
        ("2026-11-01T10:00:30.5Z", "2026-11-01T10:00:30.500000"),
        ("2026-11-01T10:00:30+02:00", "2026-11-01T08:00:30"),
    ],
)
def test_every_form_names_one_moment(text: str, expected: str) -> None:
    assert parse_time(text, NOW) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "soon", "-", "-1x", "ago", "5 ago x", "25:99", "2026-13-01", "@x", "@1e99", "-9e9y"]
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; try '2026-11-01 10:00'"):
        parse_time(text, NOW)
