"""A child of the launcher that does nothing, on the real bootstrap; ``DATA/NAME.behaviour`` says what it does badly."""

import select
import signal
import sys
from pathlib import Path

from actors.runtime.arguments import ProcessArguments
from actors.runtime.liveness import ProcessState
from actors.runtime.process import ProcessRuntime, run_process


def main(arguments: ProcessArguments) -> int:
    """Run one dummy."""
    return run_process(arguments, _body)


def _body(runtime: ProcessRuntime) -> int:
    behaviour = _behaviour(runtime.arguments)
    if behaviour == "crash":
        return 1
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour != "never ready":
        runtime.set_state(ProcessState.READY)
    poller = select.poll()
    poller.register(runtime.wakeup_fd, select.POLLIN)
    while not (runtime.stop_requested or runtime.replaced()):
        runtime.beat()
        poller.poll(runtime.supervision.tick_s * 1000)
        runtime.drain_wakeup()
    return 0


def _behaviour(arguments: ProcessArguments) -> str:
    try:
        return Path(arguments.data_dir, f"{arguments.name}.behaviour").read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main(ProcessArguments.from_argv(sys.argv[1:])))
