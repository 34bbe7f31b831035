"""Checkpoints of an application's state, and what a crash leaves of it.

    manager = CrashRecoveryManager()
    await manager.start()
    state = await manager.recover_from_crash() or fresh_state()
    await manager.create_checkpoint(state=state)      # from now on every 30 s by itself as well
    ...
    await manager.stop()                              # a clean stop: nothing to recover from

**States** are whatever msgpack holds, up to 64 MiB: maps, lists, texts, bytes, whole numbers of 64 bits, floats, truth
values and None. Tuples come back as lists. A state is taken as it is at the moment of the call.

**Names** tell applications apart. By default it is the main program's: the module of ``python -m``, else the name of
the script without ``.py``. A name belongs to the run that began last, as long as its process lives and has not stopped:
an older run is refused meanwhile. So every worker process of an application needs a name of its own.

**Whether the system runs or not**, a checkpoint that was created survives the death of every process: where the
checkpointer does not answer in time it goes to the local spool, and is taken in later, in its order. Once it has a
`seq` it survives a power cut as well. What is recovered while nobody answers is read from the files by a child process.
"""

# ruff: noqa: ASYNC109 - `timeout` is part of the published signatures, and travels with the request as its deadline

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from actors.runtime.identity import own_identity
from actors.runtime.paths import data_directory
from actors.runtime.spool import SpoolWriter
from actors.runtime.transport import Lane
from app.reliability._checkpoint_calls import ANSWER_S, CheckpointCalls
from app.reliability._durable_core import SPOOLED_CODES
from app.reliability._offline_recovery import read_offline
from app.reliability._states import StateError, decode, digest, encode
from app.reliability.async_client import AsyncClient
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.limits import MIB
from protocol.names import CHECKPOINTER, EVENT_LOGGER, NAME_LENGTH_MAX, is_valid_name

__all__ = ["Checkpoint", "CrashRecoveryManager", "Recovery", "StateError", "default_name"]

INTERVAL_DEFAULT_S: Final = 30.0
TIMEOUT_DEFAULT_S: Final = 10.0
RECOVERY_ANSWER_S: Final = 2.5
"""How long it has to answer before the files are read."""
COMPARED_BYTES_MAX: Final = 8 * MIB
"""The last state is kept for comparison up to this size; of a larger one its digest."""

StateCallback = Callable[[], Any] | Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was created.

    Attributes:
        id: of the request that made it.
        name: the application.
        seq: its number; None while it is only spooled.
        bytes: of the state, encoded.
        unchanged: the newest checkpoint held this state already.
        spooled: it waits in the local spool.
    """

    id: str
    name: str
    seq: int | None
    bytes: int
    unchanged: bool = False
    spooled: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the last `recover_from_crash` found.

    Attributes:
        reason: `crash`, `same_run`, `clean_stop` or `nothing`.
        seq: number of the checkpoint returned; None if none, or if it is only spooled.
        timestamp: when that was taken, RFC 3339; None if none was.
        skipped: (seq, problem) of newer ones that were passed over because they are damaged.
        offline: it was read from the files, as nobody answered.
    """

    reason: str
    seq: int | None
    timestamp: str | None
    skipped: tuple[tuple[int, str], ...]
    offline: bool


class _Missing:
    """The type of `_MISSING`."""


_MISSING: Final = _Missing()


