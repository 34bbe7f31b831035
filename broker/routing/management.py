"""What the broker answers about itself: the service `broker`, and Majordomo's management interface (ZeroMQ RFC 8)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from protocol import mdp
from protocol.codec import pack
from protocol.errors import ErrorCode, RemoteError
from protocol.names import BROKER, MANAGEMENT_PREFIX, OP_DESCRIBE, OP_PING, OP_STATUS

if TYPE_CHECKING:
    from broker.routing.router import Router

OP_SERVICES: Final = "services"
OP_DEAD_LETTERS: Final = "dead_letters"
_SUMMARIES: Final[Mapping[str, str]] = {
    OP_PING: "Tell that the broker's own loop answers.",
    OP_STATUS: "Tell what the broker is doing: lanes, queues, counters.",
    OP_DESCRIBE: "Tell what can be asked.",
    OP_SERVICES: "List the services of each lane, their workers and queues.",
    OP_DEAD_LETTERS: "List the last requests that nobody could be given, or whose answer nobody could be given.",
}


@dataclass(frozen=True, slots=True)
class About:
    """Who this broker is.

    Attributes:
        pid: its process id.
        incarnation: which life.
        version: release.
        started_at: monotonic seconds.
    """

    pid: int
    incarnation: int
    version: str
    started_at: float


class BrokerService:
    """Answers for all lanes together.

    Attributes:
        state: as on the liveness board; the shell keeps it.
        lanes: each lane's router, by name.
    """

    def __init__(self, about: About) -> None:
        """Begin as starting, without lanes."""
        self._about = about
        self.state = "starting"
        self.lanes: dict[str, Router] = {}

    def answer(self, op: str, now: float) -> dict[str, Any]:
        """Return the result of one operation.

        Raises:
            RemoteError: `unknown_operation`.
        """
        match op:
            case "ping":
                return {"name": BROKER, "pid": self._about.pid, "incarnation": self._about.incarnation}
            case "status":
                return self._status(now)
            case "describe":
                return self._describe()
            case "services":
                return {"lanes": {name: router.services() for name, router in self.lanes.items()}}
            case "dead_letters":
                return {"lanes": {name: router.dead_letters.as_list() for name, router in self.lanes.items()}}
        raise RemoteError(
            ErrorCode.UNKNOWN_OPERATION, f"{BROKER} has no operation {op!r}", "Ask it to `describe` itself."
        )

    def manage(self, router: "Router", name: bytes, body: list[Any], now: float) -> list[Any]:
        """Return the reply body of a `mmi.` request on `router`'s lane: a code, and for ours a msgpack map."""
        if name == mdp.MMI_SERVICE:
            return [mdp.MMI_OK if router.serves(body[0]) else mdp.MMI_NOT_FOUND]
        op = name[len(MANAGEMENT_PREFIX) :].decode("ascii", "replace")
        if op not in _SUMMARIES:
            return [mdp.MMI_NOT_IMPLEMENTED]
        return [mdp.MMI_OK, pack(self.answer(op, now))]

    def _status(self, now: float) -> dict[str, Any]:
        about = self._about
        lanes = {name: router.status() for name, router in self.lanes.items()}
        queues = {
            f"requests_{what}": sum(lane[f"requests_{what}"] for lane in lanes.values())
            for what in ("waiting", "in_flight")
        }
        return {
            "name": BROKER,
            "pid": about.pid,
            "incarnation": about.incarnation,
            "state": self.state,
            "uptime_s": round(now - about.started_at, 3),
            "version": about.version,
            "queues": queues,
            "lanes": lanes,
        }

    def _describe(self) -> dict[str, Any]:
        operations = [
            {"name": op, "summary": summary, "arguments": {}, "blocking": False} for op, summary in _SUMMARIES.items()
        ]
        return {"service": BROKER, "version": self._about.version, "operations": operations}
