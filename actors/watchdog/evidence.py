"""What was found at a process that hung, as files on tmpfs: one per condemned life, the oldest going first."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from actors.runtime.liveness import LauncherRecord, Slot
from actors.runtime.paths import EVIDENCE_DIR, write_atomically
from actors.runtime.process import stacks_path
from actors.watchdog.core import Condemn

STACKS_BYTES_MAX: Final = 32 * 1024
SUFFIX: Final = ".json"


class EvidenceStore:
    """The runtime directory's evidence folder. Every method touches tmpfs alone."""

    def __init__(self, runtime_dir: str, files_max: int) -> None:
        """Keep at most `files_max` pieces."""
        self._runtime_dir = runtime_dir
        self._directory = os.path.join(runtime_dir, EVIDENCE_DIR)
        self._files_max = files_max
        self._asked_at_bytes: dict[int, int] = {}

    def before_asking(self, slot: int) -> None:
        """Note where the answer of the process in `slot`, which is about to be asked for its stacks, will begin."""
        try:
            self._asked_at_bytes[slot] = os.stat(stacks_path(self._runtime_dir, slot)).st_size
        except FileNotFoundError:
            self._asked_at_bytes.pop(slot, None)

    def keep(
        self,
        slot: Slot,
        record: LauncherRecord,
        condemned: Condemn,
        now: float,
        wall: float,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Write down everything that is known of a condemned process, and `more`; returns the file's name."""
        name = f"{record.name}-{record.incarnation}{SUFFIX}"
        document = _describe(slot, record, condemned, now, wall) | dict(more) | {"stacks": self._stacks(slot.number)}
        write_atomically(os.path.join(self._directory, name), json.dumps(document, indent=1).encode(), sync=False)
        self._prune()
        return name

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a piece by its file name, or the latest about the process `name`; None if there is none."""
        if not name.endswith(SUFFIX):
            about = [file for file in self._files() if file.removesuffix(SUFFIX).rpartition("-")[0] == name]
            if not about:
                return None
            name = about[-1]
        try:
            with open(os.path.join(self._directory, os.path.basename(name)), "rb") as file:
                document: dict[str, Any] = json.load(file)
        except (FileNotFoundError, ValueError):
            return None
        return document

    def _stacks(self, slot: int) -> str:
        """Return what the process in `slot` has answered since it was asked; empty if nothing."""
        start = self._asked_at_bytes.pop(slot, None)
        if start is None:
            return ""
        try:
            with open(stacks_path(self._runtime_dir, slot), "rb") as file:
                file.seek(start)
                return file.read(STACKS_BYTES_MAX).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _files(self) -> list[str]:
        """Return the names of all pieces, the oldest first."""
        with os.scandir(self._directory) as entries:
            pieces = [entry for entry in entries if entry.name.endswith(SUFFIX)]
        return [entry.name for entry in sorted(pieces, key=lambda entry: entry.stat().st_mtime_ns)]

    def _prune(self) -> None:
        for name in self._files()[: -self._files_max]:
            os.unlink(os.path.join(self._directory, name))


def _describe(slot: Slot, record: LauncherRecord, condemned: Condemn, now: float, wall: float) -> dict[str, Any]:
    own, beat, judgement = slot.process.read(), slot.read_beat(), condemned.judgement
    lease = None
    if own is not None and own.lease_what:
        lease = {
            "what": own.lease_what,
            "left_s": round(own.lease_until_ms / 1000 - now, 3),
            "holds_loop": own.lease_holds_loop,
        }
    return {
        "name": record.name,
        "kind": record.kind,
        "slot": slot.number,
        "pid": record.pid,
        "start_time": record.start_time,
        "incarnation": record.incarnation,
        "version": own.version if own is not None else "",
        "cause": str(condemned.cause),
        "standing": str(judgement.standing),
        "silent_s": round(judgement.silent_s, 3),
        "silent_ticks": judgement.silent_ticks,
        "hang_timeout_s": record.hang_timeout_ms / 1000,
        "at": datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "mono_ms": int(now * 1000),
        "state": own.state if own is not None else "",
        "lease": lease,
        "activity": slot.read_activity(),
        "beat": {"tick": beat.tick, "progress": beat.progress, "age_s": round(now - beat.tick_ms / 1000, 3)},
        "looks": [asdict(look) for look in condemned.looks],
    }
