"""msgpack with bounds: nothing is believed before its size, depth and types are checked.

Allowed values: None, bool, int, float, str, bytes, lists of them, and maps with unique string keys. Extension types
(timestamps included) are refused, so nothing but plain data ever comes out of a message.
"""

from typing import Any, NoReturn

import msgpack

from protocol.errors import ErrorCode, ProtocolError
from protocol.limits import NESTING_MAX

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})


def pack(value: Any) -> bytes:
    """Encode plain data.

    Raises:
        ProtocolError: `value` holds something that may not cross the wire.
    """
    try:
        return msgpack.packb(value, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"cannot be encoded: {error}") from None


def unpack(data: bytes | memoryview, bytes_max: int, nesting_max: int = NESTING_MAX) -> Any:
    """Decode one value that a peer sent.

    Raises:
        ProtocolError: too large, too deep, truncated, trailing bytes, a type or key that is not allowed, a key twice.
    """
    if len(data) > bytes_max:
        raise ProtocolError(f"{len(data)} bytes exceed the limit of {bytes_max}", ErrorCode.TOO_LARGE)
    try:
        value = msgpack.unpackb(
            data, raw=False, strict_map_key=True, ext_hook=_refuse_extension, object_pairs_hook=_map
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not valid msgpack: {type(error).__name__} {error}".rstrip()) from None
    check(value, nesting_max)
    return value


def check(value: Any, nesting_max: int = NESTING_MAX) -> None:
    """Raise `ProtocolError` unless `value` is plain data no deeper than `nesting_max` containers."""
    level = [value]
    for _ in range(nesting_max + 1):
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind in _SCALARS:
                continue
            if kind is dict:
                deeper.extend(item.values())
            elif kind is list:
                deeper.extend(item)
            else:
                raise ProtocolError(f"type {kind.__name__} may not cross the wire")
        if not deeper:
            return
        level = deeper
    raise ProtocolError(f"nested deeper than {nesting_max}")


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ProtocolError(f"extension type {code} may not cross the wire")


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ProtocolError("a map has the same key twice")
    for key in result:
        if type(key) is not str:
            raise ProtocolError("a map key is not a string")
    return result
