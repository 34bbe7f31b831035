"""The watchdog's part in programs: looks at them, probes them, and tells the launcher who hangs. It kills none.

The launcher reads the verdict on the board, and stops and restarts the program. Whatever may wait - a probe, the sum of
a tree's memory, a look at what a process has open - runs on a thread of its own (`Errands`).
"""

import os
import socket
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from actors.runtime import programs
from actors.runtime.examine import examiner
from actors.runtime.identity import ProcessIdentity
from actors.runtime.liveness import (
    LAUNCHER_SLOT,
    LauncherRecord,
    ProcessKind,
    ProcessRecord,
    ProcessState,
    Verdict,
    WatchdogRecord,
)
from actors.runtime.process import ProcessRuntime
from actors.runtime.programs import ProgramSpec, wake_path
from actors.runtime.signalling import Presence, signaller
from actors.runtime.verdict import Cause, Judgement, Observation, Stage, Standing
from actors.watchdog.core import AskStacks, Condemn, Doubted, Effect, Finding, PutOff, Subject, Tell, Warn
from actors.watchdog.errands import Errands
from actors.watchdog.evidence import EvidenceStore
from actors.watchdog.probes import ask
from actors.watchdog.program_core import ProbeBook, ProgramWatch, Progress, Shown, probe_pace
from actors.watchdog.trees import facts_of, tree_memory

HUNG_TOPIC: Final = "program.hung"
MEMORY_INTERVAL_S: Final = 5.0
MIB: Final = 1 << 20
_ASKABLE: Final = frozenset({ProcessState.STARTING, ProcessState.READY})

Publish = Callable[[str, Any], None]


@dataclass(slots=True)
class _Program:
    """One program that runs."""

    record: LauncherRecord
    identity: ProcessIdentity
    own: ProcessRecord | None


