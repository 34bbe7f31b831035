"""The real broker process: both transports, restarts, stops, its place taken, who may connect."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from actors.runtime.liveness import BROKER_SLOT, LauncherRecord, ProcessKind, ProcessState
from actors.runtime.paths import Curve
from actors.runtime.transport import Lane, Transport, new_curve_keys
from protocol import mdp
from protocol.codec import pack
from protocol.errors import EXIT_LOCKED
from protocol.messages import ReplyHeader
from tests.broker.broker_process import Broker, Peer, running_broker
from tests.spine import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and ipc paths")


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.portable)], ids=["ipc", "tcp"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with running_broker(portable=request.param) as made:
        yield made


@pytest.fixture
def local_broker() -> Iterator[Broker]:
    with running_broker() as made:
        yield made


def answer_one(worker: Peer, result: str) -> None:
    address, body = worker.receive_request()
    from tests.broker.lane_world import request_id_of

    worker.send(*mdp.final(address, ReplyHeader(request_id_of(body)).encode(), pack({"result": result})))


def subscriber(broker: Broker, prefix: bytes) -> zmq.Socket[bytes]:
    made: zmq.Socket[bytes] = broker.context.socket(zmq.SUB)
    made.setsockopt(zmq.SUBSCRIBE, prefix)
    made.setsockopt(zmq.RCVTIMEO, 5000)
    broker.place.transport.connect(made, Lane.EVENTS)
    return made


class TestService:
    def test_it_answers_for_itself(self, broker: Broker) -> None:
        status = broker.status()
        assert (status["name"], status["pid"], status["incarnation"]) == ("broker", broker.pid, 1)
        assert status["state"] == "ready"
        assert {entry["name"] for entry in broker.peer().call("broker", "services")["lanes"]["control"]} >= {
            "event_logger",
            "health_monitor",
        }

    @pytest.mark.parametrize("lane", [Lane.CONTROL, Lane.BULK])
    def test_requests_and_answers_pass(self, broker: Broker, lane: Lane) -> None:
        client, worker = broker.peer(lane), broker.worker("health_monitor", lane=lane)
        for number in range(20):
            client.request("health_monitor", "ping", number=number)
        for number in range(20):
            answer_one(worker, str(number))
        assert [client.reply()[1]["result"] for _ in range(20)] == [str(number) for number in range(20)]

    def test_the_bulk_lane_takes_64_mib(self, broker: Broker) -> None:
        client, worker = broker.peer(Lane.BULK), broker.worker("health_monitor", lane=Lane.BULK)
        payload = os.urandom(1 << 20) * 64
        header = client_header()
        client.send(*mdp.request(b"health_monitor", header, b"\x80", payload))
        address, body = worker.receive_request()
        assert body == [header, b"\x80", payload]
        worker.send(*mdp.final(address, ReplyHeader(bytes(16)).encode(), b"\x80", payload))
        assert client.receive()[-1] == payload

    def test_absent_unknown_and_silent_are_told_apart(self, broker: Broker) -> None:
        client = broker.peer()
        assert client.error_of("event_logger", timeout_s=0.2) == "service_missing"
        assert client.error_of("nobody") == "service_unknown"
        broker.worker("health_monitor", window=1)
        started = time.monotonic()
        assert client.error_of("health_monitor", timeout_s=0.3) == "deadline_passed"
        assert 0.29 < time.monotonic() - started < 0.6

    def test_a_burst_that_needs_no_answer_hides_nothing_behind_it(self, broker: Broker) -> None:
        worker = broker.worker("health_monitor")
        for _ in range(30):
            for _ in range(200):
                worker.send(*mdp.HEARTBEAT)
            started = time.monotonic()
            worker.request("broker", "ping")
            while worker.receive()[0] != mdp.CLIENT:
                pass
            assert time.monotonic() - started < 0.5

    def test_it_beats_while_idle(self, broker: Broker) -> None:
        slot = broker.place.board.slots[BROKER_SLOT]
        before = slot.read_beat().tick
        until(lambda: slot.read_beat().tick > before + 5, "the broker's loop turns")

    def test_a_worker_that_is_killed_is_noticed_by_its_closed_connection(self, broker: Broker) -> None:
        client, worker = broker.peer(), broker.worker("health_monitor")
        request_id = client.request("health_monitor", "ping", 5.0)
        worker.receive_request()
        worker.socket.close(linger=0)
        successor = broker.worker("event_logger", incarnation=2)
        successor.send(*mdp.DISCONNECT)
        until(lambda: broker.counters()["workers_lost"] == 1, "the loss is noticed")
        answer_one(broker.worker("health_monitor", incarnation=1), "again")
        header, result = client.reply()
        assert (header.id, result) == (request_id, {"result": "again"})


class TestPublications:
    def test_they_reach_subscribers_and_states_are_replayed(self, broker: Broker) -> None:
        worker = broker.worker("health_monitor")
        early = subscriber(broker, b"")
        until(lambda: publish_and_see(worker, early), "the early subscriber is connected")
        worker.send(*mdp.publish(b"state.health", b"current"))
        worker.send(*mdp.publish(b"event.gone", b"passing"))
        late = subscriber(broker, b"state.")
        assert late.recv_multipart() == [b"state.health", b"current"]
        for made in (early, late):
            made.close(linger=0)


def publish_and_see(worker: Peer, early: "zmq.Socket[bytes]") -> bool:
    worker.send(*mdp.publish(b"event.probe", b""))
    return bool(early.poll(50))


class TestRestart:
    def test_a_restart_is_transparent_to_those_who_say_it_again(self, broker: Broker) -> None:
        client, worker = broker.peer(), broker.worker("health_monitor")
        client.request("health_monitor", "ping", 20.0, request_id=b"i" * 16)
        old_address, _ = worker.receive_request()
        broker.kill()
        broker.start()
        again = broker.worker("health_monitor")
        retry = broker.peer()
        retry.request("health_monitor", "ping", 20.0, request_id=b"i" * 16)
        new_address, _ = again.receive_request()
        assert new_address != old_address
        # What was meant for the broker before means nothing to this one.
        again.send(*mdp.final(old_address, b"stale", b""))
        again.send(*mdp.final(new_address, ReplyHeader(b"i" * 16).encode(), pack({"result": "fresh"})))
        assert retry.reply()[1] == {"result": "fresh"}
        assert broker.counters()["late_replies"] == 1

    def test_a_connection_finds_the_new_broker_by_itself(self, broker: Broker) -> None:
        client = broker.peer()
        client.call("broker", "ping")
        broker.kill()
        broker.start()
        client.socket.setsockopt(zmq.RCVTIMEO, 300)
        until(lambda: answers(client), "the old connection works again")

    @pytest.mark.portable
    def test_ports_stay_over_a_restart_and_a_taken_one_is_replaced_in_run_json(self) -> None:
        with running_broker(portable=True) as broker:
            before = broker.place.transport.endpoints
            broker.kill()
            broker.start()
            assert broker.place.transport.endpoints == before
            broker.kill()
            with socket.socket() as squatter:
                squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                squatter.bind(("127.0.0.1", int(before[Lane.CONTROL].rpartition(":")[2])))
                squatter.listen()
                broker.start()
                after = broker.place.transport.endpoints
                assert after[Lane.CONTROL] != before[Lane.CONTROL]
                assert after[Lane.BULK] == before[Lane.BULK]
                assert broker.status()["pid"] == broker.pid


def answers(client: Peer) -> bool:
    try:
        client.request("broker", "ping")
        client.reply()
    except zmq.Again:
        return False
    return True


class TestLeaving:
    def test_it_leaves_on_sigterm_and_leaves_no_socket(self, local_broker: Broker) -> None:
        paths = [Path(local_broker.place.runtime_dir, lane) for lane in Lane]
        assert all(path.exists() for path in paths)
        assert local_broker.stop() == 0
        assert not any(path.exists() for path in paths)

    def test_when_the_system_stops_those_who_wait_are_told(self, local_broker: Broker) -> None:
        client = local_broker.peer()
        client.request("event_logger", "ping", 30.0)
        until(lambda: local_broker.status()["queues"]["requests_waiting"] == 1, "the request waits")
        local_broker.place.board.stopping = True
        assert local_broker.stop() == 0
        error = client.reply()[0].error
        assert error is not None
        assert error.code == "draining"

    def test_one_that_was_replaced_leaves_at_once_and_touches_nothing(self, local_broker: Broker) -> None:
        record = LauncherRecord("broker", ProcessKind.BROKER, 0, 0, 2, ProcessState.BACKOFF, 0, 0, 0, 3, 0, 5000, 15000)
        path = Path(local_broker.place.runtime_dir, Lane.CONTROL)
        local_broker.place.board.slots[BROKER_SLOT].launcher.write(record)
        assert local_broker.process is not None
        assert local_broker.process.wait(10) == 0
        assert path.exists()

    def test_a_second_one_takes_no_path_away_but_waits_for_its_turn(self, local_broker: Broker) -> None:
        path = Path(local_broker.place.runtime_dir, Lane.CONTROL)
        inode = path.stat().st_ino
        arguments = local_broker.place.arguments("broker", 9, 2)
        with subprocess.Popen([sys.executable, "-m", "broker.__main__", *arguments.to_argv()]) as second:
            slot = local_broker.place.board.slots[9]
            until(lambda: slot.read_beat().tick > 3, "the second one waits")
            assert path.stat().st_ino == inode
            assert local_broker.status()["pid"] == local_broker.pid
            second.send_signal(signal.SIGTERM)
            assert second.wait(10) == EXIT_LOCKED


STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as door:
    door.settimeout(5)
    try:
        door.connect(sys.argv[1])
        print("greeted" if door.recv(10) else "turned away")
    except PermissionError:
        print("no way in")
    except ConnectionError:
        print("turned away")
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becoming another user needs root")
class TestOtherUsers:
    def result(self, broker: Broker, script: str = STRANGER) -> str:
        path = broker.place.transport.endpoints[Lane.CONTROL].removeprefix("ipc://")
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    def test_another_user_finds_no_way_in(self, local_broker: Broker) -> None:
        assert self.result(local_broker, STRANGER.replace("os.setgid(65534); os.setuid(65534)", "")) == "greeted"
        assert self.result(local_broker) == "no way in"

    def test_behind_the_directory_the_socket_asks_as_well(self, local_broker: Broker) -> None:
        directory = Path(local_broker.place.runtime_dir)
        opened = (directory, directory.parent, directory.parent.parent)
        (directory / Lane.CONTROL).chmod(0o777)
        try:
            for path in opened:
                path.chmod(0o755)
            assert self.result(local_broker) == "turned away"
        finally:
            for path in opened:
                path.chmod(0o700)
        assert local_broker.status()["pid"] == local_broker.pid


@pytest.mark.portable
class TestKeys:
    def test_only_the_one_key_is_let_in(self) -> None:
        with running_broker(portable=True) as broker:
            curve = broker.place.curve
            assert curve is not None
            other = new_curve_keys()
            wrong = Curve(curve.server_public, "", other.client_public, other.client_secret)
            stranger = broker.peer_with(Transport(broker.place.transport.endpoints, wrong))
            keyless = broker.peer_with(Transport(broker.place.transport.endpoints))
            for peer in (stranger, keyless):
                assert not peer.socket.poll(300, zmq.POLLOUT), "never greeted, so never able to send"
            assert broker.peer().socket.poll(5000, zmq.POLLOUT)
            assert broker.status()["pid"] == broker.pid
            until(lambda: reported(broker, "connections_refused"), "the refused one is in the journal")


def reported(broker: Broker, what: str) -> bool:
    entries = broker.place.journal("broker").entries()
    return any(what in entry.get("attributes", {}) for entry in entries if entry["event_type"] == "hostile_messages")


def client_header() -> bytes:
    from protocol.messages import RequestHeader
    from tests.broker.broker_process import deadline_in

    return RequestHeader(bytes(16), "put", deadline_in(20)).encode()
