"""The launcher's eye on the watchdog: the same detector that the watchdog uses on everybody else."""

from typing import Final

from actors.runtime.config import SupervisionConfig
from actors.runtime.examine import examiner, observe
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import WATCHDOG_SLOT
from actors.runtime.verdict import Cause, HangDetector, Look, Stage, name_cause
from supervisor.ground import Ground

_LOOK_AT: Final = frozenset({Stage.SUSPECT, Stage.HUNG})


class WatchdogWatch:
    """Judges the watchdog, once per tick of the launcher."""

    def __init__(self, ground: Ground, supervision: SupervisionConfig) -> None:
        """Watch the watchdog's slot of `ground`'s board."""
        self._boot = ground.board.boot_id
        self._slot = ground.board.slots[WATCHDOG_SLOT]
        self._detector = HangDetector(supervision.tick_s)
        self._examiner = examiner(portable=ground.portable)
        self._first: Look | None = None

    def tick(self, now: float) -> tuple[int, Cause] | None:
        """Count one tick; return the life that hangs, and of what, once it counts as hung."""
        record = self._slot.launcher.read()
        if record is None:
            return None
        round_ = self._detector.tick(now, [observe(self._slot, record, self._boot)])
        for judgement in round_.judgements:
            if not judgement.changed or judgement.stage not in _LOOK_AT:
                continue
            look = self._examiner.look(ProcessIdentity(record.pid, record.start_time, self._boot))
            if judgement.stage is Stage.SUSPECT:
                self._first = look
                continue
            cause = name_cause(judgement.standing, self._first, look)
            if cause is Cause.STARVED and self._detector.extend(judgement.key):
                continue
            return judgement.incarnation, cause
        return None
