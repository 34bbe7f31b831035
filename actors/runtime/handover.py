"""Large states that clients lay down for checkpointer, so that only a name travels: what both sides must agree on.

A client writes a state into a new file in DATA/checkpoints, owner-only, under a random name, and tells name and size,
even before all of it is there. checkpointer waits for that shortly, checks the file, and makes it durable where it is:
moving it would cost another flush. What nobody asks it to take is removed after a while. A client to whom anything of
this fails sends the bytes.
"""

import os
from typing import Final

from protocol.limits import KIB

HANDED_BYTES_MIN: Final = 256 * KIB
"""A smaller state is quicker through the broker, and lies in the database anyway."""
STATE_SUFFIX: Final = ".state"
_NAME_BYTES: Final = 16


def states_directory(data_dir: str) -> str:
    """Return the directory of large states."""
    return os.path.join(data_dir, "checkpoints")


def new_state_name() -> str:
    """Return a name for a file that no other has."""
    return os.urandom(_NAME_BYTES).hex() + STATE_SUFFIX


def is_state_name(name: object) -> bool:
    """Tell whether a file has a name that `new_state_name` gives; such a name leads nowhere else."""
    if type(name) is not str or not name.endswith(STATE_SUFFIX):
        return False
    stem = name.removesuffix(STATE_SUFFIX)
    return len(stem) == 2 * _NAME_BYTES and all(digit in "0123456789abcdef" for digit in stem)
