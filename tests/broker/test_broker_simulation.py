"""The router under seeded schedules: reordered, lost and repeated messages, workers that die, freeze and thaw, retries,
hostile frames, clock jumps. What must hold is checked after every step; a failure names its seed.

    python -m tests.broker.test_broker_simulation SEED     runs one schedule and prints what it did
"""

import random
import sys
from dataclasses import dataclass, field

import pytest

from broker.routing import Router
from broker.routing.bounds import ATTEMPTS_MAX, SERVICES_MAX, WAITERS_MAX, WORKERS_MAX
from broker.routing.delivery import Outgoing
from broker.routing.management import About, BrokerService
from protocol import mdp
from protocol.codec import pack
from protocol.errors import ErrorCode, ProtocolError
from protocol.messages import ReplyHeader, RequestHeader, WorkerHello, decode_reply_header
from tests.broker.lane_world import TOKEN, request_id_of, small

STEPS = 300
FIXED_SEEDS = range(120)
FRESH_SEEDS = 30
OURS = ("alpha", "beta")
FOREIGN = "echo"
BOUNDS = small(open_requests_max=60, open_bytes_max=20_000, waiting_per_peer_max=15, outcomes_max=5_000)
NO_OUTCOME = ("takes no more", "wait for this request", "on the way", "nobody serves", "used for another")
"""Refusals of one message; they say nothing about the request that it repeats."""


@dataclass
class SimulatedWorker:
    peer: bytes
    service: str
    incarnation: int | None
    connected: bool = True
    frozen: bool = False
    reads: bool = True
    registered: bool = False
    queue: list[tuple[bytes, list[bytes]]] = field(default_factory=list)


