"""The processes themselves: started, adopted, watched for their exit, told to leave, and shown on the board."""

import os
import selectors
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import LauncherRecord, Slot, Verdict
from actors.runtime.paths import STACKS_DIR
from supervisor.core import Child
from supervisor.ground import Ground
from supervisor.last_words import FATAL_SIGNALS, with_last_words, with_stacks
from supervisor.model import Exit, State
from supervisor.port import ExitStatus, Launch, Process, ProcessControl
from supervisor.settings import Definition, Settings
from supervisor.slots import how_it_ended, record_of, says_ready


@dataclass(slots=True)
class _Berth:
    """One process's place: what belongs there, its slot, who is there now, and what the board says of it."""

    definition: Definition
    slot: Slot
    process: Process | None = None
    incarnation: int = 0
    shown: LauncherRecord | None = None


class Fleet:
    """Every process of the system but the launcher."""

    def __init__(
        self, settings: Settings, ground: Ground, control: ProcessControl, selector: selectors.BaseSelector
    ) -> None:
        """Nobody is there yet."""
        self._settings = settings
        self._ground = ground
        self._control = control
        self._selector = selector
        self._berths = {
            definition.name: _Berth(definition, ground.board.slots[definition.slot])
            for definition in settings.definitions
        }

    @property
    def needs_polling(self) -> bool:
        """Whether some process's exit makes no descriptor readable."""
        return any(berth.process and berth.process.exit_fd is None for berth in self._berths.values())

    @property
    def anybody(self) -> bool:
        """Whether a process is left."""
        return any(berth.process for berth in self._berths.values())

    def adopt(self, name: str, incarnation: int, identity: ProcessIdentity) -> bool:
        """Take over a running process; False if it is gone."""
        process = self._control.adopt(identity)
        if process is not None:
            self._take(self._berths[name], process, incarnation)
        return process is not None

    def spawn(self, child: Child, now: float) -> None:
        """Start the present life of `child`: on the board before it exists, its process there before it does anything.

        Raises:
            OSError: the system has no room for it.
        """
        berth = self._berths[child.spec.name]
        self._show(berth, child, now)
        arguments = ProcessArguments(
            name=child.spec.name,
            slot=berth.definition.slot,
            incarnation=child.incarnation,
            data_dir=self._settings.data_dir,
            runtime_dir=self._ground.runtime_dir,
            config_path=self._settings.config_path,
            portable=self._ground.portable,
        )
        launch = Launch(berth.definition.module, arguments, self._stderr_path(child.spec.name))
        process = self._control.spawn(launch)
        self._take(berth, process, child.incarnation)
        self._show(berth, child, now)
        process.release()

    def terminate(self, child: Child, now: float) -> None:
        """Ask a process to leave; one that the watchdog holds for hung would not hear it, and is killed."""
        berth = self._berths[child.spec.name]
        if berth.process is None:
            return
        self._show(berth, child, now)  # before the signal, so that a successor knows why it went
        verdict = berth.slot.watchdog.read()
        if verdict and verdict.incarnation == berth.incarnation and verdict.verdict == Verdict.HUNG:
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
        for name, berth in self._berths.items():
            status = berth.process.poll_exit() if berth.process is not None else None
            if berth.process is not None and status is not None:
                if berth.process.exit_fd is not None:
                    self._selector.unregister(berth.process.exit_fd)
                berth.process.close()
                berth.process = None
                yield name, berth.incarnation, self._exit(berth, status)

    def newly_ready(self, children: Mapping[str, Child]) -> list[Child]:
        """Return those that were starting and now say that they are ready."""
        starting = [child for child in children.values() if child.state is State.STARTING]
        return [child for child in starting if says_ready(self._berths[child.spec.name].slot.process.read(), child)]

    def show(self, children: Mapping[str, Child], now: float) -> None:
        """Bring the board up to date."""
        for name, berth in self._berths.items():
            self._show(berth, children[name], now)

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptors of the others."""
        for berth in self._berths.values():
            if berth.process is not None:
                berth.process.close()

    def _exit(self, berth: _Berth, status: ExitStatus) -> Exit:
        exit_ = how_it_ended(berth.slot.watchdog.read(), berth.incarnation, status)
        if status.signal in FATAL_SIGNALS and not exit_.evidence:
            return with_stacks(exit_, self._ground.runtime_dir, berth.definition, berth.incarnation)
        return with_last_words(exit_, self._stderr_path(berth.definition.name))

    def _stderr_path(self, name: str) -> str:
        return os.path.join(self._ground.runtime_dir, STACKS_DIR, f"{name}.stderr")

    def _take(self, berth: _Berth, process: Process, incarnation: int) -> None:
        berth.process = process
        berth.incarnation = incarnation
        if process.exit_fd is not None:
            self._selector.register(process.exit_fd, selectors.EVENT_READ, _ignore)

    def _show(self, berth: _Berth, child: Child, now: float) -> None:
        identity = berth.process.identity if berth.process else None
        hang_timeout_s = self._settings.supervision.hang_timeout_s
        record = record_of(child, berth.definition.kind, identity, hang_timeout_s, now)
        if record != berth.shown:
            berth.slot.launcher.write(record)
            berth.shown = record


def _ignore(_mask: int, _now: float) -> None:
    """Waking up is enough: the turn asks every process."""
