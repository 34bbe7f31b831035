"""The watchdog's hands and eyes: reads the board and the process table, writes verdicts, signals.

All but `ask_launcher` is tmpfs, /proc or a system call that does not wait, so that it may run on the watchdog's loop.
"""

import os
import time
from collections.abc import Mapping
from typing import Any, Final

from actors.runtime.control_client import call_launcher
from actors.runtime.examine import Observer, examiner
from actors.runtime.identity import ProcessIdentity, boot_id
from actors.runtime.liveness import LauncherRecord, ProcessKind, Verdict, WatchdogRecord
from actors.runtime.paths import RUN_FILE, RunInfo
from actors.runtime.process import ProcessRuntime
from actors.runtime.signalling import KILL, SHOW_STACKS, Presence, signaller
from actors.runtime.verdict import Stage, Standing
from actors.watchdog.core import (
    AskStacks,
    ClockWatch,
    Condemn,
    Doubted,
    Effect,
    Finding,
    KillAgain,
    PutOff,
    Subject,
    Tell,
)
from actors.watchdog.evidence import EvidenceStore
from protocol.errors import ErrorCode, LocalError

ASK_LAUNCHER_S_MAX: Final = 15.0
ASK_LAUNCHER_MARGIN_S: Final = 0.1
"""How much earlier than the asker it gives up on the launcher, so that it can still say so."""


