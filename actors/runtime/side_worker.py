"""Further threads of an actor, beside the loop's own worker: for work that must not wait behind the worker's.

They hold no lease: a thread that is stuck here is the actor's own business (a bounded query, a health check that hangs
and is thereby a finding), never a reason to kill the process.
"""

from actors.runtime.actor import Context
from actors.runtime.reactor import Mailbox
from actors.runtime.worker import Worker


class _Unleased:
    """Takes no notice of leases."""

    def begin_lease(self, what: str, cap_s: float) -> None:
        """Do nothing."""

    def end_lease(self) -> None:
        """Do nothing."""


def side_worker(context: Context, name: str, capacity: int) -> Worker:
    """Return a worker with a thread of its own, at most `capacity` jobs waiting; outcomes come back to the loop."""
    mailbox = Mailbox()
    context.register(mailbox.fileno(), mailbox.drain)
    return Worker(name, _Unleased(), mailbox, capacity)
