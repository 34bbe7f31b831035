"""The launcher's eye on the watchdog, or on everybody while there is none: with the detector of the watchdog itself."""

from collections.abc import Iterator, Mapping, Sequence

from actors.runtime.config import SupervisionConfig
from actors.runtime.examine import examiner, observe
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, Slot
from actors.runtime.signalling import Presence
from actors.runtime.verdict import Cause, HangDetector, Judgement, Look, Stage, name_cause
from supervisor.ground import Ground


class _Held(Presence):
    """Every process that the launcher judges is one that it holds, and it has seen none of them end."""

    def is_running(self, key: int, identity: ProcessIdentity) -> bool:
        """See `Presence`."""
        return True


class Watch:
    """Judges some of the processes, once per tick of the launcher."""

    def __init__(self, ground: Ground, supervision: SupervisionConfig, slots: Mapping[str, int]) -> None:
        """Watch processes on `ground`'s board; `slots` says where each name has its place."""
        self._boot = ground.board.boot_id
        self._slots = {name: ground.board.slots[number] for name, number in slots.items()}
        self._detector = HangDetector(supervision.tick_s)
        self._presence = _Held(portable=ground.portable)
        self._examiner = examiner(portable=ground.portable)
        self._first: dict[int, Look | None] = {}

    def tick(self, now: float, names: Sequence[str]) -> Iterator[tuple[str, int, Cause]]:
        """Count one tick for `names`; yield name, life and cause of each that counts as hung from now on."""
        peers: dict[int, tuple[str, Slot, LauncherRecord]] = {}
        for name in names:
            slot = self._slots[name]
            record = slot.launcher.read()
            if record is not None:
                peers[slot.number] = (name, slot, record)
        observed = [observe(slot, record, self._boot, self._presence) for _, slot, record in peers.values()]
        for judgement in self._detector.tick(now, observed).judgements:
            name, _, record = peers[judgement.key]
            cause = self._cause(judgement, record) if judgement.changed else None
            if cause is not None:
                yield name, judgement.incarnation, cause

    def _cause(self, judgement: Judgement, record: LauncherRecord) -> Cause | None:
        """Look at a process as its silence begins to count and as it is over; return why it hangs, if it does."""
        if judgement.stage not in (Stage.SUSPECT, Stage.HUNG):
            return None
        look = self._examiner.look(ProcessIdentity(record.pid, record.start_time, self._boot))
        if judgement.stage is Stage.SUSPECT:
            self._first[judgement.key] = look
            return None
        cause = name_cause(judgement.standing, self._first.get(judgement.key), look)
        return None if cause is Cause.STARVED and self._detector.extend(judgement.key) else cause
