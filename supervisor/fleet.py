"""The processes themselves: started, adopted, watched for their exit, told to leave, and shown on the board."""

import os
import selectors
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity, boot_id, identity_of
from actors.runtime.liveness import LauncherRecord, ProcessKind, ProcessRecord, ProcessState, Slot, Verdict
from actors.runtime.paths import STACKS_DIR
from actors.runtime.programs import Ready, invocation_id, output_path
from actors.runtime.signalling import signaller
from supervisor.core import Child
from supervisor.ground import Ground
from supervisor.last_words import FATAL_SIGNALS, with_last_words, with_stacks
from supervisor.model import Exit, State
from supervisor.notify import Life, belongs
from supervisor.port import ExitStatus, Launch, Process, ProcessControl, ProgramLaunch
from supervisor.programs import environment_of
from supervisor.settings import Definition, Settings
from supervisor.slots import how_it_ended, record_of, says_ready
from supervisor.tree import end_carriers

RELOADING: Final = "reloading"
"""The activity of a program that says so."""


@dataclass(slots=True)
class _Berth:
    """One process's place: what belongs there, its slot, who is there now, and what the board says of it.

    A program writes nothing there itself: `own` is what is said in its place, `hang_timeout_s` what it wishes, and
    `errno` the error that it has met.
    """

    definition: Definition
    slot: Slot
    process: Process | None = None
    incarnation: int = 0
    last_pid: int = 0
    shown: LauncherRecord | None = None
    own: dict[str, Any] = field(default_factory=dict)
    own_shown: ProcessRecord | None = None
    hang_timeout_s: float | None = None
    errno: int = 0


