"""The spool: where a durable call goes when its owner does not answer, until the owner takes it in, once.

``DATA/spool/SERVICE/<32 hexadecimal digits>.spool``: files of records (`spool_format`), each written by one process.

A writer locks its file for the length of one append, and never waits for a lock: if somebody else holds it, or it has a
successor, the writer begins another file. What it returned from is in the page cache: it survives every process; a
short-lived thread brings it to the disk. The reader is the owner alone (``reader.lock``). It reads each record as often
as it must until `done` says that it is committed, so the owner takes it in by its id; then the file goes as soon as
nobody appends. What is torn at the end of a file that nobody locks was never acknowledged, and is passed over. What
else is damaged was: it is counted, and the file is kept aside whole as ``*.damaged``.

Times in names only order the files; a clock that jumps loses nothing.
"""

import errno
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from actors.runtime.digests import new_sha256
from actors.runtime.filelock import FileLock, lock_now, unlock
from actors.runtime.paths import make_private_directory, read_run_info, sync_directory
from actors.runtime.spool_format import (
    HEAD_BYTES,
    Damage,
    Message,
    decode_head,
    decode_payload,
    encode_head,
    encode_payload,
    next_record,
)
from protocol.errors import NotDurable, ReliabilityError
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.limits import BULK_MESSAGE_BYTES_MAX, MIB

SPOOL_DIR: Final = "spool"
SUFFIX: Final = ".spool"
DAMAGED_SUFFIX: Final = ".damaged"
READER_LOCK_FILE: Final = "reader.lock"
HINT_PREFIX: Final = "spooled-"

WRITER_BYTES_MAX: Final = BULK_MESSAGE_BYTES_MAX
"""What one writer may have waiting: the largest call there is still fits when nothing else does."""
SPOOL_BYTES_MAX: Final = 256 * MIB
"""What all writers of a data directory may have waiting, for all services."""
DAMAGED_BYTES_MAX: Final = 64 * MIB
"""Damaged files kept, for each service; the oldest go first."""
FILE_BYTES_MAX: Final = 8 * MIB
"""A file that has grown to this gets a successor, so that what is drained gives its space back."""
UNCOUNTED_BYTES_MAX: Final = MIB
"""What a writer may append before it looks again how much there is in all."""
BEGINNINGS_MAX: Final = 16
"""New files tried for one append, in case the reader tidies each away before its first record."""


_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """One call that waits for its owner.

    Attributes:
        op: operation of the service.
        id: of the request; to be done once.
        arguments: the operation's.
        raw: frames beside them.
        mark: where it lies; for `SpoolReader.done`.
    """

    op: str
    id: bytes
    arguments: dict[str, Any]
    raw: tuple[bytes, ...]
    mark: tuple[str, int]


def spool_directory(data_dir: str, service: str) -> str:
    """Return where calls of `service` wait."""
    return os.path.join(data_dir, SPOOL_DIR, service)


def hint_path(runtime_dir: str, service: str) -> str:
    """Return the file on tmpfs that is touched after something was spooled for `service`.

    It spares the owner from looking into DATA; that it changed tells to look, that it did not promises nothing.
    """
    return os.path.join(runtime_dir, HINT_PREFIX + service)


