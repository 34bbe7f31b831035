"""What the broker's routing costs, against the C zmq.proxy passing the same frames in the same run.

    python benchmarks/broker_routing.py [--rounds N] [--requests N]

The broker is the real process with all its checks; client and worker are the same plain sockets in all cases. They take
turns; ratios are medians (and quartiles) over the rounds. A bare Python loop that only forwards shows what Python
itself costs. Then the latency of the control lane while 100 MB pass the bulk lane, against idle.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import zmq

from actors.runtime.transport import Lane
from protocol import mdp
from protocol.codec import pack
from protocol.messages import ReplyHeader, RequestHeader
from tests.broker.broker_process import Broker, deadline_in, running_broker

SERVICE = b"health_monitor"
ARGUMENTS = pack({"x": "y" * 64})
RESULT = pack({"ok": True, "x": "y" * 64})
REPLY_HEADER = ReplyHeader(bytes(16)).encode()
IN_FLIGHT = 64
WARM_UP = 300
BULK_MESSAGES, BULK_FRAME_BYTES, BULK_IN_FLIGHT = 100, 1_000_000, 4
SPAWN = multiprocessing.get_context("spawn")


def requests(count: int) -> list[list[bytes]]:
    """Requests with ids of their own."""
    deadline = deadline_in(600)
    return [
        mdp.request(SERVICE, RequestHeader(os.urandom(16), "ping", deadline).encode(), ARGUMENTS) for _ in range(count)
    ]


def proxy(front: str, back: str) -> None:
    """Run the C proxy."""
    context = zmq.Context()
    outer, inner = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    outer.bind(front)
    inner.bind(back)
    zmq.proxy(outer, inner)


def bare_loop(front: str, back: str) -> None:
    """Forward both ways in Python and look at nothing: what any broker in Python has to pay."""
    context = zmq.Context()
    outer, inner = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    outer.bind(front)
    inner.bind(back)
    poller = zmq.Poller()
    poller.register(outer, zmq.POLLIN)
    poller.register(inner, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            other = inner if socket is outer else outer
            try:
                while True:
                    other.send_multipart(socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                continue


def proxy_worker(back: str) -> None:
    """Answer what comes through the proxy: address, then the client's five frames."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(back)
    while True:
        address = socket.recv_multipart()[0]
        socket.send_multipart([address, mdp.CLIENT, mdp.CLIENT_FINAL, SERVICE, REPLY_HEADER, RESULT])


def broker_worker(endpoint: str, hello: bytes, service: bytes) -> None:
    """Answer requests as a Majordomo worker."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send_multipart(mdp.ready(service, hello))
    while True:
        frames = socket.recv_multipart()
        if frames[1] == mdp.WORKER_REQUEST:
            socket.send_multipart(mdp.final(frames[2], REPLY_HEADER, RESULT))
        else:
            socket.send_multipart(mdp.HEARTBEAT)


class Client:
    """A client that has nothing to do but ask."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.connect(endpoint)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.send = self.socket.send_multipart
        self.receive = self.socket.recv_multipart

    def latencies_us(self, messages: list[list[bytes]]) -> list[float]:
        """Round trips one at a time."""
        taken = []
        for message in messages:
            start = time.perf_counter()
            self.send(message)
            self.receive()
            taken.append((time.perf_counter() - start) * 1e6)
        return sorted(taken)

    def throughput(self, messages: list[list[bytes]]) -> float:
        """Round trips a second with `IN_FLIGHT` under way."""
        start = time.perf_counter()
        for message in messages[:IN_FLIGHT]:
            self.send(message)
        for message in messages[IN_FLIGHT:]:
            self.receive()
            self.send(message)
        for _ in messages[:IN_FLIGHT]:
            self.receive()
        return len(messages) / (time.perf_counter() - start)


