"""The launcher's journal: restarts, recoveries and events as event_logger takes them, and what the terminal hears."""

import os
import zlib
from typing import Any

from actors.runtime.identity import boot_id
from actors.runtime.journal import Journal, new_entry
from actors.runtime.paths import JOURNAL_DIR
from actors.runtime.process import log_event
from protocol.names import LAUNCHER
from protocol.severity import Severity
from supervisor import console
from supervisor.model import RecordRecovery, RecordRestart, Say


class Records:
    """Writes what the launcher did. On tmpfs, so it waits for no disk; what cannot be written is given up."""

    def __init__(self, runtime_dir: str) -> None:
        """Write to the journal called as the launcher in `runtime_dir`."""
        self._journal = Journal(os.path.join(runtime_dir, JOURNAL_DIR), LAUNCHER)

    def restart(self, record: RecordRestart) -> None:
        """Enter that a life ended."""
        self._append(
            new_entry(
                "restart",
                id=restart_id(record.name, record.incarnation),
                name=record.name,
                incarnation=record.incarnation,
                reason=record.exit.reason,
                exit_code=record.exit.exit_code,
                signal=record.exit.signal,
                charged=record.charged,
                manual=record.manual,
                evidence=record.exit.evidence,
            )
        )
        console.say(f"{record.name}: {record.exit.reason}")

    def recovery(self, record: RecordRecovery) -> None:
        """Enter that the life after it is ready."""
        recovery_ms = round(record.recovery_s * 1000)
        self._append(
            new_entry("recovery", restart_id=restart_id(record.name, record.incarnation), recovery_ms=recovery_ms)
        )
        console.say(f"{record.name} is ready again after {recovery_ms} ms")

    def say(self, event: Say, **attributes: Any) -> None:
        """Enter an event."""
        if event.name != LAUNCHER:
            attributes = {"process": event.name} | attributes
        log_event(self._journal, LAUNCHER, event.severity.name, event.event_type, event.message, attributes)
        if event.severity >= Severity.NOTICE:
            console.say(event.message)

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._journal.append(entry)
        except OSError:  # no room left on tmpfs: supervising goes on
            return


def restart_id(name: str, incarnation: int) -> str:
    """Return the id of the entry about the end of a life: the same whoever enters it, so that it counts once.

    A launcher that dies right after it made the entry leaves a successor that finds the same death and enters it again.
    """
    boot, process = boot_id().encode(), name.encode()
    return f"{zlib.crc32(boot):08x}{zlib.adler32(boot):08x}{zlib.crc32(process):08x}{incarnation & 0xFFFFFFFF:08x}"