class SpoolWriter:
    """Appends calls for one service; one per process and service. For any thread; a forked child gets its own file."""

    def __init__(self, data_dir: str, service: str) -> None:
        """Name the spool; nothing is opened."""
        self._data_dir = data_dir
        self._service = service
        self._directory = spool_directory(data_dir, service)
        self._names: set[str] = set()
        self._start_anew()
        _writers.add(self)

    def append(self, op: str, request_id: bytes, arguments: dict[str, Any], raw: Sequence[bytes] = ()) -> None:
        """Keep one call for the owner: in the page cache when this returns, on the disk soon after.

        Raises:
            NotDurable: it is not kept: the spool or the disk is full, or cannot be written to.
            ProtocolError: the arguments are not plain data, or too large.
        """
        payload = encode_payload(op, request_id, arguments, raw)
        size = HEAD_BYTES + sum(map(len, payload))
        with self._lock:
            try:
                self._make_room(size)
                self._append(payload, size)
            except OSError as error:
                self._forget_file()
                raise _not_durable(self._directory, error) from error
            except ReliabilityError as error:
                if isinstance(error, NotDurable):
                    raise
                raise NotDurable(error.message, error.hint) from error
            self._uncounted_bytes -= size
            self._synchronise()
        self._hint()

    def close(self) -> None:
        """Let go of the file; what is in it stays. The writer may be used again."""
        with self._lock:
            self._forget_file()

    def leave_parent_behind(self) -> None:
        """In a forked child: begin anew. Whatever the parent's threads held when it forked stays theirs."""
        inherited = (self._descriptor, self._synchronised)
        self._names = set()
        self._start_anew()
        for descriptor in inherited:
            if descriptor is not None:
                os.close(descriptor)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._path = ""
        self._file_id = b""
        self._named_ms = 0
        self._uncounted_bytes = 0
        self._unsynchronised = False
        self._synchronised: int | None = None
        self._synchroniser: threading.Thread | None = None
        self._hint_path: str | None = None

    def _make_room(self, size: int) -> None:
        """Look whether `size` more bytes are within the bounds, not each time anew."""
        if size <= self._uncounted_bytes:
            return
        sizes = _sizes_of_all(os.path.dirname(self._directory))
        self._names &= sizes.keys()
        in_all, own = sum(sizes.values()), sum(sizes[name] for name in self._names)
        room = min(SPOOL_BYTES_MAX - in_all, WRITER_BYTES_MAX + HEAD_BYTES - own)
        if size > room:
            where = os.path.dirname(self._directory)
            message = f"the spool is full: {in_all} bytes wait in {where}, {own} of this process"
            raise NotDurable(message, "Start the system, which takes them in: `relctl up --detach`.")
        self._uncounted_bytes = min(room, max(size, UNCOUNTED_BYTES_MAX))

    def _append(self, payload: list[bytes], size: int) -> None:
        for _ in range(BEGINNINGS_MAX):
            descriptor = self._descriptor if self._descriptor is not None else self._begin_file()
            if lock_now(descriptor):
                try:
                    offset = self._length(descriptor)
                    if offset is not None and (not offset or offset + size <= FILE_BYTES_MAX):
                        _write_whole(descriptor, offset, [self._head(offset, payload), *payload])
                        return
                finally:
                    unlock(descriptor)
            self._forget_file()
        raise OSError(errno.EBUSY, "the spool's files are taken away as soon as they are made")

    def _length(self, descriptor: int) -> int | None:
        """Return how long the file is; None if it is not there any more under its name."""
        try:
            there, here = os.stat(self._path), os.fstat(descriptor)
        except FileNotFoundError:
            return None
        return here.st_size if (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev) else None

    def _head(self, offset: int, payload: list[bytes]) -> bytes:
        return encode_head(self._file_id, offset, payload, _sha256)

    def _begin_file(self) -> int:
        self._named_ms = max(time.time_ns() // 1_000_000, self._named_ms + 1)
        self._file_id = uuid7(self._named_ms, os.urandom(RANDOMNESS_BYTES))
        self._path = os.path.join(self._directory, self._file_id.hex() + SUFFIX)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | _FLAGS
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            make_private_directory(os.path.dirname(self._directory))
            make_private_directory(self._directory)
            descriptor = os.open(self._path, flags, 0o600)
        self._descriptor = descriptor
        self._names.add(os.path.basename(self._path))
        run = read_run_info(self._data_dir)
        self._hint_path = hint_path(run.runtime_dir, self._service) if run else None
        return descriptor

    def _forget_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _synchronise(self) -> None:
        """Have a thread bring the file to the disk: the one that is under way looks again before it leaves."""
        self._unsynchronised = True
        if self._synchroniser is None and self._descriptor is not None:
            thread = threading.Thread(target=self._run_synchroniser, name="spool-sync", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # too many threads, or the interpreter is ending: the system writes it by itself
                return
            self._synchroniser = thread

    def _run_synchroniser(self) -> None:
        synchronised_path = ""
        while True:
            with self._lock:
                if not self._unsynchronised or self._descriptor is None:
                    self._synchroniser = None
                    return
                self._unsynchronised = False
                try:
                    path, descriptor = self._path, os.dup(self._descriptor)
                except OSError:  # too many files open: the system writes it by itself
                    self._synchroniser = None
                    return
                self._synchronised = descriptor
            try:
                os.fsync(descriptor)
                if path != synchronised_path and sys.platform != "win32":
                    sync_directory(self._directory)
                    synchronised_path = path
            except OSError:  # it survives every process all the same; nobody was promised more
                pass
            with self._lock:
                self._synchronised = None
                os.close(descriptor)

    def _hint(self) -> None:
        path = self._hint_path
        if path is None:
            return
        try:
            os.utime(path)
        except FileNotFoundError:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o600))
            except OSError:
                return
        except OSError:
            return


@dataclass(slots=True)
class _Progress:
    """What the reader knows of one file.

    Attributes:
        offset: everything before it is done with.
        damaged_at: offsets of damaged records.
    """

    offset: int = 0
    damaged_at: set[int] = field(default_factory=set)


