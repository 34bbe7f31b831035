"""Through the whole system: what a client was told is written stays written, once, whoever is killed meanwhile."""

import os
import random
import signal
import threading
from collections import Counter

import pytest

from actors.event_logger.queries import read_events
from actors.event_logger.records import EventFilter
from actors.runtime.paths import DATABASE_FILE
from protocol.errors import ReliabilityError
from tests.chaos.conftest import CONFIG
from tests.chaos.system import System, running, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]
EMITTERS = 3
KILLS = 8
SEED = int(os.environ.get("RELCTL_TEST_SEED", random.randrange(10**6)))
PATIENCE_S = 30.0


class Emitters:
    """Threads that emit events through one client all the while, and keep a ledger of what was acknowledged."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.ledger: dict[str, int] = {}
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._emit, args=(number,)) for number in range(EMITTERS)]

    def __enter__(self) -> "Emitters":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Wait until that many further events are acknowledged."""
        enough = len(self.ledger) + count
        wait_until(lambda: len(self.ledger) >= enough, PATIENCE_S, f"{count} more acknowledged events")

    def _emit(self, emitter: int) -> None:
        number = 0
        event = {"severity": "INFO", "component": "ledger", "event_type": "entry"}
        while not self._stop.is_set():
            number += 1
            message = f"{emitter}:{number}"
            try:
                reply = self._system.client.call("event_logger", "emit", timeout=PATIENCE_S, message=message, **event)
            except ReliabilityError as error:
                self.failures.append(f"{message}: {error.code} {error.message}")
                continue
            with self._lock:
                self.ledger[message] = reply["seq"]


def test_acknowledged_events_survive_kills_of_the_logger_and_the_broker(portable: bool) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    with running(portable=portable, config=CONFIG) as system:
        with Emitters(system) as emitters:
            for _ in range(KILLS):
                emitters.wait_for_more(draw.randint(1, 100))
                for name in draw.choice(
                    (("event_logger",), ("event_logger",), ("broker",), ("event_logger", "broker"))
                ):
                    system.signal(name, signal.SIGKILL)
                system.wait_whole(PATIENCE_S)
            emitters.wait_for_more(10)
        system.stop()
        assert emitters.failures == [], "each call had time enough to be answered"
        path = str(system.data_dir / DATABASE_FILE)
        page = read_events(path, EventFilter(component="ledger", after_seq=0, limit=10**6), bytes_max=10**9)
    found = {event["message"]: event["seq"] for event in page["events"]}
    counts = Counter(event["message"] for event in page["events"])
    assert [message for message, count in counts.items() if count > 1] == []
    assert [message for message, seq in emitters.ledger.items() if found.get(message) != seq] == []
