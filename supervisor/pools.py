"""A fork copies what it writes to: so that its new objects lie together, the holes among the old ones are filled.

CPython keeps small objects of one size in pools of pages. Imports leave free places scattered over them, which a
child's own objects would take first, each in a page that is shared until then. Filled once, before the first fork,
they cost nothing: those pages are in use anyway. Where objects lie otherwise, this only wastes what its bound allows.
"""

from typing import Final

_SMALLEST_BYTES, _LARGEST_BYTES, _STEP_BYTES = 48, 512, 16
"""Sizes of the objects that lie in pools, but for the two smallest, which no `bytes` has."""
_IN_ORDER: Final = 12
"""So many objects one right behind the other lie in a pool that nobody has used yet."""
_OBJECTS_MAX: Final = 4000
"""Of one size: bounds what is wasted."""
_BYTES_OVERHEAD: Final = 33


def fill_holes() -> list[bytes]:
    """Return objects that fill the free places among the present ones; to be kept for good."""
    kept: list[bytes] = []
    for size in range(_SMALLEST_BYTES, _LARGEST_BYTES + 1, _STEP_BYTES):
        last = in_order = 0
        for _ in range(_OBJECTS_MAX):
            filler = bytes(size - _BYTES_OVERHEAD)
            kept.append(filler)
            in_order = in_order + 1 if id(filler) == last + size else 0
            last = id(filler)
            if in_order >= _IN_ORDER:
                break
    return kept
