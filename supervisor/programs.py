"""The programs that a launcher supervises: which, where on the board, as what kind of child, in which environment."""

import os
from collections.abc import Mapping
from typing import Final

from actors.runtime import programs
from actors.runtime.helpers import HELPER_VARIABLE
from actors.runtime.identity import boot_id
from actors.runtime.liveness import FIRST_PROGRAM_SLOT, SLOTS, ProcessKind
from actors.runtime.paths import DATA_DIR_VARIABLE
from actors.runtime.programs import ProgramSpec, Ready
from protocol.errors import ErrorCode, LocalError
from supervisor.budget import Budget
from supervisor.ground import Ground
from supervisor.model import ChildSpec
from supervisor.port import SOURCE_ROOT
from supervisor.settings import Definition, Settings

_OURS: Final = (
    HELPER_VARIABLE,
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
"""What a service manager may have told the launcher, and means nobody else."""


class Roster:
    """The present set of programs; every change of it is in programs.json when the method returns."""

    def __init__(self, settings: Settings, ground: Ground) -> None:
        """Begin with the predecessor's set, if this is a successor, else with what the settings have.

        Whatever was added to a system that still runs stays.

        Raises:
            OSError: there is no room on tmpfs.
        """
        self._supervision = settings.supervision
        self._runtime_dir = ground.runtime_dir
        self._data_dir = settings.data_dir
        self._board = ground.board
        kept = programs.load(ground.runtime_dir) if ground.adopting else {}
        slots = programs.load_slots(ground.runtime_dir) if ground.adopting else {}
        self.specs = {spec.name: spec for spec in settings.programs}
        if settings.successor:
            self.specs = kept
        else:
            self.specs |= {name: spec for name, spec in kept.items() if spec.transient and name not in self.specs}
        self.slots: dict[str, int] = {}
        for name in sorted(self.specs, key=lambda name: name not in slots):
            self.slots[name] = slots[name] if name in slots else self._free_slot()
        if self.specs:
            self.save()

    def definitions(self) -> list[Definition]:
        """Return each program's definition."""
        return [self.definition(name) for name in self.specs]

    def definition(self, name: str) -> Definition:
        """Return what the fleet has to know of a program."""
        rank = -1 - programs.depths(self.specs.values())[name]
        return Definition(name, ProcessKind.PROGRAM, "", self.slots[name], rank, self.specs[name])

    def child_spec(self, name: str) -> ChildSpec:
        """Return what the core has to know of a program."""
        return child_spec(self.definition(name), self._supervision.restart_max, self._supervision.restart_period_s)

    def add(self, spec: ProgramSpec) -> None:
        """Add a program, or change one that is there.

        Raises:
            LocalError: there are too many, or it comes after one that is not there.
        """
        others = [other for other in self.specs.values() if other.name != spec.name]
        programs.check_together([*others, spec])
        slot = self.slots[spec.name] if spec.name in self.slots else self._free_slot()
        self.specs[spec.name] = spec
        self.slots[spec.name] = slot
        self._save_or_fail()

    def remove(self, name: str) -> None:
        """Remove a program that nobody needs."""
        del self.specs[name]
        del self.slots[name]
        self._save_or_fail()

    def save(self) -> None:
        """Write programs.json.

        Raises:
            OSError: there is no room on tmpfs.
        """
        programs.save(self._runtime_dir, self.specs.values(), self.slots)

    def _save_or_fail(self) -> None:
        try:
            self.save()
        except OSError as error:
            raise LocalError(
                ErrorCode.FAILED, f"{programs.PROGRAMS_FILE} cannot be written: {error.strerror}", ""
            ) from None

    def _free_slot(self) -> int:
        occupied = {slot.number for slot, _ in self._board.occupied()}
        return free_slot(set(self.slots.values()) | occupied, set(self.slots.values()))


def free_slot(avoided: set[int], taken: set[int]) -> int:
    """Return a slot for a program: none that is `taken`, and none of `avoided` if possible.

    Raises:
        LocalError: there is none left.
    """
    free = [number for number in range(FIRST_PROGRAM_SLOT, SLOTS) if number not in taken]
    if not free:
        raise LocalError(ErrorCode.USAGE, f"at most {programs.PROGRAMS_MAX} programs are supervised", "Forget one.")
    return next((number for number in free if number not in avoided), free[0])


def child_spec(definition: Definition, restart_max: int, restart_period_s: float) -> ChildSpec:
    """Return how a program is supervised; budget numbers are for one that names none of its own."""
    spec = definition.program
    if spec is None:
        raise ValueError(f"{definition.name} is no program")
    budget = Budget(
        restart_max if spec.restart_max is None else spec.restart_max,
        restart_period_s if spec.restart_period_s is None else spec.restart_period_s,
    )
    return ChildSpec(
        name=spec.name,
        budget=budget,
        start_timeout_s=spec.start_timeout_s,
        stop_timeout_s=spec.stop_timeout_s,
        stop_rank=definition.stop_rank,
        restart=spec.restart,
        after=spec.after,
        late=True,
        ready_when_started=spec.ready is Ready.STARTED,
        gentle=True,
    )


def environment_of(
    spec: ProgramSpec, inherited: Mapping[str, str], data_dir: str, incarnation: int, notify_socket: str | None
) -> dict[str, str]:
    """Return the environment of one life of a program.

    Args:
        spec: the program.
        inherited: the launcher's own environment.
        data_dir: the system's data directory, so that `relctl` and clients find it.
        incarnation: the life.
        notify_socket: where it is heard, if it is.
    """
    environment = {key: value for key, value in inherited.items() if key not in _OURS}
    searched = [path for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if path and path != SOURCE_ROOT]
    if searched:
        environment["PYTHONPATH"] = os.pathsep.join(searched)
    invocation = programs.invocation_id(boot_id(), data_dir, spec.name, incarnation)
    environment |= {
        DATA_DIR_VARIABLE: data_dir,
        programs.PROGRAM_VARIABLE: spec.name,
        "INVOCATION_ID": invocation,
        **spec.environment,
        programs.INVOCATION_VARIABLE: invocation,  # its own processes are known by it
    }
    if notify_socket is not None:
        environment["NOTIFY_SOCKET"] = notify_socket
        environment["WATCHDOG_USEC"] = str(int(spec.hang_timeout_s * 1_000_000))
    return environment
