"""What the composition root hands over: which processes there are, and how they are supervised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.runtime.config import SupervisionConfig
from actors.runtime.liveness import ProcessKind
from actors.runtime.programs import ProgramSpec
from protocol.names import LAUNCHER
from supervisor.budget import Budget
from supervisor.model import ChildSpec


@dataclass(frozen=True, slots=True)
class Definition:
    """One process of the system.

    Attributes:
        name: process and service name.
        kind: what it is.
        module: its entry, see `supervisor.port.Launch`; empty for a program.
        slot: its place on the board.
        stop_rank: see `ChildSpec`.
        program: how it is run, if it is one.
    """

    name: str
    kind: ProcessKind
    module: str
    slot: int
    stop_rank: int
    program: ProgramSpec | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """One launcher's settings.

    Attributes:
        data_dir: absolute data directory.
        config: content of the configuration file; None without one.
        config_path: absolute path at which the processes find it.
        portable: whether the portable ports were asked for.
        successor: whether a survivor started this launcher, not a person.
        supervision: the `[supervision]` section.
        evidence_files_max: pieces of evidence that are kept.
        definitions: our own processes, in the order of starting.
        programs: the user's.
        started_at: monotonic time at which this launcher began.
        sections: every section of the configuration, by name, for the audit trail.
    """

    data_dir: str
    config: bytes | None
    config_path: str | None
    portable: bool
    successor: bool
    supervision: SupervisionConfig
    evidence_files_max: int
    definitions: Sequence[Definition]
    started_at: float
    sections: Mapping[str, Any] = field(default_factory=dict)
    programs: Sequence[ProgramSpec] = ()

    @property
    def budget(self) -> Budget:
        """The restart budget of each process of ours, the launcher included."""
        return Budget(self.supervision.restart_max, self.supervision.restart_period_s)

    def specs(self) -> list[ChildSpec]:
        """Return how each process of ours is supervised."""
        return [self._spec(item.name, item.stop_rank) for item in self.definitions if item.program is None]

    def own_spec(self) -> ChildSpec:
        """Return the same for the launcher: its budget counts, the rest is only shown."""
        return self._spec(LAUNCHER, 0)

    def _spec(self, name: str, stop_rank: int) -> ChildSpec:
        supervision = self.supervision
        return ChildSpec(name, self.budget, supervision.start_timeout_s, supervision.stop_timeout_s, stop_rank)
