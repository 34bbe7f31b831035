"""What became of every message: counters that must balance, and the last ones that nobody could have.

Every request that arrives has exactly one fate: ``received == delivered + expired + rejected + repeated + dead_lettered
+ pending``. `repeated` is the same peer asking again for what it already waits for; it gets the one outcome.
"""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from broker.routing.bounds import DEAD_LETTERS_MAX


@dataclass(slots=True)
class Counters:
    """Counts since the broker started.

    Attributes:
        received: requests that arrived.
        delivered: answered by a worker, from a kept outcome, or by the broker about itself.
        expired: answered that the deadline has passed, and why.
        rejected: answered with an error because they could not be accepted.
        repeated: said again by a peer that waits already.
        dead_lettered: lost with two workers, or answered to somebody who could not be reached.
        pending: open now.
        dispatched: handed to a worker.
        requeued: taken back from a lost worker.
        replayed: answered from a kept outcome.
        late_replies: answers that came after the outcome; dropped.
        partials: parts of answers passed on.
        malformed: messages that were no Majordomo; dropped.
        workers_refused: registrations that were turned down.
        workers_superseded: workers replaced by a later incarnation.
        workers_lost: workers that fell silent or could not be reached.
        published: publications passed on.
        publications_refused: publications from somebody who may not, or out of bounds.
    """

    received: int = 0
    delivered: int = 0
    expired: int = 0
    rejected: int = 0
    repeated: int = 0
    dead_lettered: int = 0
    pending: int = 0
    dispatched: int = 0
    requeued: int = 0
    replayed: int = 0
    late_replies: int = 0
    partials: int = 0
    malformed: int = 0
    workers_refused: int = 0
    workers_superseded: int = 0
    workers_lost: int = 0
    published: int = 0
    publications_refused: int = 0

    def add(self, name: str, count: int) -> None:
        """Add to the counter called `name`."""
        setattr(self, name, getattr(self, name) + count)

    def imbalance(self) -> int:
        """Requests without a fate, or with two; 0 unless there is a bug."""
        fates = self.delivered + self.expired + self.rejected + self.repeated + self.dead_lettered + self.pending
        return self.received - fates

    def as_dict(self) -> dict[str, int]:
        """Return them by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that nobody could be given, or whose answer nobody could be given.

    Attributes:
        at_ms: monotonic time.
        reason: why.
        service: whom it was for.
        op: what it asked, if that is known.
        id: its id in hex; zeros if it had none.
    """

    at_ms: int
    reason: str
    service: str
    op: str
    id: str


class DeadLetters:
    """The last `DEAD_LETTERS_MAX` dead letters."""

    def __init__(self) -> None:
        """Start empty."""
        self._letters: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_MAX)

    def add(self, letter: DeadLetter) -> None:
        """Keep `letter`; the oldest makes room."""
        self._letters.append(letter)

    def as_list(self) -> list[dict[str, Any]]:
        """Return them, oldest first."""
        return [asdict(letter) for letter in self._letters]
