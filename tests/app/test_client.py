"""The client against the real broker and a real actor: answers, errors told apart, kills and freezes on the way."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.runtime.liveness import ProcessState
from app.reliability.client import IDLE_CHANNELS_MAX, Client, Lane
from protocol.errors import ErrorCode, LocalError, ProtocolError, ReliabilityError, RemoteError
from protocol.limits import CONTROL_FRAME_BYTES_MAX
from tests.spine import PATIENCE_S, ROOT, SHOP, System, shop_running, until

SLACK_S = 0.1
"""What a busy machine may add to a time that the client itself keeps."""


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.portable)], ids=["local", "portable"]
)
def shared(request: pytest.FixtureRequest) -> Iterator[System]:
    """A system that no test harms."""
    with shop_running(portable=request.param) as system:
        yield system


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.portable)], ids=["local", "portable"])
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    """A system to be harmed."""
    with shop_running(portable=request.param) as started:
        yield started


@contextmanager
def client_of(system: System) -> Iterator[Client]:
    with Client(system.where.data_dir) as client:
        yield client


def failure_of(call: Callable[[], object], timeout_s: float) -> ReliabilityError:
    """The error of `call`, which must not outlive its timeout."""
    start = time.monotonic()
    with pytest.raises(ReliabilityError) as caught:
        call()
    assert time.monotonic() - start < timeout_s + SLACK_S
    return caught.value


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_call_returns_the_result(shared: System) -> None:
    with client_of(shared) as client:
        assert client.call("shop", "order", text="tea") == {"text": "tea"}
        assert client.call("shop", "ping") == {"name": "shop"}
        assert client.call("broker", "ping")
        assert client.call("shop", "status")["incarnation"] == 1
        assert "order" in [item["name"] for item in client.call("shop", "describe")["operations"]]


@pytest.mark.parametrize("lane", [Lane.CONTROL, Lane.BULK])
def test_raw_frames_pass_unparsed(shared: System, lane: Lane) -> None:
    frames = [b"", b"\xc1" * 1000, bytes(3_000_000 if lane is Lane.BULK else 100_000)]
    with client_of(shared) as client:
        result, raw = client.call_raw("shop", "order", frames, lane, text="tea")
    assert result == {"text": "tea"}
    assert raw == frames


def test_threads_share_a_client(shared: System) -> None:
    wrong: list[object] = []

    def ask(number: int) -> None:
        for count in range(40):
            text = f"{number}-{count}"
            if client.call("shop", "order", text=text) != {"text": text}:
                wrong.append(text)

    with client_of(shared) as client:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(2 * IDLE_CHANNELS_MAX)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_forked_child_calls_over_its_own_connection(shared: System) -> None:
    with client_of(shared) as client:
        client.call("shop", "ping")
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if client.call("shop", "order", text="child") == {"text": "child"} else 3)
            except BaseException:  # noqa: BLE001 - the child must not run the parent's test any further
                os._exit(4)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.call("shop", "order", text="parent") == {"text": "parent"}


def test_a_repeated_id_takes_effect_once(shared: System) -> None:
    with client_of(shared) as client:
        before = client.call("shop", "status")["executed"]
        request_id = os.urandom(16)
        for _ in range(3):
            client.call_raw("shop", "order", request_id=request_id, text="once")
        assert client.call("shop", "status")["executed"] == before + 1


def test_the_client_finds_the_system_by_the_environment(shared: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELCTL_DATA_DIR", str(shared.where.data_dir))
    with Client() as client:
        assert client.call("shop", "ping")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "op", "arguments", "code"),
    [
        ("nobody", "ping", {}, ErrorCode.SERVICE_UNKNOWN),
        ("shop", "dance", {}, ErrorCode.UNKNOWN_OPERATION),
        ("shop", "order", {}, ErrorCode.BAD_REQUEST),
        ("shop", "refuse", {}, ErrorCode.INTEGRITY),
    ],
)
def test_an_answer_can_be_an_error(
    shared: System, service: str, op: str, arguments: dict[str, object], code: ErrorCode
) -> None:
    with client_of(shared) as client:
        error = failure_of(lambda: client.call(service, op, **arguments), 1.0)
    assert isinstance(error, RemoteError)
    assert error.code == code


def test_what_cannot_be_sent_is_refused_here(shared: System) -> None:
    with client_of(shared) as client:
        with pytest.raises(ProtocolError):
            client.call("shop", "order", text={1, 2})
        with pytest.raises(ProtocolError) as refused:
            client.call("shop", "order", text="x" * CONTROL_FRAME_BYTES_MAX)
        assert refused.value.code == ErrorCode.TOO_LARGE


def test_a_data_directory_where_nothing_ever_ran(tmp_path: Path) -> None:
    with Client(tmp_path) as client:
        error = failure_of(lambda: client.call("shop", "ping"), 0.0)
        assert isinstance(error, LocalError)
        assert error.code == ErrorCode.NOT_RUNNING
        assert "relctl up" in error.hint


def test_a_system_that_is_gone_is_told_at_once(system: System) -> None:
    with client_of(system) as client:
        client.call("shop", "ping")
        system.where.board.stopping = True
        for name in ("shop", "broker"):
            system.kill(name)
        system.forget_launcher()
        assert failure_of(lambda: client.call("shop", "ping", timeout=5.0), 1.0).code == ErrorCode.NOT_RUNNING
    with client_of(system) as client:
        assert failure_of(lambda: client.call("shop", "ping", timeout=5.0), 1.0).code == ErrorCode.NOT_RUNNING


def test_a_dead_broker_is_broker_down(system: System) -> None:
    with client_of(system) as client:
        client.call("shop", "ping")
        system.kill("broker")
        assert failure_of(lambda: client.call("shop", "ping", timeout=0.4), 0.4).code == ErrorCode.BROKER_DOWN


def test_a_frozen_broker_is_broker_hung_for_old_and_new_connections(system: System) -> None:
    with client_of(system) as old, client_of(system) as new:
        old.call("shop", "ping")
        system.signal("broker", signal.SIGSTOP)
        try:
            assert failure_of(lambda: old.call("shop", "ping", timeout=2.0), 2.0).code == ErrorCode.BROKER_HUNG
            assert failure_of(lambda: new.call("shop", "ping", timeout=0.3), 0.3).code == ErrorCode.BROKER_HUNG
        finally:
            system.signal("broker", signal.SIGCONT)
        assert old.call("shop", "ping")
        assert new.call("shop", "ping")


def test_an_absent_actor_is_service_missing_and_a_frozen_one_passes_the_deadline(system: System) -> None:
    with client_of(system) as client:
        system.signal("shop", signal.SIGSTOP)
        assert failure_of(lambda: client.call("shop", "ping", timeout=0.5), 0.5).code == ErrorCode.DEADLINE_PASSED
        system.kill("shop")
        until(lambda: not service_runs(client), "the broker has noticed")
        assert failure_of(lambda: client.call("shop", "ping", timeout=0.5), 0.5).code == ErrorCode.SERVICE_MISSING


def service_runs(client: Client) -> bool:
    """Whether the broker has a worker for the shop."""
    try:
        client.call("shop", "ping", timeout=0.2)
    except RemoteError as error:
        return error.code != ErrorCode.SERVICE_MISSING
    return True


def test_a_busy_worker_is_told_apart(system: System) -> None:
    codes: list[str] = []
    with client_of(system) as client:

        def occupy() -> None:
            codes.append(failure_of(lambda: client.call("shop", "wait", timeout=3.0), 3.0).code)

        threads = [threading.Thread(target=occupy) for _ in range(client.call("shop", "describe")["window"])]
        for thread in threads:
            thread.start()
        until(lambda: broker_in_flight(client) == len(threads), "the window full")
        assert failure_of(lambda: client.call("shop", "ping", timeout=0.5), 0.5).code == ErrorCode.BUSY
        for thread in threads:
            thread.join()
    assert codes == [ErrorCode.DEADLINE_PASSED] * len(threads)


def broker_in_flight(client: Client) -> int:
    lanes: dict[str, dict[str, int]] = client.call("broker", "status")["lanes"]
    return lanes["control"]["requests_in_flight"]


# --- kills on the way -------------------------------------------------------------------------------------------------


def test_calls_go_on_while_the_broker_is_killed_and_restarted(system: System) -> None:
    answered: list[str] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            text = f"{number}-{len(answered)}"
            try:
                client.call("shop", "order", timeout=PATIENCE_S, text=text)
                answered.append(text)
            except Exception as error:  # noqa: BLE001 - counted by the test
                errors.append(error)

    with client_of(system) as client:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            so_far = len(answered)
            until(lambda so_far=so_far: len(answered) > so_far + 50, "more answers")  # type: ignore[misc]
            system.kill("broker")
            system.start("broker")
        so_far = len(answered)
        until(lambda: len(answered) > so_far + 50, "more answers")
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        status = client.call("shop", "status")
        assert (status["executed"], status["incarnation"]) == (len(answered), 1)


def test_a_call_to_a_worker_that_is_killed_is_answered_by_the_next(system: System) -> None:
    answers: list[object] = []
    with client_of(system) as client:
        system.signal("shop", signal.SIGSTOP)
        thread = threading.Thread(target=lambda: answers.append(client.call("shop", "order", timeout=20, text="tea")))
        thread.start()
        until(lambda: broker_in_flight(client) == 1, "the request is with the frozen worker")
        system.kill("shop")
        system.start("shop", *SHOP)
        thread.join()
        assert answers == [{"text": "tea"}]
        assert client.call("shop", "status")["incarnation"] == 2


def test_a_worker_that_is_told_to_leave_hands_over_and_no_call_fails(system: System) -> None:
    answered: list[object] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answered.append(client.call("shop", "order", timeout=PATIENCE_S, text="tea"))
            except Exception as error:  # noqa: BLE001 - counted by the test
                errors.append(error)

    with client_of(system) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(3):
            system.signal("shop", signal.SIGTERM)
            assert system.process("shop").returncode == 0
            so_far = len(answered)
            system.start("shop", *SHOP)
            until(lambda so_far=so_far: len(answered) > so_far, "the next shop's answer")  # type: ignore[misc]
        stop.set()
        thread.join()
    assert errors == []


def test_a_frozen_actor_that_was_replaced_leaves_when_it_thaws(system: System) -> None:
    with client_of(system) as client:
        frozen = system.process("shop")
        system.signal("shop", signal.SIGSTOP)
        with pytest.raises(ReliabilityError):
            client.call("shop", "order", timeout=0.2, text="stale")
        system.start("shop", *SHOP)
        until(lambda: system.state("shop") == ProcessState.READY, "the next shop ready")
        assert client.call("shop", "status")["incarnation"] == 2
        frozen.send_signal(signal.SIGCONT)
        assert frozen.wait(PATIENCE_S) == 0
        status = client.call("shop", "status")
        assert (status["incarnation"], status["executed"]) == (2, 0)


def test_a_broker_that_comes_back_on_other_ports_is_found() -> None:
    with shop_running(portable=True) as system, client_of(system) as client:
        client.call("shop", "ping")
        before = system.where.transport.endpoints
        system.kill("broker")
        listener = taken(before[Lane.CONTROL])
        system.start("broker")
        assert client.call("shop", "order", timeout=PATIENCE_S, text="tea") == {"text": "tea"}
        assert system.where.transport.endpoints != before
        listener.close()


def taken(endpoint: str) -> socket.socket:
    """Somebody else on the endpoint's port, who accepts and says nothing."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))
    listener.listen()
    return listener


