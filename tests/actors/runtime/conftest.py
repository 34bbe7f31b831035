import pathlib
from collections.abc import Iterator

import pytest

from tests.actors.runtime.processes import House, house


@pytest.fixture(name="home")
def _home(tmp_path: pathlib.Path) -> Iterator[House]:
    with house(tmp_path) as made:
        yield made