class Fleet:
    """Every process of the system but the launcher."""

    def __init__(
        self, settings: Settings, ground: Ground, control: ProcessControl, selector: selectors.BaseSelector
    ) -> None:
        """Nobody is there yet. `notify_sockets` may name where a program is heard, before it is started."""
        self.notify_sockets: dict[str, str] = {}
        self._former: list[Process] = []
        self._settings = settings
        self._ground = ground
        self._control = control
        self._selector = selector
        self._berths = {
            definition.name: _Berth(definition, ground.board.slots[definition.slot])
            for definition in settings.definitions
        }

    def _go_on(self, berth: _Berth, *, heard: bool) -> None:
        """Go on saying of a program what the launcher before has said of this life."""
        record, shown = berth.slot.process.read(), berth.slot.launcher.read()
        if berth.definition.program is None or record is None or record.incarnation != berth.incarnation:
            return
        said = ("judged_by", "stacks_signal") if heard else ("stacks_signal",)
        berth.own = {key: getattr(record, key) for key in said if hasattr(record, key)}
        if shown is not None and shown.incarnation == berth.incarnation:
            berth.hang_timeout_s = shown.hang_timeout_ms / 1000

    @property
    def needs_polling(self) -> bool:
        """Whether some process's exit makes no descriptor readable."""
        present = [berth.process for berth in self._berths.values() if berth.process]
        return any(process.exit_fd is None for process in (*present, *self._former))

    @property
    def anybody(self) -> bool:
        """Whether a process is left."""
        return any(berth.process for berth in self._berths.values())

    def adopt(self, name: str, incarnation: int, identity: ProcessIdentity, *, heard: bool = False) -> bool:
        """Take over a running process; False if it is gone. `heard`: a program's beats reach us still."""
        process = self._control.adopt(identity, self._invocation(name, incarnation))
        if process is not None:
            berth = self._berths[name]
            self._take(berth, process, incarnation)
            self._go_on(berth, heard=heard)
        return process is not None

    def end_rest(self, name: str, incarnation: int) -> None:
        """Kill what a life of a program has left that ended while nobody looked."""
        invocation = self._invocation(name, incarnation)
        if invocation:
            end_carriers(invocation, signaller(portable=self._ground.portable))

    def _invocation(self, name: str, incarnation: int) -> str:
        """Return the id of a life of a program; empty for a process of ours."""
        if self._berths[name].definition.program is None:
            return ""
        return invocation_id(boot_id(), self._settings.data_dir, name, incarnation)

    def spawn(self, child: Child, now: float) -> None:
        """Start the present life of `child`: on the board before it exists, its process there before it does anything.

        Raises:
            OSError: the system has no room for it.
        """
        berth = self._berths[child.spec.name]
        berth.own, berth.hang_timeout_s, berth.errno = {}, None, 0
        self._show(berth, child, now)
        launch = self._program_launch(berth, child) or self._own_launch(berth, child)
        process = self._control.spawn(launch)
        self._take(berth, process, child.incarnation)
        self._show(berth, child, now)
        process.release()

    def _own_launch(self, berth: _Berth, child: Child) -> Launch:
        arguments = ProcessArguments(
            name=child.spec.name,
            slot=berth.definition.slot,
            incarnation=child.incarnation,
            data_dir=self._settings.data_dir,
            runtime_dir=self._ground.runtime_dir,
            config_path=self._settings.config_path,
            portable=self._ground.portable,
        )
        return Launch(berth.definition.module, arguments, self._stderr_path(child.spec.name))

    def _program_launch(self, berth: _Berth, child: Child) -> ProgramLaunch | None:
        spec = berth.definition.program
        if spec is None:
            return None
        data_dir = self._settings.data_dir
        environment = environment_of(spec, os.environ, data_dir, child.incarnation, self.notify_sockets.get(spec.name))
        return ProgramLaunch(spec, environment, output_path(data_dir, spec.name), self._stderr_path(spec.name))

    def terminate(self, child: Child, now: float) -> None:
        """Ask a process to leave; one that the watchdog holds for hung would not hear it, and is killed."""
        berth = self._berths[child.spec.name]
        if berth.process is None:
            return
        self._show(berth, child, now)  # before the signal, so that a successor knows why it went
        verdict = berth.slot.watchdog.read()
        if child.spec.gentle:
            berth.process.terminate(thaw=True)
        elif verdict and verdict.incarnation == berth.incarnation and verdict.verdict == Verdict.HUNG:
            berth.process.kill()
        else:
            berth.process.terminate(thaw=False)

    def kill(self, child: Child, now: float) -> None:
        """Kill a process with its whole tree."""
        berth = self._berths[child.spec.name]
        if berth.process is not None:
            self._show(berth, child, now)
            berth.process.kill()

    def kill_all(self) -> None:
        """Kill every process with its whole tree, whatever the board says."""
        for berth in self._berths.values():
            if berth.process is not None:
                berth.process.kill()

    def ended(self) -> Iterator[tuple[str, int, Exit]]:
        """Yield name, life and end of every process that has ended since the last call."""
        for process in [process for process in self._former if process.poll_exit() is not None]:
            self._former.remove(process)
            self._put_away(process)
        for name, berth in self._berths.items():
            status = berth.process.poll_exit() if berth.process is not None else None
            if berth.process is not None and status is not None:
                self._put_away(berth.process)
                berth.process = None
                yield name, berth.incarnation, self._exit(berth, status)

    def _put_away(self, process: Process) -> None:
        if process.exit_fd is not None:
            self._selector.unregister(process.exit_fd)
        process.close()

    def follow(self, name: str, pid: int) -> None:
        """Hold another process of a program for its main one from now on, if there is such a one."""
        berth, life = self._berths[name], self.life(name)
        before, identity = berth.process, identity_of(pid)
        if before is None or life is None or identity is None or identity == before.identity or not belongs(pid, life):
            return
        process = self._control.adopt(identity, life.invocation)
        if process is not None:
            before.let_go()
            self._former.append(before)
            self._take(berth, process, berth.incarnation)

    def newly_ready(self, children: Mapping[str, Child]) -> list[Child]:
        """Return those that were starting and now say that they are ready."""
        starting = [child for child in children.values() if child.state is State.STARTING]
        return [child for child in starting if self._is_ready(self._berths[child.spec.name], child)]

    def condemned(self, children: Mapping[str, Child]) -> list[tuple[str, int, str, str]]:
        """Return name, life, cause and evidence of each program that the watchdog holds for hung."""
        found = []
        for name, berth in self._berths.items():
            if berth.definition.kind is ProcessKind.PROGRAM and children[name].state in (State.STARTING, State.READY):
                verdict = berth.slot.watchdog.read()
                if verdict and (verdict.incarnation, verdict.verdict) == (berth.incarnation, Verdict.HUNG):
                    found.append((name, berth.incarnation, verdict.cause, verdict.evidence))
        return found

    def add(self, definition: Definition) -> None:
        """Make a place for a program, whose slot nobody else uses."""
        self._berths[definition.name] = _Berth(definition, self._ground.board.slots[definition.slot])

    def remove(self, name: str) -> None:
        """Give up the place of a program that does not run: the board does not name it any more."""
        berth = self._berths.pop(name)
        record = berth.slot.launcher.read()
        if record is not None:
            berth.slot.launcher.write(replace(record, name="", pid=0, start_time=0, state=State.STOPPED, reason=""))

    def pid(self, name: str) -> int:
        """Return the process that is there now; 0 without one."""
        process = self._berths[name].process
        return process.identity.pid if process is not None else 0

    def own_pids(self) -> list[int]:
        """Return who is there now of our own processes."""
        present = [berth for berth in self._berths.values() if berth.definition.program is None]
        return [berth.process.identity.pid for berth in present if berth.process is not None]

    def main_process(self, name: str) -> ProcessIdentity | None:
        """Return a program's main process; None if there is none, and for a process of ours."""
        berth = self._berths[name]
        is_program = berth.process is not None and berth.definition.program is not None
        return berth.process.identity if berth.process is not None and is_program else None

    def life(self, name: str) -> Life | None:
        """Return the present life of a program, or its last one; None before its first and after its removal."""
        berth = self._berths.get(name)
        if berth is None or not berth.last_pid:
            return None
        return Life(berth.last_pid, berth.incarnation, self._invocation(name, berth.incarnation))

    def beat(self, name: str, now: float) -> None:
        """Count a sign of life of a program; from its first one on it is judged by them."""
        self._berths[name].slot.beat(int(now * 1000))
        self.say_of(name, judged_by="beats")

    def set_activity(self, name: str, text: str) -> None:
        """Show what a program says that it is doing."""
        self._berths[name].slot.set_activity(text)

    def last_life(self, name: str) -> int:
        """Return the highest life that its slot has seen, whoever's: what is said there of that is of no other."""
        slot = self._berths[name].slot
        records = (slot.launcher.read(), slot.process.read(), slot.watchdog.read())
        return max((record.incarnation for record in records if record is not None), default=0)

    def say_of(self, name: str, **values: Any) -> None:
        """Say on the board, in a program's place, what it says of its present life: fields of `ProcessRecord`."""
        self._berths[name].own |= values

    def set_reloading(self, name: str, reloading: bool) -> None:
        """Show that a program reloads, or that it does no longer."""
        slot = self._berths[name].slot
        if reloading or slot.read_activity() == RELOADING:
            slot.set_activity(RELOADING if reloading else "")

    def set_errno(self, name: str, number: int) -> None:
        """Remember the error that the present life of a program has met; its end is told with it."""
        self._berths[name].errno = number

    def heeds_ready(self, name: str) -> bool:
        """Tell whether a program's own word makes it ready: not where its probe is to show it."""
        program = self._berths[name].definition.program
        return program is not None and program.ready is not Ready.PROBE

    def set_hang_timeout(self, name: str, seconds: float) -> None:
        """Set how long the present life of a program may be silent."""
        self._berths[name].hang_timeout_s = seconds

    def _is_ready(self, berth: _Berth, child: Child) -> bool:
        program = berth.definition.program
        if program is None:
            return says_ready(berth.slot.process.read(), child)
        if program.ready is Ready.STARTED:
            return berth.process is not None and berth.process.runs_command()
        verdict = berth.slot.watchdog.read() if program.ready is Ready.PROBE else None
        return verdict is not None and (verdict.incarnation, verdict.verdict) == (child.incarnation, Verdict.OK)

    def show(self, children: Mapping[str, Child], now: float) -> None:
        """Bring the board up to date."""
        for name, berth in self._berths.items():
            self._show(berth, children[name], now)

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptors of the others."""
        for berth in self._berths.values():
            if berth.process is not None:
                berth.process.close()
        for process in self._former:
            process.close()

    def _exit(self, berth: _Berth, status: ExitStatus) -> Exit:
        exit_ = how_it_ended(berth.slot.watchdog.read(), berth.incarnation, status)
        if berth.errno:
            exit_ = replace(exit_, reason=f"{exit_.reason}, having said {os.strerror(berth.errno)!r}")
        if status.signal in FATAL_SIGNALS and not exit_.evidence:
            return with_stacks(exit_, self._ground.runtime_dir, berth.definition, berth.incarnation)
        return with_last_words(exit_, self._stderr_path(berth.definition.name))

    def _stderr_path(self, name: str) -> str:
        return os.path.join(self._ground.runtime_dir, STACKS_DIR, f"{name}.stderr")

    def _take(self, berth: _Berth, process: Process, incarnation: int) -> None:
        berth.process = process
        berth.incarnation = incarnation
        berth.last_pid = process.identity.pid
        if process.exit_fd is not None:
            self._selector.register(process.exit_fd, selectors.EVENT_READ, _ignore)

    def _show(self, berth: _Berth, child: Child, now: float) -> None:
        identity = berth.process.identity if berth.process else None
        hang_timeout_s = self._settings.supervision.hang_timeout_s
        if berth.definition.program is not None:
            hang_timeout_s = berth.hang_timeout_s or berth.definition.program.hang_timeout_s
            self._speak_for(berth, child, identity)
        record = record_of(child, berth.definition.kind, identity, hang_timeout_s, now)
        if record != berth.shown:
            berth.slot.launcher.write(record)
            berth.shown = record

    def _speak_for(self, berth: _Berth, child: Child, identity: ProcessIdentity | None) -> None:
        """Write what a process of ours says of itself, in the place of a program, which says nothing there."""
        program = berth.definition.program
        if program is None or identity is None:
            return
        state = ProcessState.STOPPING if child.said_stopping else ProcessState(child.state)
        judged_by = "state" if program.probe is None else "probe"
        values = {"judged_by": judged_by} | berth.own
        record = ProcessRecord(identity.pid, identity.start_time, child.incarnation, state, **values)
        if record != berth.own_shown:
            berth.slot.process.write(record)
            berth.own_shown = record


def _ignore(_mask: int, _now: float) -> None:
    """Waking up is enough: the turn asks every process."""
