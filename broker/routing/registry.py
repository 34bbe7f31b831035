"""Which workers serve what on one lane: who may register, who is replaced by whom, who gets the next request."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from broker.routing.bounds import ABSENCE_S, FOREIGN_WINDOW, SERVICE_NAME_BYTES_MAX, SERVICES_MAX, WORKERS_MAX
from broker.routing.requests import Part, Request
from protocol.errors import ProtocolError
from protocol.messages import WorkerHello, decode_worker_hello
from protocol.names import BROKER, MANAGEMENT_PREFIX, RESERVED_SERVICES
from protocol.secret import same_secret

_FOREVER: Final = float("inf")
_MANAGEMENT_PREFIX: Final = MANAGEMENT_PREFIX.encode()
_OWN_NAME: Final = BROKER.encode()


@dataclass(slots=True, eq=False)
class Worker:
    """One registered worker.

    Attributes:
        peer: its address.
        service: what it serves.
        incarnation: which life of our process it is; None for a foreign worker.
        window: requests it takes at once.
        seen_at: when it last said something.
        in_flight: its requests, by the address that came with each.
        blocked: it does not read; nothing is sent to it until it says something.
        listed: whether it is in the service's `ready`.
    """

    peer: bytes
    service: "Service"
    incarnation: int | None
    window: int
    seen_at: float
    in_flight: dict[bytes, Request] = field(default_factory=dict)
    blocked: bool = False
    listed: bool = False

    @property
    def trusted(self) -> bool:
        """Whether it showed our token."""
        return self.incarnation is not None


@dataclass(slots=True, eq=False)
class Service:
    """One name, its workers and those who wait for them.

    Attributes:
        name: as on the wire.
        protected: only workers with our token may serve it, and requests must have our header.
        waits_until: requests wait for a worker to appear until then; for ever if the service is expected.
        workers: all of them, by address.
        ready: those that can take a request, least recently used first.
        waiting: requests without a worker, oldest first. Closed ones may still be among them.
        waiting_of: how many of them each peer has.
    """

    name: bytes
    protected: bool
    waits_until: float
    workers: dict[bytes, Worker] = field(default_factory=dict)
    ready: deque[Worker] = field(default_factory=deque)
    waiting: deque[Request] = field(default_factory=deque)
    waiting_of: dict[bytes, int] = field(default_factory=dict)

    def took(self, worker: Worker) -> None:
        """Note that `worker`, the first of `ready`, was given a request."""
        if len(worker.in_flight) >= worker.window:
            self.ready.popleft()
            worker.listed = False
        elif len(self.ready) > 1:
            self.ready.rotate(-1)

    def list_if_free(self, worker: Worker) -> None:
        """Put `worker` at the end of `ready` if it can take a request and is not there."""
        if not worker.listed and not worker.blocked and len(worker.in_flight) < worker.window:
            worker.listed = True
            self.ready.append(worker)

    def unlist(self, worker: Worker) -> None:
        """Take `worker` out of `ready`."""
        if worker.listed:
            worker.listed = False
            self.ready.remove(worker)

    def wait(self, request: Request, *, first: bool = False) -> None:
        """Put `request` at the end, or the head, of the queue."""
        (self.waiting.appendleft if first else self.waiting.append)(request)
        peer = request.peers[0]
        self.waiting_of[peer] = self.waiting_of.get(peer, 0) + 1

    def next_waiting(self) -> Request:
        """Take the first request, which may be closed, out of the queue, which is not empty."""
        request = self.waiting.popleft()
        self._gone(request)
        return request

    def purge_closed(self) -> None:
        """Take closed requests out of the queue."""
        for request in self.waiting:
            if request.closed:
                self._gone(request)
        self.waiting = deque(request for request in self.waiting if not request.closed)

    def _gone(self, request: Request) -> None:
        peer = request.peers[0]
        left = self.waiting_of[peer] - 1
        if left:
            self.waiting_of[peer] = left
        else:
            del self.waiting_of[peer]

    def as_dict(self) -> dict[str, Any]:
        """Return its figures."""
        workers = self.workers.values()
        return {
            "name": self.name.decode(),
            "reserved": self.protected,
            "workers": len(workers),
            "incarnation": max((worker.incarnation or 0 for worker in workers), default=None),
            "window": sum(worker.window for worker in workers),
            "in_flight": sum(len(worker.in_flight) for worker in workers),
            "waiting": len(self.waiting),
        }


class Refusal(Exception):
    """Why a registration was turned down."""


class NotLater(Refusal):
    """Its name is served by `rival`, whose incarnation is not earlier."""

    def __init__(self, rival: Worker) -> None:
        """Name the rival."""
        super().__init__("an incarnation that is not earlier is registered")
        self.rival = rival


class Registry:
    """Services and workers of one lane.

    Attributes:
        services: by name.
        workers: by address.
    """

    def __init__(self, token: bytes, settled_at: float) -> None:
        """Start empty.

        Args:
            token: what our own workers prove themselves with.
            settled_at: until then even unknown names are waited for: after a restart of the broker their workers need a
                moment to come back.
        """
        self._token = token
        self._settled_at = settled_at
        self._expected: frozenset[bytes] = frozenset()
        self.services: dict[bytes, Service] = {}
        self.workers: dict[bytes, Worker] = {}

    def expect(self, names: Iterable[bytes], now: float) -> list[Worker]:
        """Say which services of ours should be there; they are protected, and waited for while absent.

        Returns workers without our token that have one of these names, still registered.
        """
        expected = frozenset(names)
        for name in self._expected - expected:
            self.services[name].waits_until = now + ABSENCE_S
        for name in expected:
            service = self.services.setdefault(name, Service(name, True, _FOREVER))
            service.waits_until = _FOREVER
            service.protected = True
        self._expected = expected
        return [worker for name in expected for worker in self.services[name].workers.values() if not worker.trusted]

    def accepting(self, name: Part, now: float) -> Service | None:
        """Return the service that takes requests under `name`; None if nobody serves it and nobody will."""
        service = self.services.get(name)
        if service is not None:
            return service if service.workers or now < service.waits_until else None
        if now < self._settled_at and _is_servable(name) and len(self.services) < SERVICES_MAX and not _is_ours(name):
            service = self.services[name] = Service(name, False, self._settled_at)
        return service

    def register(self, peer: bytes, name: Part, hello: Part | None, now: float) -> tuple[Worker, list[Worker]]:
        """Admit a worker; returns it and the workers of earlier incarnations that it supersedes, still registered.

        Raises:
            Refusal: it may not serve `name`.
        """
        if not _is_servable(name):
            raise Refusal("not a name of a service")
        service = self.services.get(name)
        credentials = self._credentials(hello)
        worker = Worker(peer, service or Service(name, False, now), None, FOREIGN_WINDOW, now)
        if credentials is None:
            self._check_foreign(worker.service, is_new=service is None)
            superseded = []
        else:
            worker.incarnation, worker.window = credentials.incarnation, credentials.window
            superseded = _superseded(worker.service, credentials.incarnation)
            worker.service.protected = True
        self.services[name] = worker.service
        self.workers[peer] = worker.service.workers[peer] = worker
        worker.service.list_if_free(worker)
        return worker, superseded

    def remove(self, worker: Worker, now: float) -> None:
        """Take `worker` off. A service that nobody expects is waited for a while after its last worker."""
        service = worker.service
        del self.workers[worker.peer]
        del service.workers[worker.peer]
        service.unlist(worker)
        if not service.workers:
            service.waits_until = max(service.waits_until, now + ABSENCE_S)

    def absent(self, now: float) -> list[Service]:
        """Return the services that are neither there nor waited for any more."""
        return [service for service in self.services.values() if not service.workers and now >= service.waits_until]

    def forget(self, service: Service) -> None:
        """Drop an absent service."""
        del self.services[service.name]

    def _credentials(self, hello: Part | None) -> WorkerHello | None:
        if hello is None:
            return None
        try:
            credentials = decode_worker_hello(hello)
        except ProtocolError as error:
            raise Refusal(error.message) from None
        if not same_secret(credentials.token, self._token):
            raise Refusal("wrong token")
        return credentials

    def _check_foreign(self, service: Service, *, is_new: bool) -> None:
        if service.protected or _is_ours(service.name):
            raise Refusal("the name is ours and the worker showed no token")
        if len(self.workers) >= WORKERS_MAX or (is_new and len(self.services) >= SERVICES_MAX):
            raise Refusal("too many workers")


def _superseded(service: Service, incarnation: int) -> list[Worker]:
    """A process of ours serves its name alone: it replaces foreign workers and its own earlier lives.

    Raises:
        NotLater: it is itself an earlier life, or says it is the present one.
    """
    for rival in service.workers.values():
        if rival.incarnation is not None and rival.incarnation >= incarnation:
            raise NotLater(rival)
    return list(service.workers.values())


def _is_ours(name: bytes) -> bool:
    return name.decode() in RESERVED_SERVICES


def _is_servable(name: Part) -> bool:
    if type(name) is not bytes or not 0 < len(name) <= SERVICE_NAME_BYTES_MAX:
        return False
    if name == _OWN_NAME or name.startswith(_MANAGEMENT_PREFIX):
        return False
    try:
        return name.decode().isprintable()
    except UnicodeDecodeError:
        return False
