"""What checkpointer tells the event log."""

from collections.abc import Callable

from actors.checkpointer.outcomes import Opened
from actors.checkpointer.queries import Found
from actors.checkpointer.spooled import Drained
from protocol.severity import Severity

Log = Callable[..., None]
"""`Context.log`."""


def tell_opened(log: Log, opened: Opened) -> None:
    """Tell what was found at the start."""
    for loss in opened.losses:
        message = f"{loss.count} checkpoints of {loss.name} are lost: the newest known was number {loss.head_seq}"
        log(Severity.ERROR, "checkpoints_lost", message, name=loss.name, count=loss.count, head_seq=loss.head_seq)
    for name in opened.forked:
        message = f"the checkpoints of {name} are not those that were saved: the chain has another head"
        log(Severity.ERROR, "checkpoint_chain_broken", message, name=name)
    if opened.heads_damaged:
        log(Severity.WARN, "checkpoint_heads_damaged", "the chain's heads beside the database were damaged")
    if opened.orphans:
        message = f"{opened.orphans} files of checkpoints that were never acknowledged are removed"
        log(Severity.INFO, "checkpoint_orphans", message, count=opened.orphans)


def tell_drained(log: Log, drained: Drained) -> None:
    """Tell what a spool brought in."""
    message = f"{drained.saved} checkpoints taken in from the spool"
    log(Severity.NOTICE, "spool_taken_in", message, count=drained.saved, repeated=drained.repeated)
    for problem in (drained.refused or [])[:10]:
        log(Severity.ERROR, "spooled_checkpoint_refused", f"a spooled checkpoint is refused: {problem}")


def tell_recovery(log: Log, name: str, found: Found) -> None:
    """Tell what an application got back."""
    if found.checkpoint is None:
        message = f"{name} recovers nothing: {found.reason.replace('_', ' ')}"
    else:
        message = f"{name} recovers checkpoint {found.checkpoint.seq} ({found.reason.replace('_', ' ')})"
        if found.skipped:
            message += f", past {len(found.skipped)} damaged ones"
    severity = Severity.WARN if found.skipped else Severity.NOTICE
    log(
        severity, "recovery", message, name=name, reason=found.reason, skipped=len(found.skipped),
        seq=found.checkpoint and found.checkpoint.seq,
    )  # fmt: skip


def tell_damaged(log: Log, name: str, seq: int, problem: str) -> None:
    """Tell of a damaged checkpoint."""
    message = f"checkpoint {seq} of {name} is damaged: {problem}"
    log(Severity.ERROR, "checkpoint_damaged", message, name=name, seq=seq)