class SpoolReader:
    """Reads the calls that wait for one service: the owner's, for one thread (`pending_bytes` for any).

    Attributes:
        damaged: damaged stretches found so far; what lay there is lost, as far as the file kept aside does not help.
        unreadable: files that the disk did not let read, in the last `read`.
        shut_out: whether somebody else was the reader at the last `read`.
    """

    def __init__(self, data_dir: str, service: str) -> None:
        """Name the spool; nothing is opened."""
        self.damaged = 0
        self.unreadable = 0
        self.shut_out = False
        self._directory = spool_directory(data_dir, service)
        self._lock = FileLock(os.path.join(self._directory, READER_LOCK_FILE))
        self._progress: dict[str, _Progress] = {}

    def read(self, bytes_max: int) -> list[SpoolEntry]:
        """Return what waits, about `bytes_max` of it and at least one call; the oldest file first, [] if nothing waits.

        The same calls come again until they are `done`.

        Raises:
            OSError: the directory cannot be read.
        """
        entries: list[SpoolEntry] = []
        self.unreadable = 0
        if not self._may_read():
            return entries
        sizes = _sizes(self._directory)
        self._progress = {name: found for name, found in self._progress.items() if name in sizes}
        for name in sorted(sizes):
            if bytes_max <= 0:
                break
            try:
                found, read_bytes = self._read_file(name, bytes_max)
            except FileNotFoundError:
                continue
            except OSError:
                self.unreadable += 1
                continue
            entries += found
            bytes_max -= read_bytes
        return entries

    def done(self, entries: Sequence[SpoolEntry]) -> None:
        """Take in that entries are committed, or given up: of each file what `read` returned, from the first on."""
        touched: dict[str, _Progress] = {}
        for entry in entries:
            name, end = entry.mark
            progress = touched[name] = self._progress.setdefault(name, _Progress())
            progress.offset = max(progress.offset, end)
        for name, progress in touched.items():
            try:
                with open(os.path.join(self._directory, name), "rb") as file:
                    self._tidy_away(name, file, progress)
            except OSError:  # gone, or to be seen again by the next read
                continue

    def pending_bytes(self) -> int:
        """Return how much waits: one look into the directory."""
        known = self._progress
        pending = 0
        for name, size in _sizes(self._directory).items():
            progress = known.get(name)
            pending += max(0, size - progress.offset) if progress else size
        return pending

    def close(self) -> None:
        """Let another one read."""
        self._lock.release()

    def _may_read(self) -> bool:
        try:
            self.shut_out = not self._lock.acquire()
        except FileNotFoundError:  # nobody has spooled anything yet
            return False
        return not self.shut_out

    def _read_file(self, name: str, bytes_max: int) -> tuple[list[SpoolEntry], int]:
        """Return the next entries of a file, and how many bytes they take; it is tidied away if nothing is left."""
        progress = self._progress.setdefault(name, _Progress())
        with open(os.path.join(self._directory, name), "rb") as file:
            scan = _Scan(file, name, progress.offset)
            settled = False
            while scan.at - progress.offset < bytes_max or not scan.entries:
                size = os.fstat(file.fileno()).st_size
                if scan.at >= size:
                    break
                damage = scan.step()
                if damage is None:
                    continue
                if not settled:  # perhaps it is being written at this moment: nobody appends while the lock is ours
                    if not lock_now(file.fileno()):
                        break
                    settled = True
                    continue
                if not scan.skip(damage):
                    break
            new_damage = scan.damaged_at - progress.damaged_at
            self.damaged += len(new_damage)
            progress.damaged_at |= new_damage
            read_bytes = scan.at - progress.offset
            if not scan.entries:
                progress.offset = scan.at
                self._tidy_away(name, file, progress, locked=settled)
        return scan.entries, read_bytes

    def _tidy_away(self, name: str, file: BinaryIO, progress: _Progress, *, locked: bool = False) -> None:
        """Remove a file that is read to its end and that nobody is appending to; keep a damaged one aside."""
        if not locked and not lock_now(file.fileno()):
            return
        if os.fstat(file.fileno()).st_size > progress.offset:
            unlock(file.fileno())
            return
        path = os.path.join(self._directory, name)
        try:
            if progress.damaged_at:
                os.replace(path, path.removesuffix(SUFFIX) + DAMAGED_SUFFIX)
                _forget_oldest(self._directory)
            else:
                os.unlink(path)
        except PermissionError:  # Windows, while somebody has it open
            return
        self._progress.pop(name, None)


