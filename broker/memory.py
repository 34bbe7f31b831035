"""How much memory this process has resident."""

import sys

if sys.platform == "linux":
    import os

    _PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

    def resident_bytes() -> int:
        """Return the resident set size; read from the kernel, not from a disk."""
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * _PAGE_BYTES

else:
    import psutil

    def resident_bytes() -> int:
        """Return the resident set size."""
        size: int = psutil.Process().memory_info().rss
        return size
