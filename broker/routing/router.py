"""The router of one lane: what each message leads to, and what falls due. Pure: (state, message, now) -> outbox.

It opens no socket and reads no clock. The shell hands it every message (`receive`), calls `tick` at `due_at` or
earlier, sends what is in `outbox` and `publications`, and reports what could not be sent (`undelivered`).

Rules, each held by `tests/broker/`:

- A request has one outcome, and everybody who asked under its id gets that one, also when they ask again later.
- Nothing is handed to a worker after its deadline; no request stays open after it.
- Only the worker that has a request can answer it; a lost or superseded one is not listened to.
- What a lost worker had is given to another one, once.
- Every request that arrived has exactly one fate (`broker.routing.accounts`).
- Names of ours are served only with our token, by one process, the latest incarnation.
"""

from collections.abc import Iterable
from typing import Any, Final

from broker.routing.bounds import (
    DEADLINE_S_MAX,
    HEARTBEAT_S,
    LATE_TICK_S,
    WORKER_SILENCE_S_MAX,
    LaneBounds,
)
from broker.routing.delivery import Delivery, Fate, Outgoing
from broker.routing.headers import HeaderReader, content_of
from broker.routing.management import BrokerService
from broker.routing.registry import NotLater, Refusal, Registry, Worker
from broker.routing.requests import NO_ID, Part, Request, error_body, reply
from broker.routing.topics import Topics
from protocol import limits, mdp
from protocol.codec import pack
from protocol.errors import ErrorCode, ProtocolError, RemoteError
from protocol.messages import ReplyHeader, decode_reply_header
from protocol.names import BROKER, MANAGEMENT_PREFIX

_OWN_NAME: Final = BROKER.encode()
_MANAGEMENT_PREFIX: Final = MANAGEMENT_PREFIX.encode()


