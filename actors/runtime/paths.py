"""Where things live: the data directory, the runtime directory, and `run.json` that ties them together.

The data directory is the installation: one launcher per data directory. The runtime directory holds what must not
wait for a disk (sockets, board, journals, token); it is owner-only, on tmpfs, named by a digest of the data directory
so that its socket paths stay short.
"""

import json
import os
import stat
import sys
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from protocol.errors import ErrorCode, LocalError

DATA_DIR_VARIABLE: Final = "RELCTL_DATA_DIR"
RUNTIME_DIR_VARIABLE: Final = "RELCTL_RUNTIME_DIR"
"""Overrides the parent of runtime directories; for systems without XDG_RUNTIME_DIR and /dev/shm, and for tests."""

DATABASE_FILE: Final = "reliability.db"
CONFIG_FILE: Final = "reliability.toml"
RUN_FILE: Final = "run.json"
INSTANCE_LOCK_FILE: Final = "launcher.lock"
STOP_MARKER_FILE: Final = "stopped.json"
"""In DATA: a deliberate stop that outlives a reboot."""
RESTARTS_FILE: Final = "restarts.json"
"""In DATA: the durable copy of the restart journal."""
LAUNCHER_LOG_FILE: Final = "launcher.log"

BOARD_FILE: Final = "board"
TOKEN_FILE: Final = "token"
SUCCESSION_LOCK_FILE: Final = "succession.lock"
CONTROL_SOCKET: Final = "control"
EVIDENCE_DIR: Final = "evidence"
STACKS_DIR: Final = "stacks"
JOURNAL_DIR: Final = "journal"

_SOCKET_PATH_BYTES_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Curve:
    """CURVE keys of the portable transport, Z85 text: clients are admitted by `client_public` alone."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What `run.json` says: where to reach the running (or last) system.

    Attributes:
        endpoint: request lane.
        bulk: bulk lane.
        events: publications.
        control: the launcher's own socket: a path, or ``tcp:HOST:PORT``.
        runtime_dir: see the module.
        pid: the launcher's.
        portable: whether the portable ports are in use.
        version: release of the launcher.
        curve: keys of the portable transport, else None.
    """

    endpoint: str
    bulk: str
    events: str
    control: str
    runtime_dir: str
    pid: int
    portable: bool = False
    version: str = ""
    curve: Curve | None = field(default=None, repr=False)

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RunInfo":
        """Parse a file's content; unknown keys of a newer release are passed over.

        Raises:
            ValueError: not the file's format.
        """
        values: Any = json.loads(text)
        try:
            curve = values.get("curve")
            known = {name: values[name] for name in cls.__slots__ if name in values and name != "curve"}
            return cls(**known, curve=Curve(**curve) if curve else None)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a run.json: {error}") from None


def data_directory(given: str | None = None) -> str:
    """Return the absolute data directory: `given`, else RELCTL_DATA_DIR, else ./data."""
    return os.path.realpath(given or os.environ.get(DATA_DIR_VARIABLE) or "data")


def runtime_directory(data_dir: str) -> str:
    """Return (without making it) the runtime directory that a launcher started now would use for `data_dir`."""
    name = os.path.realpath(data_dir).encode("utf-8", "surrogateescape")
    # Not hashlib: it loads OpenSSL, 1.6 MiB in every process, for a name that only has to tell directories apart.
    return os.path.join(_runtime_parent(), f"relctl-{_user_id()}", f"{zlib.crc32(name):08x}{zlib.adler32(name):08x}")


def make_private_directory(path: str) -> None:
    """Make `path` (and missing parents) owner-only, or check that it is.

    Raises:
        LocalError: it is a link, belongs to somebody else, or others may enter it.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    if sys.platform == "win32":
        return
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise LocalError(
            ErrorCode.REFUSED,
            f"{path} is not a directory that only you may enter",
            f"Look at who made it; then remove it, or `chmod 700 {path}` if it is yours.",
        )


def prepare_runtime_directory(data_dir: str) -> str:
    """Make the runtime directory for `data_dir` with its folders, check its ownership, and return it.

    Raises:
        LocalError: it cannot be trusted, or its socket paths would be too long.
    """
    path = runtime_directory(data_dir)
    make_private_directory(os.path.dirname(path))
    make_private_directory(path)
    for folder in (EVIDENCE_DIR, STACKS_DIR, JOURNAL_DIR):
        make_private_directory(os.path.join(path, folder))
    if len(os.fsencode(os.path.join(path, CONTROL_SOCKET))) > _SOCKET_PATH_BYTES_MAX:
        hint = f"Set {RUNTIME_DIR_VARIABLE} to a short directory on tmpfs."
        raise LocalError(ErrorCode.CONFIGURATION, f"{path} is too long for a socket path", hint)
    return path


def read_run_info(data_dir: str) -> RunInfo | None:
    """Return what the last launcher wrote, or None: the runtime directory's own copy comes before the one in DATA."""
    on_disk = read_run_file(os.path.join(data_dir, RUN_FILE))
    runtime_dir = on_disk.runtime_dir if on_disk else runtime_directory(data_dir)
    return read_run_file(os.path.join(runtime_dir, RUN_FILE)) or on_disk


def read_run_file(path: str) -> RunInfo | None:
    """Return what the run.json at `path` says; None if there is none, or it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return RunInfo.from_json(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None


def write_atomically(path: str, data: bytes, *, sync: bool) -> None:
    """Replace `path` by `data` as one step, owner-only; with `sync` it also survives a power cut."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb", opener=_open_private) as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if sync and sys.platform != "win32":
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make the names in directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_or_make_token(runtime_dir: str) -> bytes:
    """Return the installation's secret that our workers register with, made at the first start."""
    path = os.path.join(runtime_dir, TOKEN_FILE)
    try:
        with open(path, "rb") as file:
            token = file.read()
        if len(token) == 32:
            return token
    except FileNotFoundError:
        pass
    token = os.urandom(32)
    write_atomically(path, token, sync=False)
    return token


def _runtime_parent() -> str:
    for candidate in (os.environ.get(RUNTIME_DIR_VARIABLE), os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):
        if candidate and os.path.isdir(candidate) and os.access(candidate, os.W_OK):
            return os.path.realpath(candidate)
    import tempfile  # noqa: PLC0415 - a dozen modules for a last resort

    return tempfile.gettempdir()


def _user_id() -> int | str:
    return os.geteuid() if sys.platform != "win32" else "user"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
