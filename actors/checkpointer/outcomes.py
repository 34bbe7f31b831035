"""What the store says and is told: of states kept, of runs, of what it found at the start."""

from dataclasses import dataclass, field

from actors.checkpointer.core import Holder
from actors.checkpointer.payloads import Stored


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one state that was to be kept.

    Attributes:
        id: of the checkpoint that holds it.
        name: whose it is.
        seq: its number.
        timestamp_ms: when it was taken.
        size_bytes: of the payload.
        sha256: of the payload.
        unchanged: the newest checkpoint held it already.
        repeated: this very request was carried out before.
    """

    id: bytes
    name: str
    seq: int
    timestamp_ms: int
    size_bytes: int
    sha256: bytes
    unchanged: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """Checkpoints that the heads beside the database know, and the database does not."""

    name: str
    count: int
    head_seq: int


@dataclass(slots=True)
class Opened:
    """What was found at the start."""

    losses: list[Loss] = field(default_factory=list)
    forked: list[str] = field(default_factory=list)
    heads_damaged: bool = False
    orphans: int = 0


@dataclass(frozen=True, slots=True)
class RunChange:
    """A run that begins or ends."""

    name: str
    run: bytes
    holder: Holder | None = None
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A checkpoint whose payload was not yet looked at for compression."""

    number: int
    name: str
    seq: int
    size_bytes: int
    sha256: bytes
    stored: Stored
