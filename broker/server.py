"""The broker's process: sockets and time around the routers of its lanes.

One turn of the loop takes in a bounded number of messages, control before bulk, sends what comes of them, and shows
progress on the board. Nothing in it waits: not for a peer, not for a disk.
"""

import os
import select
import time
from dataclasses import replace
from typing import Final

import zmq

from actors.runtime.filelock import FileLock
from actors.runtime.guardian import Guardian
from actors.runtime.liveness import ProcessKind, ProcessState
from actors.runtime.paths import RUN_FILE, read_or_make_token, read_run_file, write_atomically
from actors.runtime.process import ProcessRuntime
from actors.runtime.transport import Admission, Lane, Transport, ZmqContext
from actors.runtime.version import VERSION
from broker.config import BrokerConfig
from broker.events import EventsSocket
from broker.inlet import AdmissionInlet, Inlet, Waiter
from broker.lane import LaneSocket
from broker.memory import resident_bytes
from broker.routing import Router
from broker.routing.bounds import BULK, CONTROL, LaneBounds
from broker.routing.management import About, BrokerService
from protocol.errors import EXIT_LOCKED, EXIT_OK, ErrorCode, LocalError
from protocol.limits import MIB

LOCK_FILE: Final = "broker.lock"
LOCK_RETRY_S: Final = 0.02
LOOK_AROUND_INTERVAL_S: Final = 1.0
SETTLE_S: Final = 2.0
"""After a restart, how long unknown names are waited for: their workers are coming back."""
REPORT_INTERVAL_S: Final = 30.0
LAST_WORDS_MS: Final = 200
"""How long the transport may take to get the last answers out."""
IO_THREADS: Final = 2
CONTROL_THREAD: Final = 1
BULK_THREAD: Final = 2
"""Which I/O threads serve a socket, as bits: 64 MiB on their way must not hold up a ping."""
_LOCAL: Final = "ipc://"
_EXPECTED_KINDS: Final = frozenset({ProcessKind.ACTOR, ProcessKind.WATCHDOG})


