"""A few lines for the person in front of the terminal, if there is one. They never hold the launcher up."""

import os
import select
import sys
from typing import Final

PREFIX: Final = "relctl: "
LINE_BYTES_MAX: Final = 1024
"""Less than a pipe takes as one piece, so a descriptor that is writable at all takes a line without waiting."""


def say(message: str) -> None:
    """Write one line to the standard output, or drop it: a stopped terminal or a full pipe must not stop us."""
    line = (PREFIX + message.replace("\n", " ")).encode(errors="replace")[:LINE_BYTES_MAX] + b"\n"
    try:
        descriptor = sys.stdout.fileno()
        if os.name == "posix":
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            if [mask for _, mask in poller.poll(0)] != [select.POLLOUT]:
                return
        os.write(descriptor, line)
    except (AttributeError, OSError, ValueError):  # no standard output, or none that takes anything
        return
