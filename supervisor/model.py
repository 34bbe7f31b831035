"""What the supervision core works with: states, events, the table between them, and the effects it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from actors.runtime.programs import Restart
from protocol.severity import Severity
from supervisor.budget import Budget, Charges


class State(StrEnum):
    """State of one supervised process, in the words that the liveness board uses as well."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


LIVE: Final = frozenset({State.STARTING, State.READY, State.STOPPING})
"""The states in which there is a process."""


class Event(Enum):
    """What happens to one supervised process."""

    START = "a start is due, or asked for"
    READY = "it says that it is ready"
    LEAVE = "it was told to leave, or killed"
    FAILED = "it ended, counts as failed, and the budget allows a restart"
    EXHAUSTED = "it ended, counts as failed, and the budget is used up"
    LEFT = "it ended and nobody wants it back, or its next start is called off"


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.BACKOFF, Event.START): State.STARTING,
    (State.QUARANTINED, Event.START): State.STARTING,
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.LEAVE): State.STOPPING,
    (State.READY, Event.LEAVE): State.STOPPING,
    (State.STARTING, Event.FAILED): State.BACKOFF,
    (State.READY, Event.FAILED): State.BACKOFF,
    (State.STOPPING, Event.FAILED): State.BACKOFF,
    (State.STARTING, Event.EXHAUSTED): State.QUARANTINED,
    (State.READY, Event.EXHAUSTED): State.QUARANTINED,
    (State.STOPPING, Event.EXHAUSTED): State.QUARANTINED,
    (State.STARTING, Event.LEFT): State.STOPPED,
    (State.READY, Event.LEFT): State.STOPPED,
    (State.STOPPING, Event.LEFT): State.STOPPED,
    (State.BACKOFF, Event.LEFT): State.STOPPED,
    (State.QUARANTINED, Event.LEFT): State.STOPPED,
}
"""Every change of state there is; any other pair is a defect and raises. A restart by hand is LEAVE, LEFT, START."""


class Phase(Enum):
    """Where the whole system stands between a start and a deliberate stop."""

    RUNNING = "everything wanted is kept alive"
    MARKING = "the stop is being made durable; nothing is restarted any more"
    STOPPING = "processes are told to leave, one rank after the other"
    GONE = "nobody is left"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How one process is supervised.

    Attributes:
        name: process name.
        budget: its restart intensity.
        start_timeout_s: time it has to become ready.
        stop_timeout_s: time it has to leave once told to.
        stop_rank: a deliberate stop tells the lowest rank first and the next one when that is gone.
        restart: whether it is started again when it ends by itself.
        after: who has to have been ready before its first start.
        late: whether its first start waits until all who are not late are ready, for `policy.OWN_PATIENCE_S` at most.
        ready_when_started: whether it is ready as soon as it runs. Then only a life that lasted for
            `policy.STEADY_S` was a good one, after which it is started again without a delay.
        gentle: whether one that hangs is asked to leave before it is killed. It beats no slot of its own, so the
            launcher does not judge it.
    """

    name: str
    budget: Budget
    start_timeout_s: float
    stop_timeout_s: float
    stop_rank: int
    restart: Restart = Restart.ALWAYS
    after: tuple[str, ...] = ()
    late: bool = False
    ready_when_started: bool = False
    gentle: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended; neither code nor signal is known of one that was no child of ours.

    Attributes:
        reason: a short sentence for people.
        exit_code: as waited for.
        signal: number of the signal that ended it.
        evidence: name of a file with more, or empty.
    """

    reason: str
    exit_code: int | None = None
    signal: int | None = None
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What of one process outlives the launcher.

    Attributes:
        incarnation: the last life that was started.
        charges: its charged restarts.
        paid: the life that the last charge paid for.
        wanted: False after it was stopped by hand.
        quarantined: whether it was last seen in quarantine.
    """

    incarnation: int = 0
    charges: Charges = ()
    paid: int = 0
    wanted: bool = True
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What the board says of one process that a predecessor of this launcher supervised.

    Attributes:
        state: as that launcher left it.
        incarnation: life in the slot.
        alive: whether exactly the process it recorded runs.
        had_process: whether it had recorded one.
        leaving: whether it says itself that it is leaving, or was being stopped with the whole system.
        since: when the state began.
        started_at: when the process was started.
        retry_at: when the next start is due, in `BACKOFF`.
        reason: why the life before ended.
        exit: how this life ended, if it did.
        said_stopping: whether this life, a program's, had said that it was leaving.
    """

    state: State
    incarnation: int
    alive: bool = False
    had_process: bool = False
    leaving: bool = False
    since: float = 0.0
    started_at: float = 0.0
    retry_at: float = 0.0
    reason: str = ""
    exit: Exit = Exit("died while no launcher ran")
    said_stopping: bool = False


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep what is remembered, before the effects that follow."""


@dataclass(frozen=True, slots=True)
class RecordRestart:
    """Enter in the journal that a life ended and another one follows, or would if the budget allowed it."""

    name: str
    incarnation: int
    exit: Exit
    charged: bool
    manual: bool


@dataclass(frozen=True, slots=True)
class RecordRecovery:
    """Enter in the journal that the life after `incarnation` is ready, `recovery_s` after that one ended."""

    name: str
    incarnation: int
    recovery_s: float


@dataclass(frozen=True, slots=True)
class Say:
    """Enter an event about `name` in the journal."""

    severity: Severity
    event_type: str
    message: str
    name: str


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process; if that is impossible, the core is told that it ended."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask a process to leave, and remember its tree before that."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a process and its whole tree."""

    name: str


@dataclass(frozen=True, slots=True)
class MarkStop:
    """Write the durable stop marker; the core is told when it is durable."""

    who: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The launcher's work is done."""

    exit_code: int


Effect = Persist | RecordRestart | RecordRecovery | Say | Spawn | Terminate | Kill | MarkStop | Leave
