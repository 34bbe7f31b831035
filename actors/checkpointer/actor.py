"""checkpointer at work: one worker thread does all that touches the disk, in the order in which it was asked.

Whatever lies in the spool is taken in before anything else is done, so a state that a client spooled is never overtaken
by its later ones. A second thread compresses older payloads while nothing else is going on.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from actors.checkpointer.config import CheckpointsConfig
from actors.checkpointer.core import parse_name, parse_run, parse_save
from actors.checkpointer.outcomes import Outcome, RunChange, Unsettled
from actors.checkpointer.payloads import Damaged, PayloadFiles
from actors.checkpointer.queries import (
    LISTED_DEFAULT,
    LISTED_MAX,
    OP_BEGIN,
    OP_END,
    Found,
    list_checkpoints,
    read_one,
    recover_from,
)
from actors.checkpointer.spooled import BATCH_BYTES_MAX, Drained, parse_run_change, take_in
from actors.checkpointer.store import CheckpointStore
from actors.checkpointer.tables import SCHEMA
from actors.checkpointer.telling import tell_damaged, tell_drained, tell_opened, tell_recovery
from actors.runtime.actor import Actor, Context
from actors.runtime.database import DISK_LEASE_S, Database, Synchronous
from actors.runtime.database_problem import PASSING, DatabaseError
from actors.runtime.operations import DEFERRED, Operation, Request
from actors.runtime.paths import DATABASE_FILE
from actors.runtime.side_worker import side_worker
from actors.runtime.spool import SpoolEntry, SpoolReader, hint_path
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.limits import KIB
from protocol.names import CHECKPOINTER
from protocol.severity import Severity

HEADS_INTERVAL_S: Final = 1.0
"""How far the heads beside the database may be behind."""
TOUCH_INTERVAL_S: Final = 60.0
"""How long it may take until the database knows when a state was last confirmed."""
DRAIN_INTERVAL_S: Final = 30.0
"""How often the spool is looked into without a hint that there is something."""
SWEEP_INTERVAL_S: Final = 60.0
"""How often hand-overs of clients that are gone are looked for."""
REPORT_INTERVAL_S: Final = 10.0
"""Checkpoints of this time are one event."""
_RUN: Final = "bytes? 16, the client's run"
_OUT_OF_TIME: Final = "the request was still waiting at its deadline; nothing was done"


class Checkpointer(Actor):
    """The checkpoints' owner."""

    bulk = True

    def __init__(self, data_dir: str, runtime_dir: str, config: CheckpointsConfig, wall_ms: Callable[[], int]) -> None:
        """Wire a checkpointer of one data directory; `wall_ms` is the wall clock for what has no time of its own."""
        self._data_dir = data_dir
        self._hint_path = hint_path(runtime_dir, CHECKPOINTER)
        self._config = config
        self._wall_ms = wall_ms
        self._store = CheckpointStore(
            Database(os.path.join(data_dir, DATABASE_FILE), SCHEMA, Synchronous.FULL),
            PayloadFiles(data_dir),
            inline_bytes_max=config.inline_kib_max * KIB,
            names_max=config.names_max,
            wall_ms=wall_ms,
        )
        self._spool = SpoolReader(data_dir, CHECKPOINTER)
        self._open = False
        self._confirmable: dict[str, tuple[bytes | None, Outcome]] = {}
        self._touched: dict[str, int] = {}
        self._saved: dict[str, Outcome] = {}
        self._counts = dict.fromkeys(
            ("saved", "unchanged", "repeated", "recovered", "damaged", "thinned", "spooled"), 0
        )
        self._reported_saves = 0
        self._keeping = False
        self._problem: DatabaseError | None = None
        self._told = False
        self._hint: int | None = None
        self._unsettled = True

    def operations(self) -> Sequence[Operation]:
        """Return what it answers."""
        name = {"name": "str of an application"}
        holder = {"pid": "int?", "start_time": "int?", "boot_id": "str?"}
        state = {"run": _RUN, "format": "str? msgpack or bytes", "sha256": "bytes? 32", "taken_ms": "int? since 1970"}
        return (
            Operation(
                "save",
                "Keep a state, the one raw frame or a new file in DATA/checkpoints; answered once durable.",
                name | state | {"file": "str? instead of a frame", "bytes": "int? of that file"},
                self._save,
            ),
            Operation(
                "confirm",
                "Tell whether the newest state has this digest, and note that it holds still.",
                name | {"run": _RUN, "sha256": "bytes 32"},
                self._confirm,
            ),
            Operation(OP_BEGIN, "Note that a run begins.", name | {"run": "bytes 16"} | holder, self._change_run),
            Operation(OP_END, "Note that a run has ended well.", name | {"run": "bytes 16"} | holder, self._change_run),
            Operation("recover", "Return what a crash left, as raw frame.", name | {"run": _RUN}, self._recover),
            Operation("show", "Return a state, as raw frame.", name | {"seq": "int? else the newest"}, self._show),
            Operation(
                "info",
                "Return descriptions, the newest first.",
                {"name": "str?", "limit": f"int? at most {LISTED_MAX}", "verify": "bool? read all payloads"},
                self._info,
            ),
        )

    def on_start(self, context: Context) -> None:
        """Begin: open the database, and take in what waits in the spool."""
        self._context = context
        self._compressor = side_worker(context, f"{CHECKPOINTER}-compressor", 1)
        now = context.now()
        self._asked_at = now
        self._drain_at = now
        self._heads_at = self._touch_at = self._report_at = now
        self._sweep_at = now + SWEEP_INTERVAL_S
        self._tidy_at = now + self._config.tidy_interval_s

    def on_tick(self, context: Context, now: float) -> None:
        """Do what is due, one thing after another, and never while the last one is under way."""
        self._report(now)
        if self._keeping:
            return
        hint = _modified_ns(self._hint_path)
        if hint != self._hint or now >= self._drain_at:
            self._hint = hint
            self._drain_at = now + DRAIN_INTERVAL_S
            self._keep("take in the spool", self._prepare)
        elif self._touched and now >= self._touch_at:
            self._touch_at = now + TOUCH_INTERVAL_S
            self._touch()
        elif self._store.heads_dirty and now >= self._heads_at:
            self._heads_at = now + HEADS_INTERVAL_S
            self._keep("write the chain's heads", self._store.publish_heads)
        elif not self._store.upkeep.is_thin and now >= self._tidy_at:
            self._tidy_at = now + self._config.tidy_interval_s
            self._keep("thin out", self._thin)
        elif now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL_S
            self._keep("look for states that nobody asks to take", partial(self._sweep, now))
        elif self._unsettled and now >= self._asked_at + self._config.compress_after_s:
            self._unsettled = False
            self._keep("look for what to compress", self._store.upkeep.unsettled, then=self._squeeze)

    def on_drain(self, context: Context) -> bool:
        """Write what is known only here: confirmations, and the chain's heads."""
        if self._keeping:
            return False
        if self._open and self._problem is None:
            if self._touched:
                self._touch()
                return False
            if self._store.heads_dirty:
                self._keep("write the chain's heads", self._store.publish_heads)
                return False
        self._report(context.now() + REPORT_INTERVAL_S)
        return True

    def status(self) -> Mapping[str, Any]:
        """Return how it stands."""
        problem = self._problem
        return {
            "checkpoints": dict(self._counts),
            "spool": {"damaged": self._spool.damaged},
            "database": {
                "problem": problem and {"code": problem.code, "message": problem.message, "hint": problem.hint}
            },
        }

    # --- requests: parsed on the loop, done on the worker thread ---

    def _save(self, request: Request) -> object:
        save = parse_save(request.id, request.arguments, request.raw, self._wall_ms())

        def work() -> tuple[dict[str, Any], Sequence[bytes]]:
            (outcome,) = self._store.save([save])
            if not isinstance(outcome, Outcome):
                raise outcome
            self._confirmable[save.name] = (save.run, outcome)
            self._count(outcome)
            return _document(outcome), ()

        self._confirmable.pop(save.name, None)
        return self._on_worker(request, work)

    def _confirm(self, request: Request) -> object:
        name, run = parse_name(request.arguments["name"]), parse_run(request.arguments.get("run"))
        sha256 = request.arguments["sha256"]
        known = self._confirmable.get(name)
        if known is not None and known[0] == run and known[1].sha256 == sha256:
            return self._confirmed(known[1])

        def work() -> tuple[dict[str, Any], Sequence[bytes]]:
            outcome = self._store.confirm(name, run, sha256)
            if outcome is None:
                return {"unchanged": False}, ()
            self._confirmable[name] = (run, outcome)
            return self._confirmed(outcome), ()

        return self._on_worker(request, work)

    def _confirmed(self, outcome: Outcome) -> dict[str, Any]:
        self._touched[outcome.name] = self._wall_ms()
        self._counts["unchanged"] += 1
        return _document(outcome) | {"unchanged": True}

    def _change_run(self, request: Request) -> object:
        change = parse_run_change(request.op, request.arguments)
        self._confirmable.pop(change.name, None)
        return self._on_worker(request, partial(self._do_change_run, change))

    def _do_change_run(self, change: RunChange) -> tuple[dict[str, Any], Sequence[bytes]]:
        number = self._store.change_run(change)
        self._confirmable.pop(change.name, None)
        word = "ended well" if change.ends else "began"
        self._context.log(
            Severity.INFO,
            "run_ended" if change.ends else "run_began",
            f"run {number} of {change.name} {word}",
            name=change.name,
            run=number,
        )
        return {"id": change.run, "seq": number}, ()

    def _recover(self, request: Request) -> object:
        name, run = parse_name(request.arguments["name"]), parse_run(request.arguments.get("run"))
        results: list[Found] = []

        def work() -> tuple[dict[str, Any], Sequence[bytes]]:
            read = partial(self._store.read, lambda connection: recover_from(connection, self._data_dir, name, run))
            return self._find(read, name, results)

        # Told once it is answered: whoever waits for a state has crashed before.
        return self._on_worker(request, work, then=lambda: tell_recovery(self._context.log, name, results[0]))

    def _show(self, request: Request) -> object:
        name, seq = parse_name(request.arguments["name"]), request.arguments.get("seq")
        return self._on_worker(request, partial(self._find, partial(read_one, self._data_dir, name, seq), name, []))

    def _find(
        self, read: Callable[[], Found], name: str, results: list[Found]
    ) -> tuple[dict[str, Any], Sequence[bytes]]:
        found = read()
        results.append(found)
        fallen_back = found.skipped
        if fallen_back:
            self._counts["damaged"] += len(fallen_back)
            self._store.upkeep.mark_damaged(fallen_back)
            for _, seq, problem in fallen_back[:10]:
                tell_damaged(self._context.log, name, seq, problem)
        self._counts["recovered"] += found.reason != "asked" and found.checkpoint is not None
        return found.document(), (found.payload,) if found.checkpoint is not None else ()

    def _info(self, request: Request) -> object:
        arguments = request.arguments
        name = None if arguments.get("name") is None else parse_name(arguments["name"])
        limit, verify = arguments.get("limit", LISTED_DEFAULT), arguments.get("verify", False)
        return self._on_worker(request, lambda: (list_checkpoints(self._data_dir, name, limit, verify=verify), ()))

    def _on_worker(
        self,
        request: Request,
        work: Callable[[], tuple[dict[str, Any], Sequence[bytes]]],
        then: Callable[[], None] | None = None,
    ) -> object:
        self._asked_at = self._context.now()

        def job() -> tuple[dict[str, Any], Sequence[bytes]]:
            if self._context.now() >= request.deadline:
                raise ReliabilityError(ErrorCode.DEADLINE_PASSED, _OUT_OF_TIME)
            self._prepare()
            return work()

        what = f"{CHECKPOINTER}.{request.op}"
        self._context.submit(job, what=what, on_done=partial(self._answer, request, then), lease_cap_s=DISK_LEASE_S)
        return DEFERRED

    def _answer(self, request: Request, then: Callable[[], None] | None, outcome: Any) -> None:
        self._note(outcome)
        if isinstance(outcome, ReliabilityError):
            request.fail(outcome.code, outcome.message, outcome.hint)
        else:
            result, raw = outcome
            request.reply(result, raw)
            if then is not None:
                then()

    # --- the worker thread ---

    def _prepare(self) -> None:
        """Open the database, the first time, and take in what is in the spool."""
        if not self._open:
            tell_opened(self._context.log, self._store.open())
            self._open = True
        while entries := self._read_spool():
            self._confirmable.clear()
            drained = Drained()
            take_in(self._store, entries, self._wall_ms(), drained)
            self._spool.done(entries)
            self._counts["spooled"] += drained.saved
            self._unsettled = True
            tell_drained(self._context.log, drained)

    def _read_spool(self) -> Sequence[SpoolEntry]:
        try:
            return self._spool.read(BATCH_BYTES_MAX)
        except OSError as error:
            raise LocalError(ErrorCode.FAILED, f"the spool cannot be read: {error.strerror}", "") from None

    def _thin(self) -> int:
        self._prepare()
        thinned = self._store.upkeep.thin(self._config.retention, lambda name: read_one(self._data_dir, name).skipped)
        self._counts["thinned"] += thinned
        self._store.database.release_memory()
        if thinned:
            message = f"{thinned} checkpoints are older than what is kept, and removed"
            self._context.log(Severity.INFO, "checkpoints_thinned", message, count=thinned)
        return thinned

    def _sweep(self, now: float) -> None:
        if removed := self._store.files.sweep(now) if self._open else 0:
            message = f"{removed} states that were handed over and never asked to be taken are removed"
            self._context.log(Severity.INFO, "hand_overs_swept", message, count=removed)

    def _settle(self, item: Unsettled, outcome: Any) -> None:
        if isinstance(outcome, Damaged):
            self._store.upkeep.mark_damaged([(item.name, item.seq, str(outcome))])
            tell_damaged(self._context.log, item.name, item.seq, f"the payload {outcome}")
            outcome = item.stored
        self._store.upkeep.settle(item, outcome)

    # --- what nobody asked for ---

    def _keep(self, what: str, work: Callable[[], Any], then: Callable[[Any], None] | None = None) -> None:
        """Have the worker do what is due."""
        self._keeping = True
        self._context.submit(work, what=what, on_done=partial(self._kept, then), lease_cap_s=DISK_LEASE_S)

    def _kept(self, then: Callable[[Any], None] | None, outcome: Any) -> None:
        self._keeping = False
        self._note(outcome)
        if then is not None and not isinstance(outcome, ReliabilityError):
            then(outcome)

    def _touch(self) -> None:
        touched, self._touched = self._touched, {}
        self._keep("note confirmations", partial(self._store.touch, touched))

    def _squeeze(self, item: Unsettled | None) -> None:
        """Compress one payload on the second thread; the next one follows, unless somebody asks for something."""
        if item is None:
            return
        self._keeping = True
        self._compressor.submit(
            self._store.upkeep.squeeze, item, what="compress", on_done=partial(self._squeezed, item)
        )

    def _squeezed(self, item: Unsettled, outcome: Any) -> None:
        self._keeping = False
        if isinstance(outcome, ReliabilityError):  # no space: it stays as it is, for now
            return
        if isinstance(outcome, Exception) and not isinstance(outcome, Damaged):
            raise outcome
        self._unsettled = True
        self._keep("keep it compressed", partial(self._settle, item, outcome))

    def _note(self, outcome: Any) -> None:
        """Take in how it ended; a fault that is not the world's ends the process."""
        if isinstance(outcome, Exception) and not isinstance(outcome, ReliabilityError):
            raise outcome
        self._problem = outcome if isinstance(outcome, DatabaseError) else None
        before, told = self._told, self._problem is not None and self._problem.problem not in PASSING
        if self._problem is not None and told and not before:
            message = f"checkpoints cannot be kept: {self._problem.message}"
            self._context.log(Severity.ERROR, "database_unavailable", message, problem=self._problem.problem)
        elif before and self._problem is None:
            self._context.log(Severity.NOTICE, "database_available", "checkpoints can be kept again")
        self._told = told or (before and self._problem is not None)

    def _count(self, outcome: Outcome) -> None:
        if outcome.repeated or outcome.unchanged:
            self._counts["repeated" if outcome.repeated else "unchanged"] += 1
            return
        self._counts["saved"] += 1
        self._saved[outcome.name] = outcome
        self._unsettled = True

    def _report(self, now: float) -> None:
        """Tell of checkpoints, at most once in a while: one event for all of a time."""
        saves = self._counts["saved"] - self._reported_saves
        if not saves or now < self._report_at:
            return
        self._report_at = now + REPORT_INTERVAL_S
        self._reported_saves += saves
        saved, self._saved = self._saved, {}
        newest = {name: outcome.seq for name, outcome in list(saved.items())[:20]}
        message = f"{saves} checkpoint{'s' if saves > 1 else ''} kept, of {', '.join(newest)}"
        self._context.log(Severity.INFO, "checkpoints_kept", message, count=saves, newest=newest)


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "name": outcome.name,
        "seq": outcome.seq,
        "timestamp_ms": outcome.timestamp_ms,
        "bytes": outcome.size_bytes,
        "sha256": outcome.sha256,
        "unchanged": outcome.unchanged,
    }


def _modified_ns(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
