"""The diagnostics bundle: what somebody needs to see who is to find out, elsewhere, what went wrong here.

Every collector has its own deadline and runs beside the others; one that fails or hangs is an entry in the log, never
the end. So a bundle can be made with every process of the system dead or frozen, with a damaged database, and with a
disk that answers no more. Nothing reaches the zip but through the redactor.

In a process of its own: `python -P -m app.reliability.cli diagnostics --json`. It opens the event log's database, which
a host's process never does.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from actors.runtime.redaction import Redactor
from app.reliability._diagnostics_bundle import Failure, Findings, Text, seal
from app.reliability._diagnostics_sources import COLLECTORS, Collector, Place, locate, read_secrets
from protocol.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from app.reliability.client import Client

COLLECT_S_MAX: Final = 20.0
"""For all collectors together; each has its own, shorter deadline."""
LOCATE_S_MAX: Final = 2.0
BUNDLES_KEPT_MAX: Final = 10
"""In the data directory, where bundles go that nobody gave a place."""
FOLDER: Final = "diagnostics"
_PREFIX: Final = "relctl-diagnostics-"
_SUFFIX: Final = ".zip"


@dataclass(frozen=True, slots=True)
class BundleResult:
    """A bundle that was made.

    Attributes:
        path: where it lies, absolute; only its owner may read it.
        bytes: its size.
        entries: files in it.
        redactions: how often something was taken out.
        not_collected: what is missing in it, and why.
    """

    path: str
    bytes: int
    entries: int
    redactions: int
    not_collected: tuple[Failure, ...] = ()


@dataclass(slots=True)
class _Run:
    """One collector at work."""

    collector: Collector
    findings: Findings = field(default_factory=Findings)
    problem: str = "it had not finished in time"
    took_s: float = 0.0
    thread: threading.Thread | None = None


def create_bundle(
    data_dir: str,
    output: str | None = None,
    *,
    timeout_s: float = COLLECT_S_MAX,
    collectors: Sequence[Collector] = COLLECTORS,
    progress: Callable[[str], None] = lambda _text: None,
    open_client: "Callable[[str], Client] | None" = None,
) -> BundleResult:
    """Collect, redact, and seal a bundle about the system in `data_dir`. Blocks for at most about `timeout_s`.

    Args:
        data_dir: absolute data directory.
        output: the zip to write, or a directory for it; None for ``DATA/diagnostics/``, where few are kept.
        timeout_s: for collecting.
        collectors: what to ask; tests put others here.
        progress: is told what is being waited for.
        open_client: makes a client of the system; None for the real one.

    Raises:
        LocalError: it cannot be written where it shall lie, or a known secret would be in it; then nothing is left.
    """
    began = time.monotonic()
    end = began + timeout_s
    at = datetime.fromtimestamp(time.time(), UTC)
    place = _within(LOCATE_S_MAX, lambda: locate(data_dir), Place.guess(data_dir))
    place = replace(place, open_client=open_client)
    secrets = _within(LOCATE_S_MAX, lambda: read_secrets(place), None)
    redactor = Redactor(secrets.values if secrets else ())
    failures = [] if secrets else [Failure("secrets", "the configuration cannot be read: only rules redact")]
    failures += [Failure("secrets", problem) for problem in (secrets.problems if secrets else ())]
    runs = [_start(collector, place, end) for collector in collectors]
    for run in runs:
        progress(f"Collecting {run.collector.name} ...")
        _finish(run, began, end)
    progress("Packing ...")
    entries = [found for run in runs for found in run.findings.taken()]
    failures += [Failure(run.collector.name, run.problem) for run in runs if run.problem]
    failures += [Failure(run.collector.name, note) for run in runs for note in tuple(run.findings.notes)]
    told = [*(_told(run) for run in runs), "", *(f"missing: {item.what}: {item.why}" for item in failures)]
    entries.append(("log.txt", Text("\n".join(told) + "\n")))
    path = _target(data_dir, output, at)
    try:
        sealed = seal(path, entries, redactor, failures, at)
    except OSError as error:
        raise _unwritable(path, error) from None
    if output is None:
        _prune(os.path.dirname(path))
    return BundleResult(path, sealed.bytes, sealed.entries, redactor.count, tuple(failures) + sealed.failures)


def _start(collector: Collector, place: Place, end: float) -> _Run:
    run = _Run(collector)
    began = time.monotonic()
    deadline = min(began + collector.limit_s, end)

    def work() -> None:
        try:
            collector.collect(place, run.findings, deadline)
            run.problem = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the others go on
            run.problem = f"{type(error).__name__}: {error}"
        run.took_s = time.monotonic() - began

    # A daemon: who waits for a disk that does not answer must not keep the process.
    run.thread = threading.Thread(target=work, name=f"collect {collector.name}", daemon=True)
    run.thread.start()
    return run


def _finish(run: _Run, began: float, end: float) -> None:
    if run.thread is not None:
        run.thread.join(max(0.0, min(began + run.collector.limit_s, end) - time.monotonic()))
    run.findings.close()


def _told(run: _Run) -> str:
    names = ", ".join(name for name, _ in run.findings.taken())
    return f"{run.collector.name}: {run.problem or 'ok'} ({run.took_s:.3f} s): {names or 'nothing'}"


def _within(limit_s: float, function: Callable[[], Any], otherwise: Any) -> Any:
    """Return what `function` returns, or `otherwise` if it fails or takes too long."""
    outcome = [otherwise]

    def work() -> None:
        try:
            outcome[0] = function()
        except (OSError, ValueError, LocalError):
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    return outcome[0]


def _target(data_dir: str, output: str | None, at: datetime) -> str:
    name = f"{_PREFIX}{at:%Y%m%dT%H%M%S}Z-{os.getpid()}{_SUFFIX}"
    if output is not None:
        path = os.path.abspath(output)
        return os.path.join(path, name) if os.path.isdir(path) else path
    folder = os.path.join(data_dir, FOLDER)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return os.path.join(folder, name)


def _prune(folder: str) -> None:
    """Keep the newest bundles; what cannot be removed stays."""
    try:
        ours = sorted(name for name in os.listdir(folder) if name.startswith(_PREFIX) and name.endswith(_SUFFIX))
        for name in ours[:-BUNDLES_KEPT_MAX]:
            os.unlink(os.path.join(folder, name))
    except OSError:
        return


def _unwritable(path: str, error: OSError) -> LocalError:
    message = f"the bundle cannot be written to {path}: {error.strerror or error}"
    return LocalError(ErrorCode.FAILED, message, "Name another place with --output FILE.")
