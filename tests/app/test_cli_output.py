"""How relctl speaks: colour on terminals only, tables that line up, figures that people can read."""

import io
import sys
from collections.abc import Callable

import pytest

from app.reliability._cli.output import Output, duration, printable, size


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Returns what makes standard output and error a terminal (in the test: before it, pytest puts its own there)."""

    def install() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return install


def test_a_terminal_gets_colour(terminal: Callable[[], Terminal]) -> None:
    terminal()
    assert Output().status("critical") == "\033[31mcritical\033[0m"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_can_forbid_colour(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    terminal()
    monkeypatch.setenv(variable, value)
    assert Output().status("critical") == "critical"


def test_an_option_can_forbid_colour(terminal: Callable[[], Terminal]) -> None:
    terminal()
    assert Output(no_color=True).status("critical") == "critical"


def test_no_colour_and_no_progress_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.progress("waiting")
    output.text(output.status("critical"))
    assert capsys.readouterr() == ("critical\n", "")


def test_progress_wipes_itself(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    output = Output()
    output.progress("waiting")
    output.progress("")
    assert screen.getvalue() == "\r\033[Kwaiting\r\033[K"


@pytest.mark.parametrize("output", [Output(quiet=True), Output(json=True)])
def test_programs_and_the_quiet_see_no_progress_and_no_notes(terminal: Callable[[], Terminal], output: Output) -> None:
    screen = terminal()
    output.progress("waiting")
    output.note("by the way")
    assert screen.getvalue() == ""


def test_json_is_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).document({"a": [1]})
    assert capsys.readouterr().out == '{"a": [1]}\n'


def test_json_is_indented_for_people(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    Output(json=True).document({"a": [1]})
    assert screen.getvalue() == '{\n  "a": [\n    1\n  ]\n}\n'


def test_a_table_lines_up_whatever_is_coloured(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    output = Output()
    output.table(("NAME", "STATE", "PID"), [("a", output.status("ready"), "1"), ("long", "x", "22")], right=("PID",))
    plain = screen.getvalue().replace("\033[1m", "").replace("\033[32m", "").replace("\033[0m", "")
    assert plain == "NAME  STATE  PID\na     ready    1\nlong  x       22\n"


def test_marks_do_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert [Output().mark(status) for status in ("ok", "warning", "critical", "unknown")] == ["+", "!", "x", "?"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0 ms"), (0.0234, "23 ms"), (4.24, "4.2 s"), (60, "1 min"), (185, "3 min 5 s"),
        (7380, "2 h 3 min"), (90_000, "1 d 1 h"), (864_000, "10 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (11 << 20, "11.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


def test_control_characters_become_visible() -> None:
    assert printable("a\x1b[2Jb\rc\u202ed\te") == "a\\x1b[2Jb\\rc\\u202ed\te"
    assert printable("Grüße") == "Grüße"
