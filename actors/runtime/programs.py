"""Programs: what a user has supervised beside our own processes, as configuration, control requests and files tell it.

``programs.json`` in the runtime directory holds the set that the launcher supervises now: written before the first of
them is started and whenever the set changes, so that a successor launcher supervises exactly what stands there.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from actors.runtime.paths import write_atomically
from protocol.errors import ErrorCode, LocalError
from protocol.names import RESERVED_SERVICES

MAIN: Final = "main"
"""Name of the program that the launcher's command line gives."""
PROGRAMS_MAX: Final = 48
PROGRAMS_FILE: Final = "programs.json"
OUTPUT_DIR: Final = "programs"
OUTPUT_FILE: Final = "output.log"
OUTPUTS_KEPT: Final = 5
"""Outputs of former lives that are kept, as output.log.1 to output.log.5."""
NOTIFY_DIR: Final = "notify"
KEEPER_FILE: Final = "keeper"
WAKE_FILE: Final = "wake"
INVOCATION_VARIABLE: Final = "RELIABILITY_INVOCATION_ID"
PROGRAM_VARIABLE: Final = "RELIABILITY_PROGRAM"
NAME_LENGTH_MAX: Final = 32
COMMAND_BYTES_MAX: Final = 32 * 1024
"""So that a program fits one control request."""

_FIRST: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_REST: Final = _FIRST | frozenset("_-")
_MIB: Final = 1 << 20
_DAY_S: Final = 86400.0

Word = TypeVar("Word", bound=StrEnum)


class Restart(StrEnum):
    """Whether a program is started again when it ends by itself."""

    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    NEVER = "never"


