"""From an accepted request to its outcome: who has it, who waits for it, and what it ends in. Pure, one per lane."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from broker.routing.accounts import Counters, DeadLetter, DeadLetters
from broker.routing.bounds import ATTEMPTS_MAX, SCAN_INTERVAL_S, WAITERS_MAX, LaneBounds
from broker.routing.outcomes import Outcome, Outcomes
from broker.routing.registry import Registry, Service, Worker
from broker.routing.requests import Part, Request, error_body, reply
from protocol import mdp
from protocol.errors import ErrorCode, ErrorInfo, RemoteError

Outgoing = tuple[bytes, list[Part], bool]
"""Peer, frames, and whether they are an answer that counts as delivered."""

_NEVER: Final = float("inf")
_EPOCH_BITS: Final = 24
_SEQUENCE_BITS: Final = 40


class Fate(StrEnum):
    """The counter in which a request ends that ends in an error."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    DEAD_LETTERED = "dead_lettered"


class Delivery:
    """The open requests of one lane and the outcomes of those that were.

    Whenever a call returns, no request waits at a service that has a worker free.

    Attributes:
        outbox: what to send, in order.
        counters: what became of every message.
        dead_letters: the last requests that found nobody.
        outcomes: of finished requests.
        open: requests without an outcome, by key.
        open_bytes: their bytes.
        draining: whether new requests are turned down because the system stops.
        scan_at: when the next deadline may have to be looked at.
    """

    def __init__(self, lane: LaneBounds, registry: Registry, epoch: int) -> None:
        """Start empty; addresses that an earlier `epoch` gave out mean nothing in this one."""
        self.outbox: list[Outgoing] = []
        self.counters = Counters()
        self.dead_letters = DeadLetters()
        self.outcomes = Outcomes(lane.outcomes_max, lane.outcomes_bytes_max, lane.outcome_s_min)
        self.open: dict[bytes | int, Request] = {}
        self.open_bytes = 0
        self.draining = False
        self.scan_at = _NEVER
        self._lane = lane
        self._registry = registry
        self._sequence = (epoch % (1 << _EPOCH_BITS)) << _SEQUENCE_BITS
        self._scanned_at = -_NEVER

    # --- from clients ------------------------------------------------------------------------------------------------

    def opaque_key(self) -> int:
        """Return a key for a request that has no id."""
        self._sequence += 1
        return self._sequence

    def accept(self, request: Request) -> None:
        """Open a request and hand it to a worker, or let it wait for one; or turn it down if too many are open."""
        service = request.service
        at_once = bool(service.ready)
        if (
            len(self.open) >= self._lane.open_requests_max
            or self.open_bytes + request.size > self._lane.open_bytes_max
            or self.draining
            or (not at_once and service.waiting_of.get(request.peers[0], 0) >= self._lane.waiting_per_peer_max)
        ):
            code = ErrorCode.DRAINING if self.draining else ErrorCode.BUSY
            self.reject(request.peers[0], service.name, request.id, code, "the broker takes no more requests now")
            return
        self.open[request.key] = request
        self.open_bytes += request.size
        self.counters.pending += 1
        if request.deadline < self.scan_at:
            self.scan_at = max(request.deadline, self._scanned_at + SCAN_INTERVAL_S)
        if at_once:
            self._dispatch(request, service.ready[0])
        else:
            service.wait(request)

    def join(self, request: Request, peer: bytes, content: int) -> None:
        """Let `peer`, which asked under the id of an open request, wait for its outcome."""
        name = request.service.name
        if request.content != content:
            self._reject_conflict(peer, name, request.id)
        elif peer in request.peers:
            self.counters.repeated += 1
        elif len(request.peers) >= WAITERS_MAX:
            message = f"{WAITERS_MAX} peers wait for this request already"
            self.reject(peer, name, request.id, ErrorCode.BUSY, message)
        else:
            request.peers.append(peer)
            self.counters.pending += 1

    def replay(self, outcome: Outcome, request_id: bytes, peer: bytes, name: bytes, content: int) -> None:
        """Answer `peer`, which asked under the id of a finished request, with its outcome."""
        if outcome.content != content:
            self._reject_conflict(peer, name, request_id)
            return
        body = outcome.body
        if body is None:
            message = "it was answered before, and the answer was too large to keep"
            body = error_body(request_id, ErrorInfo(ErrorCode.FAILED, message, "Ask under a new id."))
        self.counters.replayed += 1
        self.counters.delivered += 1
        self.outbox.append((peer, reply(name, body), True))

    def reject(self, peer: bytes, name: bytes, request_id: bytes, code: str, message: str) -> None:
        """Turn one request down."""
        self.counters.rejected += 1
        self._send_error(peer, name, request_id, code, message)

    def refuse_expired(self, peer: bytes, name: bytes, request_id: bytes) -> None:
        """Answer a request that arrived after its deadline."""
        self.counters.expired += 1
        self._send_error(peer, name, request_id, ErrorCode.DEADLINE_PASSED, "the deadline passed on the way")

    # --- from workers ------------------------------------------------------------------------------------------------

    def final(self, worker: Worker, address: Part, body: list[Part], size: int, now: float) -> None:
        """Take in a worker's answer: it is the outcome, if the worker has such a request."""
        request = worker.in_flight.pop(address, None)
        if request is None:
            self.counters.late_replies += 1
            return
        self._close(request)
        service = worker.service
        name = service.name
        peers = request.peers
        self.counters.delivered += len(peers)
        for peer in peers:
            self.outbox.append((peer, [mdp.CLIENT, mdp.CLIENT_FINAL, name, *body], True))
        self.outcomes.keep(request, body, size, now)
        if not worker.listed:
            service.list_if_free(worker)
            self.feed(service, now)

    def partial(self, worker: Worker, address: Part, body: list[Part]) -> None:
        """Pass a part of an answer on."""
        request = worker.in_flight.get(address)
        if request is None:
            self.counters.late_replies += 1
            return
        self.counters.partials += 1
        for peer in request.peers:
            self.outbox.append((peer, [mdp.CLIENT, mdp.CLIENT_PARTIAL, worker.service.name, *body], False))

    def feed(self, service: Service, now: float) -> None:
        """Hand waiting requests to workers that are free, unless it is too late for them."""
        while service.ready and service.waiting:
            request = service.next_waiting()
            if request.closed:
                continue
            if request.deadline <= now:
                self._expire(request, now)
            else:
                self._dispatch(request, service.ready[0])

    def unblock(self, worker: Worker, now: float) -> None:
        """Send to a worker again that did not read."""
        worker.blocked = False
        worker.service.list_if_free(worker)
        self.feed(worker.service, now)

    def take_back(self, worker: Worker, address: Part) -> None:
        """Let a request wait again that could not be sent to `worker`, which gets no more until it says something."""
        request = worker.in_flight.pop(address, None)
        if request is not None:
            self.counters.dispatched -= 1
            request.attempts -= 1
            request.worker = None
            worker.service.wait(request, first=True)
        worker.blocked = True
        worker.service.unlist(worker)

    def lose(self, worker: Worker, now: float) -> None:
        """Take a worker off; what it had waits again, at the head of the queue, or is given up."""
        self._registry.remove(worker, now)
        service = worker.service
        for request in reversed(worker.in_flight.values()):
            request.worker = None
            if request.attempts < ATTEMPTS_MAX:
                self.counters.requeued += 1
                service.wait(request, first=True)
                continue
            reason = f"{request.attempts} workers were lost while they had it"
            self.dead_letter(service.name, request.op, request.id, reason, now)
            self.conclude(request, ErrorCode.FAILED, reason, Fate.DEAD_LETTERED, now)
        worker.in_flight.clear()
        self.feed(service, now)

    def dismiss(self, workers: Sequence[Worker], now: float) -> None:
        """Tell workers that they are taken off, and take them off; none of them gets what another of them had."""
        for worker in workers:
            worker.service.unlist(worker)
        for worker in workers:
            self.outbox.append((worker.peer, mdp.DISCONNECT, False))
            self.lose(worker, now)

    # --- ends --------------------------------------------------------------------------------------------------------

    def expire_due(self, now: float) -> None:
        """Conclude every request whose deadline has passed."""
        due, first = [], _NEVER
        for request in self.open.values():
            if request.deadline <= now:
                due.append(request)
            elif request.deadline < first:
                first = request.deadline
        for request in due:
            if not request.closed:
                self._expire(request, now)
        for service in {request.service.name: request.service for request in due}.values():
            service.purge_closed()
        self._scanned_at = now
        self.scan_at = max(first, now + SCAN_INTERVAL_S)

    def conclude(self, request: Request, code: ErrorCode, message: str, fate: Fate, now: float) -> None:
        """Close a request with an error, the same for everybody who waits."""
        self._close(request)
        self.counters.add(fate, len(request.peers))
        name = request.service.name
        body = error_body(request.id, RemoteError(code, f"{name.decode()}: {message}").info())
        for peer in request.peers:
            self.outbox.append((peer, reply(name, body), False))
        self.outcomes.keep(request, body, 0, now)

    def dead_letter(self, name: bytes, op: str, request_id: bytes, reason: str, now: float) -> None:
        """Keep a note of a request that found nobody, or of an answer (whose `op` is not known)."""
        service = name.decode(errors="replace")
        self.dead_letters.add(DeadLetter(int(now * 1000), reason, service, op, request_id.hex()))

    def _dispatch(self, request: Request, worker: Worker) -> None:
        self._sequence += 1
        address = self._sequence.to_bytes(8, "big")
        request.worker = worker
        request.address = address
        request.attempts += 1
        worker.in_flight[address] = request
        worker.service.took(worker)
        self.counters.dispatched += 1
        self.outbox.append((worker.peer, [mdp.WORKER, mdp.WORKER_REQUEST, address, b"", *request.body], False))

    def _expire(self, request: Request, now: float) -> None:
        service, worker = request.service, request.worker
        if worker is None:
            if service.workers:
                code, message = ErrorCode.BUSY, "every worker was busy until the deadline"
            else:
                code, message = ErrorCode.SERVICE_MISSING, "no worker is there"
            self.conclude(request, code, message, Fate.EXPIRED, now)
            return
        del worker.in_flight[request.address]
        self.conclude(request, ErrorCode.DEADLINE_PASSED, "it has not answered in time", Fate.EXPIRED, now)
        if worker.trusted:
            service.list_if_free(worker)
            self.feed(service, now)
        else:
            # It has one request at a time and is still at it: it registers anew when it is done.
            self.dismiss([worker], now)

    def _close(self, request: Request) -> None:
        del self.open[request.key]
        self.open_bytes -= request.size
        self.counters.pending -= len(request.peers)
        request.closed = True

    def _reject_conflict(self, peer: bytes, name: bytes, request_id: bytes) -> None:
        message = "this id was used for another request; every request needs a new one"
        self.reject(peer, name, request_id, ErrorCode.ID_CONFLICT, message)

    def _send_error(self, peer: bytes, name: bytes, request_id: bytes, code: str, message: str) -> None:
        body = error_body(request_id, RemoteError(code, message).info())
        self.outbox.append((peer, reply(name, body), False))
