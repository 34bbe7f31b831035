"""What can be seen of a peer from outside, without asking it: its slot on the board, and what the system says of it."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Final, Protocol

from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, ProcessRecord, ProcessState, Slot
from actors.runtime.signalling import SHOW_STACKS, Presence
from actors.runtime.verdict import Look, Observation

_STARTED: Final = frozenset({ProcessState.READY, ProcessState.STOPPING})
_USER_TIME, _SYSTEM_TIME, _START_TIME = 11, 12, 19
"""Places in /proc/PID/stat, counted from the state (field 3) on."""


@dataclass(slots=True)
class _Seen:
    """What was observed last, and from which records: an area returns the same one until it is written again."""

    record: LauncherRecord
    identity: ProcessIdentity
    own: ProcessRecord | None = None
    observation: Observation | None = None


class Observer:
    """Observes the processes of one board again and again: most of them are as they were."""

    def __init__(self, boot: str, presence: Presence) -> None:
        """Observe processes of the boot `boot`; `presence` tells whether they are there."""
        self._boot = boot
        self._presence = presence
        self._last: dict[int, _Seen] = {}

    def observe(self, slot: Slot, record: LauncherRecord) -> Observation:
        """See `observe`."""
        own, tick = slot.process.read(), slot.read_tick()
        last = self._last.get(slot.number)
        if last is None or last.record is not record:
            last = self._last[slot.number] = _Seen(record, ProcessIdentity(record.pid, record.start_time, self._boot))
        running = record.pid != 0 and self._presence.is_running(slot.number, last.identity)
        seen = last.observation
        if seen is None or last.own is not own or seen.tick != tick or seen.running != running:
            seen = _observation(slot.number, record, own, running=running, tick=tick)
            last.own, last.observation = own, seen
        return seen


def observe(slot: Slot, record: LauncherRecord, boot: str, presence: Presence | None = None) -> Observation:
    """Return what the board and the process table say of the process in `slot`, for `HangDetector.tick`.

    Args:
        slot: the peer's slot.
        record: what the launcher has written there.
        boot: the present boot id.
        presence: for who asks often; without it the process table is asked anew.
    """
    identity = ProcessIdentity(record.pid, record.start_time, boot)
    running = record.pid != 0 and (
        identity.is_running() if presence is None else presence.is_running(slot.number, identity)
    )
    return _observation(slot.number, record, slot.process.read(), running=running, tick=slot.read_tick())


def _observation(
    key: int, record: LauncherRecord, own: ProcessRecord | None, *, running: bool, tick: int
) -> Observation:
    registered = own is not None and (own.incarnation, own.pid) == (record.incarnation, record.pid)
    leased = own is not None and registered and own.lease_until_ms > 0
    return Observation(
        key=key,
        incarnation=record.incarnation,
        pid=record.pid,
        running=running,
        registered=registered,
        ready=own is not None and own.state in _STARTED,
        tick=tick,
        lease_until_s=own.lease_until_ms / 1000 if own is not None and leased else 0.0,
        lease_holds_loop=own is not None and leased and own.lease_holds_loop,
        hang_timeout_s=record.hang_timeout_ms / 1000,
        start_timeout_s=record.start_timeout_ms / 1000,
    )


class Examiner(Protocol):
    """Looks at processes."""

    def look(self, identity: ProcessIdentity, stacks_signal: int | None = SHOW_STACKS) -> Look | None:
        """Return what the system says of this process now; None if it is gone. `stacks_signal` asks for its stacks."""

    def state_of(self, identity: ProcessIdentity) -> str:
        """Return its `Look.state` alone; empty if it is gone."""


if sys.platform == "linux":
    from actors.runtime.identity import stat_fields

    class ProcExaminer:
        """Linux: /proc, which waits for no disk."""

        def __init__(self) -> None:
            """Learn the unit of processor time."""
            self._ticks_per_s = os.sysconf("SC_CLK_TCK")

        def state_of(self, identity: ProcessIdentity) -> str:
            """See `Examiner`."""
            fields = stat_fields(identity.pid)
            return "" if fields is None or int(fields[_START_TIME]) != identity.start_time else fields[0]

        def look(self, identity: ProcessIdentity, stacks_signal: int | None = SHOW_STACKS) -> Look | None:
            """See `Examiner`."""
            at = time.monotonic()
            fields = stat_fields(identity.pid)
            if fields is None or int(fields[_START_TIME]) != identity.start_time or fields[0] in "ZX":
                return None
            waited = _read(f"/proc/{identity.pid}/schedstat").split()
            return Look(
                at=at,
                state=fields[0],
                cpu_s=(int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / self._ticks_per_s,
                waited_s=int(waited[1]) / 1e9 if len(waited) > 1 else None,
                waits_in=_read(f"/proc/{identity.pid}/wchan").strip("0"),
                answers_stacks=_catches(_read(f"/proc/{identity.pid}/status"), stacks_signal),
                pressure=_pressure(),
            )


class PortableExaminer:
    """Anywhere, by psutil."""

    def __init__(self) -> None:
        """Import psutil now, not when the first look is due on a message loop."""
        import psutil  # noqa: PLC0415 - Linux does without it

        self._psutil = psutil
        self._letters = {
            psutil.STATUS_RUNNING: "R",
            psutil.STATUS_DISK_SLEEP: "D",
            psutil.STATUS_STOPPED: "T",
            psutil.STATUS_TRACING_STOP: "t",
        }

    def state_of(self, identity: ProcessIdentity) -> str:
        """See `Examiner`."""
        look = self.look(identity)
        return "" if look is None else look.state

    def look(self, identity: ProcessIdentity, stacks_signal: int | None = SHOW_STACKS) -> Look | None:
        """See `Examiner`."""
        try:
            process = self._psutil.Process(identity.pid)
            if not identity.is_running():
                return None
            times = process.cpu_times()
            state = self._letters.get(process.status(), "S")
        except self._psutil.Error:
            return None
        return Look(
            at=time.monotonic(),
            state=state,
            cpu_s=times.user + times.system,
            answers_stacks=stacks_signal is not None,
        )


def examiner(*, portable: bool) -> Examiner:
    """Return the port's implementation for this system and mode."""
    if sys.platform == "linux" and not portable:
        return ProcExaminer()
    return PortableExaminer()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _catches(status: str, number: int | None) -> bool:
    caught = next((line[8:] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return number is not None and bool(int(caught, 16) >> (number - 1) & 1)


def _pressure() -> dict[str, float]:
    """Return the ``some avg10`` of each resource; empty where the kernel keeps no count."""
    found = {}
    for resource in ("cpu", "io", "memory"):
        _, _, rest = _read(f"/proc/pressure/{resource}").partition("some avg10=")
        if rest:
            found[resource] = float(rest.split(maxsplit=1)[0])
    return found
