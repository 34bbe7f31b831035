"""The watchdog as an actor: two ticks per tick of the launcher, and what it answers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from actors.runtime.actor import Actor, Context
from actors.runtime.liveness import LAUNCHER_SLOT
from actors.runtime.operations import Operation, Request
from actors.runtime.process import ProcessRuntime
from actors.watchdog.config import WatchdogConfig
from actors.watchdog.core import Watch
from actors.watchdog.effects import ASK_LAUNCHER_S_MAX, Effects
from actors.watchdog.evidence import EvidenceStore
from actors.watchdog.keeper import Keeper
from actors.watchdog.program_effects import Programs
from protocol.errors import ErrorCode, RemoteError

TICKS_PER_TICK: Final = 2
"""It looks so many times per tick of the launcher; the others tick as often as that, or half as often."""
TICK_LAG: Final = 0.1
"""Part of its tick by which it lets the others go first. It sees their beats just made, and not a tick later: so their
silence lasts no longer than need be before it counts as a hang."""
FORWARD_LEASE_CAP_S: Final = 2 * ASK_LAUNCHER_S_MAX


class Watchdog(Actor):
    """Judges every process; answers for its verdicts, and for the launcher, which has no service of its own.

    Attributes:
        keeper: what it keeps for the next launcher.
    """

    def __init__(self, runtime: ProcessRuntime) -> None:
        """Read the configuration and the board; nobody is judged before the first tick."""
        config = runtime.config.section("watchdog", WatchdogConfig)
        self.tick_s = runtime.supervision.tick_s / TICKS_PER_TICK
        self.tick_lag_s = self.tick_s * TICK_LAG
        self._runtime = runtime
        self._core = Watch(self.tick_s)
        self._evidence = EvidenceStore(runtime.arguments.runtime_dir, config.evidence_files_max)
        self._effects = Effects(runtime, self._evidence)
        self.keeper = Keeper(runtime.arguments.runtime_dir)
        self._programs = Programs(runtime, self._evidence, self.tick_s)

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        name = {"name": "str of a process", "user": "str? on whose behalf"}
        return (
            Operation("verdicts", "Return how every process stands, and why.", {}, self._verdicts),
            Operation(
                "evidence", "Return what was found at a process that hung.", {"name": "str"}, self._read_evidence
            ),
            *(
                Operation(op, text, arguments, self._forward, blocking=True, lease_cap_s=FORWARD_LEASE_CAP_S)
                for op, text, arguments in (
                    ("restart", "Have the launcher restart a process.", name),
                    ("start", "Have the launcher start a process.", name),
                    ("stop", "Have the launcher stop a process.", name),
                    ("down", "Have the launcher stop the whole system.", {"user": name["user"]}),
                )
            ),
        )

    def on_start(self, context: Context) -> None:
        """Take in at once what probes find, and what the launcher wants kept."""
        self._programs.begin(context.publish, context.post)
        descriptor = self.keeper.open()
        if descriptor is not None:
            context.register(descriptor, self.keeper.take)

    def on_tick(self, context: Context, now: float) -> None:
        """Look at everybody, and act."""
        subjects = self._effects.observe(self._core.suspects)
        for effect in self._core.step(now, subjects, stopping=self._runtime.board.stopping):
            self._effects.perform(effect, now)
        self._programs.step(now)
        self.keeper.tick(now, self._runtime.board.slots[LAUNCHER_SLOT].read_tick())
        self._effects.note_clocks()

    def status(self) -> Mapping[str, Any]:
        """Return its own part of `status`."""
        return {
            "judged": len(self._core.findings),
            "suspects": len(self._core.suspects),
            "killed": self._effects.killed,
            "programs_judged": len(self._programs.findings),
            "programs_condemned": self._programs.condemned,
        }

    def _verdicts(self, _request: Request) -> dict[str, Any]:
        return {"processes": self._effects.verdicts(self._core.findings | self._programs.findings)}

    def _read_evidence(self, request: Request) -> dict[str, Any]:
        name = request.arguments["name"]
        found = self._evidence.read(name)
        if found is None:
            raise RemoteError(
                ErrorCode.FAILED, f"there is no evidence on {name!r}", "See `verdicts` for what there is."
            )
        return {"evidence": found}

    def _forward(self, request: Request) -> dict[str, Any]:
        """On the worker thread."""
        return self._effects.ask_launcher(request.op, request.deadline, request.arguments)
