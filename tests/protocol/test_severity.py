"""Levels by name, alias and range."""

import pytest

from protocol.severity import Severity, parse_severity, parse_severity_range


@pytest.mark.parametrize(
    ("text", "level"),
    [("ERROR", Severity.ERROR), ("warning", Severity.WARN), (" notice ", Severity.NOTICE), ("crit", Severity.CRITICAL)],
)
def test_a_level_has_a_name_in_any_case_and_syslog_aliases(text: str, level: Severity) -> None:
    assert parse_severity(text) is level


def test_an_unknown_level_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ValueError, match="'LOUD' is no level; levels are TRACE, DEBUG"):
        parse_severity("LOUD")


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("ERROR", Severity.ERROR, Severity.FATAL),
        ("info..warn", Severity.INFO, Severity.WARN),
        ("WARN..INFO", Severity.INFO, Severity.WARN),
        ("..INFO", Severity.TRACE, Severity.INFO),
        ("ERROR..", Severity.ERROR, Severity.FATAL),
    ],
)
def test_a_range_takes_both_ends_in_either_order(text: str, low: Severity, high: Severity) -> None:
    assert parse_severity_range(text) == (low, high)
