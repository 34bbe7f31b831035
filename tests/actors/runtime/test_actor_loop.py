"""The one loop, run in a thread over the real board and real sockets; the test is the broker."""

import math
import os
import select
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from actors.runtime.actor import Actor, ActorLoop, Context
from actors.runtime.liveness import FIRST_ACTOR_SLOT, ProcessRecord, ProcessState
from actors.runtime.operations import DEFERRED, Operation, Request
from actors.runtime.paths import read_or_make_token
from actors.runtime.process import ProcessRuntime
from actors.runtime.serving import Draining
from actors.runtime.signalling import HAS_PIDFD
from actors.runtime.transport import FRAME_BYTES_MAX, Lane, Retry, Socket, Transport
from protocol import mdp
from protocol.codec import pack, unpack
from protocol.errors import ErrorCode, ReliabilityError
from protocol.messages import ReplyHeader, RequestHeader, decode_reply_header, decode_worker_hello
from tests.spine import PATIENCE_S, Place, place, until

NAME = "shop"
PATIENCE_MS = int(PATIENCE_S * 1000)


class Shop(Actor):
    """An actor with one operation of each kind."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.release = threading.Event()
        self.begun = threading.Event()
        self.kept: list[Request] = []
        self.ticks = 0
        self.ready = True
        self.done = True
        self.context: Context

    def operations(self) -> Sequence[Operation]:
        return [
            Operation("echo", "returns its text", {"text": "str"}, self._echo),
            Operation("slow", "waits for the test", {"text": "str"}, self._slow, blocking=True, lease_cap_s=7),
            Operation("keep", "is answered later", {}, self._keep),
            Operation("refuse", "fails", {}, self._refuse),
            Operation("crash", "has a bug", {}, self._crash),
            Operation("crash_later", "has a bug on the worker thread", {}, self._crash, blocking=True),
            Operation("large", "answers too much", {}, lambda _: {"x": bytes(FRAME_BYTES_MAX[Lane.CONTROL])}),
            Operation("odd", "answers what cannot be sent", {}, lambda _: {"x": {1, 2}}),
        ]

    def on_start(self, context: Context) -> None:
        self.context = context

    def initialised(self) -> bool:
        return self.ready

    def on_tick(self, context: Context, now: float) -> None:
        self.ticks += 1

    def on_drain(self, context: Context) -> bool:
        return self.done

    def status(self) -> Mapping[str, Any]:
        return {"executed": len(self.executed)}

    def _echo(self, request: Request) -> dict[str, Any]:
        self.executed.append(request.arguments["text"])
        return {"text": request.arguments["text"], "raw": [len(frame) for frame in request.raw]}

    def _slow(self, request: Request) -> dict[str, Any]:
        self.begun.set()
        assert self.release.wait(PATIENCE_S)
        return self._echo(request)

    def _keep(self, request: Request) -> Any:
        self.kept.append(request)
        return DEFERRED

    def answer_kept(self) -> None:
        for request in self.kept:
            if not request.answered:
                request.reply({"late": True})

    def _refuse(self, request: Request) -> Any:
        raise ReliabilityError(ErrorCode.INTEGRITY, "the till does not balance", "Count again.")

    def _crash(self, request: Request) -> Any:
        raise ZeroDivisionError("a bug")


class Watch:
    """Stands in for the guardian: counts how often it was asked, and is told by a pipe."""

    def __init__(self) -> None:
        self.steps = 0
        self.descriptor: int | None
        self.descriptor, self._writer = os.pipe()
        self.wake_at = math.inf
        self.woken = 0

    def step(self, now: float) -> None:
        self.steps += 1
        if now >= self.wake_at:
            self.wake_at = math.inf
        if self.descriptor is not None and select.select([self.descriptor], [], [], 0)[0]:
            self.woken += len(os.read(self.descriptor, 10))

    def tell(self) -> None:
        os.write(self._writer, b"!")

    def close(self) -> None:
        for descriptor in (self.descriptor, self._writer):
            if descriptor is not None:
                os.close(descriptor)


class Broker:
    """The broker's end of the request lane, in the test's hands."""

    def __init__(self, where: Place) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.endpoint = where.transport.bind(self.socket, Lane.CONTROL)
        self.worker = b""
        self._address = 0

    def receive(self) -> list[bytes]:
        """The next message that is no heartbeat."""
        while True:
            assert self.socket.poll(PATIENCE_MS), "the actor is silent"
            peer, *frames = self.socket.recv_multipart()
            if frames != mdp.HEARTBEAT:
                self.worker = peer
                return frames

    def register(self) -> list[bytes]:
        """Wait for READY."""
        frames = self.receive()
        assert frames[:2] == [mdp.WORKER, mdp.WORKER_READY]
        return frames

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart([self.worker, mdp.WORKER, *frames])

    def request(
        self,
        op: str,
        *raw: bytes,
        request_id: bytes | None = None,
        timeout_s: float = PATIENCE_S,
        **arguments: Any,
    ) -> bytes:
        """Hand the worker a request; returns the address under which its answer comes."""
        header = RequestHeader(request_id or os.urandom(16), op, int((time.monotonic() + timeout_s) * 1000))
        return self.request_frames(header.encode(), pack(arguments), *raw)

    def request_frames(self, *body: bytes) -> bytes:
        self._address += 1
        address = self._address.to_bytes(8, "big")
        self.send(mdp.WORKER_REQUEST, address, b"", *body)
        return address

    def answer(self) -> tuple[bytes, ReplyHeader, dict[str, Any], list[bytes]]:
        """The next answer: address, header, result, raw frames."""
        frames = self.receive()
        assert frames[:2] == [mdp.WORKER, mdp.WORKER_FINAL]
        assert frames[3] == b""
        return frames[2], decode_reply_header(frames[4]), unpack(frames[5], FRAME_BYTES_MAX[Lane.BULK]), frames[6:]

    def ask(self, op: str, *raw: bytes, **options: Any) -> dict[str, Any]:
        """One request and its result."""
        address = self.request(op, *raw, **options)
        answered, header, result, _ = self.answer()
        assert answered == address
        assert header.error is None, header.error
        return result

    def error(self, op: str, **options: Any) -> str:
        """One request and its error's code."""
        self.request(op, **options)
        error = self.answer()[1].error
        assert error is not None
        return error.code

    def close(self) -> None:
        self._context.destroy(0)


