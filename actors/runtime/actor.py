"""The one loop that every actor runs, written once.

An actor is a core that decides, a few handlers, and `run_actor`. The loop waits for requests, publications, signals,
outcomes of the worker thread and whatever descriptors the actor registered. In every turn it shows progress on the
liveness board; every tick it looks after launcher and watchdog (`Guardian`), its registration with the broker, and the
actor's own clockwork (`Actor.on_tick`). It never blocks: what may block is submitted to the worker thread. What a
request meets is in `actors.runtime.serving`. An exception that is no `ReliabilityError` leaves the loop, is logged by
`run_process`, and ends the process with a non-zero code.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import zmq

from actors.runtime.arguments import ProcessArguments
from actors.runtime.connection import BrokerConnection, Subscriber
from actors.runtime.guardian import Guardian
from actors.runtime.liveness import ProcessState
from actors.runtime.operations import LEASE_CAP_DEFAULT_S, WINDOW_DEFAULT, Operation
from actors.runtime.paths import read_or_make_token
from actors.runtime.process import ProcessRuntime, run_process
from actors.runtime.reactor import Mailbox, Reactor
from actors.runtime.registration import Phase
from actors.runtime.serving import Draining, Service
from actors.runtime.transport import Lane, ZmqContext
from actors.runtime.verdict import next_tick
from actors.runtime.version import VERSION
from actors.runtime.worker import QUEUED_JOBS_MAX, Worker
from protocol import limits, mdp
from protocol.codec import pack, unpack
from protocol.errors import EXIT_OK, ErrorCode, ProtocolError
from protocol.messages import WorkerHello
from protocol.names import TOPIC_STATE_PREFIX, is_valid_name
from protocol.severity import Severity

BULK_WINDOW: Final = 4
LATE_TURN_S: Final = 0.25
"""After a turn that is this late (frozen, suspended) the loop asks first whether it was replaced meanwhile."""
UNREGISTERED_GRACE_S: Final = 2.0
"""An actor that cannot reach the broker for so long is ready nevertheless: its own work does not need the broker."""
FIRST_TICK_S: Final = 0.05
"""The first tick comes when an actor that could register has done so: nothing else delays its first answer."""
DRAIN_TURN_S: Final = 0.05
DRAIN_SHARE: Final = 0.8
"""Part of the stop timeout that may be spent on draining; the rest is for leaving."""
LINGER_MS: Final = 100
"""Time for the last replies and the DISCONNECT to leave the process."""


class GuardianLike(Protocol):
    """Who brings launcher and watchdog back: `actors.runtime.guardian.Guardian`.

    Attributes:
        descriptor: readable when `step` has to be called at once; None where nothing tells of that.
        wake_at: when `step` has to be called, if that is before the next tick; infinity if not.
    """

    descriptor: int | None
    wake_at: float

    def step(self, now: float) -> None:
        """Look after them; once per tick, and when the others say so."""


class Actor:
    """What one actor adds to the loop; it overrides what it needs. Called on the loop's thread, to return at once.

    Attributes:
        tick_s: how often the loop ticks and calls `on_tick`; None for what is usual here (`ProcessRuntime.tick_s`).
        tick_lag_s: how long after the full multiples of `tick_s` it does.
        window: requests that it takes at once.
        bulk: whether it takes requests on the bulk lane as well.
        topics: it is told publications whose topic begins with one of these.
        worker_queue_max: jobs that may wait for the worker thread.
    """

    tick_s: float | None = None
    tick_lag_s: float = 0.0
    window: int = WINDOW_DEFAULT
    bulk: bool = False
    topics: tuple[str, ...] = ()
    worker_queue_max: int = QUEUED_JOBS_MAX

    def operations(self) -> Sequence[Operation]:
        """Return what it answers besides `ping`, `status` and `describe`; asked once, before `on_start`."""
        return ()

    def on_start(self, context: "Context") -> None:
        """Begin; keep `context`. What may block is submitted."""

    def initialised(self) -> bool:
        """Tell whether it has come up; asked every turn until it has. The process counts as ready from then on."""
        return True

    def on_tick(self, context: "Context", now: float) -> None:
        """Do what is due at monotonic time `now`."""

    def on_publication(self, topic: str, value: Any) -> None:
        """Take in a publication. A state topic's last value is repeated whenever somebody subscribes."""

    def status(self) -> Mapping[str, Any]:
        """Return what it adds to the answer to `status`."""
        return {}

    def on_drain(self, context: "Context") -> bool:
        """Bring to an end what the loop does not know of; asked every turn of a stop until it returns True."""
        return True