@contextmanager
def processes(*targets: tuple[Callable[..., None], tuple[Any, ...]]) -> Iterator[None]:
    """Run functions in processes of their own."""
    started: list[BaseProcess] = [SPAWN.Process(target=target, args=args, daemon=True) for target, args in targets]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def hello_of(broker: Broker) -> bytes:
    """A worker's credentials."""
    from actors.runtime.paths import read_or_make_token
    from protocol.messages import WorkerHello

    return WorkerHello(read_or_make_token(broker.place.runtime_dir), 1, 1024).encode()


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lie."""
    return values[min(len(values) - 1, int(share * len(values)))]


def spread(values: list[float], form: str) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def compare(clients: dict[str, Client], rounds: int, count: int) -> None:
    """Let all take turns, and print each one's figures and its ratio to the first's."""
    latencies: dict[str, list[float]] = {name: [] for name in clients}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for client in clients.values():
        client.throughput(requests(WARM_UP))
    for _ in range(rounds):
        for name, client in clients.items():
            latencies[name].append(statistics.median(client.latencies_us(requests(count // 4))))
        for name, client in clients.items():
            rates[name].append(client.throughput(requests(count)))
    limit = next(iter(clients))
    for name in clients:
        slower = [own / least for own, least in zip(latencies[name], latencies[limit], strict=True)]
        fewer = [own / most for own, most in zip(rates[name], rates[limit], strict=True)]
        print(f"{name}")
        print(f"  one at a time, p50: {spread(latencies[name], '.0f')} us, ratio {spread(slower, '.2f')}  aim <= 1.40")
        print(f"  {IN_FLIGHT} in flight: {spread(rates[name], '.0f')} /s, ratio {spread(fewer, '.2f')}  aim >= 0.45")


def pour(endpoint: str, start: Any, done: Any) -> None:
    """Send 100 MB through the bulk lane each time `start` is set."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    payload = bytes(BULK_FRAME_BYTES)
    while True:
        start.wait()
        start.clear()
        for number in range(BULK_MESSAGES + BULK_IN_FLIGHT):
            if number < BULK_MESSAGES:
                header = RequestHeader(os.urandom(16), "put", deadline_in(600)).encode()
                socket.send_multipart([*mdp.request(b"event_logger", header, b"\x80"), payload], copy=False)
            if number >= BULK_IN_FLIGHT:
                socket.recv_multipart()
        done.set()


def under_bulk(client: Client, start: Any, done: Any, rounds: int) -> None:
    """Compare the control lane's latency with and without 100 MB on the bulk lane."""
    idle, busy, seconds = [], [], []
    for _ in range(rounds):
        idle += client.latencies_us(requests(500))
        began = time.perf_counter()
        start.set()
        while not done.is_set():
            busy += client.latencies_us(requests(10))
        done.clear()
        seconds.append(time.perf_counter() - began)
    idle.sort()
    busy.sort()
    quiet, loaded = percentile(idle, 0.99), percentile(busy, 0.99)
    print(
        f"control p99 under bulk  {loaded:8.1f} us against {quiet:8.1f} us  ratio {loaded / quiet:5.2f}  aim <= 3.00"
        f"   ({len(busy)} round trips, 100 MB in {statistics.median(seconds):.2f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="bench-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    front, back, front_bare, back_bare = (f"ipc://{directory}/{number}" for number in range(4))
    start, done = SPAWN.Event(), SPAWN.Event()
    try:
        with running_broker() as broker:
            endpoints, hello = broker.place.transport.endpoints, hello_of(broker)
            control, bulk = endpoints[Lane.CONTROL], endpoints[Lane.BULK]
            with processes(
                (proxy, (front, back)),
                (proxy_worker, (back,)),
                (bare_loop, (front_bare, back_bare)),
                (proxy_worker, (back_bare,)),
                (broker_worker, (control, hello, SERVICE)),
                (broker_worker, (bulk, hello, b"event_logger")),
                (pour, (bulk, start, done)),
            ):
                through_broker = Client(control)
                clients = {
                    "the C zmq.proxy": Client(front),
                    "a bare Python loop": Client(front_bare),
                    "the broker": through_broker,
                }
                compare(clients, options.rounds, options.requests)
                under_bulk(through_broker, start, done, options.rounds)
                for client in clients.values():
                    client.socket.close(linger=0)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