# --- publications -----------------------------------------------------------------------------------------------------


def test_a_subscription_begins_with_the_last_value_and_goes_on(shared: System) -> None:
    with client_of(shared) as client:
        client.call("shop", "announce", topic="state.till", value={"open": True})
        with client.subscribe("state.till") as publications:
            assert publications.receive(PATIENCE_S) == ("state.till", {"open": True})
            client.call("shop", "announce", topic="state.till", value=2)
            assert next(publications) == ("state.till", 2)
            assert publications.receive(0.01) is None


def test_a_subscription_outlives_the_broker(system: System) -> None:
    with client_of(system) as client, client.subscribe() as publications:
        client.call("shop", "announce", topic="state.till", value=1)
        assert publications.receive(PATIENCE_S) == ("state.till", 1)
        system.kill("broker")
        system.start("broker")
        assert publications.receive(PATIENCE_S) == ("state.till", 1)
        client.call("shop", "announce", topic="event.till", value=b"raw")
        received = publications.receive(PATIENCE_S)
        while received == ("state.till", 1):  # repeated for each new subscriber
            received = publications.receive(PATIENCE_S)
        assert received == ("event.till", b"raw")


# --- what it costs and leaves -----------------------------------------------------------------------------------------


def test_importing_the_client_imports_neither_asyncio_nor_databases() -> None:
    code = (
        "import sys, app.reliability.client; "
        "print(*sorted({'asyncio', 'apsw', 'psutil', 'click', 'logging', 'subprocess'} & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize("stranger", ["protocol.py", "actors/__init__.py"])
def test_a_host_module_that_hides_ours_is_named(tmp_path: Path, stranger: str) -> None:
    path = tmp_path / stranger
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", "import app.reliability"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "ImportError: app.reliability needs its own" in result.stderr
    assert str(path) in result.stderr