class Context:
    """What the loop does for its actor. Loop thread only, except `post` and `log`.

    Attributes:
        runtime: the process: arguments, configuration, board, journal.
    """

    def __init__(self, loop: "ActorLoop") -> None:
        """Speak for `loop`."""
        self._loop = loop
        self.runtime = loop.runtime

    def now(self) -> float:
        """Return the monotonic time."""
        return time.monotonic()

    def publish(self, topic: str, value: Any) -> None:
        """Publish plain data. A topic that begins with ``state.`` is published again to each broker that comes.

        Raises:
            ProtocolError: no valid topic, too many state topics, not plain data, or too large.
        """
        self._loop.publish(topic, value)

    def submit(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        what: str,
        on_done: Callable[[Any], None] | None = None,
        lease_cap_s: float = LEASE_CAP_DEFAULT_S,
    ) -> None:
        """Run ``function(*arguments)`` on the worker thread, behind what was submitted before.

        `on_done` is called on the loop with the result, or with the exception that was raised; without it an exception
        ends the process. `what` says on the board what is going on; past `lease_cap_s` it counts as stuck.

        Raises:
            ReliabilityError: `busy`, the queue is full.
        """
        done = on_done or _raise_if_error
        self._loop.worker.submit(function, *arguments, on_done=done, what=what, lease_cap_s=lease_cap_s)

    def post(self, callback: Callable[[], None]) -> None:
        """Have the loop call `callback`; from any thread."""
        self._loop.mailbox.post(callback)

    def register(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Have the loop call `callback` in each turn in which `descriptor` is readable."""
        self._loop.reactor.register(descriptor, callback)

    def unregister(self, descriptor: int) -> None:
        """Stop waiting for `descriptor`; before it is closed."""
        self._loop.reactor.unregister(descriptor)

    def log(self, severity: Severity, event_type: str, message: str, **attributes: Any) -> None:
        """Log an event; it never blocks and never raises. From any thread."""
        self.runtime.log(severity.name, event_type, message, **attributes)


def _raise_if_error(outcome: Any) -> None:
    if isinstance(outcome, Exception):
        raise outcome


def run_actor(arguments: ProcessArguments, make: Callable[[ProcessRuntime], Actor]) -> int:
    """Run one actor as this process, and return its exit code; `make` reads its configuration and wires it."""

    def body(runtime: ProcessRuntime) -> int:
        return ActorLoop(runtime, make(runtime), Guardian(runtime)).run()

    return run_process(arguments, body)


class ActorLoop:
    """One actor at work.

    Attributes:
        runtime: the process it runs in.
        reactor: what it waits for.
        mailbox: how other threads reach it.
        worker: its worker thread.
        service: what it answers.
        guardian: who brings launcher and watchdog back.
    """

    def __init__(self, runtime: ProcessRuntime, actor: Actor, guardian: GuardianLike) -> None:
        """Wire everything; nothing is connected before `run`."""
        self.runtime = runtime
        self.reactor = Reactor()
        self.mailbox = Mailbox()
        self._name = runtime.arguments.name
        self.worker = Worker(self._name, runtime, self.mailbox, actor.worker_queue_max)
        self.service = Service(
            self._name,
            actor.operations(),
            actor.window,
            self.worker,
            status=self._status,
            announce=self._announce,
            clock=time.monotonic,
        )
        self._actor = actor
        self.guardian = guardian
        self._context = Context(self)
        self._tick_s = actor.tick_s or runtime.tick_s
        self._zmq: ZmqContext = zmq.Context()
        self._connections: list[BrokerConnection] = []
        self._subscriber: Subscriber | None = None
        self._states: dict[bytes, bytes] = {}
        self._started_at = self._turn_at = time.monotonic()
        self._tick_at = self._keep_house_at = self._started_at + FIRST_TICK_S
        # Whoever ticks more often than is usual need not do so for this, unless it has to look for exits.
        self._keep_house_s = self._tick_s if guardian.descriptor is None else max(self._tick_s, runtime.tick_s)
        self._state = ProcessState.STARTING
        self._drain_until: float | None = None

    def run(self) -> int:
        """Run until the process has to leave; returns its exit code."""
        try:
            self.reactor.register(self.runtime.wakeup_fd, self.runtime.drain_wakeup)
            self.reactor.register(self.mailbox.fileno(), self.mailbox.drain)
            if self.guardian.descriptor is not None:
                self.reactor.register(self.guardian.descriptor, self._guard)
            self._connect()
            self._actor.on_start(self._context)
            while not self._turn():
                pass
            for connection in self._connections:
                connection.leave()
        finally:
            self._zmq.destroy(LINGER_MS)
            self.mailbox.close()
            self.reactor.close()
        return EXIT_OK

    def publish(self, topic: str, value: Any) -> None:
        """See `Context.publish`."""
        name, body = topic.encode(), pack(value)
        if not is_valid_name(topic):
            raise ProtocolError(f"{topic!r} is no topic")
        if len(body) > limits.TOPIC_BODY_BYTES_MAX:
            raise ProtocolError(f"{len(body)} bytes are too large for a publication", ErrorCode.TOO_LARGE)
        if topic.startswith(TOPIC_STATE_PREFIX):
            if name not in self._states and len(self._states) >= limits.TOPICS_MAX:
                raise ProtocolError(f"more than {limits.TOPICS_MAX} state topics", ErrorCode.TOO_LARGE)
            self._states[name] = body
        control = self._connections[0]
        if control.registration.phase is Phase.JOINED:
            control.send(mdp.publish(name, body))
            self.service.counters["published"] += 1
        else:
            self.service.counters["publications_dropped"] += 1

    # --- turns --------------------------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Wait, work, tick if it is time; returns whether to leave."""
        ready = self.reactor.wait(self._wake_at() - time.monotonic())
        now = time.monotonic()
        if now - self._turn_at > self._tick_s + LATE_TURN_S:
            self._leave_if_replaced()
        self._turn_at = now
        self.runtime.beat()
        self.reactor.call(ready)
        for connection in self._connections:
            if now >= connection.wake_at:
                connection.step(now)
        if now >= self._tick_at:
            # At full multiples, like all that recurs in all of us: caches that are warm are warm for everybody.
            self._tick_at = next_tick(now, self._tick_s, self._actor.tick_lag_s)
            self._tick(now)
        if now >= self.guardian.wake_at:
            self._guard()
        if self._state is ProcessState.STARTING:
            self._become_ready(now)
        return self.runtime.stop_requested and self._drained(now)

    def _wake_at(self) -> float:
        wake_at = min(self._tick_at, self.guardian.wake_at, *(connection.wake_at for connection in self._connections))
        return wake_at if self._drain_until is None else min(wake_at, self._turn_at + DRAIN_TURN_S)

    def _guard(self) -> None:
        self.guardian.step(time.monotonic())

    def _tick(self, now: float) -> None:
        self._leave_if_replaced()
        if now >= self._keep_house_at:
            self._keep_house_at = (now // self._keep_house_s + 1) * self._keep_house_s
            self._keep_house(now)
        self._actor.on_tick(self._context, now)

    def _keep_house(self, now: float) -> None:
        self.guardian.step(now)
        for connection in self._connections:
            connection.step(now)
        self.service.forget()
        self._follow_events_endpoint()

    def _leave_if_replaced(self) -> None:
        if self.runtime.replaced():
            os._exit(EXIT_OK)

    def _become_ready(self, now: float) -> None:
        registered = all(connection.registration.joined_count for connection in self._connections)
        if self._actor.initialised() and (registered or now - self._started_at > UNREGISTERED_GRACE_S):
            self._set_state(ProcessState.READY)

    def _set_state(self, state: ProcessState) -> None:
        self._state = state
        self.runtime.set_state(state)

    def _drained(self, now: float) -> bool:
        if self._drain_until is None:
            self._drain_until = now + self.runtime.supervision.stop_timeout_s * DRAIN_SHARE
            self._set_state(ProcessState.STOPPING)
        self.service.draining = Draining.REFUSE if self.runtime.board.stopping else Draining.HAND_OVER
        actor_done = self._actor.on_drain(self._context)
        running = self.service.running_count
        if actor_done and running == 0 and self.worker.idle:
            return True
        if now < self._drain_until:
            return False
        self._context.log(
            Severity.WARN, "drain_unfinished", f"left with {running} requests unanswered", requests=running
        )
        return True

    # --- connections --------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        arguments = self.runtime.arguments
        token = read_or_make_token(arguments.runtime_dir)
        windows = {Lane.CONTROL: self._actor.window} | ({Lane.BULK: BULK_WINDOW} if self._actor.bulk else {})
        for lane, window in windows.items():
            hello = WorkerHello(token, arguments.incarnation, window).encode()
            ready = mdp.ready(self._name.encode(), hello)
            connection = BrokerConnection(self._zmq, arguments.runtime_dir, lane, ready, self.reactor)
            connection.open(self._on_request, self._on_joined)
            self._connections.append(connection)
        self._follow_events_endpoint()

    def _follow_events_endpoint(self) -> None:
        """Subscribe, anew if the broker's endpoints have changed."""
        transport = self._connections[0].transport
        if not self._actor.topics or (self._subscriber and self._subscriber.transport is transport):
            return
        if self._subscriber:
            self._subscriber.close()
        self._subscriber = Subscriber(self._zmq, transport, self._actor.topics, self.reactor, self._on_message)

    def _on_request(self, connection: BrokerConnection, address: bytes, body: list[bytes]) -> None:
        self.runtime.slot.advance()
        self.service.receive(connection, address, body)

    def _on_joined(self, connection: BrokerConnection) -> None:
        self.service.disconnected(connection)
        self.service.counters["registered"] += 1
        if connection.lane is Lane.CONTROL:
            for topic, body in self._states.items():
                connection.send(mdp.publish(topic, body))

    def _on_message(self, frames: list[bytes]) -> None:
        self.runtime.slot.advance()
        try:
            topic, body = frames
            name, value = topic.decode("ascii"), unpack(body, limits.TOPIC_BODY_BYTES_MAX)
        except (ValueError, ProtocolError):
            self.service.counters["publications_malformed"] += 1
            return
        self._actor.on_publication(name, value)

    # --- what it says of itself ---------------------------------------------------------------------------------------

    def _announce(self, op: str) -> None:
        self.runtime.slot.set_activity(f"request {op}")

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        dropped = sum(connection.dropped_count for connection in self._connections)
        return {
            **self._actor.status(),
            "name": self._name,
            "pid": os.getpid(),
            "incarnation": self.runtime.arguments.incarnation,
            "state": self._state.value,
            "uptime_s": round(now - self._started_at, 3),
            "version": VERSION,
            "queues": {
                "worker_queued": self.worker.queued_count,
                "worker_capacity": self.worker.capacity,
                "worker_busy_s": round(self.worker.busy_s(now), 3),
                "requests_in_flight": self.service.running_count,
            },
            "counters": {**self.service.counters, "worker_expired": self.worker.expired_count, "unsent": dropped},
        }