class Ready(StrEnum):
    """What makes a program ready: its own word (sd_notify), that it runs, or the first success of its probe."""

    NOTIFY = "notify"
    STARTED = "started"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that only a healthy program answers.

    Attributes:
        kind: http, tcp or command.
        target: URL, HOST:PORT, or the command's words.
        interval_s: between two probes.
        timeout_s: for one.
    """

    kind: str
    target: str | tuple[str, ...]
    interval_s: float = 5.0
    timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """How one program is run and supervised.

    Attributes:
        name: ``[a-z0-9][a-z0-9_-]{0,31}``, none of our own names.
        command: its words; looked up in PATH as a shell does.
        directory: absolute; it is started there.
        environment: added to the launcher's.
        after: programs that have to be ready before it is started first.
        restart: what follows when it ends by itself.
        ready: what makes it ready.
        probe: asked by the watchdog, if it has one.
        hang_timeout_s: silence that counts as a hang.
        restart_max: charged restarts within the period; None for `[supervision]`'s.
        restart_period_s: the period; None for the same.
        start_timeout_s: time it has to become ready.
        stop_timeout_s: time it has to leave after SIGTERM.
        memory_max_mib: its tree's memory beyond which it counts as failed; None for no limit.
        output_bytes_max: window of its newest output that is kept of each life.
        transient: added while the system runs; gone when that stops.
    """

    name: str
    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    restart: Restart = Restart.ON_FAILURE
    ready: Ready = Ready.STARTED
    probe: Probe | None = None
    hang_timeout_s: float = 30.0
    restart_max: int | None = None
    restart_period_s: float | None = None
    start_timeout_s: float = 90.0
    stop_timeout_s: float = 10.0
    memory_max_mib: int | None = None
    output_bytes_max: int = 64 * _MIB
    transient: bool = False


_SECONDS: Final[dict[str, tuple[float, float]]] = {
    "hang_timeout_s": (1.0, _DAY_S),
    "restart_period_s": (1.0, 7 * _DAY_S),
    "start_timeout_s": (0.5, _DAY_S),
    "stop_timeout_s": (0.1, 3600.0),
}
_COUNTS: Final[dict[str, tuple[int, int]]] = {
    "restart_max": (0, 10_000),
    "memory_max_mib": (1, 1 << 24),
    "output_bytes_max": (64 * 1024, 1 << 40),
}
_OTHERS: Final = frozenset({"command", "directory", "environment", "after", "restart", "ready", "probe"})
KEYS: Final = frozenset(_SECONDS) | frozenset(_COUNTS) | _OTHERS
"""What a table [program.NAME] may hold."""


def parse_programs(table: Any, config_dir: str) -> tuple[ProgramSpec, ...]:
    """Return the programs of the configuration's `program` tables, in their order.

    Args:
        table: name to table, as parsed.
        config_dir: directory that relative directories start from.

    Raises:
        LocalError: it names the program and the key: unknown, wrong, out of bounds, an unknown `after`, a cycle.
    """
    if not isinstance(table, dict):
        raise _wrong("[program] is not a table of programs", "Write [program.NAME].")
    specs = []
    for name, fields in table.items():
        if not isinstance(fields, dict):
            raise _wrong(f"[program] {name} is not a table", f"Write [program.{name}].")
        specs.append(_spec(str(name), fields, config_dir))
    check_together(specs)
    return tuple(specs)


def check_together(specs: Iterable[ProgramSpec]) -> None:
    """Check what no program can be asked alone.

    Raises:
        LocalError: too many, a name twice, an unknown `after`, or a cycle of them.
    """
    known: dict[str, ProgramSpec] = {}
    for spec in specs:
        if spec.name in known:
            raise _wrong(f"[program.{spec.name}] is there twice", "A name belongs to one program.")
        known[spec.name] = spec
    if len(known) > PROGRAMS_MAX:
        raise _wrong(f"{len(known)} programs; at most {PROGRAMS_MAX} are supervised", "")
    for spec in known.values():
        for other in spec.after:
            if other not in known:
                raise _wrong(f"[program.{spec.name}] after names {other!r}, which is no program", _list(known))
    depths(known.values())


def depths(specs: Iterable[ProgramSpec]) -> dict[str, int]:
    """Return how many programs stand before each in its longest chain of `after`; unknown names count for nothing.

    Raises:
        LocalError: there is a cycle; it is named.
    """
    known = {spec.name: spec for spec in specs}
    found: dict[str, int] = {}

    def depth(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            cycle = " -> ".join((*path[path.index(name) :], name))
            raise _wrong(f"[program.{name}] after leads back to itself: {cycle}", "No start order can satisfy it.")
        if name not in found:
            before = [depth(other, (*path, name)) for other in known[name].after if other in known]
            found[name] = 1 + max(before, default=-1)
        return found[name]

    return {name: depth(name, ()) for name in known}


def is_program_name(name: str) -> bool:
    """Tell whether a program may be called so."""
    return (
        0 < len(name) <= NAME_LENGTH_MAX
        and name[0] in _FIRST
        and _REST.issuperset(name)
        and name not in RESERVED_SERVICES
    )


def to_fields(spec: ProgramSpec) -> dict[str, Any]:
    """Return `spec` in the words of the configuration, for JSON; what is at its default for None is left out."""
    fields: dict[str, Any] = {
        "name": spec.name,
        "command": list(spec.command),
        "directory": spec.directory,
        "environment": dict(spec.environment),
        "after": list(spec.after),
        "restart": spec.restart.value,
        "ready": spec.ready.value,
        "transient": spec.transient,
    }
    for key in (*_SECONDS, *_COUNTS):
        value = getattr(spec, key)
        if value is not None:
            fields[key] = value
    if spec.probe is not None:
        probe = spec.probe
        target = probe.target if isinstance(probe.target, str) else list(probe.target)
        fields["probe"] = {probe.kind: target, "interval_s": probe.interval_s, "timeout_s": probe.timeout_s}
    return fields


def from_fields(fields: Any) -> ProgramSpec:
    """Return the program that `to_fields` (or a control request) tells.

    Raises:
        LocalError: it names the key that is wrong.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise _wrong("a program has a name", "")
    name, transient = fields["name"], fields.get("transient", False)
    if type(transient) is not bool:
        raise _wrong(f"[program.{name}] transient is {transient!r}, not true or false", "")
    directory = fields.get("directory")
    if not isinstance(directory, str) or not os.path.isabs(directory):
        raise _wrong(f"[program.{name}] directory is not an absolute path", "")
    rest = {key: value for key, value in fields.items() if key not in {"name", "transient"}}
    return _spec(name, rest, "", transient=transient)


