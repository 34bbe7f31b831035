"""Payloads: their digests, their encodings, their files, and the chain's heads beside the database.

A large payload is a file of its own in DATA/checkpoints/, named at random and written once, under its name: nobody
reads it before the row that names it is committed, and what no row names is swept away. So it needs no renaming, which
would cost another flush of the disk. Everything here waits for disks: for worker threads and children only.
"""

import json
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from actors.checkpointer.core import PAYLOAD_BYTES_MAX, Encoding
from actors.runtime.digests import sha256
from actors.runtime.handover import is_state_name, new_state_name, states_directory
from actors.runtime.paths import sync_directory, write_atomically
from protocol.errors import ErrorCode, LocalError, ProtocolError
from protocol.limits import KIB, MIB

FOLDER: Final = "checkpoints"
STALE_S: Final = 120.0
"""How long a file may lie there unasked for before its client counts as gone; a client waits for seconds only."""
LOST_FOLDER: Final = "lost"
HEADS_FILE: Final = "head.json"
LARGE_DIGEST_BYTES: Final = 32 * KIB
"""From here on OpenSSL's digest is worth the memory that it takes."""
COMPRESSION_LEVEL: Final = 1
SAMPLE_BYTES: Final = 64 * KIB
SAMPLE_RATIO_MAX: Final = 0.8
"""A payload is compressed if a sample of it shrinks to this share or less."""
_CHUNK_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class Stored:
    """Where and how a payload is kept.

    Attributes:
        encoding: how.
        stored_bytes: what it takes.
        blob: the bytes, if they lie in the row.
        file: else the name of the file.
    """

    encoding: Encoding
    stored_bytes: int
    blob: bytes | None = None
    file: str | None = None


class Damaged(Exception):
    """A payload is not the one that was saved; the text says how."""


def digest(data: bytes) -> bytes:
    """Return the SHA-256 digest of `data`."""
    if len(data) >= LARGE_DIGEST_BYTES:
        try:
            import _hashlib  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - OpenSSL, once it pays
        except ImportError:
            return sha256(data)
        found: bytes = _hashlib.openssl_sha256(data, usedforsecurity=False).digest()
        return found
    return sha256(data)


def check_msgpack(payload: bytes) -> None:
    """Check that `payload` is one value of msgpack, without making objects of it.

    Raises:
        ProtocolError: it is not.
    """
    scanner = msgpack.Unpacker(max_buffer_size=PAYLOAD_BYTES_MAX + KIB, strict_map_key=False)
    scanner.feed(payload)
    try:
        scanner.skip()
    except msgpack.OutOfData:
        raise ProtocolError("the state is not one whole value of msgpack") from None
    except msgpack.StackError:
        raise ProtocolError("the state is nested too deeply") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"the state is not msgpack: {type(error).__name__} {error}".rstrip()) from None
    if scanner.tell() != len(payload):
        raise ProtocolError("the state has bytes behind its value")


