"""Digests without OpenSSL: `hashlib` as it is where Python was built without it.

`hashlib` prefers OpenSSL, which takes 3.3 MiB of memory in the processes that load it: more than event_logger itself.
Python's own implementations give the same digests, and for a few hundred bytes give them sooner. For event_logger's
process, and the launcher that it is forked from; a host's process never imports this.
"""

import importlib
import sys
from types import ModuleType
from typing import Final

_OPENSSL: Final = "_hashlib"


def _hashlib() -> ModuleType:
    if "hashlib" in sys.modules or _OPENSSL in sys.modules:
        return importlib.import_module("hashlib")
    sys.modules[_OPENSSL] = None  # type: ignore[assignment]  # so an import of it fails, as the import system promises
    try:
        return importlib.import_module("hashlib")
    finally:
        del sys.modules[_OPENSSL]


def blake2b(data: bytes, size_bytes: int) -> bytes:
    """Return the BLAKE2b digest of `data`, `size_bytes` long."""
    digest: bytes = _HASHLIB.blake2b(data, digest_size=size_bytes).digest()
    return digest


_HASHLIB: Final = _hashlib()