class CrashRecoveryManager:
    """Keeps the state of one application; for the coroutines of one event loop.

    Attributes:
        name: the application.
        interval_s: pause between automatic checkpoints.
        last_checkpoint: the newest one that was created.
        last_recovery: what the last recovery found.
        last_error: why the last automatic checkpoint failed; None if it did not.
    """

    def __init__(
        self,
        name: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        interval_s: float = INTERVAL_DEFAULT_S,
        callback: StateCallback | None = None,
    ) -> None:
        """Name the application and its system; nothing is opened.

        Args:
            name: 1 to 48 letters, digits or one of ``_ . -``; see the module for the default.
            data_dir: of the system; else RELCTL_DATA_DIR, else ./data.
            interval_s: pause between automatic checkpoints.
            callback: see `register_callback`.

        Raises:
            LocalError: `usage`, the name or the interval is none.
        """
        self.name = default_name() if name is None else name
        if not is_valid_name(self.name):
            hint = f"A name is 1 to {NAME_LENGTH_MAX} letters, digits or one of _ . -"
            raise LocalError(ErrorCode.USAGE, f"{self.name!r} is no name for an application", hint)
        if not 0 < interval_s < float("inf"):
            raise LocalError(ErrorCode.USAGE, f"{interval_s!r} s is no interval", "")
        self.interval_s = interval_s
        self.last_checkpoint: Checkpoint | None = None
        self.last_recovery: Recovery | None = None
        self.last_error: Exception | None = None
        self._data_dir = data_directory(None if data_dir is None else os.fspath(data_dir))
        self._client = AsyncClient(self._data_dir)
        self._calls = CheckpointCalls(self._data_dir, self._client)
        self._callback = callback
        self._state: Any = _MISSING
        self._run = os.urandom(16)
        self._begun = False
        self._last: tuple[bytes | None, bytes] | None = None
        self._order = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._confirming: asyncio.Task[None] | None = None

    def register_callback(self, callback: StateCallback) -> None:
        """Have `callback`, a function or coroutine function, return the state for each automatic checkpoint."""
        self._callback = callback

    @property
    def callback(self) -> StateCallback | None:
        """What returns the state for each automatic checkpoint."""
        return self._callback

    @property
    def has_state(self) -> bool:
        """Whether there is a state to keep without one being handed over."""
        return self._callback is not None or self._state is not _MISSING

    async def start(self, *, timeout: float = TIMEOUT_DEFAULT_S) -> None:
        """Begin a run of this application, and automatic checkpoints. To start twice is to start once.

        Raises:
            NotDurable: neither the system nor the spool takes it.
        """
        async with self._order:
            await self._begin(timeout)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._automatically(), name=f"checkpoints of {self.name}")

    async def create_checkpoint(self, state: Any = _MISSING, *, timeout: float = TIMEOUT_DEFAULT_S) -> Checkpoint:
        """Keep a state; it survives every process when this returns.

        An unchanged state costs next to nothing, and makes no new checkpoint.

        Args:
            state: see the module; without one it is the callback's, else the last one that was handed over.
            timeout: seconds that this may take in all.

        Raises:
            StateError: msgpack cannot hold it, or it is too large; or there is none.
            NotDurable: neither the system nor the spool takes it.
            RemoteError: `refused`, a later run has this name.
        """
        if state is _MISSING:
            state = await self._present_state()
        else:
            self._state = state
        return await self.keep(encode(state), timeout=timeout)

    async def keep(self, payload: bytes, *, timeout: float = TIMEOUT_DEFAULT_S) -> Checkpoint:
        """Keep a state that is encoded already, as `create_checkpoint` does, which alone remembers it for later ones.

        Raises:
            NotDurable, RemoteError: as `create_checkpoint`.
        """
        taken_ms = time.time_ns() // 1_000_000
        async with self._order:
            await self._begin(timeout)
            checkpoint = await self._confirm(payload) or await self._save(payload, taken_ms, timeout)
        self.last_checkpoint = checkpoint
        return checkpoint

    def keep_apart(self, *, state: Any = _MISSING, timeout: float = TIMEOUT_DEFAULT_S) -> bool:
        """Keep a state from another thread, while the event loop stands still; False if there is none to keep.

        Args:
            state: without one it is the last one that was handed over.
            timeout: as of `create_checkpoint`.

        Raises:
            StateError, NotDurable, RemoteError: as `create_checkpoint`.
        """
        state = self._state if state is _MISSING else state
        if state is _MISSING or not self._begun:
            return False
        payload = encode(state)
        asyncio.run(self._keep_apart(payload, time.time_ns() // 1_000_000, timeout))
        self._last = None  # what the loop holds for the newest one may not be it any more
        return True

    async def _keep_apart(self, payload: bytes, taken_ms: int, timeout: float) -> None:
        arguments = {"name": self.name, "run": self._run, "format": "msgpack", "taken_ms": taken_ms}
        client = AsyncClient(self._data_dir)
        calls = CheckpointCalls(self._data_dir, client)
        try:
            await calls.durably("save", arguments, (payload,), timeout)
        finally:
            await client.close()
            calls.close()

    async def recover_from_crash(self, *, timeout: float = TIMEOUT_DEFAULT_S) -> Any:
        """Return the newest valid state that a crash left, or None.

        None if the last run ended by `stop`, or if there never was a checkpoint. Within a run, once it has created a
        checkpoint, it is the newest of those. Damaged ones are passed over; `last_recovery` tells.

        Raises:
            ReliabilityError: neither the system nor its files could be read.
        """
        arguments: dict[str, Any] = {"name": self.name, "run": self._run if self._begun else None}
        answer, payload, offline = await self._read("recover", arguments, timeout)
        found = answer["checkpoint"]
        skipped = tuple((item["seq"], item["problem"]) for item in answer["skipped"])
        self.last_recovery = Recovery(
            answer["reason"], found and found["seq"], found and found["timestamp"], skipped, offline
        )
        if offline:
            await asyncio.to_thread(self._tell, self.last_recovery)
        return _state_of(found, payload)

    async def newest_state(self, *, timeout: float = TIMEOUT_DEFAULT_S) -> Any:
        """Return the newest valid state of this name, however its run ended; None if there never was one.

        Raises:
            ReliabilityError: neither the system nor its files could be read.
        """
        answer, payload, _ = await self._read("show", {"name": self.name}, timeout)
        return _state_of(answer["checkpoint"], payload)

    async def stop(self, *, timeout: float = TIMEOUT_DEFAULT_S) -> None:
        """End this run well: there will be nothing to recover from. What was saved stays in the history.

        Raises:
            NotDurable: neither the system nor the spool takes it.
        """
        await self._end_automatic()
        async with self._order:
            if self._begun:
                await self._calls.durably("end_run", {"name": self.name, "run": self._run}, (), timeout)
            self._begun = False
            self._run = os.urandom(16)
            self._last = None
        await self.close()

    async def close(self) -> None:
        """Let go of everything without ending the run: to who starts next this is a crash."""
        await self._end_automatic()
        await self._client.close()
        self._calls.close()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, unless an exception leaves: that is a crash."""
        await (self.stop() if kind is None else self.close())

    async def _read(self, op: str, arguments: dict[str, Any], timeout: float) -> tuple[dict[str, Any], bytes, bool]:
        """Ask for a state, or read it from the files; returns the answer, the payload, and whether it is of the files.

        Raises:
            ReliabilityError: neither could be read.
        """
        end = time.monotonic() + timeout
        try:
            answer, raw = await self._client.call_raw(
                CHECKPOINTER, op, lane=Lane.BULK, timeout=min(RECOVERY_ANSWER_S, timeout / 2), **arguments
            )
            return answer, raw[0] if raw else b"", False
        except ReliabilityError as error:
            if error.code not in SPOOLED_CODES:
                raise
            run = arguments.get("run")
            words = (op, self.name, run.hex()) if run else (op, self.name)
            try:
                return *await asyncio.to_thread(read_offline, self._data_dir, words, end), True
            except ReliabilityError as trouble:
                raise trouble from error

    async def _end_automatic(self) -> None:
        tasks = [task for task in (self._task, self._confirming) if task is not None and not task.done()]
        self._task = self._confirming = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _automatically(self) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            if self._callback is None and self._state is _MISSING:
                continue
            try:
                await self.create_checkpoint()
                self.last_error = None
            except Exception as error:  # noqa: BLE001 - a host's callback raises what it likes; the next one may do
                self.last_error = error

    async def _present_state(self) -> Any:
        if self._callback is not None:
            state: Any = self._callback()
            return await state if inspect.isawaitable(state) else state
        if self._state is _MISSING:
            raise StateError(ErrorCode.USAGE, "there is no state to keep", "Hand one over, or register a callback.")
        return self._state

    async def _begin(self, timeout: float) -> None:
        if self._begun:
            return
        me = own_identity()
        holder = {"pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id}
        await self._calls.durably("begin_run", {"name": self.name, "run": self._run, **holder}, (), timeout)
        self._begun = True

    async def _confirm(self, payload: bytes) -> Checkpoint | None:
        """Return the newest checkpoint, if it is known to hold this state; None if it may have changed."""
        if self._last is None or self.last_checkpoint is None:
            return None
        kept, sha256 = self._last
        if payload != kept if kept is not None else await asyncio.to_thread(digest, payload) != sha256:
            return None
        known = self.last_checkpoint
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._tell_unchanged(payload, sha256))
        return Checkpoint(known.id, self.name, known.seq, len(payload), unchanged=True)

    async def _tell_unchanged(self, payload: bytes, sha256: bytes) -> None:
        """Tell the checkpointer that a state which it keeps holds still; should it not have it any more, hand it over.

        Nobody waits for this: the state is kept. Where nobody answers there is nothing to do either.
        """
        try:
            answer = await self._client.call(
                CHECKPOINTER, "confirm", timeout=ANSWER_S, name=self.name, run=self._run, sha256=sha256
            )
            if answer.get("unchanged"):
                return
            async with self._order:
                if self._last is not None and self._last[1] == sha256:
                    self.last_checkpoint = await self._save(payload, time.time_ns() // 1_000_000, TIMEOUT_DEFAULT_S)
        except ReliabilityError as error:
            if error.code not in SPOOLED_CODES:
                self._last = None  # whoever saves next is told

    async def _save(self, payload: bytes, taken_ms: int, timeout: float) -> Checkpoint:
        arguments = {"name": self.name, "run": self._run, "format": "msgpack", "taken_ms": taken_ms}
        self._last = None
        request_id, answer = await self._calls.durably("save", arguments, (payload,), timeout)
        if answer is None:
            return Checkpoint(request_id.hex(), self.name, None, len(payload), spooled=True)
        self._last = (payload if len(payload) <= COMPARED_BYTES_MAX else None, answer["sha256"])
        return Checkpoint(answer["id"].hex(), self.name, answer["seq"], len(payload), answer["unchanged"])

    def _tell(self, recovery: Recovery) -> None:
        """Leave word of a recovery that nobody else saw; event_logger takes it in when it is back."""
        what = "nothing" if recovery.timestamp is None else f"checkpoint {recovery.seq or '(spooled)'}"
        event = {
            "severity": "WARN" if recovery.skipped else "NOTICE",
            "component": CHECKPOINTER,
            "event_type": "recovery",
            "message": f"{self.name} recovers {what} from the files: {recovery.reason.replace('_', ' ')}",
            "attributes": {
                "name": self.name,
                "offline": True,
                "skipped": [{"seq": seq, "problem": problem} for seq, problem in recovery.skipped],
            },
        }
        request_id = os.urandom(16)
        try:
            SpoolWriter(self._data_dir, EVENT_LOGGER).append("emit", request_id, event | {"id": request_id.hex()})
        except ReliabilityError:
            return


def _state_of(found: dict[str, Any] | None, payload: bytes) -> Any:
    """Return the state of a checkpoint that was found; None if none was."""
    if found is None:
        return None
    return payload if found["format"] == "bytes" else decode(payload)


def default_name() -> str:
    """Return the name of the program that runs: see the module."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name = str(spec.name).removesuffix(".__main__")
    else:
        name = os.path.basename(getattr(main, "__file__", None) or "python").removesuffix(".py")
    allowed = "".join(character if is_valid_name(character) else "_" for character in name)
    return allowed[:NAME_LENGTH_MAX] or "python"