class Running:
    """An actor's loop in a thread."""

    def __init__(self, where: Place, actor: Actor) -> None:
        self.runtime = ProcessRuntime(where.arguments(NAME, FIRST_ACTOR_SLOT, incarnation=5), where.journal(NAME))
        self.guardian = Watch()
        self.loop = ActorLoop(self.runtime, actor, self.guardian)
        self.exit_code: int | None = None
        self.error: Exception | None = None
        self.error_expected = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.exit_code = self.loop.run()
        except Exception as error:  # noqa: BLE001 - what run_process would log
            self.error = error

    def join(self) -> None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()

    def stop(self) -> None:
        self.runtime.note_termination()

    @property
    def record(self) -> ProcessRecord:
        record = self.runtime.slot.process.read()
        assert record is not None
        return record


@pytest.fixture
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def broker(where: Place) -> Iterator[Broker]:
    broker = Broker(where)
    yield broker
    broker.close()


@contextmanager
def running(where: Place, actor: Actor) -> Iterator[Running]:
    started = Running(where, actor)
    try:
        yield started
    finally:
        started.stop()
        started.join()
        started.runtime.close()
        started.guardian.close()
    assert started.error is None or started.error_expected, repr(started.error)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def run(where: Place, broker: Broker, shop: Shop) -> Iterator[Running]:
    """The shop at work, registered with the broker."""
    with running(where, shop) as started:
        broker.register()
        yield started
        shop.release.set()
        shop.done = True
        shop.context.post(shop.answer_kept)


# --- registration -----------------------------------------------------------------------------------------------------


