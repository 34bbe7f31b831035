"""Where spooled calls lie, and how much there is: what the spool's writers and readers share. See `spool`."""

import os
import sys
from collections.abc import Iterable
from typing import Final

from actors.runtime.digests import new_sha256

SPOOL_DIR: Final = "spool"
READER_LOCK_FILE: Final = "reader.lock"
SUFFIX: Final = ".spool"
HINT_PREFIX: Final = "spooled-"


def spool_directory(data_dir: str, service: str) -> str:
    """Return where calls of `service` wait."""
    return os.path.join(data_dir, SPOOL_DIR, service)


def hint_path(runtime_dir: str, service: str) -> str:
    """Return the file on tmpfs that is touched after something was spooled for `service`.

    It spares the owner from looking into DATA; that it changed tells to look, that it did not promises nothing.
    """
    return os.path.join(runtime_dir, HINT_PREFIX + service)


def sizes_in(directory: str) -> dict[str, int]:
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


def sizes_of_all(directory: str) -> dict[str, int]:
    """Return the size of every spool file of every service."""
    try:
        services = os.listdir(directory)
    except FileNotFoundError:
        return {}
    return {name: size for service in services for name, size in sizes_in(os.path.join(directory, service)).items()}


def sha256_of(pieces: Iterable[bytes]) -> bytes:
    """Return the SHA-256 digest of all pieces together."""
    hashlib = sys.modules.get("hashlib")  # OpenSSL is several times faster; where it is loaded already it costs nothing
    digest = new_sha256() if hashlib is None else hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    result: bytes = digest.digest()
    return result
