"""``python -m supervisor.durable SOURCE TARGET``: waits for the disk, so that the launcher need not."""

import sys

from actors.runtime.paths import write_atomically


def copy(source: str, target: str) -> int:
    """Make `target` a copy of `source`, synced to disk; return the exit code."""
    try:
        with open(source, "rb") as file:
            data = file.read()
        write_atomically(target, data, sync=True)
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(copy(*sys.argv[1:3]))