class Programs:
    """Watches over the programs of one board; `step` once per tick.

    Attributes:
        condemned: verdicts written so far.
    """

    def __init__(self, runtime: ProcessRuntime, evidence: EvidenceStore, interval_s: float) -> None:
        """Watch on behalf of the watchdog that runs as `runtime`, a step each `interval_s`."""
        portable = runtime.arguments.portable
        self.condemned = 0
        self._runtime = runtime
        self._board = runtime.board
        self._evidence = evidence
        self._eyes = examiner(portable=portable)
        self._signals = signaller(portable=portable)
        self._presence = Presence(portable=portable)
        self._watch = ProgramWatch(interval_s)
        self._progress = Progress()
        self._probes = ProbeBook()
        self._errands = Errands()
        self._publish: Publish = _nobody
        self._programs: dict[int, _Program] = {}
        self._specs: dict[str, ProgramSpec] = {}
        self._specs_of: tuple[int, int] | None = None
        self._facts: dict[int, tuple[int, Any]] = {}
        self._over: set[tuple[int, int]] = set()
        self._memory_at = 0.0

    @property
    def findings(self) -> dict[int, Finding]:
        """How every program stands, by slot."""
        return self._watch.findings

    def begin(self, publish: Publish, post: Callable[[Callable[[], None]], None]) -> None:
        """Publish with `publish`; take outcomes of threads in at once, where `post` has the loop call something."""
        self._publish = publish
        self._errands.wake = partial(post, self._take_outcomes)

    def step(self, now: float) -> None:
        """Look at all programs, and act."""
        self._find()
        self._take_outcomes()
        if not self._programs:
            self._watch.rest()
            return
        stopping = self._board.stopping
        if not stopping:
            self._probe(now)
            self._weigh(now)
        launcher = self._board.epoch, self._board.slots[LAUNCHER_SLOT].read_tick()
        for effect in self._watch.step(now, launcher, list(self._subjects()), stopping=stopping):
            self._perform(effect, now)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def _find(self) -> None:
        """Take in who runs."""
        self._presence.take_exits()
        found = {}
        for slot, record in self._board.occupied():
            if record.kind != ProcessKind.PROGRAM or not record.pid:
                continue
            identity = ProcessIdentity(record.pid, record.start_time, self._board.boot_id)
            if self._presence.is_running(slot.number, identity):
                own = slot.process.read()
                registered = own is not None and (own.incarnation, own.pid) == (record.incarnation, record.pid)
                found[slot.number] = _Program(record, identity, own if registered else None)
        if found or self._programs:
            self._presence.retain(found)
            self._progress.retain(found)
            self._probes.retain(found)
            self._facts = {key: facts for key, facts in self._facts.items() if key in found}
            lives = {(key, program.record.incarnation) for key, program in found.items()}
            self._over &= lives
            self._load_specs()
        self._programs = found

    def _subjects(self) -> Iterator[Subject]:
        """Yield those that may be judged: past their start, and not on their way out."""
        suspects = self._watch.suspects
        for key, program in self._programs.items():
            record, own = program.record, program.own
            if own is None or own.state != ProcessState.READY or record.state != ProcessState.READY:
                continue
            state = self._eyes.state_of(program.identity)
            life, beat = record.incarnation, self._board.slots[key].read_beat()
            by = own.judged_by
            shown = Shown(life, by, beat.tick, self._probes.answers(key, life), state)
            seen = Observation(
                key=key,
                incarnation=life,
                pid=record.pid,
                running=True,
                registered=True,
                ready=True,
                tick=self._progress.step(key, shown),
                lease_until_s=0.0,
                lease_holds_loop=False,
                hang_timeout_s=record.hang_timeout_ms / 1000,
                start_timeout_s=record.start_timeout_ms / 1000,
            )
            look = self._eyes.look(program.identity, own.stacks_signal or None) if key in suspects else None
            yield Subject(seen, look)

    def _load_specs(self) -> None:
        """Read programs.json again if it is another one."""
        try:
            stat = os.stat(os.path.join(self._runtime.arguments.runtime_dir, programs.PROGRAMS_FILE))
        except OSError:
            return
        version = stat.st_ino, stat.st_mtime_ns
        if version != self._specs_of:
            self._specs_of, self._specs = version, programs.load(self._runtime.arguments.runtime_dir)

    # --- probes and memory --------------------------------------------------------------------------------------------

    def _probe(self, now: float) -> None:
        for key, program in self._programs.items():
            record, spec = program.record, self._specs.get(program.record.name)
            if spec is None or spec.probe is None or record.state not in _ASKABLE:
                continue
            life = record.incarnation
            if not self._probes.is_due(key, life, now):
                continue
            ready = program.own is not None and program.own.state == ProcessState.READY
            interval_s, timeout_s = probe_pace(spec.probe, record.hang_timeout_ms / 1000, ready=ready)
            if self._errands.begin(("probe", key, life), ask, spec, timeout_s):
                self._probes.begun(key, now, interval_s)

    def _weigh(self, now: float) -> None:
        """Have the memory of the trees that have a limit summed up."""
        if now < self._memory_at:
            return
        self._memory_at = now + MEMORY_INTERVAL_S
        for key, program in self._programs.items():
            spec = self._specs.get(program.record.name)
            if spec is not None and spec.memory_max_mib is not None:
                errand = "memory", key, program.record.incarnation
                self._errands.begin(errand, tree_memory, program.record.pid, spec.memory_max_mib * MIB)

    def _take_outcomes(self) -> None:
        """Take in what the threads have found."""
        for errand, outcome in self._errands.take():
            self._take_outcome(errand, outcome)

    def _take_outcome(self, errand: Hashable, outcome: Any) -> None:
        match errand, outcome:
            case ("probe", int(key), int(life)), _:
                problem = outcome if isinstance(outcome, str) else repr(outcome)
                if self._probes.ended(key, life, problem):
                    self._tell_answered(key, life)
            case ("memory", int(key), int(life)), int(held):
                self._judge_memory(key, life, held)
            case ("facts", int(key), int(life)), dict():
                self._facts[key] = life, outcome

    def _tell_answered(self, key: int, life: int) -> None:
        """Say on the board that this life has answered its probe; what is said of it already stands."""
        area = self._board.slots[key].watchdog
        written = area.read()
        if written is None or written.incarnation != life:
            area.write(WatchdogRecord(life, Verdict.OK, "", int(time.monotonic() * 1000)))

    def _judge_memory(self, key: int, life: int, held: int) -> None:
        program = self._programs.get(key)
        if program is None or program.record.incarnation != life or (key, life) in self._over:
            return
        spec = self._specs.get(program.record.name)
        limit_mib = spec.memory_max_mib if spec is not None else None
        if limit_mib is None or held <= limit_mib * MIB or self._board.stopping:
            return
        self._over.add((key, life))
        judgement = Judgement(key, life, Standing.TICKING, Stage.HUNG, changed=True, silent_ticks=0, silent_s=0.0)
        memory = {"held_mib": round(held / MIB, 1), "limit_mib": limit_mib}
        self._condemn(Condemn(judgement, Cause.OVER_MEMORY, ()), time.monotonic(), memory)

    # --- what is done -------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect, now: float) -> None:
        match effect:
            case Tell():
                if (effect.key, effect.incarnation) not in self._over:
                    verdict = Verdict.SUSPECT if effect.suspect else Verdict.OK
                    record = WatchdogRecord(effect.incarnation, verdict, effect.cause, int(now * 1000))
                    self._board.slots[effect.key].watchdog.write(record)
            case Warn():
                self._warn(effect.key)
            case AskStacks():
                self._ask_stacks(effect.key)
            case Condemn():
                self._condemn(effect, now, {})
            case PutOff():
                name = self._programs[effect.key].record.name
                text = f"{name} makes no progress because it gets no processor: left alone for now"
                self._runtime.log("WARN", "hang_put_off", text, name=name, cause=str(effect.cause))
            case Doubted():
                text = f"deadlines of programs are put off once: {effect.doubt.replace('_', ' ')}"
                self._runtime.log("NOTICE", "verdicts_doubted", text, doubt=str(effect.doubt), gap_s=effect.gap_s)
            case _:  # condemned and still there: the verdict stands on the board
                return

    def _warn(self, key: int) -> None:
        """Tell a program that can still listen that its time is running out, and have a look at it."""
        program = self._programs[key]
        life = program.record.incarnation
        self._errands.begin(("facts", key, life), facts_of, program.identity)
        self._publish(HUNG_TOPIC, {"name": program.record.name, "incarnation": life})

    def _ask_stacks(self, key: int) -> None:
        program = self._programs[key]
        if program.own is None or not program.own.stacks_signal:
            return
        self._evidence.before_asking(key)
        try:
            self._signals.send(program.identity, program.own.stacks_signal)
        except OSError as error:
            text = f"{program.record.name} cannot be asked for its stacks: {error}"
            self._runtime.log("ERROR", "signal_failed", text, signal=program.own.stacks_signal)

    def _condemn(self, condemned: Condemn, now: float, memory: dict[str, Any]) -> None:
        """Keep evidence, then the verdict; the launcher acts upon it."""
        key, cause = condemned.judgement.key, str(condemned.cause)
        program, slot = self._programs[key], self._board.slots[key]
        record = program.record
        life, facts = self._facts.get(key, (0, {}))
        more = {
            "judged_by": program.own.judged_by if program.own is not None else "",
            "probe": self._probes.tell(key),
            "process": facts if life == record.incarnation else {},
            "memory": memory,
        }
        try:
            evidence = self._evidence.keep(slot, record, condemned, now, time.time(), more)
        except OSError as error:
            evidence = ""
            self._runtime.log("ERROR", "evidence_lost", f"evidence on {record.name} cannot be kept: {error}")
        slot.watchdog.write(WatchdogRecord(record.incarnation, Verdict.HUNG, cause, int(now * 1000), evidence))
        _wake_launcher(self._runtime.arguments.runtime_dir)
        self._runtime.log(
            "ERROR",
            "process_hung",
            f"{record.name} is {cause}" if memory else f"{record.name} hangs: {cause}",
            name=record.name,
            incarnation=record.incarnation,
            pid=record.pid,
            cause=cause,
            silent_s=round(condemned.judgement.silent_s, 3),
            evidence=evidence,
            **memory,
        )
        self.condemned += 1


def _nobody(topic: str, value: Any) -> None:
    """Publish nothing: nobody listens yet."""


def _wake_launcher(runtime_dir: str) -> None:
    """Have the launcher look at the board now; one that cannot be told looks at its next tick."""
    if hasattr(socket, "AF_UNIX"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker, suppress(OSError):
            speaker.setblocking(False)
            speaker.sendto(b"\0", wake_path(runtime_dir))
