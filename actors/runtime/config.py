"""reliability.toml: read once at start, parsed into frozen dataclasses; an unknown key is an error that names it.

Each actor keeps its own section's dataclass in its `config.py`; `[supervision]` is here because launcher, watchdog
and survivors share it.
"""

import tomllib
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from actors.runtime.verdict import BEATS_PER_HANG_TIMEOUT
from protocol.errors import ErrorCode, LocalError

Section = TypeVar("Section")


def bounded(default: float, low: float, high: float) -> Any:
    """Declare a number of a section with its default and the bounds it must keep."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, slots=True)
class SupervisionConfig:
    """`[supervision]`: for our own processes.

    Attributes:
        restart_max: charged restarts allowed within the period.
        restart_period_s: the rolling period.
        hang_timeout_s: silence of a process's own loop that counts as a hang.
        start_timeout_s: time a process has to become ready.
        stop_timeout_s: time a process has to leave after SIGTERM before SIGKILL.
        tick_s: how often every loop shows progress and looks around; see `survivor_tick_s`.
    """

    restart_max: int = bounded(3, 0, 10_000)
    restart_period_s: float = bounded(3600.0, 1.0, 7 * 86400.0)
    hang_timeout_s: float = bounded(5.0, 0.5, 3600.0)
    start_timeout_s: float = bounded(15.0, 0.5, 3600.0)
    stop_timeout_s: float = bounded(5.0, 0.1, 3600.0)
    tick_s: float = bounded(0.5, 0.02, 1.0)

    def survivor_tick_s(self, *, told_of_exits: bool) -> float:
        """Return how often those tick that nobody waits for: all but launcher and watchdog.

        Each wake-up of a process at rest costs half a millisecond. So whoever is told of the launcher's exit at once,
        and need not look for it, ticks half as often, as long as that is several times in a hang timeout.
        """
        if not told_of_exits:
            return self.tick_s
        return max(self.tick_s, min(2 * self.tick_s, self.hang_timeout_s / BEATS_PER_HANG_TIMEOUT))


class ConfigFile:
    """The tables of one configuration file; each section is taken once, and `finish` refuses what nobody took."""

    def __init__(self, tables: dict[str, Any], path: str) -> None:
        """Hold parsed TOML; `path` is for error messages."""
        self._tables = tables
        self._path = path
        self._taken: set[str] = set()

    @classmethod
    def load(cls, path: str | None) -> "ConfigFile":
        """Read `path`; None means defaults only.

        Raises:
            LocalError: unreadable or not TOML.
        """
        if path is None:
            return cls({}, "defaults")
        try:
            with open(path, "rb") as file:
                return cls(tomllib.load(file), path)
        except OSError as error:
            raise _error(path, f"cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _error(path, f"is not TOML: {error}") from None

    def has(self, name: str) -> bool:
        """Tell whether the file has a table, or key, called `name`."""
        return name in self._tables

    def table(self, name: str) -> Any:
        """Return what stands under `name`, as parsed, for somebody who checks it himself; an empty table without."""
        self._taken.add(name)
        return self._tables.get(name, {})

    def section(self, name: str, kind: type[Section]) -> Section:
        """Return section `name` as `kind`, a dataclass whose every field has a default.

        Raises:
            LocalError: an unknown key, a wrong type, or a number out of bounds; it names section and key.
        """
        self._taken.add(name)
        table = self._tables.get(name, {})
        if not isinstance(table, dict):
            raise _error(self._path, f"[{name}] is not a table")
        known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
        hints = get_type_hints(kind)
        values = {}
        for key, value in table.items():
            if key not in known:
                raise _error(self._path, f"unknown key {key!r} in [{name}]", f"Known keys: {', '.join(sorted(known))}.")
            values[key] = self._value(f"[{name}] {key}", value, hints[key], known[key])
        return kind(**values)

    def finish(self) -> None:
        """Refuse tables and keys that no part of the system knows.

        Raises:
            LocalError: naming the first of them.
        """
        for name in self._tables:
            if name not in self._taken:
                known = ", ".join(f"[{section}]" for section in sorted(self._taken))
                raise _error(self._path, f"unknown section or key {name!r}", f"This release knows {known}.")

    def _value(self, label: str, value: Any, hint: Any, declared: "Field[Any]") -> Any:
        if hint is float and type(value) is int:
            value = float(value)
        if get_origin(hint) is tuple:
            if isinstance(value, list) and all(type(item) is get_args(hint)[0] for item in value):
                return tuple(value)
            raise _error(self._path, f"{label} is not a list of {get_args(hint)[0].__name__}")
        expected = [item for item in (get_args(hint) or (hint,)) if item is not type(None)]
        if type(value) not in expected:
            raise _error(self._path, f"{label} is {value!r}, not {' or '.join(item.__name__ for item in expected)}")
        low, high = declared.metadata.get("low"), declared.metadata.get("high")
        if low is not None and not low <= value <= high:
            raise _error(self._path, f"{label} is {value}, outside {low:g} to {high:g}")
        if declared.default is MISSING and declared.default_factory is MISSING:
            raise TypeError(f"{label} is declared without a default")
        return value


def _error(path: str, problem: str, hint: str = "") -> LocalError:
    return LocalError(ErrorCode.CONFIGURATION, f"{path}: {problem}", hint)