@dataclass
class Known:
    """What the simulation knows of one id."""

    deadline: float
    frames: list[bytes]
    dispatches: int = 0
    taken_back: int = 0
    outcome: tuple[str, bytes] | None = None


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        own = BrokerService(About(1, 1, "0", self.now))
        self.router = Router(BOUNDS, TOKEN, 1, own, self.now, self.random.choice([0.0, 2.0]))
        own.lanes["control"] = self.router
        self.router.expect(OURS, self.now)
        self.network: list[tuple[bytes, list[bytes]]] = []
        self.clients = {b"c%d" % number: True for number in range(4)}
        self.workers: dict[bytes, SimulatedWorker] = {}
        self.incarnations = dict.fromkeys(OURS, 0)
        self.known: dict[bytes, Known] = {}
        self.names = 0
        self.speaker: bytes | None = None
        self.trace: list[str] = []

    # --- the schedule

    def run(self, steps: int = STEPS) -> None:
        for _ in range(steps):
            self.step()
        self.settle()

    def step(self) -> None:
        action = self.random.choices(
            [self.request, self.retry, self.transmit, self.work, self.change_workers, self.hostile, self.wait],
            [6, 3, 14, 8, 2, 1, 4],
        )[0]
        action()
        self.check()

    def settle(self) -> None:
        """Let everything come to its end: no request may stay open beyond its deadline."""
        while self.network:
            self.transmit()
        for seconds in [0.5] * 40 + [9.0] * 105:
            self.now += seconds
            self.tick()
            self.check()
        assert self.router.counters.pending == 0
        assert not self.router._delivery.open
        assert all(not service.waiting for service in self.router._registry.services.values())

    def request(self) -> None:
        service = self.random.choice([*OURS, *OURS, FOREIGN, "nobody", "broker"])
        if service == FOREIGN and self.random.random() < 0.3:
            self.send(self.client(), mdp.request(FOREIGN.encode(), b"opaque", self.random.randbytes(3)))
            return
        self.names += 1
        request_id = self.names.to_bytes(16, "big")
        deadline_ms = int((self.now + self.random.choice([0.02, 0.3, 2.0, 8.0, 10_000.0])) * 1000)
        header = RequestHeader(request_id, self.random.choice(["ping", "status", "put"]), deadline_ms)
        body = [
            header.encode(),
            pack({"x": self.random.randrange(9)}),
            self.random.randbytes(self.random.choice([0, 900])),
        ]
        frames = mdp.request(service.encode(), *body)
        self.known[request_id] = Known(deadline_ms / 1000, frames)
        self.send(self.client(), frames)

    def retry(self) -> None:
        if self.known:
            known = self.random.choice(list(self.known.values())[-40:])
            frames = list(known.frames)
            if self.random.random() < 0.1:
                frames[-1] = b"other content"
            self.send(self.client(), frames)

    def client(self) -> bytes:
        if self.random.random() < 0.05:
            self.clients[self.random.choice(list(self.clients))] = False
            self.names += 1
            self.clients[b"c%d" % self.names] = True
        return self.random.choice([peer for peer, there in self.clients.items() if there])

    def send(self, peer: bytes, frames: list[bytes]) -> None:
        self.network.append((peer, frames))
        if self.random.random() < 0.7:
            self.transmit()

    def transmit(self) -> None:
        """Have one message arrive, not necessarily the first; or get lost, or arrive twice."""
        if not self.network:
            return
        number = self.random.randrange(min(4, len(self.network)))
        fate = self.random.random()
        peer, frames = self.network[number] if fate < 0.05 else self.network.pop(number)
        if fate > 0.95:
            return
        worker = self.workers.get(peer)
        if worker is not None and not worker.connected:
            return
        self.speaker = peer
        self.trace.append(f"{self.now:.3f} {peer!r} says {frames[:3]}")
        if worker is not None and frames[:2] == mdp.DISCONNECT:
            worker.registered = False
        self.router.receive(peer, list(frames), sum(map(len, frames)), self.now)
        self.flush()
        self.speaker = None

    def work(self) -> None:
        """Have a worker answer something, or say something."""
        able = [worker for worker in self.workers.values() if not worker.frozen]
        if not able:
            return
        worker = self.random.choice(able)
        if not worker.queue or self.random.random() < 0.1:
            said = [mdp.HEARTBEAT, mdp.DISCONNECT, mdp.publish(b"state.x", b"1"), mdp.final(b"guessed!", b"h", b"x")]
            self.send(worker.peer, self.random.choices(said, [8, 1, 1, 1])[0])
            return
        address, body = worker.queue.pop(self.random.randrange(len(worker.queue)))
        answer = [ReplyHeader(id_or_zero(body)).encode(), pack({"by": worker.peer, "address": address})]
        if self.random.random() < 0.2:
            self.send(worker.peer, [mdp.WORKER, mdp.WORKER_PARTIAL, address, b"", *answer])
        for _ in range(self.random.choice([0, 1, 1, 1, 1, 2])):
            self.send(worker.peer, mdp.final(address, *answer))

    def change_workers(self) -> None:
        """Start, kill, freeze or thaw a worker."""
        if not self.workers or self.random.random() < 0.4:
            self.start_worker()
            return
        worker = self.random.choice(list(self.workers.values()))
        match self.random.choice(["kill", "freeze", "thaw", "deaf", "again"]):
            case "kill":
                worker.connected = False
                del self.workers[worker.peer]
            case "freeze":
                worker.frozen = True
            case "thaw":
                worker.frozen = False
            case "deaf":
                worker.reads = not worker.reads
            case "again":
                self.send(worker.peer, self.greeting(worker))

    def start_worker(self) -> None:
        self.names += 1
        service = self.random.choice([*OURS, FOREIGN])
        incarnation = None
        if service in OURS:
            self.incarnations[service] += self.random.choice([0, 1, 1, 1])
            incarnation = self.incarnations[service]
        worker = SimulatedWorker(b"w%d" % self.names, service, incarnation)
        self.workers[worker.peer] = worker
        self.send(worker.peer, self.greeting(worker))

    def greeting(self, worker: SimulatedWorker) -> list[bytes]:
        if worker.incarnation is None:
            return [mdp.WORKER, mdp.WORKER_READY, worker.service.encode()]
        hello = WorkerHello(TOKEN, worker.incarnation, self.random.choice([1, 2, 8]))
        return mdp.ready(worker.service.encode(), hello.encode())

    def hostile(self) -> None:
        atoms = [mdp.CLIENT, mdp.WORKER, b"", b"\x01", b"\x02", b"\x04", b"\x07", b"alpha", b"echo", b"mmi.service",
                 self.random.randbytes(8), b"\xc1", b"\x91" * 500, (1 << 40).to_bytes(8, "big"), bytes(16)]  # fmt: skip
        peer = self.random.choice([b"h1", b"h2", self.client()])
        self.send(peer, self.random.choices(atoms, k=self.random.randint(1, 7)))

    def wait(self) -> None:
        self.now += self.random.choice([0.0, 0.01, 0.1, 0.1, 0.5, 1.0, 12.0])
        if self.random.random() < 0.9:
            self.tick()

    def tick(self) -> None:
        self.router.tick(self.now)
        self.flush()

    # --- the shell, and what it may be asked to send

    def flush(self) -> None:
        outbox = self.router.outbox
        for outgoing in outbox:
            peer = outgoing[0]
            worker = self.workers.get(peer)
            self.watch(outgoing)
            if worker is None and not self.clients.get(peer, peer.startswith(b"h")):
                self.undelivered(outgoing, gone=True)
            elif worker is not None and not worker.reads and outgoing[1][1] == mdp.WORKER_REQUEST:
                self.undelivered(outgoing, gone=False)
            elif worker is not None:
                self.arrive(worker, outgoing[1])
        outbox.clear()

    def undelivered(self, outgoing: Outgoing, *, gone: bool) -> None:
        if outgoing[1][:2] == [mdp.WORKER, mdp.WORKER_REQUEST]:
            known = self.known.get(id_or_zero(outgoing[1][4:]))
            if known is not None:
                known.taken_back += 1
        self.router.undelivered(outgoing, self.now, gone=gone)

    def arrive(self, worker: SimulatedWorker, frames: list[bytes]) -> None:
        if frames[1] == mdp.WORKER_REQUEST:
            worker.queue.append((frames[2], frames[4:]))
        elif frames[1] == mdp.WORKER_DISCONNECT:
            worker.registered = False
        elif self.speaker == worker.peer:
            worker.registered = True

    def watch(self, outgoing: Outgoing) -> None:
        """Hold one outgoing message to the rules."""
        peer, frames, _ = outgoing
        self.trace.append(f"{self.now:.3f}    to {peer!r} {frames[:3]}")
        if frames[0] == mdp.WORKER and frames[1] == mdp.WORKER_REQUEST:
            known = self.known.get(id_or_zero(frames[4:]))
            if known is not None:
                known.dispatches += 1
                assert known.deadline > self.now, "handed over after its deadline"
                assert known.dispatches - known.taken_back <= ATTEMPTS_MAX, "handed over too often"
        elif frames[0] == mdp.CLIENT and frames[1] == mdp.CLIENT_FINAL:
            speaker = self.workers.get(self.speaker or b"")
            if speaker is not None and frames[3:] and b"address" in frames[-1]:
                assert speaker.registered, "a worker was heard that is not registered"
            self.watch_outcome(frames[3:])

    def watch_outcome(self, body: list[bytes]) -> None:
        try:
            header = decode_reply_header(body[0])
        except ProtocolError:
            return
        known = self.known.get(header.id)
        if known is None or (header.error is not None and any(text in header.error.message for text in NO_OUTCOME)):
            return
        if known.frames[2] == b"broker":
            return
        outcome = (header.error.code if header.error else "", body[1])
        assert known.outcome in (None, outcome), f"a second outcome: {known.outcome}, then {outcome}"
        known.outcome = outcome
        if outcome[0] == ErrorCode.DEADLINE_PASSED:
            assert self.now >= known.deadline or known.deadline > self.now + 900, "given up too early"

    # --- what holds after every step

    def check(self) -> None:
        router, delivery, registry = self.router, self.router._delivery, self.router._registry
        counters = router.counters
        assert counters.imbalance() == 0, counters
        assert counters.pending == sum(len(request.peers) for request in delivery.open.values())
        assert delivery.open_bytes == sum(request.size for request in delivery.open.values()) <= BOUNDS.open_bytes_max
        assert len(delivery.open) <= BOUNDS.open_requests_max
        assert delivery.outcomes.bytes <= BOUNDS.outcomes_bytes_max
        assert len(registry.services) <= SERVICES_MAX + len(OURS)
        assert len(registry.workers) <= WORKERS_MAX
        places = 0
        for service in registry.services.values():
            waiting = [request for request in service.waiting if not request.closed]
            places += len(waiting)
            assert not (service.ready and waiting), "somebody waits while a worker is free"
            assert sum(service.waiting_of.values()) == len(service.waiting)
            for worker in service.workers.values():
                places += len(worker.in_flight)
                assert len(worker.in_flight) <= worker.window
                free = len(worker.in_flight) < worker.window and not worker.blocked
                assert worker.listed == (worker in service.ready) == free
            if service.protected:
                assert len(service.workers) <= 1
        assert places == len(delivery.open), "a request is in two places, or in none"
        assert all(len(request.peers) <= WAITERS_MAX for request in delivery.open.values())


def id_or_zero(body: list[bytes]) -> bytes:
    try:
        return request_id_of(body)
    except (ProtocolError, TypeError, KeyError):
        return bytes(16)


def run(seed: int) -> Simulation:
    simulation = Simulation(seed)
    try:
        simulation.run()
    except Exception as error:
        tail = "\n".join(simulation.trace[-25:])
        raise AssertionError(f"seed {seed}: {error}\n{tail}") from error
    return simulation


@pytest.mark.parametrize("block", range(6))
def test_what_must_hold_holds_in_every_schedule(block: int) -> None:
    seen: dict[str, int] = {}
    fresh = random.SystemRandom()
    for seed in (*FIXED_SEEDS[block::6], *(fresh.randrange(1 << 40) for _ in range(FRESH_SEEDS // 6))):
        for name, count in run(seed).router.counters.as_dict().items():
            seen[name] = seen.get(name, 0) + count
    never = [name for name, count in seen.items() if not count and name != "pending"]
    assert never == [], "schedules that never get there prove nothing"


if __name__ == "__main__":
    done = run(int(sys.argv[1]))
    print("\n".join(done.trace))
    print(done.router.counters)
