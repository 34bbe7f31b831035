"""One part of the system in its surroundings: directories, board, run.json, and a broker's end to speak from."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from actors.runtime import paths
from actors.runtime.arguments import ProcessArguments
from actors.runtime.journal import Journal
from actors.runtime.liveness import Board
from actors.runtime.paths import Curve, RunInfo
from actors.runtime.transport import Lane, Transport, local_endpoints, new_curve_keys

PATIENCE_S = 10.0
"""How long a test waits for something that should come at once."""


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds."""
    give_up = monotonic() + patience_s
    while not condition():
        assert monotonic() < give_up, f"not within {patience_s:g} s: {what}"
        sleep(0.002)


@dataclass
class Place:
    """An installation without processes."""

    data_dir: Path
    runtime_dir: str
    board: Board
    curve: Curve | None = None

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.data_dir / paths.CONFIG_FILE

    @property
    def transport(self) -> Transport:
        """What run.json says."""
        run = paths.read_run_file(os.path.join(self.runtime_dir, paths.RUN_FILE))
        assert run is not None
        return Transport.for_run(run)

    def write_run(self, endpoints: dict[Lane, str]) -> None:
        """Write run.json, in both places as the launcher does."""
        run = RunInfo(
            endpoint=endpoints[Lane.CONTROL],
            bulk=endpoints[Lane.BULK],
            events=endpoints[Lane.EVENTS],
            control=os.path.join(self.runtime_dir, paths.CONTROL_SOCKET),
            runtime_dir=self.runtime_dir,
            pid=os.getpid(),
            portable=self.curve is not None,
            curve=self.curve,
        )
        for directory in (self.runtime_dir, str(self.data_dir)):
            paths.write_atomically(os.path.join(directory, paths.RUN_FILE), run.to_json().encode(), sync=False)

    def journal(self, name: str) -> Journal:
        """A process's journal here."""
        return Journal(os.path.join(self.runtime_dir, paths.JOURNAL_DIR), name)

    def arguments(self, name: str, slot: int, incarnation: int = 1) -> ProcessArguments:
        """A process's place here."""
        return ProcessArguments(
            name, slot, incarnation, str(self.data_dir), self.runtime_dir, str(self.config), self.curve is not None
        )


@contextmanager
def place(*, portable: bool = False, supervision: str = "tick_s = 0.02\n") -> Iterator[Place]:
    """Make an installation of its own, and remove it; `supervision` is what its configuration says."""
    data = Path(tempfile.mkdtemp(prefix="data-"))
    runtime_dir = paths.prepare_runtime_directory(str(data))
    try:
        with Board.create(os.path.join(runtime_dir, paths.BOARD_FILE)) as board:
            made = Place(data, runtime_dir, board, new_curve_keys() if portable else None)
            made.config.write_text(f"[supervision]\n{supervision}")
            made.write_run(dict.fromkeys(Lane, "tcp://127.0.0.1:*") if portable else local_endpoints(runtime_dir))
            yield made
    finally:
        shutil.rmtree(runtime_dir, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
