import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.actors.runtime.processes import House, house


@pytest.fixture(name="home")
def _home(tmp_path: pathlib.Path) -> Iterator[House]:
    runtime_dir = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None))
    try:
        with house(runtime_dir, tmp_path) as made:
            yield made
    finally:
        shutil.rmtree(runtime_dir)
