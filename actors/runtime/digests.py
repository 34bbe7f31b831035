"""Digests without OpenSSL: Python's own implementations, which `hashlib` hides behind OpenSSL's where there is one.

OpenSSL takes 3.3 MiB of memory in every process that loads it: more than event_logger itself. Python's own give the
same digests, and for a few hundred bytes give them sooner; for mebibytes OpenSSL's is several times faster, so a child
or a thread that digests much may load `hashlib` late. Nothing here changes what a host's own `hashlib` does.
"""

import importlib
import sys
from typing import Any, Final, Protocol

SHA256_BYTES: Final = 32
_BLOCK_BYTES: Final = 64
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))


class Digest(Protocol):
    """A digest under way."""

    def update(self, data: bytes, /) -> None:
        """Take in more."""

    def digest(self) -> bytes:
        """Return the digest of what was taken in so far."""


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 digest of `data`."""
    digest: bytes = _SHA256(data).digest()
    return digest


def new_sha256(data: bytes = b"") -> Digest:
    """Begin a SHA-256 digest with `data`."""
    digest: Digest = _SHA256(data)
    return digest


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """Return the HMAC-SHA-256 of `data` (RFC 2104) under a `key` of at most 64 bytes.

    Raises:
        ValueError: the key is longer.
    """
    if len(key) > _BLOCK_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
    padded = key.ljust(_BLOCK_BYTES, b"\0")
    return sha256(padded.translate(_OUTER) + sha256(padded.translate(_INNER) + data))


def blake2b(data: bytes, size_bytes: int) -> bytes:
    """Return the BLAKE2b digest of `data`, `size_bytes` long."""
    digest: bytes = _BLAKE2B(data, digest_size=size_bytes).digest()
    return digest


def _implementation(module: str, name: str) -> Any:
    """Return Python's own implementation, or hashlib's where Python was built without it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return getattr(importlib.import_module("hashlib"), name)


_SHA256: Final = _implementation("_sha2" if sys.version_info >= (3, 12) else "_sha256", "sha256")
_BLAKE2B: Final = _implementation("_blake2", "blake2b")