class _Scan:
    """Reads one file record by record.

    Attributes:
        at: offset behind what was read.
        entries: what was read.
        damaged_at: offsets at which something damaged was passed over.
    """

    def __init__(self, file: BinaryIO, name: str, offset: int) -> None:
        """Begin at `offset`."""
        self.at = offset
        self.entries: list[SpoolEntry] = []
        self.damaged_at: set[int] = set()
        self._file = file
        self._name = name
        self._file_id = _file_id(name)
        self._next = offset

    def step(self) -> Damage | None:
        """Read the record at `at` and go behind it; return what is wrong with it, and stay."""
        self._file.seek(self.at)
        head = decode_head(self._file_id, self.at, self._file.read(HEAD_BYTES))
        if isinstance(head, Damage):
            self._next = self.at
            return head
        message = decode_payload(head, self._file.read(head.payload_bytes), _sha256)
        self._next = self.at + HEAD_BYTES + head.payload_bytes
        if not isinstance(message, Message):
            return message
        self.at = self._next
        mark = (self._name, self.at)
        self.entries.append(SpoolEntry(message.op, message.id, message.arguments, message.raw, mark))
        return None

    def skip(self, damage: Damage) -> bool:
        """Go behind what is wrong, in a file that nobody is writing to; tell whether something may follow it."""
        size = os.fstat(self._file.fileno()).st_size
        if damage is Damage.PAYLOAD:
            self.damaged_at.add(self.at)
            self.at = self._next
            return True
        self._file.seek(self.at)
        rest = self._file.read()
        following = next_record(self._file_id, self.at + 1, rest[1:])
        if damage is Damage.HEAD or following is not None:
            self.damaged_at.add(self.at)
        self.at = size if following is None else self.at + 1 + following
        return following is not None


def _file_id(name: str) -> bytes:
    try:
        return bytes.fromhex(name.removesuffix(SUFFIX))
    except ValueError:
        return b""


def _sizes(directory: str) -> dict[str, int]:
    """Return the size of every spool file in `directory`; {} if there is no such directory."""
    sizes = {}
    try:
        with os.scandir(directory) as found:
            for entry in found:
                if entry.name.endswith(SUFFIX):
                    try:
                        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return sizes


def _sizes_of_all(directory: str) -> dict[str, int]:
    """Return the size of every spool file of every service."""
    try:
        services = os.listdir(directory)
    except FileNotFoundError:
        return {}
    return {name: size for service in services for name, size in _sizes(os.path.join(directory, service)).items()}


def _forget_oldest(directory: str) -> None:
    """Keep the damaged files within their bound."""
    names = sorted((name for name in os.listdir(directory) if name.endswith(DAMAGED_SUFFIX)), reverse=True)
    kept_bytes = 0
    for number, name in enumerate(names):
        path = os.path.join(directory, name)
        kept_bytes += os.stat(path).st_size
        if number and kept_bytes > DAMAGED_BYTES_MAX:
            os.unlink(path)


def _write_whole(descriptor: int, offset: int, pieces: Sequence[bytes]) -> None:
    """Append all of it; if that fails, take back what was written."""
    try:
        left = _write(descriptor, pieces)
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        os.ftruncate(descriptor, offset)
        raise


if sys.platform != "win32":

    def _write(descriptor: int, pieces: Sequence[bytes]) -> memoryview:
        """Write, without copying; return what is left."""
        size = sum(map(len, pieces))
        written = os.writev(descriptor, pieces)
        return memoryview(b"" if written == size else b"".join(pieces)[written:])

else:

    def _write(_descriptor: int, pieces: Sequence[bytes]) -> memoryview:
        """Write nothing yet; return it all."""
        return memoryview(b"".join(pieces))


def _sha256(pieces: Iterable[bytes]) -> bytes:
    hashlib = sys.modules.get("hashlib")  # OpenSSL is several times faster; where it is loaded already it costs nothing
    digest = new_sha256() if hashlib is None else hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    result: bytes = digest.digest()
    return result


_HINTS: Final = {
    errno.ENOSPC: "The disk is full: free some space.",
    errno.EDQUOT: "Your disk quota is used up: free some space.",
    errno.EFBIG: "A limit on the size of files is in force (`ulimit -f`).",
    errno.EROFS: "The file system is read-only: mount it for writing, or use another --data-dir.",
    errno.EACCES: "Make the data directory yours to write to, or use another one (RELCTL_DATA_DIR).",
    errno.EMFILE: "This process has too many files open (`ulimit -n`).",
}


def _not_durable(directory: str, error: OSError) -> NotDurable:
    hint = _HINTS.get(error.errno or 0)
    return NotDurable(f"{directory} cannot be written to: {error.strerror or error}", hint)


_writers: Final[weakref.WeakSet[SpoolWriter]] = weakref.WeakSet()


def _leave_parents_behind() -> None:
    for writer in list(_writers):
        writer.leave_parent_behind()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_parents_behind)
