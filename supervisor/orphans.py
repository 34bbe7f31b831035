"""The orphans of what this launcher has started: found, told of, and ended with the life that they belong to.

On Linux the launcher asks to become the parent of every orphan below it, from its first program on. What it sees then
is decided by `supervisor.orphans_core`. The look on every tick reads one small file; more only while there are orphans.
Its successor gets a note of them, but none that programs which it has only adopted make later: those are not below it.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from actors.runtime.helpers import HELPER_VARIABLE
from actors.runtime.identity import ProcessIdentity, boot_id, stat_fields
from actors.runtime.paths import write_atomically
from actors.runtime.programs import INVOCATION_VARIABLE
from actors.runtime.signalling import KILL, signaller
from protocol.names import LAUNCHER
from protocol.severity import Severity
from supervisor.model import Say
from supervisor.orphans_core import Key, Known, Life, Orphan, Orphans, described
from supervisor.port import ProcessControl
from supervisor.tree import descendants_of, variable_of

NOTE_FILE: Final = "orphans.json"
ROUNDS_MAX: Final = 5
"""So often is looked anew at the end of a life: who is killed may leave orphans of its own."""
TOLD_MAX: Final = 64
"""Events about orphans that one launcher writes; more would say nothing new."""
SNAPSHOT_S: Final = 5.0
_PAUSE_S: Final = 0.01
_FORKED_ONLY: Final = 0x40
"""PF_FORKNOEXEC: a process that was forked and has executed nothing yet."""
_COMMAND_CHARACTERS_MAX: Final = 200
_FLAGS, _SESSION = 6, 3
"""Places in /proc/PID/stat, counted from the state (field 3) on."""


class Orphanage:
    """Looks after the orphans of programs."""

    def __init__(
        self,
        runtime_dir: str,
        control: ProcessControl,
        own_pids: Callable[[], Iterable[int]],
        say: Callable[..., None],
    ) -> None:
        """Know nobody yet.

        Args:
            runtime_dir: where a note for the successor is kept.
            control: finds the orphans.
            own_pids: returns who runs of our own processes.
            say: enters an event.
        """
        self._path = os.path.join(runtime_dir, NOTE_FILE)
        self._control = control
        self._signals = signaller(portable=not control.sees_orphans)
        self._own_pids = own_pids
        self._say = say
        self._core = Orphans()
        self._told = 0
        self._forebears: dict[Key, Life] = {}
        self._mains: dict[Life, int] = {}
        self._next_snapshot = 0.0

    def inherit(self, living: Iterable[Life]) -> None:
        """Take over the note of a launcher before, of whose programs those `living` still run."""
        running = [known for known in _noted(self._path) if _identity(known.key).is_running()]
        self._core.inherit(running, set(living))

    def began(self, name: str, incarnation: int, main: ProcessIdentity, invocation: str, *, forked: bool) -> None:
        """A life of a program runs; `forked`: this launcher has started it."""
        self._core.began((name, incarnation), (main.pid, main.start_time), invocation, forked=forked)
        if forked:
            self._mains[name, incarnation] = main.pid

    def tick(self, now: float) -> None:
        """Look, tell of whoever evades, and end whoever belongs to lives that have ended."""
        self._look(now)
        for _ in range(ROUNDS_MAX):
            if not self._end_doomed():
                break
            self._look(now)
        if len(self._mains) > 1 and now >= self._next_snapshot:
            self._next_snapshot = now + SNAPSHOT_S
            self._forebears = descendants_of(self._roots(), ())

    def ended(self, name: str, incarnation: int, now: float) -> None:
        """A life has ended: so do its orphans, before the next one begins."""
        if self._core.runs((name, incarnation)):
            self._mains.pop((name, incarnation), None)
            self._look(now)
            end_time = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
            self._core.ended((name, incarnation), end_time, now)
            self.tick(now)

    def _look(self, now: float) -> None:
        before = [_identity(key) for key in self._core.known]
        found = self._control.orphans(before)
        changed = self._core.missed({(item.pid, item.start_time) for item in found}, now)
        for identity in found:
            key = identity.pid, identity.start_time
            if key not in self._core.keys:
                orphan = self._facts(identity)
                known = self._core.seen(orphan, self._forebears) if orphan is not None else None
                changed |= known is not None
                if known is not None and known.evades:
                    self._tell(known)
        if changed:
            self._write_note()

    def _facts(self, identity: ProcessIdentity) -> Orphan | None:
        """Return what is to be seen of a process; None if it is gone."""
        pid = identity.pid
        command = _command(pid)
        fields = stat_fields(pid)
        if fields is None:
            return None
        session = int(fields[_SESSION])
        invocation = variable_of(pid, INVOCATION_VARIABLE)
        if invocation and invocation == variable_of(os.getpid(), INVOCATION_VARIABLE):
            invocation = ""  # this launcher carries it itself, having been started by a program: so do all of ours
        # Between fork and exec, a helper shows what the process of ours that forks it does.
        own = list(self._own_pids())
        unborn = int(fields[_FLAGS]) & _FORKED_ONLY and command in [_command(other) for other in (os.getpid(), *own)]
        is_ours = bool(unborn) or session in own or bool(variable_of(pid, HELPER_VARIABLE))
        return Orphan((pid, identity.start_time), is_ours, invocation, session, command)

    def _end_doomed(self) -> bool:
        doomed = [_identity(key) for key in self._core.doomed()]
        if not doomed:
            return False
        below = descendants_of(((None, identity.pid) for identity in doomed), self._control.held)
        for identity in [*doomed, *map(_identity, below)]:
            self._signals.send(identity, KILL)
        self._signals.wait_gone(doomed[-1], _PAUSE_S)
        return True

    def _roots(self) -> list[tuple[Life, int]]:
        known = self._core.known.values()
        certain = [(life, orphan.key[0]) for orphan in known if not orphan.evades for life in orphan.lives]
        return [*self._mains.items(), *certain]

    def _tell(self, known: Known) -> None:
        self._told += 1
        if self._told <= TOLD_MAX:
            event = Say(Severity.WARN, "process_evaded", described(known), LAUNCHER)
            names = sorted({name for name, _ in known.lives})
            began_s = round(known.key[1] / os.sysconf("SC_CLK_TCK"), 2)
            self._say(event, pid=known.key[0], command=known.command, began_boot_s=began_s, candidates=names)

    def _write_note(self) -> None:
        note = [[*known.key, known.command, sorted(known.lives), known.evades] for known in self._core.known.values()]
        try:
            write_atomically(self._path, json.dumps({"boot": boot_id(), "orphans": note}).encode(), sync=False)
        except OSError:  # no room on tmpfs: a successor will not know them
            return


def _noted(path: str) -> list[Known]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
        if content["boot"] != boot_id():
            return []
        return [
            Known((int(pid), int(start)), str(command), frozenset((str(n), int(i)) for n, i in lives), bool(evades))
            for pid, start, command, lives, evades in content["orphans"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _identity(key: Key) -> ProcessIdentity:
    return ProcessIdentity(key[0], key[1], boot_id())


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4 * _COMMAND_CHARACTERS_MAX).rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        return ""
    return words.decode(errors="replace")[:_COMMAND_CHARACTERS_MAX]
