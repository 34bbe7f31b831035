"""Reading a file at an offset, where the system has a call for that and where it has none."""

import os

if hasattr(os, "pread"):
    read_at = os.pread
else:

    def read_at(descriptor: int, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset` on; moves the file's own position."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def data_from(descriptor: int, offset: int) -> int:
    """Return where the first data at or after `offset` lies; `offset` itself where the system does not say."""
    if not hasattr(os, "SEEK_DATA"):
        return offset
    try:
        return max(offset, os.lseek(descriptor, offset, os.SEEK_DATA))
    except OSError:  # nothing but a hole up to the end, or a file system that knows none
        return offset
