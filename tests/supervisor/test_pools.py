"""New objects lie together once the holes among the old ones are filled."""

import platform
import subprocess
import sys

import pytest

PROBE = """
import sys
from supervisor.pools import fill_holes

SIZES = range(64, 513, 64)
PAGE_BYTES = 4096

def pages():
    made = [bytes(size - 33) for size in SIZES for _ in range(24)]
    return len({id(item) // PAGE_BYTES for item in made})

many = {size: [bytes(size - 33) for _ in range(1000)] for size in SIZES}
for items in many.values():
    del items[::20]
before = pages()
kept = fill_holes()
print(before, pages(), sum(map(sys.getsizeof, kept)))
"""


@pytest.mark.skipif(platform.python_implementation() != "CPython", reason="other Pythons keep objects otherwise")
def test_new_objects_touch_fewer_pages_than_before_at_the_cost_of_little() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    before, after, kept_bytes = map(int, result.stdout.split())
    assert after < before / 2
    assert kept_bytes < 4 * 1024 * 1024