class Effects:
    """Acts on the processes of one board.

    Attributes:
        killed: processes condemned so far.
    """

    def __init__(self, runtime: ProcessRuntime, evidence: EvidenceStore) -> None:
        """Act on behalf of the watchdog that runs as `runtime`."""
        portable = runtime.arguments.portable
        self.killed = 0
        self._runtime = runtime
        self._board = runtime.board
        self._evidence = evidence
        self._signals = signaller(portable=portable)
        self._presence = Presence(portable=portable)
        self._eyes = examiner(portable=portable)
        self._boot = boot_id()
        self._observer = Observer(self._boot, self._presence)
        self._records: dict[int, LauncherRecord] = {}
        self._clocks = ClockWatch(*_clocks())

    def observe(self, suspects: frozenset[int]) -> list[Subject]:
        """Return what is to be seen of every other process of ours; `suspects` are looked at themselves."""
        occupied = self._board.occupied()
        ours = ((slot, record) for slot, record in occupied if record.kind != ProcessKind.PROGRAM)
        self._records = {slot.number: record for slot, record in ours if record.pid}
        self._records.pop(self._runtime.arguments.slot, None)
        self._presence.retain(self._records)
        self._presence.take_exits()
        subjects = []
        for number, record in self._records.items():
            look = self._eyes.look(self._identity(record)) if number in suspects else None
            seen = self._observer.observe(self._board.slots[number], record)
            subjects.append(Subject(seen, look))
        return subjects

    def perform(self, effect: Effect, now: float) -> None:
        """Do one thing that the core asked for."""
        match effect:
            case Tell():
                verdict = Verdict.SUSPECT if effect.suspect else Verdict.OK
                record = WatchdogRecord(effect.incarnation, verdict, effect.cause, int(now * 1000))
                self._board.slots[effect.key].watchdog.write(record)
            case AskStacks():
                if SHOW_STACKS is not None:
                    self._evidence.before_asking(effect.key)
                    self._signal(effect.key, SHOW_STACKS)
            case Condemn():
                self._condemn(effect, now)
            case KillAgain():
                self._signal(effect.key, KILL)
            case PutOff():
                name = self._records[effect.key].name
                text = f"{name} makes no progress because it gets no processor: left alone for now"
                self._runtime.log("WARN", "hang_put_off", text, name=name, cause=str(effect.cause))
            case Doubted():
                text = f"deadlines are put off once: {effect.doubt.replace('_', ' ')}"
                self._runtime.log("NOTICE", "verdicts_doubted", text, doubt=str(effect.doubt), gap_s=effect.gap_s)

    def note_clocks(self) -> None:
        """Log a suspend of the machine and a jump of its wall clock."""
        change = self._clocks.step(*_clocks())
        if change is not None and change.suspended_s:
            for_s = round(change.suspended_s, 3)
            self._runtime.log(
                "NOTICE", "machine_suspended", f"the machine was suspended for {for_s:.1f} s", for_s=for_s
            )
        if change is not None and change.jumped_s:
            by_s = round(change.jumped_s, 3)
            self._runtime.log("NOTICE", "clock_jumped", f"the wall clock was set by {by_s:+.1f} s", by_s=by_s)

    def verdicts(self, findings: Mapping[int, Finding]) -> list[dict[str, Any]]:
        """Return how every process on the board stands."""
        now = time.monotonic()
        return [
            _verdict(record, slot.watchdog.read(), findings.get(slot.number), now)
            for slot, record in self._board.occupied()
        ]

    def ask_launcher(self, op: str, deadline: float, arguments: dict[str, Any]) -> dict[str, Any]:
        """Hand a request on to the launcher's own socket, and return its answer. Blocks: for the worker thread.

        Raises:
            LocalError: it cannot be asked, or has not answered in time.
            RemoteError: what it answered.
        """
        left_s = min(deadline - time.monotonic() - ASK_LAUNCHER_MARGIN_S, ASK_LAUNCHER_S_MAX)
        if left_s <= 0:
            raise LocalError(ErrorCode.DEADLINE_PASSED, "no time is left to ask the launcher")
        path = os.path.join(self._runtime.arguments.runtime_dir, RUN_FILE)
        try:
            with open(path, encoding="utf-8") as file:
                run = RunInfo.from_json(file.read())
        except (OSError, ValueError) as error:
            raise LocalError(ErrorCode.NOT_RUNNING, f"{path} cannot be read: {error}") from None
        return call_launcher(run, op, left_s, **arguments)

    def _condemn(self, condemned: Condemn, now: float) -> None:
        """Keep evidence, then the verdict, then say so, then kill: whoever sees the death finds the rest."""
        key, cause = condemned.judgement.key, str(condemned.cause)
        slot, record = self._board.slots[key], self._records[key]
        try:
            evidence = self._evidence.keep(slot, record, condemned, now, time.time())
        except OSError as error:
            evidence = ""
            self._runtime.log("ERROR", "evidence_lost", f"evidence on {record.name} cannot be kept: {error}")
        slot.watchdog.write(WatchdogRecord(record.incarnation, Verdict.HUNG, cause, int(now * 1000), evidence))
        self._runtime.log(
            "ERROR",
            "process_hung",
            f"{record.name} hangs: {cause}",
            name=record.name,
            incarnation=record.incarnation,
            pid=record.pid,
            cause=cause,
            silent_s=round(condemned.judgement.silent_s, 3),
            evidence=evidence,
        )
        self.killed += 1
        self._signal(key, KILL)

    def _signal(self, key: int, number: int) -> None:
        record = self._records[key]
        try:
            self._signals.send(self._identity(record), number)
        except OSError as error:
            self._runtime.log("ERROR", "signal_failed", f"{record.name} cannot be signalled: {error}", signal=number)

    def _identity(self, record: LauncherRecord) -> ProcessIdentity:
        return ProcessIdentity(record.pid, record.start_time, self._boot)


def _verdict(
    record: LauncherRecord, written: WatchdogRecord | None, finding: Finding | None, now: float
) -> dict[str, Any]:
    if written is not None and written.incarnation != record.incarnation:
        written = None
    return {
        "name": record.name,
        "kind": record.kind,
        "pid": record.pid or None,
        "incarnation": record.incarnation,
        "verdict": written.verdict if written else str(Verdict.OK),
        "since_s": round(now - written.since_ms / 1000, 3) if written else None,
        "cause": written.cause if written and written.cause else finding.cause if finding else "",
        "evidence": written.evidence if written else "",
        "standing": str(finding.standing if finding else Standing.MISSING if not record.pid else Standing.TICKING),
        "stage": (finding.stage if finding else Stage.OK).name.lower(),
        "silent_s": round(finding.silent_s, 3) if finding else 0.0,
    }


def _clocks() -> tuple[float, float, float]:
    """Return the monotonic clock without and with time asleep (equal where a system has but one), and the wall's."""
    mono_s = time.monotonic()
    boot_s = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else mono_s
    return mono_s, boot_s, time.time()