def test_it_registers_with_token_incarnation_and_window_and_is_ready(where: Place, broker: Broker, shop: Shop) -> None:
    with running(where, shop) as started:
        service, hello = broker.register()[2:]
        assert service == NAME.encode()
        said = decode_worker_hello(hello)
        assert said.token == read_or_make_token(where.runtime_dir)
        assert (said.incarnation, said.window) == (5, shop.window)
        until(lambda: started.record.state == ProcessState.READY, "ready")


def test_it_is_not_ready_before_it_is_initialised(where: Place, broker: Broker, shop: Shop) -> None:
    shop.ready = False
    with running(where, shop) as started:
        broker.register()
        assert broker.ask("ping") == {"name": NAME}
        assert started.record.state == ProcessState.STARTING
        shop.ready = True
        until(lambda: started.record.state == ProcessState.READY, "ready")


def test_without_a_broker_it_is_ready_after_a_grace(where: Place, shop: Shop) -> None:
    with running(where, shop) as started:
        until(lambda: started.record.state == ProcessState.READY, "ready")
        assert shop.ticks > 1


def test_a_disconnect_is_followed_by_a_fresh_socket(broker: Broker, run: Running) -> None:
    first = broker.worker
    broker.send(mdp.WORKER_DISCONNECT)
    broker.register()
    assert broker.worker != first
    assert broker.ask("ping") == {"name": NAME}


def test_a_broker_that_comes_back_is_greeted_at_once(where: Place, broker: Broker, run: Running) -> None:
    broker.close()
    second = Broker(where)
    second.register()
    assert second.ask("ping") == {"name": NAME}
    second.close()


