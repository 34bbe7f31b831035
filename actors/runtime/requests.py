"""Which request is executed, and which outcome answers a repetition. Pure.

A client that lost its broker sends its request again under the same id, and a broker requeues what a lost worker had.
So an id may arrive several times, under several return addresses, and still takes effect once:

=================== ==================================================================================
id is               then
=================== ==================================================================================
new                 executed (`RUN`)
running             not executed again; its outcome goes to the new address as well (`JOINED`)
finished            the remembered outcome is sent again (`REPLAYED`)
of other content    refused (`CONFLICT`)
=================== ==================================================================================

An expired request is refused before anything else (`EXPIRED`). Outcomes are remembered until no honest repetition can
come any more (the deadline, and at least `OUTCOME_S_MIN`), within bounds of number and bytes.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from protocol.limits import KIB, MIB, WINDOW_MAX

OUTCOMES_MAX: Final = 1024
OUTCOMES_BYTES_MAX: Final = 4 * MIB
OUTCOME_BYTES_MAX: Final = 256 * KIB
"""A larger outcome is not remembered: what changes something answers shortly."""
OUTCOME_S_MIN: Final = 60.0
RUNNING_MAX: Final = WINDOW_MAX
ADDRESSES_MAX: Final = 16
"""Return addresses of one running request; the oldest is dropped."""
FORGOTTEN_AFTER_S: Final = 300.0
"""A request that is still unanswered this long after its deadline is given up."""


class Admission(Enum):
    """What becomes of an arriving request."""

    RUN = "execute it"
    JOINED = "it runs already"
    REPLAYED = "its remembered outcome answers it"
    EXPIRED = "its deadline has passed"
    CONFLICT = "its id was used for something else"
    FULL = "too many run"


Frames = tuple[bytes, ...]


@dataclass(slots=True)
class _Running:
    fingerprint: int
    deadline: float
    addresses: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Outcome:
    fingerprint: int
    keep_until: float
    frames: Frames
    size: int


class RequestBook:
    """The requests of one lane: those that run, and the outcomes of those that did."""

    def __init__(
        self,
        *,
        running_max: int = RUNNING_MAX,
        outcomes_max: int = OUTCOMES_MAX,
        outcomes_bytes_max: int = OUTCOMES_BYTES_MAX,
    ) -> None:
        """Start empty, with these bounds."""
        self._running_max = running_max
        self._outcomes_max = outcomes_max
        self._outcomes_bytes_max = outcomes_bytes_max
        self._running: dict[bytes, _Running] = {}
        self._outcomes: OrderedDict[bytes, _Outcome] = OrderedDict()
        self._outcomes_bytes = 0

    @property
    def running_count(self) -> int:
        """Requests that were admitted and not yet answered."""
        return len(self._running)

    @property
    def outcome_count(self) -> int:
        """Outcomes remembered."""
        return len(self._outcomes)

    @property
    def outcome_bytes(self) -> int:
        """Bytes that they take."""
        return self._outcomes_bytes

    def admit(self, request_id: bytes, fingerprint: int, address: bytes, deadline: float, now: float) -> Admission:
        """Decide about a request that arrived from `address`; `fingerprint` stands for its content."""
        if now >= deadline:
            return Admission.EXPIRED
        running = self._running.get(request_id)
        if running is not None:
            if running.fingerprint != fingerprint:
                return Admission.CONFLICT
            if address not in running.addresses:
                running.addresses = [*running.addresses[1 - ADDRESSES_MAX :], address]
            return Admission.JOINED
        outcome = self._outcomes.get(request_id)
        if outcome is not None:
            return Admission.REPLAYED if outcome.fingerprint == fingerprint else Admission.CONFLICT
        if len(self._running) >= self._running_max:
            return Admission.FULL
        self._running[request_id] = _Running(fingerprint, deadline, [address])
        return Admission.RUN

    def knows(self, request_id: bytes) -> bool:
        """Tell whether a request of this id runs or has an outcome here."""
        return request_id in self._running or request_id in self._outcomes

    def outcome(self, request_id: bytes) -> Frames:
        """Return the remembered outcome of a request that was `REPLAYED`."""
        return self._outcomes[request_id].frames

    def finish(self, request_id: bytes, frames: Frames, now: float, *, remember: bool = True) -> list[bytes]:
        """Take in a running request's outcome; returns the addresses it goes to (none if it was given up).

        With `remember` false a repetition is executed: for outcomes that say it never began.
        """
        running = self._running.pop(request_id, None)
        if running is None:
            return []
        size = sum(map(len, frames))
        if remember and size <= OUTCOME_BYTES_MAX:
            keep_until = max(running.deadline, now + OUTCOME_S_MIN)
            self._outcomes[request_id] = _Outcome(running.fingerprint, keep_until, frames, size)
            self._outcomes_bytes += size
            while len(self._outcomes) > self._outcomes_max or self._outcomes_bytes > self._outcomes_bytes_max:
                self._outcomes_bytes -= self._outcomes.popitem(last=False)[1].size
        return running.addresses

    def disconnected(self) -> None:
        """Forget the return addresses: the lost broker minted them, and the next may mint the same for others.

        Repetitions bring new ones.
        """
        for running in self._running.values():
            running.addresses.clear()

    def forget(self, now: float) -> int:
        """Drop outcomes that nobody asks for any more, and requests that nobody answered; returns how many of those."""
        for request_id in [key for key, outcome in self._outcomes.items() if now >= outcome.keep_until]:
            self._outcomes_bytes -= self._outcomes.pop(request_id).size
        lost = [key for key, running in self._running.items() if now - running.deadline > FORGOTTEN_AFTER_S]
        for request_id in lost:
            del self._running[request_id]
        return len(lost)