class Server:
    """The broker."""

    def __init__(self, runtime: ProcessRuntime, guardian: Guardian) -> None:
        """Make the routers; nothing is bound yet.

        Args:
            runtime: the process's side of the system.
            guardian: restores launcher and watchdog if need be.
        """
        arguments = runtime.arguments
        now = time.monotonic()
        self._runtime = runtime
        self._guardian = guardian
        self._config = runtime.config.section("broker", BrokerConfig)
        self._run_path = os.path.join(arguments.runtime_dir, RUN_FILE)
        self._own = BrokerService(About(os.getpid(), arguments.incarnation, VERSION, now))
        self._control = self._lane(Lane.CONTROL, CONTROL, now)
        self._bulk = self._lane(Lane.BULK, BULK, now)
        self._events = EventsSocket(self._control.router.topics)
        self._admission: Admission | None = None
        self._connections_dropped = False
        self._reported = self._hostile_counts()
        self._tick_at = self._look_around_at = self._report_at = now

    def run(self) -> int:
        """Serve until told to leave; returns the exit code."""
        runtime = self._runtime
        lock = FileLock(os.path.join(runtime.arguments.runtime_dir, LOCK_FILE))
        # A predecessor that was killed may take a moment to be gone.
        while not lock.acquire():
            runtime.beat()
            if runtime.stop_requested or runtime.replaced():
                return EXIT_LOCKED
            select.select([runtime.wakeup_fd], [], [], LOCK_RETRY_S)
        self._open()
        self._look_around(time.monotonic())  # before the first request: whom it is for may not be here yet
        self._set_state(ProcessState.READY)
        self._serve()
        if not runtime.replaced():
            self._leave()
        return EXIT_OK

    def _leave(self) -> None:
        """Say what is left to say, and take the sockets away."""
        self._report(time.monotonic())
        self._set_state(ProcessState.STOPPING)
        if self._runtime.board.stopping:
            self._control.drain_and_refuse()
            self._bulk.drain_and_refuse()
        self._context.destroy(linger=LAST_WORDS_MS)
        for endpoint in (self._control.endpoint, self._bulk.endpoint, self._events.endpoint):
            if endpoint.startswith(_LOCAL):
                try:
                    os.unlink(endpoint.removeprefix(_LOCAL))
                except FileNotFoundError:
                    continue

    # --- sockets ----------------------------------------------------------------------------------------------------

    def _lane(self, lane: Lane, bounds: LaneBounds, now: float) -> LaneSocket:
        arguments = self._runtime.arguments
        token = read_or_make_token(arguments.runtime_dir)
        settle_s = SETTLE_S if arguments.incarnation > 1 else 0.0
        router = Router(bounds, token, arguments.incarnation, self._own, now, settle_s)
        self._own.lanes[lane.name.lower()] = router
        return LaneSocket(lane, bounds, router)

    def _open(self) -> None:
        """Bind everything."""
        run = read_run_file(self._run_path)
        if run is None:
            raise LocalError(ErrorCode.NOT_RUNNING, f"{self._run_path} does not tell where to bind")
        transport = Transport.for_run(run)
        self._context: ZmqContext = zmq.Context(IO_THREADS)
        self._admission = transport.admission(self._context)
        self._control.open(self._context, transport, CONTROL_THREAD)
        self._bulk.open(self._context, transport, BULK_THREAD)
        self._events.open(self._context, transport, CONTROL_THREAD)
        self._inlets: list[Inlet] = [self._control, self._bulk, self._events]
        if self._admission is not None:
            self._inlets.append(AdmissionInlet(self._admission))
        told_by = [self._runtime.wakeup_fd, *(inlet.descriptor for inlet in self._inlets)]
        if self._guardian.descriptor is not None:
            told_by.append(self._guardian.descriptor)
        self._waiter = Waiter(told_by)
        bound = replace(run, endpoint=self._control.endpoint, bulk=self._bulk.endpoint, events=self._events.endpoint)
        if bound != run:
            write_atomically(self._run_path, bound.to_json().encode(), sync=False)
            self._runtime.log("WARN", "port_taken", "a port was taken; run.json tells the new one")

    def _drop_connections(self) -> None:
        """Drop every connection with all that the transport holds for it, and bind anew."""
        self._waiter.close()
        self._context.destroy(linger=0)
        self._control.forget_connections()
        self._bulk.forget_connections()
        self._open()
        self._reported = self._hostile_counts()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Turn until it is time to leave."""
        runtime, publications = self._runtime, self._control.router.publications
        wait_s = 0.0
        while True:
            ready = self._waiter.wait(wait_s)
            for inlet in self._inlets:
                if inlet.unsure or inlet.descriptor in ready:
                    inlet.drain()
            runtime.beat()
            if publications:
                self._events.publish(publications)
                publications.clear()
            if runtime.wakeup_fd in ready:
                runtime.drain_wakeup()
                self._tick_at = 0.0
            now = time.monotonic()
            if self._guardian.descriptor in ready:
                self._guardian.step(now)
            due_at = self._due_at()
            if now >= due_at:
                if now >= self._tick_at and (runtime.stop_requested or runtime.replaced()):
                    return
                self._fall_due(now)
                due_at = self._due_at()
            wait_s = 0.0 if any(inlet.unsure for inlet in self._inlets) else max(0.0, due_at - now)

    def _due_at(self) -> float:
        """When something has to be done though nothing comes in."""
        tick_at = min(self._tick_at, self._guardian.wake_at)
        return min(self._control.due_at, self._bulk.due_at, self._events.replay_at, tick_at)

    def _fall_due(self, now: float) -> None:
        self._control.turn(now)
        self._bulk.turn(now)
        self._events.replay(now)
        if now >= self._tick_at:
            tick_s = self._runtime.tick_s
            self._tick_at = (now // tick_s + 1) * tick_s
            self._guardian.step(now)
            self._bound_memory()
        elif now >= self._guardian.wake_at:
            self._guardian.step(now)
        if now >= self._look_around_at:
            self._look_around_at = (now // LOOK_AROUND_INTERVAL_S + 1) * LOOK_AROUND_INTERVAL_S
            self._look_around(now)

    # --- looking around ---------------------------------------------------------------------------------------------

    def _look_around(self, now: float) -> None:
        names = [record.name for _, record in self._runtime.board.occupied() if record.kind in _EXPECTED_KINDS]
        for lane in (self._control, self._bulk):
            lane.router.expect(names, now)
        if now >= self._report_at:
            self._report(now)

    def _bound_memory(self) -> None:
        """Drop what peers make the transport hold before it is too much.

        Raises:
            LocalError: that has not helped, so only a new process will.
        """
        memory_mib = resident_bytes() // MIB
        if memory_mib <= self._config.memory_mib_max:
            self._connections_dropped = False
            return
        if self._connections_dropped:
            raise LocalError(ErrorCode.FAILED, f"{memory_mib} MiB are in use though every connection was dropped")
        self._connections_dropped = True
        text = f"{memory_mib} MiB in use: all connections are dropped, with what the transport held for them"
        self._runtime.log("ERROR", "memory_bound", text, memory_mib=memory_mib)
        self._drop_connections()

    def _report(self, now: float) -> None:
        """Sum up refused clients and hostile messages in the audit trail."""
        counts = self._hostile_counts()
        news = {name: count - self._reported[name] for name, count in counts.items() if count > self._reported[name]}
        if news:
            self._reported = counts
            self._report_at = now + REPORT_INTERVAL_S
            text = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in news.items())
            self._runtime.log("WARN", "hostile_messages", f"refused: {text}", **news)

    def _hostile_counts(self) -> dict[str, int]:
        counts = dict.fromkeys(("malformed", "rejected", "workers_refused", "publications_refused"), 0)
        for router in self._own.lanes.values():
            for name in counts:
                counts[name] += getattr(router.counters, name)
        counts["connections_refused"] = self._admission.refused if self._admission is not None else 0
        return counts

    def _set_state(self, state: ProcessState) -> None:
        self._own.state = state.value
        self._runtime.set_state(state)