def shrinks(payload: bytes) -> bool:
    """Tell, by a sample from its middle, whether compressing a payload pays."""
    start = max(0, (len(payload) - SAMPLE_BYTES) // 2)
    sample = payload[start : start + SAMPLE_BYTES]
    return len(zlib.compress(sample, COMPRESSION_LEVEL)) <= SAMPLE_RATIO_MAX * len(sample)


def decode(stored: bytes, encoding: Encoding, size_bytes: int, expected_sha256: bytes) -> bytes:
    """Return the payload that was saved.

    Raises:
        Damaged: these bytes are not it.
    """
    payload = stored
    if encoding is Encoding.ZLIB:
        try:
            inflater = zlib.decompressobj()
            payload = inflater.decompress(stored, size_bytes + 1)
        except zlib.error as error:
            raise Damaged(f"cannot be decompressed: {error}") from None
    if len(payload) != size_bytes:
        raise Damaged(f"has {len(payload)} bytes, not {size_bytes}")
    if digest(payload) != expected_sha256:
        raise Damaged("has another SHA-256 than what was saved")
    return payload


class PayloadFiles:
    """The files of payloads in one data directory.

    Attributes:
        directory: where they are; clients hand theirs over there.
        known: names that rows have, or soon will: what else lies there a client has made, or a death has left.
    """

    def __init__(self, data_dir: str) -> None:
        """Name the directory; it is made when first written to."""
        self.directory = states_directory(data_dir)
        self.known: set[str] = set()
        self._first_seen: dict[str, float] = {}

    def path(self, name: str) -> str:
        """Return where the file `name` is."""
        return os.path.join(self.directory, name)

    def write(self, payload: bytes) -> str:
        """Keep a payload in a new file that survives a power cut; returns its name.

        Raises:
            LocalError: it cannot be written, and no file is left.
        """
        name = new_state_name()
        self.known.add(name)
        path = self.path(name)
        try:
            self.make_directory()
            with open(path, "xb", buffering=0, opener=_open_private) as file:
                view = memoryview(payload)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            if sys.platform != "win32":
                sync_directory(self.directory)
        except OSError as error:
            self.remove(name)
            raise not_written(error) from None
        return name

    def read(self, name: str, bytes_max: int) -> bytes:
        """Return a file's content.

        Raises:
            Damaged: there is none, it cannot be read, or has more than `bytes_max` bytes.
        """
        if not is_state_name(name):
            raise Damaged("names no file")
        try:
            with open(os.path.join(self.directory, name), "rb") as file:
                content = file.read(bytes_max + 1)
        except OSError as error:
            raise Damaged(f"its file cannot be read: {error.strerror}") from None
        if len(content) > bytes_max:
            raise Damaged("its file is too long")
        return content

    def size_bytes(self, name: str) -> int | None:
        """Return the size of a file; None if there is none."""
        try:
            return os.stat(os.path.join(self.directory, name)).st_size
        except OSError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there; one that cannot be removed is swept another time."""
        self.known.discard(name)
        try:
            os.unlink(self.path(name))
        except OSError:
            return

    def sweep(self, now: float) -> int:
        """Remove files that are not `known` and lie there for too long; `now` is monotonic. Returns how many."""
        self._first_seen = {name: self._first_seen.get(name, now) for name in self.names() - self.known}
        stale = [name for name, seen in self._first_seen.items() if now - seen >= STALE_S]
        for name in stale:
            self.remove(name)
        return len(stale)

    def names(self) -> set[str]:
        """Return the names of all files of payloads."""
        try:
            return {name for name in os.listdir(self.directory) if is_state_name(name)}
        except FileNotFoundError:
            return set()

    def set_aside(self, name: str) -> None:
        """Move a file that belongs to a lost row where nobody sweeps."""
        folder = os.path.join(self.directory, LOST_FOLDER)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.replace(os.path.join(self.directory, name), os.path.join(folder, name))

    def write_heads(self, heads: "Mapping[str, Head]") -> None:
        """Keep the chain's heads beside the database.

        Raises:
            LocalError: they cannot be written; what was there is there still.
        """
        names = {
            name: {"seq": head.seq, "hash": head.hash.hex(), "timestamp_ms": head.timestamp_ms}
            for name, head in heads.items()
        }
        body = json.dumps(names, sort_keys=True)
        content = json.dumps({"names": names, "sha256": sha256(body.encode()).hex()}, sort_keys=True)
        try:
            self.make_directory()
            write_atomically(os.path.join(self.directory, HEADS_FILE), content.encode(), sync=True)
        except OSError as error:
            raise not_written(error) from None

    def read_heads(self) -> "dict[str, Head] | None":
        """Return the heads as last written; None if they cannot be believed. None were written: an empty map."""
        try:
            with open(os.path.join(self.directory, HEADS_FILE), "rb") as file:
                content: Any = json.loads(file.read())
            body = json.dumps(content["names"], sort_keys=True)
            if sha256(body.encode()).hex() != content["sha256"]:
                return None
            return {
                name: Head(int(head["seq"]), bytes.fromhex(head["hash"]), int(head["timestamp_ms"]))
                for name, head in content["names"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def make_directory(self) -> None:
        """Have the directory, durably."""
        if not os.path.isdir(self.directory):
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            if sys.platform != "win32":
                sync_directory(os.path.dirname(self.directory))


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a name's chain."""

    seq: int
    hash: bytes
    timestamp_ms: int


def compress(payload: bytes) -> bytes:
    """Return a payload compressed, in steps between which other threads run."""
    deflater = zlib.compressobj(COMPRESSION_LEVEL)
    view = memoryview(payload)
    parts = [deflater.compress(view[start : start + _CHUNK_BYTES]) for start in range(0, len(view), _CHUNK_BYTES)]
    return b"".join([*parts, deflater.flush()])


def not_written(error: OSError) -> LocalError:
    """Return the error of a disk that did not take a checkpoint."""
    return LocalError(
        ErrorCode.FAILED,
        f"the checkpoint cannot be written: {error.strerror or error}",
        "Free space on the disk of the data directory; nothing that was acknowledged is lost.",
    )


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
