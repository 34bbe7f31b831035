"""Appending to the spool, from any process: see `spool`."""

import errno
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final

from actors.runtime.filelock import lock_now, unlock
from actors.runtime.paths import make_private_directory, read_run_info, sync_directory
from actors.runtime.spool_files import READER_LOCK_FILE, SUFFIX, hint_path, sha256_of, sizes_of_all, spool_directory
from actors.runtime.spool_format import HEAD_BYTES, encode_head, encode_payload
from protocol.errors import NotDurable, ReliabilityError
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.limits import BULK_MESSAGE_BYTES_MAX, MIB

WRITER_BYTES_MAX: Final = BULK_MESSAGE_BYTES_MAX
"""What one writer may have waiting: the largest call there is still fits when nothing else does."""
SPOOL_BYTES_MAX: Final = 256 * MIB
"""What all writers of a data directory may have waiting, for all services."""
FILE_BYTES_MAX: Final = 8 * MIB
"""A file that has grown to this gets a successor, so that what is drained gives its space back."""
UNCOUNTED_BYTES_MAX: Final = MIB
"""What a writer may append before it looks again how much there is in all."""
BEGINNINGS_MAX: Final = 16
"""New files tried for one append, in case the reader tidies each away before its first record."""

_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


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
        sizes = sizes_of_all(os.path.dirname(self._directory))
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
        return encode_head(self._file_id, offset, payload, sha256_of)

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
            self._make_reader_lock()
            descriptor = os.open(self._path, flags, 0o600)
        self._descriptor = descriptor
        self._names.add(os.path.basename(self._path))
        run = read_run_info(self._data_dir)
        self._hint_path = hint_path(run.runtime_dir, self._service) if run else None
        return descriptor

    def _make_reader_lock(self) -> None:
        """Make it while there is space: a full disk would keep the owner from taking in what fills it."""
        os.close(os.open(os.path.join(self._directory, READER_LOCK_FILE), os.O_WRONLY | os.O_CREAT | _FLAGS, 0o600))

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
