"""Where a diagnostics bundle gets its content: one collector a source, none of which relies on another.

No file of a database is opened but by the event log's own `queries` and `reading`: READONLY, as every offline view.
"""

import json
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from actors.runtime import paths
from actors.runtime.redaction import allowed_variables, secrets_in
from app.reliability._diagnostics_bundle import Document, Findings, Lines, Text
from protocol.limits import KIB, MIB

if TYPE_CHECKING:
    from app.reliability.client import Client

EVENTS_MAX: Final = 5000
TAIL_BYTES_MAX: Final = MIB
"""Read from the end of a file: of the newest JSON lines, of a journal."""
LOG_BYTES_MAX: Final = 256 * KIB
EVIDENCE_FILES_MAX: Final = 40
EVIDENCE_BYTES_MAX: Final = 256 * KIB
FILES_LISTED_MAX: Final = 2000
PROCESSES_LISTED_MAX: Final = 15
ASK_S: Final = 1.0
SERVICES: Final = ("broker", "watchdog", "event_logger", "checkpointer", "health_monitor")
ENVIRONMENT_ALLOWED: Final = (
    "PATH", "PYTHON*", "VIRTUAL_ENV", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "SHELL", "HOME", "USER", "LOGNAME",
    "SUDO_USER", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_SESSION_TYPE", "RELCTL_*", "NO_COLOR", "INVOCATION_ID",
    "NOTIFY_SOCKET", "JOURNAL_STREAM", "OS", "PROCESSOR_ARCHITECTURE", "container",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Which system it is about, and how to ask it.

    Attributes:
        data_dir: absolute data directory.
        runtime_dir: runtime directory of the running or last system.
        open_client: makes a client of it; None for the real one.
        run: what run.json says, if anything.
    """

    data_dir: str
    runtime_dir: str
    run: paths.RunInfo | None = None
    open_client: Callable[[str], "Client"] | None = None

    @classmethod
    def guess(cls, data_dir: str) -> "Place":
        """Return where it is unless run.json says otherwise."""
        return cls(data_dir, paths.runtime_directory(data_dir))

    @property
    def database(self) -> str:
        """The event log's database."""
        return os.path.join(self.data_dir, paths.DATABASE_FILE)


@dataclass(frozen=True, slots=True)
class Collector:
    """One source: adds what it finds to the findings, and should be done by a monotonic deadline."""

    name: str
    collect: Callable[[Place, Findings, float], None]
    limit_s: float = 8.0


@dataclass(frozen=True, slots=True)
class Secrets:
    """What must not be in a bundle, and where more of it may be that could not be read."""

    values: frozenset[str]
    problems: tuple[str, ...] = ()


def locate(data_dir: str) -> Place:
    """Return where the running or last system of `data_dir` lives. May wait for a disk."""
    run = paths.read_run_info(data_dir)
    return Place(data_dir, run.runtime_dir if run else paths.runtime_directory(data_dir), run)


def read_secrets(place: Place) -> Secrets:
    """Return every secret that is known: of the configuration, of transport and event chain, of our environment."""
    values: set[str] = set()
    problems: list[str] = []
    for path in _configurations(place):
        try:
            with open(path, "rb") as file:
                values |= secrets_in(tomllib.load(file))
        except FileNotFoundError:
            continue
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            problems.append(f"{path}: {error}: what is secret in it is not known, so it is left out")
    for run in (place.run, paths.read_run_file(os.path.join(place.data_dir, paths.RUN_FILE))):
        if run is not None and run.curve is not None:
            values |= {run.curve.server_secret, run.curve.client_secret}
    keys = os.path.join(place.data_dir, "keys")
    names = [os.path.join(keys, name) for name in os.listdir(keys)] if os.path.isdir(keys) else []
    for path in (os.path.join(place.runtime_dir, paths.TOKEN_FILE), *names):
        try:
            with open(path, "rb") as file:
                data = file.read(4 * KIB)
        except OSError:
            continue
        values |= {data.hex(), data.hex().upper(), data.decode("latin-1")} if data else set()
    return Secrets(frozenset(values | secrets_in(_environment())), tuple(problems))


def _environment() -> dict[str, str]:
    """Return the environment but for the working directories, which have a secret's name."""
    return {name: value for name, value in os.environ.items() if name not in {"PWD", "OLDPWD"}}


def _configurations(place: Place) -> tuple[str, ...]:
    folders = (place.runtime_dir, place.data_dir, os.path.dirname(place.data_dir))
    return tuple(os.path.join(folder, paths.CONFIG_FILE) for folder in folders)


# --- the event log ------------------------------------------------------------------------------------------------


def _events(place: Place, found: Findings, deadline: float) -> None:
    from actors.event_logger import queries

    newest_first: list[dict[str, Any]] = []
    arguments: dict[str, Any] = {"reverse": True, "limit": 1000}
    try:
        while len(newest_first) < EVENTS_MAX and time.monotonic() < deadline - 0.5:
            page = queries.query(place.database, arguments)
            newest_first += page["events"]
            if not page["more"] or not page["events"]:
                return
            arguments["before_seq"] = page["events"][-1]["seq"]
    finally:
        if newest_first:
            found.add("events.jsonl", Lines(newest_first[::-1]))


def _event_files(place: Place, found: Findings, _deadline: float) -> None:
    folder = os.path.join(place.data_dir, "events")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    newest = [name for name in names if name.startswith("events-") and name.endswith(".jsonl")][-1:]
    for name in [*newest, *(name for name in names if name in {"head.json", "roots.jsonl"})]:
        found.add(f"events/{name}", _parsed_lines(_tail(os.path.join(folder, name), TAIL_BYTES_MAX)))


def _journals(place: Place, found: Findings, _deadline: float) -> None:
    """What processes noted on tmpfs, whether or not event_logger has taken it over."""
    folder = os.path.join(place.runtime_dir, paths.JOURNAL_DIR)
    for name in sorted(os.listdir(folder)):
        if ".jsonl" in name:
            found.add(f"journal/{name}", _parsed_lines(_tail(os.path.join(folder, name), TAIL_BYTES_MAX)))


def _spool(place: Place, found: Findings, _deadline: float) -> None:
    folder = os.path.join(place.data_dir, "spool")
    files = [item for item in _listing(folder) if "bytes" in item] if os.path.isdir(folder) else []
    summary = {
        "files": len(files),
        "bytes": sum(item["bytes"] for item in files),
        "damaged": sum(item["name"].endswith(".damaged") for item in files),
    }
    found.add("spool.json", Document(summary | {"listing": files[:FILES_LISTED_MAX]}))


def _database(place: Place, found: Findings, _deadline: float) -> None:
    from actors.runtime.database import reading

    files = [item for item in _listing(place.data_dir, depth=1) if ".db" in item["name"]]
    report: dict[str, Any] = {"files": files}
    try:
        with reading(place.database) as connection:
            report["sqlite"] = connection.execute("SELECT sqlite_version(), sqlite_source_id()").fetchone()
            names = "page_size page_count freelist_count journal_mode user_version application_id encoding auto_vacuum"
            report["pragmas"] = {name: connection.pragma(name) for name in names.split()}
            tables = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL ORDER BY name"
            schema = connection.execute(tables).fetchall()
            report["tables"] = {name: _size(connection, str(name), str(sql)) for name, sql in schema}
            if "schema_versions" in report["tables"]:
                report["schema_versions"] = connection.execute("SELECT * FROM schema_versions").fetchall()
    finally:
        found.add("database.json", Document(report))


def _size(connection: Any, name: str, sql: str) -> Any:
    """Return the highest number of a table's rows, which costs one look; its rows where they have no numbers."""
    what = "count(*)" if "WITHOUT ROWID" in sql else "max(rowid)"
    quoted = name.replace('"', '""')
    return connection.execute(f'SELECT {what} FROM "{quoted}"').get  # noqa: S608 - a table's own name, quoted


# --- the processes ------------------------------------------------------------------------------------------------


def _board(place: Place, found: Findings, _deadline: float) -> None:
    from actors.runtime.board_view import check_of, snapshot
    from actors.runtime.liveness import Board

    with Board(os.path.join(place.runtime_dir, paths.BOARD_FILE), writable=False) as board:
        views = snapshot(board, time.monotonic_ns() // 1_000_000)
        rows = [asdict(view) | {"check": check_of(view)} for view in views]
        found.add("board.json", Document({"stopping": board.stopping, "boot": board.boot_id, "processes": rows}))
        own = [_process(view.name, view.pid) for view in views if view.pid]
    found.add("processes.json", Document(own))


def _process(name: str, pid: int) -> dict[str, Any]:
    import psutil

    about: dict[str, Any] = {"name": name, "pid": pid}
    wanted = ["status", "num_threads", "memory_info", "cpu_times", "create_time", "cmdline", "nice", "username"]
    try:
        process = psutil.Process(pid)
        about |= process.as_dict(wanted)
        about |= {key: about[key]._asdict() for key in ("memory_info", "cpu_times") if about[key] is not None}
    except psutil.Error as error:
        return about | {"problem": str(error)}
    for file in ("wchan", "oom_score", "cgroup"):
        about[file] = _read(f"/proc/{pid}/{file}", KIB)
    return about


def _services(place: Place, found: Findings, deadline: float) -> None:
    """What the processes say themselves, if they say anything; the board and the table say the rest."""
    from app.reliability.client import Client
    from protocol.errors import ReliabilityError

    answers: dict[str, Any] = {}

    def ask(service: str, op: str) -> None:
        left_s = min(ASK_S, deadline - time.monotonic() - 0.2)
        if left_s <= 0 or (dead and service in dead):
            return
        try:
            answers[f"{service} {op}"] = client.call(service, op, timeout=left_s)
        except ReliabilityError as error:
            answers[f"{service} {op}"] = {"error": {"code": error.code, "message": error.message}}
            dead.update(SERVICES if error.code.startswith("broker") or error.code == "not_running" else [service])

    dead: set[str] = set()
    client = (place.open_client or Client)(place.data_dir)
    try:
        for service in SERVICES:
            ask(service, "status")
        for service, op in (("watchdog", "verdicts"), ("health_monitor", "health"), ("event_logger", "restart_status")):
            ask(service, op)
    finally:
        client.close()
        found.add("services.json", Document(answers))


def _restarts(place: Place, found: Findings, _deadline: float) -> None:
    from actors.event_logger import queries

    found.add("restarts.json", Document(queries.read_restarts(place.database)))


def _health_history(place: Place, found: Findings, _deadline: float) -> None:
    from actors.health_monitor import queries

    found.add("health_history.json", Document(queries.read_history(place.database, limit=500)))


def _evidence(place: Place, found: Findings, _deadline: float) -> None:
    for folder in (paths.EVIDENCE_DIR, paths.STACKS_DIR):
        directory = os.path.join(place.runtime_dir, folder)
        if not os.path.isdir(directory):
            continue
        with os.scandir(directory) as entries:
            newest_first = sorted(entries, key=lambda entry: -entry.stat().st_mtime_ns)
        for entry in newest_first[:EVIDENCE_FILES_MAX]:
            data = _tail(entry.path, EVIDENCE_BYTES_MAX, whole_lines=False)
            content = _json_or_text(data) if entry.name.endswith(".json") else Text(data.decode("utf-8", "replace"))
            if data:
                found.add(f"{folder}/{entry.name}", content)


# --- the installation and the machine -----------------------------------------------------------------------------


def _configuration(place: Place, found: Findings, _deadline: float) -> None:
    """The settings, as they are parsed: a file that is none is left out, because nobody knows what is secret in it."""
    from actors.runtime.config import SupervisionConfig

    shown: dict[str, Any] = {"supervision_defaults": asdict(SupervisionConfig())}
    for path in _configurations(place):
        try:
            with open(path, "rb") as file:
                shown[path] = tomllib.load(file)
        except FileNotFoundError:
            shown[path] = "there is none"
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            found.note(f"{path}: {type(error).__name__}")
    found.add("configuration.json", Document(shown))
    shown_variables = allowed_variables(os.environ, ENVIRONMENT_ALLOWED)
    others = sorted(os.environ.keys() - shown_variables.keys())
    found.add("environment.json", Document({"shown": shown_variables, "names_of_others": others}))


def _installation(place: Place, found: Findings, _deadline: float) -> None:
    from importlib.metadata import distributions

    from actors.runtime.version import VERSION

    packages = sorted({f"{item.name} {item.version}" for item in distributions() if item.name})
    found.add(
        "versions.json",
        Document(
            {
                "relctl": VERSION,
                "running": place.run.version if place.run else None,
                "python": sys.version,
                "executable": sys.executable,
                "implementation": platform.python_implementation(),
                "platform": platform.platform(),
                "uname": list(platform.uname()),
                "os_release": _read("/etc/os-release", 4 * KIB),
                "packages": packages,
            }
        ),
    )


def _files(place: Place, found: Findings, _deadline: float) -> None:
    for label, folder in (("data", place.data_dir), ("runtime", place.runtime_dir)):
        if os.path.isdir(folder):
            listed = list(_listing(folder))
            found.add(f"files/{label}.json", Document({"directory": folder, "files": listed}))
    for name in (paths.RUN_FILE, paths.RESTARTS_FILE, paths.STOP_MARKER_FILE):
        for label, folder in (("data", place.data_dir), ("runtime", place.runtime_dir)):
            data = _tail(os.path.join(folder, name), LOG_BYTES_MAX, whole_lines=False)
            if data:
                found.add(f"files/{label}-{name}", _json_or_text(data))


def _launcher_log(place: Place, found: Findings, _deadline: float) -> None:
    data = _tail(os.path.join(place.data_dir, paths.LAUNCHER_LOG_FILE), LOG_BYTES_MAX)
    if data:
        found.add(paths.LAUNCHER_LOG_FILE, Text(data.decode("utf-8", "replace")))


def _machine(_place: Place, found: Findings, _deadline: float) -> None:
    import psutil

    report: dict[str, Any] = {
        "wall_s": time.time(),
        "monotonic_s": time.monotonic(),
        "timezone": time.tzname,
        "boot_s": psutil.boot_time(),
        "processors": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "memory": psutil.virtual_memory()._asdict(),
        "swap": psutil.swap_memory()._asdict(),
        "pressure": {name: _read(f"/proc/pressure/{name}", KIB) for name in ("cpu", "io", "memory")},
    }
    found.add("machine.json", Document(report))
    found.add("mounts.txt", Text("".join(f"{item}\n" for item in psutil.disk_partitions(all=True))))
    found.add("large_processes.json", Document(_large_processes()))


def _disks(place: Place, found: Findings, _deadline: float) -> None:
    import psutil

    spaces: dict[str, Any] = {}
    found.add("disks.json", Document(spaces))
    for folder in (place.runtime_dir, place.data_dir):
        if os.path.isdir(folder):
            spaces[folder] = psutil.disk_usage(folder)._asdict()


def _large_processes() -> list[dict[str, Any]]:
    """Return who uses the most memory, by name alone: the rest is other people's."""
    import psutil

    seen = [(item.info["memory_info"], item.info["name"]) for item in psutil.process_iter(["name", "memory_info"])]
    largest = sorted(((memory.rss, name) for memory, name in seen if memory), reverse=True)
    return [{"name": name, "rss_bytes": rss} for rss, name in largest[:PROCESSES_LISTED_MAX]]


COLLECTORS: Final = (
    Collector("board", _board),
    Collector("journals", _journals),
    Collector("evidence", _evidence),
    Collector("machine", _machine),
    Collector("disks", _disks),
    Collector("configuration", _configuration),
    Collector("versions", _installation),
    Collector("events", _events),
    Collector("event files", _event_files),
    Collector("spool", _spool),
    Collector("database", _database),
    Collector("restarts", _restarts),
    Collector("health history", _health_history),
    Collector("files", _files),
    Collector("launcher log", _launcher_log),
    Collector("services", _services),
)
"""All sources, those first that need no disk."""


# --- reading ------------------------------------------------------------------------------------------------------


def _read(path: str, bytes_max: int) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(bytes_max).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _tail(path: str, bytes_max: int, *, whole_lines: bool = True) -> bytes:
    """Return the end of a file, without the line that it would begin in the middle of; empty if there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - bytes_max)
            file.seek(begin)
            data = file.read(bytes_max)
    except FileNotFoundError:
        return b""
    return data.partition(b"\n")[2] if begin and whole_lines else data


def _parsed_lines(data: bytes) -> Lines:
    """Return JSON lines; a damaged one as the text it is, so that it can be seen."""
    return Lines([_parsed(line) for line in data.decode("utf-8", "replace").splitlines() if line.strip()])


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return {"damaged": line}


def _json_or_text(data: bytes) -> Document | Text:
    text = data.decode("utf-8", "replace")
    try:
        return Document(json.loads(text))
    except ValueError:
        return Text(text)


def _listing(folder: str, depth: int = 3) -> Iterator[dict[str, Any]]:
    """Yield name, size, age and mode of what lies in a folder; opens nothing."""
    count = 0
    for directory, folders, names in os.walk(folder):
        level = os.path.relpath(directory, folder).count(os.sep) + (directory != folder)
        if level + 1 >= depth:
            folders.clear()
        for name in sorted(names):
            path = os.path.join(directory, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            count += 1
            if count > FILES_LISTED_MAX:
                return
            yield {
                "name": os.path.relpath(path, folder),
                "bytes": status.st_size,
                "modified_s": round(status.st_mtime, 3),
                "mode": oct(status.st_mode & 0o7777),
            }