class Router:
    """One lane.

    Attributes:
        outbox: what to send, in order; the shell empties it.
        publications: topics and bodies to publish, in order; the shell empties it.
        counters: what became of every message.
        dead_letters: the last requests that found nobody.
        topics: last values of state topics.
    """

    def __init__(
        self, lane: LaneBounds, token: bytes, epoch: int, own: BrokerService, now: float, settle_s: float = 0.0
    ) -> None:
        """Start empty.

        Args:
            lane: the bounds.
            token: what our own workers prove themselves with.
            epoch: the broker's incarnation: addresses of an earlier one mean nothing to this one.
            own: answers requests that are for the broker itself.
            now: monotonic seconds.
            settle_s: how long unknown names are waited for at first, because their workers may be coming back.
        """
        self._lane = lane
        self._own = own
        self._registry = Registry(token, now + settle_s)
        self._delivery = Delivery(lane, self._registry, epoch)
        self._headers = HeaderReader()
        self._ticked_at = self._heartbeat_at = now
        self.topics = Topics()
        self.publications: list[tuple[bytes, bytes]] = []
        self.outbox = self._delivery.outbox
        self.counters = self._delivery.counters
        self.dead_letters = self._delivery.dead_letters

    # --- what the shell calls ---------------------------------------------------------------------------------------

    def expect(self, names: Iterable[str], now: float) -> None:
        """Say which services of ours should be there: requests wait for them while they are absent."""
        self._delivery.dismiss(self._registry.expect([name.encode() for name in names], now), now)

    def receive(self, peer: bytes, frames: list[Part], size: int, now: float) -> None:
        """Take in one message of at least one frame, `size` bytes in all, within the lane's bounds."""
        protocol = frames[0]
        if protocol == mdp.CLIENT and len(frames) > 3 and frames[1] == mdp.CLIENT_REQUEST:
            self._request(peer, frames, size, now)
        elif protocol == mdp.WORKER and len(frames) > 1:
            self._command(peer, frames, size, now)
        else:
            self.counters.malformed += 1

    def receive_oversized(self, peer: bytes, frames: list[Part]) -> None:
        """Take in the beginning of a message that is out of the lane's bounds; the rest is thrown away."""
        if len(frames) < 3 or frames[:2] != [mdp.CLIENT, mdp.CLIENT_REQUEST] or type(frames[2]) is not bytes:
            self.counters.malformed += 1
            return
        self.counters.received += 1
        request_id = NO_ID
        if len(frames) > 3:
            try:
                request_id = self._headers.read(frames[3])[0]
            except ProtocolError:
                pass
        lane = self._lane
        message = (
            f"a message here has at most {lane.frames_max} frames, {lane.frame_bytes_max} bytes in each "
            f"and {lane.message_bytes_max} in all"
        )
        self._delivery.reject(peer, frames[2], request_id, ErrorCode.TOO_LARGE, message)

    def undelivered(self, outgoing: Outgoing, now: float, *, gone: bool) -> None:
        """Take in that something from the outbox could not be sent: its peer is `gone`, or does not read."""
        peer, frames, is_answer = outgoing
        delivery = self._delivery
        if frames[0] == mdp.CLIENT:
            if is_answer:
                self.counters.delivered -= 1
                self.counters.dead_lettered += 1
                reason = "the client is gone" if gone else "the client does not read"
                delivery.dead_letter(frames[2], "", _id_of_reply(frames[3:]), reason, now)
            return
        worker = self._registry.workers.get(peer)
        if worker is None:
            return
        if frames[1] == mdp.WORKER_REQUEST:
            delivery.take_back(worker, frames[2])
        if gone:
            self.counters.workers_lost += 1
            delivery.lose(worker, now)
        else:
            delivery.feed(worker.service, now)

    @property
    def due_at(self) -> float:
        """Monotonic time of the next `tick`."""
        return min(self._delivery.scan_at, self._heartbeat_at)

    def tick(self, now: float) -> None:
        """Do what has fallen due: deadlines, heartbeats both ways, services that will not come back.

        Raises:
            RuntimeError: a request was lost or counted twice, which is a bug.
        """
        if now - self._ticked_at > LATE_TICK_S:
            for worker in self._registry.workers.values():
                worker.seen_at = now
        self._ticked_at = now
        if now >= self._delivery.scan_at:
            self._delivery.expire_due(now)
        if now >= self._heartbeat_at:
            # At full multiples, like all that recurs: what falls due together wakes the process once.
            self._heartbeat_at = (now // HEARTBEAT_S + 1) * HEARTBEAT_S
            self._look_around(now)

    def drain(self, now: float) -> None:
        """Answer everybody that the system is stopping, and take in nothing more."""
        delivery = self._delivery
        delivery.draining = True
        for request in list(delivery.open.values()):
            delivery.conclude(request, ErrorCode.DRAINING, "the system is stopping", Fate.REJECTED, now)
        workers = list(self._registry.workers.values())
        for worker in workers:
            worker.in_flight.clear()
        delivery.dismiss(workers, now)

    # --- what the broker's own service asks -------------------------------------------------------------------------

    def serves(self, name: Part) -> bool:
        """Tell whether a request for `name` would find somebody now."""
        service = self._registry.services.get(name)
        return bool(name == _OWN_NAME or (service is not None and service.workers))

    def services(self) -> list[dict[str, Any]]:
        """Return the services with their workers and queues."""
        return [service.as_dict() for service in self._registry.services.values()]

    def status(self) -> dict[str, Any]:
        """Return the lane's figures."""
        delivery = self._delivery
        in_flight = sum(len(worker.in_flight) for worker in self._registry.workers.values())
        return {
            "requests_waiting": len(delivery.open) - in_flight,
            "requests_in_flight": in_flight,
            "requests_max": self._lane.open_requests_max,
            "request_bytes": delivery.open_bytes,
            "workers": len(self._registry.workers),
            "outcomes": len(delivery.outcomes),
            "outcome_bytes": delivery.outcomes.bytes,
            "topics": self.topics.names(),
            "counters": self.counters.as_dict(),
        }

    # --- clients ----------------------------------------------------------------------------------------------------

    def _request(self, peer: bytes, frames: list[Part], size: int, now: float) -> None:
        self.counters.received += 1
        delivery = self._delivery
        name = frames[2]
        body = frames[3:]
        service = self._registry.accepting(name, now)
        if service is None:
            self._request_without_worker(peer, name, body, now)
            return
        try:
            request_id, op, deadline_ms = self._headers.read(body[0])
        except ProtocolError as error:
            if service.protected:
                delivery.reject(peer, name, NO_ID, error.code, error.message)
            else:
                deadline = now + limits.DEADLINE_DEFAULT_S
                delivery.accept(Request(delivery.opaque_key(), "", service, peer, body, size, deadline, 0))
            return
        content = content_of(name, op, body)
        known = delivery.open.get(request_id)
        if known is not None:
            delivery.join(known, peer, content)
            return
        outcome = delivery.outcomes.get(request_id)
        if outcome is not None:
            delivery.replay(outcome, request_id, peer, name, content)
            return
        deadline = min(deadline_ms / 1000, now + DEADLINE_S_MAX)
        if deadline <= now:
            delivery.refuse_expired(peer, name, request_id)
            return
        delivery.accept(Request(request_id, op, service, peer, body, size, deadline, content))

    def _request_without_worker(self, peer: bytes, name: Part, body: list[Part], now: float) -> None:
        """Answer a request that no worker will get: it is for the broker itself, or for nobody."""
        delivery = self._delivery
        if type(name) is not bytes:
            name = b""
        if name.startswith(_MANAGEMENT_PREFIX):
            self.counters.delivered += 1
            self.outbox.append((peer, reply(name, self._own.manage(self, name, body, now)), True))
            return
        request_id = NO_ID
        try:
            request_id, op, deadline_ms = self._headers.read(body[0])
            if name != _OWN_NAME:
                text = name.decode("utf-8", "replace")
                raise RemoteError(ErrorCode.SERVICE_UNKNOWN, f"nobody serves {text!r}")
        except (ProtocolError, RemoteError) as error:
            delivery.reject(peer, name, request_id, error.code, error.message)
            return
        if deadline_ms / 1000 <= now:
            delivery.refuse_expired(peer, name, request_id)
            return
        self.counters.delivered += 1
        try:
            answer = [ReplyHeader(request_id).encode(), pack(self._own.answer(op, now))]
        except RemoteError as error:
            answer = error_body(request_id, error.info())
        self.outbox.append((peer, reply(name, answer), True))

    # --- workers ----------------------------------------------------------------------------------------------------

    def _command(self, peer: bytes, frames: list[Part], size: int, now: float) -> None:
        command = frames[1]
        worker = self._registry.workers.get(peer)
        if worker is None:
            if command == mdp.WORKER_READY:
                self._register(peer, frames, now)
            elif command != mdp.WORKER_DISCONNECT:
                self.outbox.append((peer, mdp.DISCONNECT, False))
            return
        delivery = self._delivery
        worker.seen_at = now
        if worker.blocked:
            delivery.unblock(worker, now)
        if command == mdp.WORKER_FINAL and len(frames) > 4:
            delivery.final(worker, frames[2], frames[4:], size, now)
        elif command == mdp.WORKER_PARTIAL and len(frames) > 4:
            delivery.partial(worker, frames[2], frames[4:])
        elif command == mdp.WORKER_PUBLISH and len(frames) == 4:
            self._publish(worker, frames[2], frames[3])
        elif command == mdp.WORKER_DISCONNECT:
            delivery.lose(worker, now)
        elif command != mdp.WORKER_HEARTBEAT:
            if command != mdp.WORKER_READY:
                self.counters.malformed += 1
            delivery.dismiss([worker], now)

    def _register(self, peer: bytes, frames: list[Part], now: float) -> None:
        try:
            if len(frames) not in (3, 4) or self._delivery.draining:
                raise Refusal("not a READY that can be taken now")
            worker, superseded = self._registry.register(peer, frames[2], frames[3] if len(frames) == 4 else None, now)
        except Refusal as refusal:
            self.counters.workers_refused += 1
            self.outbox.append((peer, mdp.DISCONNECT, False))
            if isinstance(refusal, NotLater):
                # Perhaps the same process on a new connection: if the old one is gone, sending on it will show it.
                self.outbox.append((refusal.rival.peer, mdp.HEARTBEAT, False))
            return
        self.outbox.append((peer, mdp.HEARTBEAT, False))
        self.counters.workers_superseded += len(superseded)
        self._delivery.dismiss(superseded, now)
        self._delivery.feed(worker.service, now)

    def _publish(self, worker: Worker, topic: Part, body: Part) -> None:
        usable = worker.trusted and type(topic) is bytes and len(body) <= limits.TOPIC_BODY_BYTES_MAX
        if usable and self.topics.accept(topic, bytes(body)):
            self.counters.published += 1
            self.publications.append((topic, bytes(body)))
        else:
            self.counters.publications_refused += 1

    # --- time -------------------------------------------------------------------------------------------------------

    def _look_around(self, now: float) -> None:
        delivery = self._delivery
        for worker in list(self._registry.workers.values()):
            # A foreign worker that is at a request may be unable to say anything; its request's deadline judges it.
            if worker.seen_at + WORKER_SILENCE_S_MAX < now and (worker.trusted or not worker.in_flight):
                self.counters.workers_lost += 1
                delivery.dismiss([worker], now)
            else:
                self.outbox.append((worker.peer, mdp.HEARTBEAT, False))
        for service in self._registry.absent(now):
            self._registry.forget(service)
            for request in service.waiting:
                if not request.closed:
                    delivery.conclude(request, ErrorCode.SERVICE_UNKNOWN, "nobody serves it", Fate.REJECTED, now)
        delivery.outcomes.forget(now)
        if self.counters.imbalance():
            raise RuntimeError(f"requests are not accounted for: {self.counters}")


def _id_of_reply(body: list[Part]) -> bytes:
    try:
        return decode_reply_header(body[0]).id
    except (ProtocolError, IndexError):
        return NO_ID
