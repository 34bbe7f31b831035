"""The first moment of a launcher: what it remembers, what its predecessor left on the board, and who it is itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LAUNCHER_SLOT, LauncherRecord, ProcessKind, Slot
from actors.runtime.signalling import KILL, signaller
from protocol.names import LAUNCHER
from supervisor.core import Child
from supervisor.ground import Ground
from supervisor.model import ChildSpec, Found, RecordRestart, Remembered, State
from supervisor.settings import Settings
from supervisor.slots import found_in, how_it_ended

FOREIGN_DEATH_S: Final = 2.0
"""How long the start waits for a process to be gone that this release does not know."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """What a launcher begins with.

    Attributes:
        own: the launcher itself, as if it were one of its children: its incarnation and its budget.
        remembered: what is known of the others.
        found: what the board says of them; nothing after a clean start.
        running: those of them that run.
        predecessor: the end of the launcher before, to be entered in the journal; None if this is a clean start.
        predecessor_seen_at: when that launcher last showed progress.
    """

    own: Child
    remembered: Mapping[str, Remembered]
    found: Mapping[str, Found]
    running: Mapping[str, ProcessIdentity]
    predecessor: RecordRestart | None
    predecessor_seen_at: float


class OverBudgetError(Exception):
    """The launcher's own restart budget forbids a successor."""


def take_over(settings: Settings, ground: Ground, remembered: Mapping[str, Remembered], now: float) -> Takeover:
    """Find out what this launcher begins with; it rules the board from here on.

    Raises:
        OverBudgetError: nothing has been touched.
    """
    past = remembered.get(LAUNCHER, Remembered())
    own = launcher_as_child(settings.own_spec(), past, ground.board.epoch, successor=settings.successor, now=now)
    own.started_at = settings.started_at
    ground.board.epoch = own.incarnation
    own_slot = ground.board.slots[LAUNCHER_SLOT]
    before = own_slot.launcher.read() if ground.adopting else None
    if not ground.adopting:
        # A person starts the system: everything runs again, but for what its budget forbids.
        remembered = {name: replace(process, wanted=True) for name, process in remembered.items()}
    found, running = _look_around(settings, ground)
    return Takeover(
        own,
        remembered,
        found,
        running,
        _end_of(before, own_slot, charged=settings.successor) if before is not None else None,
        own_slot.read_beat().tick_ms / 1000,
    )


def launcher_as_child(spec: ChildSpec, past: Remembered, epoch: int, *, successor: bool, now: float) -> Child:
    """Return the launcher itself in the form of a child: a life later than any before, and charged if it succeeds one.

    Raises:
        OverBudgetError: its budget does not allow another restart.
    """
    charges = past.charges
    if successor:
        if not spec.budget.allows(charges, now):
            raise OverBudgetError
        charges = spec.budget.add(charges, now)
    return Child(
        spec,
        state=State.STARTING,
        since=now,
        incarnation=max(epoch, past.incarnation) + 1,
        charges=charges,
        started_at=now,
    )


def _end_of(record: LauncherRecord, slot: Slot, *, charged: bool) -> RecordRestart:
    exit_ = how_it_ended(slot.watchdog.read(), record.incarnation, None)
    return RecordRestart(LAUNCHER, record.incarnation, exit_, charged=charged, manual=not charged)


def _look_around(settings: Settings, ground: Ground) -> tuple[dict[str, Found], dict[str, ProcessIdentity]]:
    found: dict[str, Found] = {}
    running: dict[str, ProcessIdentity] = {}
    if not ground.adopting:
        return found, running
    expected = {definition.slot: definition.name for definition in settings.definitions}
    for slot, record in ground.board.occupied():
        if slot.number == LAUNCHER_SLOT:
            continue
        process, identity = found_in(record, slot.process.read(), slot.watchdog.read(), ground.board.boot_id)
        if expected.get(slot.number) == record.name:
            if record.kind == ProcessKind.PROGRAM:  # which may leave by itself, and need not be told to
                process = replace(process, leaving=False, said_stopping=process.leaving)
            found[record.name] = replace(process, leaving=True) if ground.stop_interrupted else process
            if identity is not None:
                running[record.name] = identity
        else:
            _end_foreign(ground, slot, record, identity)
    return found, running


def _end_foreign(ground: Ground, slot: Slot, record: LauncherRecord, identity: ProcessIdentity | None) -> None:
    """End a process that this release does not know, or knows in another slot."""
    if identity is not None:
        signals = signaller(portable=ground.portable)
        signals.send(identity, KILL)
        signals.wait_gone(identity, FOREIGN_DEATH_S)
    slot.launcher.write(replace(record, pid=0, start_time=0, state=State.STOPPED, kind=ProcessKind(record.kind)))
