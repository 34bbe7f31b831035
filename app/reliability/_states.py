"""States of applications as bytes: what can be kept, and what is said of what cannot."""

from typing import Any, Final

import msgpack

from protocol.errors import ErrorCode, LocalError
from protocol.limits import MIB

STATE_BYTES_MAX: Final = 64 * MIB
NESTING_MAX: Final = 500


class StateError(LocalError):
    """A state cannot be kept: msgpack cannot hold it, or it is too large. Nothing was written."""


def encode(state: Any) -> bytes:
    """Return a state as it is kept.

    Raises:
        StateError: it cannot be, and why.
    """
    try:
        payload: bytes = msgpack.packb(state, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError):
        payload = _encode_plain(state)
    except RuntimeError as error:  # another thread is changing it at this moment
        raise StateError(ErrorCode.BAD_REQUEST, f"the state changed while it was taken: {error}", "") from None
    if len(payload) > STATE_BYTES_MAX:
        message = f"a state of {len(payload)} bytes is too large; {STATE_BYTES_MAX} are kept at most"
        raise StateError(ErrorCode.TOO_LARGE, message, "Keep large data in files, and in the state where they are.")
    return payload


def decode(payload: bytes) -> Any:
    """Return a state that was kept.

    Raises:
        LocalError: `integrity`, it is none.
    """
    try:
        return msgpack.unpackb(payload, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise LocalError(ErrorCode.INTEGRITY, f"the checkpoint cannot be decoded: {error}", "") from None


def _encode_plain(state: Any) -> bytes:
    """Encode a state with tuples, or types derived from plain ones; names what is neither."""
    try:
        plain = _plain(state, "state", 0)
        payload: bytes = msgpack.packb(plain, use_bin_type=True, strict_types=True)
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError, OverflowError) as error:
        raise StateError(ErrorCode.BAD_REQUEST, f"the state cannot be kept: {error}", "") from None
    return payload


def _too_deep() -> StateError:
    return StateError(ErrorCode.BAD_REQUEST, f"the state is nested deeper than {NESTING_MAX}, or holds itself", "")


def _plain(value: Any, path: str, depth: int) -> Any:
    if depth > NESTING_MAX:
        raise _too_deep()
    if isinstance(value, dict):
        return {_plain_key(key, path): _plain(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    return _plain_scalar(value, path)


def _plain_key(key: Any, path: str) -> Any:
    if isinstance(key, tuple | frozenset):
        raise _unkept(f"a key of {path}", key)
    return _plain_scalar(key, f"a key of {path}")


def _plain_scalar(value: Any, path: str) -> Any:
    if value is None or type(value) in {bool, float, bytes, msgpack.ExtType, msgpack.Timestamp}:
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise StateError(ErrorCode.BAD_REQUEST, f"{path} is a number of more than 64 bits, which no state can hold", "")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise StateError(ErrorCode.BAD_REQUEST, f"{path} is no valid text: half a surrogate pair", "") from None
    for kind in (str, int, float, bytes):
        if isinstance(value, kind):
            plain: Any = kind
            return plain(value)
    raise _unkept(path, value)


def _unkept(path: str, value: Any) -> StateError:
    hint = "A state is made of maps, lists, texts, bytes, numbers, truth values and None."
    return StateError(ErrorCode.BAD_REQUEST, f"{path} is of type {type(value).__name__}, which no state can hold", hint)


def digest(payload: bytes) -> bytes:
    """Return the SHA-256 digest of a state; OpenSSL is loaded for it."""
    import hashlib

    return hashlib.sha256(payload).digest()