def test_a_broker_that_stayed_away_long_is_greeted_when_it_comes_and_then_sought_quickly(
    where: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.runtime.connection.PATIENT_AFTER_S", 0.05)
    retries: list[Retry] = []
    connect = Transport.connect

    def noting(transport: Transport, socket: Socket, lane: Lane, retry: Retry) -> None:
        retries.append(retry)
        connect(transport, socket, lane, retry)

    monkeypatch.setattr(Transport, "connect", noting)
    with running(where, shop):
        until(lambda: retries == [Retry.QUICK, Retry.PATIENT], "patience")
        broker = Broker(where)
        broker.register()
        assert broker.ask("ping") == {"name": NAME}
        assert retries == [Retry.QUICK, Retry.PATIENT, Retry.QUICK]
    broker.close()


def test_a_broker_that_comes_back_elsewhere_is_found_through_run_json(where: Place, shop: Shop) -> None:
    where.write_run(dict.fromkeys(Lane, "tcp://127.0.0.1:*"))
    first = Broker(where)
    where.write_run(dict.fromkeys(Lane, first.endpoint))
    with running(where, shop):
        first.register()
        where.write_run(dict.fromkeys(Lane, "tcp://127.0.0.1:*"))
        second = Broker(where)
        where.write_run(dict.fromkeys(Lane, second.endpoint))
        first.close()
        second.register()
    second.close()


def test_state_topics_are_published_again_to_a_new_broker(
    where: Place, broker: Broker, shop: Shop, run: Running
) -> None:
    shop.context.post(lambda: shop.context.publish("state.shop", {"open": True}))
    assert broker.receive() == mdp.publish(b"state.shop", pack({"open": True}))
    shop.context.post(lambda: shop.context.publish("event.shop", 1))
    assert broker.receive() == mdp.publish(b"event.shop", pack(1))
    broker.close()
    second = Broker(where)
    second.register()
    assert second.receive() == mdp.publish(b"state.shop", pack({"open": True}))
    second.close()


# --- requests ---------------------------------------------------------------------------------------------------------


def test_an_operation_is_executed_and_answered(broker: Broker, run: Running) -> None:
    assert broker.ask("echo", b"raw", b"", text="a") == {"text": "a", "raw": [3, 0]}


def test_ping_status_and_describe_are_answered_while_the_worker_thread_is_busy(
    broker: Broker, shop: Shop, run: Running
) -> None:
    slow = broker.request("slow", text="x")
    assert shop.begun.wait(PATIENCE_S)
    assert broker.ask("ping") == {"name": NAME}
    status = broker.ask("status")
    assert (status["name"], status["pid"], status["incarnation"]) == (NAME, os.getpid(), 5)
    assert status["queues"]["requests_in_flight"] == 1
    assert status["executed"] == 0
    assert [item["name"] for item in broker.ask("describe")["operations"]][:2] == ["echo", "slow"]
    shop.release.set()
    assert broker.answer()[0] == slow


def test_a_blocking_operation_holds_a_lease_while_it_runs(broker: Broker, shop: Shop, run: Running) -> None:
    broker.request("slow", text="x")
    assert shop.begun.wait(PATIENCE_S)
    lease = run.record
    assert lease.lease_what == "shop.slow"
    assert lease.lease_until_ms - time.monotonic() * 1000 == pytest.approx(7000, abs=1000)
    shop.release.set()
    broker.answer()
    assert run.record.lease_what == ""


def test_an_expired_request_is_not_executed(broker: Broker, shop: Shop, run: Running) -> None:
    assert broker.error("echo", timeout_s=-1, text="late") == ErrorCode.DEADLINE_PASSED
    assert shop.executed == []


def test_a_queued_request_that_expires_before_its_turn_is_not_executed(
    broker: Broker, shop: Shop, run: Running
) -> None:
    slow = broker.request("slow", text="first")
    assert shop.begun.wait(PATIENCE_S)
    deadline = time.monotonic() + 0.1
    queued = broker.request("slow", timeout_s=0.1, text="second")
    assert broker.ask("status")["queues"]["worker_queued"] == 1
    until(lambda: time.monotonic() > deadline + 0.01, "the deadline")
    shop.release.set()
    assert broker.answer()[0] == slow
    address, header, _, _ = broker.answer()
    assert address == queued
    assert header.error
    assert header.error.code == ErrorCode.DEADLINE_PASSED
    assert shop.executed == ["first"]


def test_a_repetition_joins_the_running_request_and_later_replays_its_outcome(
    broker: Broker, shop: Shop, run: Running
) -> None:
    request_id = os.urandom(16)
    first = broker.request("slow", request_id=request_id, text="x")
    assert shop.begun.wait(PATIENCE_S)
    second = broker.request("slow", request_id=request_id, text="x")
    until(lambda: run.loop.service.counters["repeated"] == 1, "the repetition")
    shop.release.set()
    answers = [broker.answer(), broker.answer()]
    assert [answer[0] for answer in answers] == [first, second]
    assert answers[0][1:] == answers[1][1:]
    third = broker.request("slow", request_id=request_id, text="x")
    assert broker.answer()[0] == third
    assert broker.error("slow", request_id=request_id, text="other") == ErrorCode.ID_CONFLICT
    assert shop.executed == ["x"]


def test_an_answer_after_a_broker_restart_goes_only_to_who_asked_again(
    where: Place, broker: Broker, shop: Shop, run: Running
) -> None:
    request_id = os.urandom(16)
    broker.request("slow", request_id=request_id, text="x")
    assert shop.begun.wait(PATIENCE_S)
    broker.close()
    second = Broker(where)
    second.register()
    shop.release.set()
    until(lambda: shop.executed == ["x"], "the execution")
    again = second.request("slow", request_id=request_id, text="x")
    assert second.answer()[0] == again
    assert shop.executed == ["x"]
    second.close()


def test_a_deferred_request_is_answered_later(broker: Broker, shop: Shop, run: Running) -> None:
    address = broker.request("keep")
    broker.ask("ping")
    shop.context.post(lambda: shop.kept[0].reply({"done": 1}, [b"raw"]))
    answered, _, result, raw = broker.answer()
    assert (answered, result, raw) == (address, {"done": 1}, [b"raw"])


@pytest.mark.parametrize(
    ("op", "arguments", "code"),
    [
        ("nothing", {}, ErrorCode.UNKNOWN_OPERATION),
        ("echo", {}, ErrorCode.BAD_REQUEST),
        ("echo", {"text": "x", "more": 1}, ErrorCode.BAD_REQUEST),
        ("refuse", {}, ErrorCode.INTEGRITY),
        ("large", {}, ErrorCode.TOO_LARGE),
        ("odd", {}, ErrorCode.FAILED),
    ],
)
def test_what_is_wrong_is_named(
    broker: Broker, run: Running, op: str, arguments: dict[str, Any], code: ErrorCode
) -> None:
    assert broker.error(op, **arguments) == code
    assert broker.ask("ping") == {"name": NAME}


def test_malformed_requests_are_refused_and_counted(broker: Broker, run: Running) -> None:
    header = RequestHeader(os.urandom(16), "echo", int((time.monotonic() + 9) * 1000)).encode()
    for body in ([b""], [b"\xc1"], [b"\x93" * 400], [os.urandom(300)], [header, b"\x93" * 400], [header, pack([1])]):
        broker.request_frames(*body)
        assert broker.answer()[1].error
    broker.send(b"\x77")
    broker.send(mdp.WORKER_REQUEST, b"address")
    broker.socket.send_multipart([broker.worker, b"", b"junk"])
    assert broker.ask("status")["counters"]["malformed"] == 4


# --- faults of ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["crash", "crash_later"])
def test_a_bug_leaves_the_loop(broker: Broker, run: Running, op: str) -> None:
    run.error_expected = True
    broker.request(op)
    run.join()
    assert isinstance(run.error, ZeroDivisionError)


def test_an_error_of_submitted_work_reaches_its_caller_or_ends_the_process(
    broker: Broker, shop: Shop, run: Running
) -> None:
    outcomes: list[Any] = []
    shop.context.post(lambda: shop.context.submit(int, "7", what="parse", on_done=outcomes.append))
    shop.context.post(lambda: shop.context.submit(int, "x", what="parse", on_done=outcomes.append))
    until(lambda: len(outcomes) == 2, "both outcomes")
    assert outcomes[0] == 7
    assert isinstance(outcomes[1], ValueError)
    run.error_expected = True
    shop.context.post(lambda: shop.context.submit(int, "x", what="parse"))
    run.join()
    assert isinstance(run.error, ValueError)


def test_a_full_worker_queue_says_busy(where: Place, broker: Broker, shop: Shop) -> None:
    shop.worker_queue_max = 1
    with running(where, shop):
        broker.register()
        broker.request("slow", text="runs")
        assert shop.begun.wait(PATIENCE_S)
        broker.request("slow", text="waits")
        assert broker.error("slow", text="too much") == ErrorCode.BUSY
        shop.release.set()


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_it_beats_and_looks_after_the_others_every_tick(broker: Broker, shop: Shop, run: Running) -> None:
    beats, ticks, steps = run.runtime.slot.read_beat().tick, shop.ticks, run.guardian.steps
    until(lambda: shop.ticks >= ticks + 5, "five ticks")
    assert run.runtime.slot.read_beat().tick >= beats + 5
    assert run.guardian.steps >= steps + 4


def test_it_looks_after_the_others_at_once_when_it_is_told_to(where: Place, shop: Shop) -> None:
    where.config.write_text("[supervision]\ntick_s = 1.0\nhang_timeout_s = 3600.0\n")
    shop.tick_s = 3600.0
    with running(where, shop) as run:
        until(lambda: shop.ticks == 1, "the first tick")
        until(lambda: run.guardian.steps == 1, "its look")
        run.guardian.tell()
        until(lambda: run.guardian.woken == 1, "a look at once")
        run.guardian.wake_at = time.monotonic() + 0.05
        run.guardian.tell()  # or it would not see that it has to wake before its tick
        until(lambda: run.guardian.wake_at == math.inf, "a look at the time it wanted")
        assert shop.ticks == 1
        run.stop()
        run.guardian.tell()


def test_who_ticks_more_often_than_is_usual_keeps_house_as_often_as_others(where: Place, shop: Shop) -> None:
    where.config.write_text("[supervision]\ntick_s = 1.0\nhang_timeout_s = 3600.0\n")
    shop.tick_s = 0.02
    with running(where, shop) as run:
        until(lambda: shop.ticks >= 20, "many ticks")
        if HAS_PIDFD:
            assert run.guardian.steps < shop.ticks / 2


@pytest.mark.parametrize("portable", [False, True])
def test_it_ticks_as_often_as_is_usual_here(portable: bool) -> None:
    with place(portable=portable) as here:
        runtime = ProcessRuntime(here.arguments(NAME, FIRST_ACTOR_SLOT), here.journal(NAME))
        told = HAS_PIDFD and not portable
        assert runtime.tick_s == runtime.supervision.survivor_tick_s(told_of_exits=told)
        runtime.close()


def test_it_goes_on_beating_and_ticking_under_a_flood(broker: Broker, shop: Shop, run: Running) -> None:
    ticks = shop.ticks
    for _ in range(100):
        broker.request("ping")
    sent = 100
    while shop.ticks < ticks + 5:
        broker.answer()
        broker.request("ping")
        sent += 1
    for _ in range(100):
        broker.answer()
    assert run.runtime.slot.read_beat().progress >= sent


def test_a_registered_descriptor_calls_back(broker: Broker, shop: Shop, run: Running) -> None:
    reader, writer = os.pipe()
    read: list[bytes] = []
    shop.context.post(lambda: shop.context.register(reader, lambda: read.append(os.read(reader, 9))))
    os.write(writer, b"x")
    until(lambda: read == [b"x"], "the callback")
    gone = threading.Event()
    shop.context.post(lambda: (shop.context.unregister(reader), gone.set()))  # type: ignore[func-returns-value]
    assert gone.wait(PATIENCE_S)
    os.close(reader)
    os.close(writer)


def test_publications_arrive_and_hostile_ones_are_counted(where: Place, broker: Broker, shop: Shop) -> None:
    received: list[tuple[str, Any]] = []
    shop.topics = ("state.",)
    shop.on_publication = lambda topic, value: received.append((topic, value))  # type: ignore[method-assign]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    where.transport.bind(publisher, Lane.EVENTS)
    with running(where, shop) as started:
        assert publisher.poll(PATIENCE_MS)
        assert publisher.recv() == b"\x01state."
        for frames in ([b"state.a", b"\xc1"], [b"state.\xff", pack(1)], [b"state.a"], [b"state.a", pack({"n": 1})]):
            publisher.send_multipart(frames)
        until(lambda: received == [("state.a", {"n": 1})], "the publication")
        assert started.loop.service.counters["publications_malformed"] == 3
    context.destroy(0)


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_a_stop_finishes_what_runs_turns_away_what_comes_and_says_goodbye(
    where: Place, broker: Broker, shop: Shop, run: Running
) -> None:
    shop.done = False
    slow = broker.request("slow", text="x")
    assert shop.begun.wait(PATIENCE_S)
    run.stop()
    until(lambda: run.record.state == ProcessState.STOPPING, "stopping")
    broker.request("echo", text="left to the successor")
    assert broker.ask("ping") == {"name": NAME}
    where.board.stopping = True
    until(lambda: run.loop.service.draining is Draining.REFUSE, "the system's stop")
    assert broker.error("echo", text="y") == ErrorCode.DRAINING
    assert broker.ask("ping") == {"name": NAME}
    shop.release.set()
    assert broker.answer()[0] == slow
    assert run.thread.is_alive()
    shop.done = True
    assert broker.receive() == mdp.DISCONNECT
    run.join()
    assert (run.exit_code, shop.executed) == (0, ["x"])


def test_a_stop_does_not_wait_longer_than_it_may(where: Place, broker: Broker, shop: Shop) -> None:
    where.config.write_text("[supervision]\ntick_s = 0.02\nstop_timeout_s = 0.2\n")
    shop.done = False
    with running(where, shop) as started:
        broker.register()
        started.stop()
        started.join()
        assert started.exit_code == 0
    assert [entry["event_type"] for entry in where.journal(NAME).entries()] == ["drain_unfinished"]
