"""An application killed at random moments: what it has acknowledged is there, and what is there was its state once.

HOST_KILLS says how often (10), HOST_SEED repeats a run. Three clients change documents of their own, one after the
other; after every death each of them finds either all that was acknowledged to it, or that and the change under way.
"""

import http.client
import os
import random
import signal
import sys
import threading
import time

import pytest

from tests.chaos.system import wait_until
from tests.examples.assistants import PATIENCE_S, Assistant, assistant

KILLS = int(os.environ.get("HOST_KILLS", "10"))
CLIENTS = 3
NAMES = 20

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(120 + 10 * KILLS),
    pytest.mark.skipif(sys.platform != "linux", reason="programs that notify"),
]


class Writer(threading.Thread):
    """Changes documents of its own until told to end.

    Attributes:
        acknowledged: changes that it was told are kept.
        problem: what it found that must not be.
    """

    def __init__(self, host: Assistant, number: int, seed: int) -> None:
        super().__init__(name=f"writer {number}")
        self.acknowledged = self.lives = 0
        self.problem = ""
        self._host = host
        self._prefix = f"{number}/"
        self._random = random.Random(f"{seed} {number}")
        self._documents: dict[str, str] = {}
        self._end = threading.Event()

    def finish(self) -> None:
        """End after the present change."""
        self._end.set()
        self.join(PATIENCE_S)

    def run(self) -> None:
        while not self._end.is_set() and not self.problem:
            name = f"{self._prefix}{self._random.randrange(NAMES)}"
            removes = name in self._documents and self._random.random() < 0.3
            text = f"change {self.acknowledged} " + "x" * self._random.randrange(2000)
            changed = {key: value for key, value in self._documents.items() if key != name}
            if not removes:
                changed[name] = text
            if self._send(name, None if removes else text):
                self._documents = changed
                self.acknowledged += 1
            else:
                self._look(changed)

    def _send(self, name: str, text: str | None) -> bool:
        """Make one change; False if nobody has acknowledged it."""
        method, body = ("DELETE", None) if text is None else ("PUT", {"text": text})
        try:
            return self._host.ask(method, "documents", name, body=body)[0] == 200
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def present(self) -> dict[str, str]:
        """Its documents, as the assistant has them; it is waited for."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                status, said = self._host.ask("GET", "documents", timeout_s=10.0)
                if status == 200:
                    found = said["documents"].items()
                    return {name: item[0] for name, item in found if name.startswith(self._prefix)}
            except (OSError, http.client.HTTPException, ValueError):
                pass
            assert time.monotonic() < give_up, "nobody answers"
            time.sleep(0.02)

    def _look(self, changed: dict[str, str]) -> None:
        """After a death: either the change under way is there, or it is not; nothing else is different."""
        found = self.present()
        self.lives += 1
        if found == changed:
            self._documents = changed
        elif found != self._documents:
            lost = sorted(set(self._documents.items()) - set(found.items()))
            more = sorted(set(found.items()) - set(self._documents.items()))
            self.problem = f"after {self.acknowledged} acknowledged: lost {lost}, and there is {more}"[:2000]

    def check_end(self) -> None:
        """Compare for the last time."""
        assert self.problem == ""
        assert not self.is_alive()
        assert self.present() == self._documents


def test_acknowledged_changes_survive_every_death() -> None:
    seed = int(os.environ.get("HOST_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    print(f"HOST_SEED={seed} HOST_KILLS={KILLS}")
    chance = random.Random(seed)
    with assistant() as host:
        writers = [Writer(host, number, seed) for number in range(CLIENTS)]
        for writer in writers:
            writer.start()
        try:
            for kill in range(KILLS):
                before = [writer.acknowledged for writer in writers]

                def all_write(before: list[int] = before) -> bool:
                    return any(writer.problem for writer in writers) or all(
                        writer.acknowledged > count for writer, count in zip(writers, before, strict=True)
                    )

                wait_until(all_write, PATIENCE_S, f"everybody writes before kill {kill} (HOST_SEED={seed})")
                time.sleep(chance.uniform(0.0, 0.3))  # the random moment
                pid = host.pid()
                if chance.random() < 0.3:
                    other = chance.choice(["checkpointer", "broker", "event_logger", "launcher", "watchdog"])
                    if host.system.pid(other):
                        host.system.signal(other, signal.SIGKILL)
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    wait_until(lambda pid=pid: host.pid() not in (0, pid), PATIENCE_S, f"it is back (HOST_SEED={seed})")
        finally:
            for writer in writers:
                writer.finish()
        for writer in writers:
            writer.check_end()
        assert all(writer.lives for writer in writers), "every writer has seen a death"
        assert "application_failed" not in host.system.relctl("logs", "assistant").stdout, "every state was a whole one"
