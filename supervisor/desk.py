"""The launcher's dealings with programs: the set that a person changes, and what the watchdog says of them."""

import os
from typing import Any, Final

from actors.runtime import programs
from actors.runtime.identity import ProcessIdentity, identity_of
from actors.runtime.programs import ProgramSpec
from protocol.errors import ErrorCode, LocalError
from supervisor.control import Request
from supervisor.core import Supervisor
from supervisor.fleet import Fleet
from supervisor.model import LIVE, Effect, Exit, Remembered
from supervisor.programs import Roster

PAST_MAX: Final = 256
"""Names of which is remembered how many lives they had, though they are not supervised now."""


class Desk:
    """Carries out run, adopt and forget; its effects are the caller's to carry out, in their order.

    Attributes:
        past: what is remembered of names that are not supervised now.
    """

    def __init__(self, roster: Roster, core: Supervisor, fleet: Fleet, past: dict[str, Remembered]) -> None:
        """Serve the programs of `roster`."""
        self._roster = roster
        self._core = core
        self._fleet = fleet
        self.past = past

    def run(self, request: Request, now: float) -> list[Effect]:
        """Add a program that is gone when the system stops.

        Raises:
            LocalError: what is wrong with it.
        """
        self._core.check_running()
        spec = _transient(request.fields.get("program"))
        if spec.name in self._core.children:
            raise LocalError(
                ErrorCode.USAGE, f"{spec.name} is there already", f"Use another name, or `relctl start {spec.name}`."
            )
        self._roster.add(spec)
        self._fleet.add(self._roster.definition(spec.name))
        return self._core.add(self._roster.child_spec(spec.name), self._remembered(spec.name), now)

    def adopt(self, request: Request, now: float) -> list[Effect]:
        """Supervise a process that somebody else has started, as a program of the name it gives.

        Raises:
            LocalError: it is not there, somebody else's, or a process of that name runs.
        """
        self._core.check_running()
        spec = _transient(request.fields.get("program"))
        identity = _process(request.fields)
        name = spec.name
        child = self._core.children.get(name)
        if child is not None and (name not in self._roster.specs or child.state in LIVE):
            raise LocalError(ErrorCode.LOCKED, f"{name} runs already", f"Stop it first: `relctl stop {name}`.")
        self._roster.add(spec)
        self._fleet.add(self._roster.definition(name))
        past = self._remembered(name)
        effects = self._core.take_in(self._roster.child_spec(name), past, request.who, now)
        incarnation = self._core.children[name].incarnation
        if not self._fleet.adopt(name, incarnation, identity):
            effects += self._core.exited(name, incarnation, Exit("ended while it was taken in"), now)
        return effects

    def forget(self, request: Request, now: float) -> list[Effect]:
        """Forget a program that was added, and does not run.

        Raises:
            LocalError: it runs, is needed, or stands in the configuration.
        """
        name = request.name
        spec = self._roster.specs.get(name)
        if spec is None or not spec.transient:
            hint = "Others leave with their place in the configuration."
            raise LocalError(ErrorCode.USAGE, f"{name!r} is no program that was added while the system ran", hint)
        needed_by = [other.name for other in self._roster.specs.values() if name in other.after]
        if needed_by:
            raise LocalError(ErrorCode.USAGE, f"{', '.join(needed_by)} comes after {name}", "Forget that first.")
        remembered = self._core.remembered()[name]
        effects = self._core.remove(name, now)
        self.past[name] = remembered
        while len(self.past) > PAST_MAX:
            del self.past[next(iter(self.past))]
        self._roster.remove(name)
        self._fleet.remove(name)
        return effects

    def hung(self, now: float) -> list[Effect]:
        """Return what follows from the watchdog's verdicts on programs."""
        effects: list[Effect] = []
        for name, incarnation, cause, evidence in self._fleet.condemned(self._core.children):
            effects += self._core.judged_hung(name, incarnation, cause, evidence, now)
        return effects

    def _remembered(self, name: str) -> Remembered:
        past = self._core.remembered().get(name) or self.past.pop(name, Remembered())
        return Remembered(max(past.incarnation, self._fleet.last_life(name)), past.charges, past.paid)


def _transient(fields: Any) -> ProgramSpec:
    if not isinstance(fields, dict):
        raise LocalError(ErrorCode.BAD_REQUEST, "program is no object", "")
    return programs.from_fields(fields | {"transient": True})


def _process(fields: dict[str, Any]) -> ProcessIdentity:
    pid, start_time = fields.get("pid"), fields.get("start_time")
    identity = identity_of(pid) if type(pid) is int and pid > 1 else None
    if identity is None or type(start_time) is not int or identity.start_time != start_time:
        raise LocalError(ErrorCode.USAGE, f"there is no process {pid} that began at {start_time}", "")
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        owner = os.geteuid()  # no such place on this system, which lets nobody signal what is another's
    if owner != os.geteuid() or identity.pid == os.getpid():
        raise LocalError(ErrorCode.REFUSED, f"process {pid} is not yours to have supervised", "")
    return identity
