"""The launcher's eye on the watchdog, or on everybody while there is none: with the watchdog's own judgement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actors.runtime.examine import examiner, observe
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, Slot
from actors.runtime.signalling import SHOW_STACKS, Presence, signaller
from actors.watchdog.core import AskStacks, Condemn, Subject
from actors.watchdog.core import Watch as Judge
from actors.watchdog.evidence import EvidenceStore
from supervisor.ground import Ground
from supervisor.settings import Settings


@dataclass(frozen=True, slots=True)
class Hung:
    """A life that counts as hung from now on, why, and the file with the evidence (empty if it could not be kept)."""

    name: str
    incarnation: int
    cause: str
    evidence: str


class Watch:
    """Judges some of the processes, once per tick of the launcher."""

    def __init__(self, settings: Settings, ground: Ground) -> None:
        """Watch the processes of `settings` on `ground`'s board."""
        self._boot = ground.board.boot_id
        self._slots = {item.name: ground.board.slots[item.slot] for item in settings.definitions}
        self._judge = Judge(settings.supervision.tick_s)
        self._presence = _Held(portable=ground.portable)
        self._examiner = examiner(portable=ground.portable)
        self._signals = signaller(portable=ground.portable)
        self._evidence = EvidenceStore(ground.runtime_dir, settings.evidence_files_max)

    def tick(self, now: float, wall_s: float, names: Sequence[str]) -> Iterator[Hung]:
        """Count one tick for `names`, all of them processes that the launcher holds; yield those that hang."""
        peers: dict[int, tuple[Slot, LauncherRecord]] = {}
        for name in names:
            record = self._slots[name].launcher.read()
            if record is not None:
                peers[self._slots[name].number] = (self._slots[name], record)
        subjects = [self._subject(slot, record) for slot, record in peers.values()]
        for effect in self._judge.step(now, subjects, stopping=False):
            if isinstance(effect, AskStacks) and SHOW_STACKS is not None:
                self._evidence.before_asking(effect.key)
                self._signals.send(self._identity(peers[effect.key][1]), SHOW_STACKS)
            elif isinstance(effect, Condemn):
                yield self._condemned(effect, *peers[effect.judgement.key], now, wall_s)

    def _subject(self, slot: Slot, record: LauncherRecord) -> Subject:
        look = self._examiner.look(self._identity(record)) if slot.number in self._judge.suspects else None
        return Subject(observe(slot, record, self._boot, self._presence), look)

    def _condemned(self, effect: Condemn, slot: Slot, record: LauncherRecord, now: float, wall_s: float) -> Hung:
        try:
            evidence = self._evidence.keep(slot, record, effect, now, wall_s)
        except OSError:  # no room on tmpfs
            evidence = ""
        return Hung(record.name, record.incarnation, str(effect.cause), evidence)

    def _identity(self, record: LauncherRecord) -> ProcessIdentity:
        return ProcessIdentity(record.pid, record.start_time, self._boot)


class _Held(Presence):
    """Whoever the launcher judges it holds, and has not seen the end of."""

    def is_running(self, key: int, identity: ProcessIdentity) -> bool:
        """See `Presence`."""
        return True
