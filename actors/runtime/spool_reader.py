"""Reading the spool, by the owner of what waits there: see `spool`."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from actors.runtime.filelock import FileLock, lock_now, unlock
from actors.runtime.spool_files import READER_LOCK_FILE, SUFFIX, sha256_of, sizes_in, spool_directory
from actors.runtime.spool_format import HEAD_BYTES, Damage, Message, decode_head, decode_payload, next_record
from protocol.limits import MIB

DAMAGED_SUFFIX: Final = ".damaged"
DAMAGED_BYTES_MAX: Final = 64 * MIB
"""Damaged files kept, for each service; the oldest go first."""


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


def peek(data_dir: str, service: str) -> Iterator[SpoolEntry]:
    """Yield what lies in the spool, for whoever is not its owner: it takes no lock and changes nothing.

    What the owner has committed, but not yet removed, is still there. What is damaged is passed over.
    """
    directory = spool_directory(data_dir, service)
    for name in sorted(sizes_in(directory)):
        try:
            with open(os.path.join(directory, name), "rb") as file:
                scan = _Scan(file, name, 0)
                while scan.at < os.fstat(file.fileno()).st_size:
                    damage = scan.step()
                    if damage is not None and not scan.skip(damage):
                        break
                    while scan.entries:
                        yield scan.entries.pop(0)
        except OSError:
            continue


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
        sizes = sizes_in(self._directory)
        self._progress = {name: found for name, found in self._progress.items() if name in sizes}
        for name in sorted(sizes):
            if entries and bytes_max <= 0:
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
        for name, size in sizes_in(self._directory).items():
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
                os.truncate(path, 0)  # its writer may keep it open for long, and the disk may be full
                progress.offset = 0
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
        message = decode_payload(head, self._file.read(head.payload_bytes), sha256_of)
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


def _forget_oldest(directory: str) -> None:
    """Keep the damaged files within their bound."""
    names = sorted((name for name in os.listdir(directory) if name.endswith(DAMAGED_SUFFIX)), reverse=True)
    kept_bytes = 0
    for number, name in enumerate(names):
        path = os.path.join(directory, name)
        kept_bytes += os.stat(path).st_size
        if number and kept_bytes > DAMAGED_BYTES_MAX:
            os.unlink(path)
