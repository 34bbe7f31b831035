"""A real program under a real system: its output, live and as events, whoever is killed; and what is told of it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from actors.runtime.programs import output_path
from tests.chaos.system import ROOT, running, wait_until

COUNTER = """
import sys, time
for number in range(int(sys.argv[1])):
    sys.stdout.write(f"line {number}\\n")
    sys.stdout.flush()
    time.sleep(0.005)
"""


def put_away(process: "subprocess.Popen[bytes]") -> None:
    """End a process that may have ended, and close what it was read through."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_output_is_complete_and_each_line_an_event_once_whoever_is_killed() -> None:
    count = 400
    with running() as system, ExitStack() as stack:
        started = system.relctl(
            "run", "--name", "counter", "--restart", "never", "--", sys.executable, "-c", COUNTER, str(count)
        )
        assert started.returncode == 0, started.stderr
        command = [sys.executable, "-m", "app.reliability.cli", "--data-dir", str(system.data_dir), "attach", "counter"]
        attached = subprocess.Popen([*command, "-n", "1000"], cwd=ROOT, env=system.environment, stdout=subprocess.PIPE)
        stack.callback(put_away, attached)
        pid = system.pid("counter")
        for name in ("event_logger", "launcher", "event_logger", "broker"):
            killed = system.pid(name)
            system.signal(name, signal.SIGKILL)
            wait_until(lambda name=name, killed=killed: system.replaced(name, killed), 30, f"{name} is back")
        for name in ("launcher", "watchdog", "broker"):
            system.signal(name, signal.SIGKILL)
        assert system.pid("counter") in (0, pid)
        wait_until(lambda: system.state("counter") == "stopped", 30, "the counter has counted")
        expected = [f"line {number}" for number in range(count)]
        written = Path(output_path(str(system.data_dir), "counter")).read_text()
        assert written.splitlines() == expected
        assert attached.stdout is not None
        assert [attached.stdout.readline().decode().rstrip() for _ in range(count)] == expected
        attached.send_signal(signal.SIGINT)
        assert attached.wait(10) == 130

        def lines() -> list[str]:
            answer = system.relctl("--json", "logs", "counter", "-n", "all").stdout
            events = map(json.loads, answer.splitlines())
            return [event["message"] for event in events if event["event_type"] == "output"]

        wait_until(lambda: len(lines()) >= count, 30, "every line is an event", interval_s=0.5)
        assert lines() == expected
        shown = system.relctl("--json", "attach", "counter", "-n", "1", "--no-follow")
        assert json.loads(shown.stdout) == {"name": "counter", "line": f"line {count - 1}"}
        system.stop()


def test_attach_and_why_work_with_everything_dead() -> None:
    with running() as system:
        failing = "import sys; print('nothing to do here', flush=True); sys.exit(3)"
        done = system.relctl(
            "run", "--name", "failing", "--restart", "never", "--wait", "--", sys.executable, "-c", failing
        )
        assert (done.returncode, done.stdout) == (3, "nothing to do here\n")
        system.relctl("run", "--name", "sleeper", "--restart", "always", "--", "sh", "-c", "echo up; exec sleep 1000")
        wait_until(lambda: system.ready("sleeper"), 30, "it sleeps")
        pid = system.pid("sleeper")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: system.replaced("sleeper", pid), 30, "it sleeps again")
        told = system.relctl("why", "sleeper").stdout
        assert "killed by signal 9 (SIGKILL)" in told
        assert "Its last words: up" in told
        assert "It runs and is ready." in told
        for process in (*system.processes(), system.pid("sleeper")):
            os.kill(process, signal.SIGKILL)
        wait_until(lambda: not system.processes(), 30, "everything is dead")
        assert system.relctl("attach", "failing", "--no-follow").stdout == "nothing to do here\n"
        told = system.relctl("why", "sleeper")
        assert told.returncode == 0
        assert told.stdout.startswith("Offline view")
        assert "killed by signal 9 (SIGKILL)" in told.stdout


def test_a_gigabyte_of_output_takes_its_cap_of_the_disk_and_reaches_the_log_as_a_number() -> None:
    flood = "import os; block = (b'%0127d' % 7 + b'\\n') * 8192\nfor _ in range(1024): os.write(1, block)"
    with running() as system:
        done = system.relctl("run", "--name", "flood", "--wait", "--quiet", "--", sys.executable, "-c", flood)
        assert done.returncode == 0
        path = Path(output_path(str(system.data_dir), "flood"))
        assert path.stat().st_size == 1024 << 20
        wait_until(lambda: path.stat().st_blocks * 512 <= 80 << 20, 30, "the oldest part has been given back")

        def counted() -> int:
            events = map(json.loads, system.relctl("--json", "logs", "flood", "-n", "all").stdout.splitlines())
            return sum(
                event["attributes"]["bytes"] if event["event_type"] == "output_skipped" else 128
                for event in events
                if event["event_type"].startswith("output")
            )

        wait_until(lambda: counted() >= 1024 << 20, 30, "every byte is told of", interval_s=0.5)
        assert counted() == 1024 << 20
        assert system.answers("event_logger")
        rss_kib = int(Path(f"/proc/{system.pid('event_logger')}/statm").read_text().split()[1]) * 4
        assert rss_kib < 96 * 1024
        system.stop()