def save(runtime_dir: str, specs: Iterable[ProgramSpec], slots: Mapping[str, int]) -> None:
    """Write programs.json atomically.

    Raises:
        OSError: there is no room on tmpfs.
    """
    entries = [to_fields(spec) | {"slot": slots[spec.name]} for spec in specs]
    data = json.dumps({"programs": entries}).encode()
    write_atomically(os.path.join(runtime_dir, PROGRAMS_FILE), data, sync=False)


def load(runtime_dir: str) -> dict[str, ProgramSpec]:
    """Return what programs.json says, by name, in its order; what is absent or damaged is not there."""
    return {spec.name: spec for spec, _ in _entries(runtime_dir)}


def load_slots(runtime_dir: str) -> dict[str, int]:
    """Return the board's slot of each program of programs.json."""
    return {spec.name: slot for spec, slot in _entries(runtime_dir)}


def output_path(data_dir: str, name: str) -> str:
    """Return the file of a program's output; those of former lives are beside it."""
    return os.path.join(data_dir, OUTPUT_DIR, name, OUTPUT_FILE)


def notify_path(runtime_dir: str, name: str) -> str:
    """Return the socket that a program notifies."""
    return os.path.join(runtime_dir, NOTIFY_DIR, name)


def keeper_path(runtime_dir: str) -> str:
    """Return the socket on which the watchdog takes in the programs' sockets."""
    return os.path.join(runtime_dir, KEEPER_FILE)


def wake_path(runtime_dir: str) -> str:
    """Return the socket on which the launcher is told that there is a verdict."""
    return os.path.join(runtime_dir, WAKE_FILE)


def invocation_id(boot: str, data_dir: str, name: str, incarnation: int) -> str:
    """Return the id of one life of a program, 32 hex digits: the same whoever asks, and another one for each life."""
    place = f"{boot}\0{data_dir}".encode()
    parts = (zlib.crc32(place), zlib.adler32(place), zlib.crc32(name.encode()), incarnation & 0xFFFFFFFF)
    return "".join(f"{part:08x}" for part in parts)


# --- how a table is read ----------------------------------------------------------------------------------------------


