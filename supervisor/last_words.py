"""What a process that ended has left to be read: a line on its standard error, its stacks at a fatal signal."""

import json
import os
import signal
from dataclasses import replace
from typing import Final

from actors.runtime.paths import EVIDENCE_DIR, write_atomically
from actors.runtime.process import stacks_path
from supervisor.model import Exit
from supervisor.settings import Definition
from supervisor.slots import REASON_CHARACTERS_MAX

FATAL_SIGNALS: Final = frozenset(
    int(number) for number in signal.Signals if number.name in {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT"}
)
"""Those at which faulthandler writes the stacks of all threads."""
STACKS_BYTES_MAX: Final = 32 * 1024


def with_last_words(exit_: Exit, stderr_path: str) -> Exit:
    """Return `exit_` with the last line that the process wrote before it let go of its standard error, if it failed."""
    if not exit_.exit_code:
        return exit_
    try:
        with open(stderr_path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - REASON_CHARACTERS_MAX))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return exit_
    said = [line.strip() for line in lines if line.strip()]
    return replace(exit_, reason=f"{exit_.reason}: {said[-1]}"[:REASON_CHARACTERS_MAX]) if said else exit_


def with_stacks(exit_: Exit, runtime_dir: str, definition: Definition, incarnation: int) -> Exit:
    """Return `exit_` with the stacks that the process wrote at a fatal signal kept as evidence, if it did."""
    evidence = f"{definition.name}-{incarnation}.json"
    try:
        with open(stacks_path(runtime_dir, definition.slot), "rb") as file:
            stacks = file.read(STACKS_BYTES_MAX).decode(errors="replace")
        if not stacks:
            return exit_
        document = {"name": definition.name, "incarnation": incarnation, "cause": exit_.reason, "stacks": stacks}
        path = os.path.join(runtime_dir, EVIDENCE_DIR, evidence)
        write_atomically(path, json.dumps(document, indent=1).encode(), sync=False)
    except OSError:
        return exit_
    return replace(exit_, evidence=evidence)