def _entries(runtime_dir: str) -> list[tuple[ProgramSpec, int]]:
    try:
        with open(os.path.join(runtime_dir, PROGRAMS_FILE), "rb") as file:
            content = json.loads(file.read())
        entries = content["programs"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            slot = entry.pop("slot")
            found.append((from_fields(entry), int(slot)))
        except (LocalError, AttributeError, KeyError, TypeError, ValueError):
            continue
    return found


def _spec(name: str, table: dict[str, Any], base_dir: str, *, transient: bool = False) -> ProgramSpec:
    if not is_program_name(name):
        rule = f"1 to {NAME_LENGTH_MAX} of a-z, 0-9, _ and -, beginning with a letter or digit"
        raise _wrong(f"[program.{name}]: no program may be called {name!r}", f"Use {rule}, and none of our own names.")
    for key in table:
        if key not in KEYS:
            raise _wrong(f"unknown key {key!r} in [program.{name}]", f"Known keys: {', '.join(sorted(KEYS))}.")
    command = _words(name, "command", table.get("command", []))
    if not command or not command[0]:
        raise _wrong(f"[program.{name}] has no command", 'Write command = ["PROGRAM", "ARGUMENT"].')
    if sum(len(word.encode()) + 1 for word in command) > COMMAND_BYTES_MAX:
        raise _wrong(f"[program.{name}] command is longer than {COMMAND_BYTES_MAX} bytes", "")
    seconds = {key: _number(name, key, table[key], _SECONDS[key]) for key in _SECONDS if key in table}
    counts = {key: _whole(name, key, table[key], _COUNTS[key]) for key in _COUNTS if key in table}
    probe = _probe(name, table["probe"]) if "probe" in table else None
    ready = _one_of(name, "ready", table.get("ready", Ready.PROBE if probe else Ready.STARTED), Ready)
    if ready is Ready.PROBE and probe is None:
        raise _wrong(f'[program.{name}] ready is "probe" and there is no probe', 'Write probe = {tcp = "HOST:PORT"}.')
    values: dict[str, Any] = seconds | counts
    return ProgramSpec(
        name=name,
        command=command,
        directory=os.path.join(base_dir, _text(name, "directory", table.get("directory", base_dir))),
        environment=_environment(name, table.get("environment", {})),
        after=tuple(dict.fromkeys(_words(name, "after", table.get("after", [])))),
        restart=_one_of(name, "restart", table.get("restart", Restart.ON_FAILURE), Restart),
        ready=ready,
        probe=probe,
        transient=transient,
        **values,
    )


def _probe(name: str, table: Any) -> Probe:
    kinds = ("http", "tcp", "command")
    given = [kind for kind in kinds if isinstance(table, dict) and kind in table]
    if len(given) != 1 or set(table) - {*kinds, "interval_s", "timeout_s"}:
        hint = 'Write {http = "http://HOST/PATH"}, {tcp = "HOST:PORT"} or {command = ["WORD"]}; interval_s, timeout_s.'
        raise _wrong(f"[program.{name}] probe names no one thing to ask", hint)
    kind = given[0]
    target: str | tuple[str, ...]
    if kind == "command":
        target = _words(name, "probe command", table[kind])
    else:
        target = _text(name, f"probe {kind}", table[kind])
    host, colon, port = target.rpartition(":") if isinstance(target, str) else ("", "", "")
    wrong_tcp = kind == "tcp" and not (host and colon and port.isdecimal() and 0 < int(port) < 65536)
    if not target or wrong_tcp or (kind == "http" and not str(target).startswith(("http://", "https://"))):
        raise _wrong(f"[program.{name}] probe {kind} is {table[kind]!r}", "")
    limits = (0.1, 3600.0)
    interval_s = _number(name, "probe interval_s", table.get("interval_s", 5.0), limits)
    return Probe(kind, target, interval_s, _number(name, "probe timeout_s", table.get("timeout_s", 3.0), limits))


def _text(name: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _wrong(f"[program.{name}] {key} is {value!r}, not a text", "")
    return value


def _words(name: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        raise _wrong(f"[program.{name}] {key} is {value!r}, not a list of texts", f'Write {key} = ["A", "B"].')
    return tuple(value)


def _environment(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong(f"[program.{name}] environment is not a table", 'Write environment = {KEY = "VALUE"}.')
    for key, text in value.items():
        if not key or "=" in key or "\0" in key:
            raise _wrong(f"[program.{name}] environment has {key!r}, which can name no variable", "")
        _text(name, f"environment {key}", text)
    return dict(value)


def _number(name: str, key: str, value: Any, limits: tuple[float, float]) -> float:
    if type(value) not in (int, float):
        raise _wrong(f"[program.{name}] {key} is {value!r}, not a number", "")
    if not limits[0] <= value <= limits[1]:
        raise _wrong(f"[program.{name}] {key} is {value}, outside {limits[0]:g} to {limits[1]:g}", "")
    return float(value)


def _whole(name: str, key: str, value: Any, limits: tuple[int, int]) -> int:
    if type(value) is not int:
        raise _wrong(f"[program.{name}] {key} is {value!r}, not a whole number", "")
    if not limits[0] <= value <= limits[1]:
        raise _wrong(f"[program.{name}] {key} is {value}, outside {limits[0]} to {limits[1]}", "")
    return value


def _one_of(name: str, key: str, value: Any, kind: type[Word]) -> Word:
    known = ", ".join(kind)
    try:
        return kind(value)
    except ValueError:
        raise _wrong(f"[program.{name}] {key} is {value!r}", f"It is one of {known}.") from None


def _list(known: Iterable[str]) -> str:
    return f"There are {', '.join(known)}."


def _wrong(problem: str, hint: str) -> LocalError:
    return LocalError(ErrorCode.CONFIGURATION, problem, hint)
