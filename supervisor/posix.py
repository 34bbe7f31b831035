"""Process control on Linux: fork where that is safe, exec where not; pidfds; a session for every process.

A fork of the launcher, which has imported everything and opened nothing, is ready in milliseconds. The child drops
what it inherited and then waits at a gate - a pipe - until the launcher has put it on record: if the launcher dies in
between, the child reads the end of the pipe and leaves, so no process ever runs that no board knows.

Of those milliseconds most are page faults: a fork shares its pages, and has to copy each one that it touches first. So
one fork is made ahead, the spare, and waits at its gate to be told what to be.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any, Final, NoReturn, TypeAlias

from actors.runtime.arguments import ProcessArguments
from actors.runtime.identity import ProcessIdentity, boot_id, identity_of, stat_fields
from actors.runtime.process import TITLE_PREFIX
from actors.runtime.programs import INVOCATION_VARIABLE
from actors.runtime.signalling import open_pidfd
from supervisor import durable, program_launch
from supervisor.pools import fill_holes
from supervisor.port import Launch, ProgramLaunch, child_environment, open_stderr
from supervisor.posix_process import GO, START_TIME, PosixProcess
from supervisor.tree import children_of_thread

try:
    from setproctitle import setproctitle as _set_title
except ImportError:  # only cosmetic

    def _set_title(title: str) -> None:
        """Do without a title."""


Entry: TypeAlias = Callable[[Any], int]

_PR_SET_CHILD_SUBREAPER: Final = 36
EXIT_CRASHED: Final = 70
"""Exit code (EX_SOFTWARE) of a child that raised where nobody caught it."""
_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_SPARE: Final = TITLE_PREFIX + "spare"
_ORDER_BYTES_MAX: Final = select.PIPE_BUF
"""So much goes into a pipe at once or not at all, whatever its reader does."""
_FIT: Final = frozenset("RS")
"""States of a process that will read what it is told; one that was stopped, or waits for a disk, may not."""
_ALL_SIGNALS: Final = signal.valid_signals()


class PosixControl:
    """See `supervisor.port.ProcessControl`."""

    def __init__(self, drop_inherited: Callable[[], None]) -> None:
        """`drop_inherited` is called first thing in a child: it closes what belongs to the launcher alone."""
        self._drop_inherited = drop_inherited
        self._entries: dict[str, Entry] | None = None
        self._fillers: list[bytes] = []
        self._may_fork = True
        self._spare: PosixProcess | None = None
        self._condemned: list[PosixProcess] = []
        self._held: set[int] = set()
        self._children_path = ""

    def prepare(self, modules: Sequence[str]) -> dict[str, str]:
        """See `ProcessControl`: import what the children run, then keep the collector off the shared pages."""
        problems = {}
        entries: dict[str, Entry] = {}
        for name in modules:
            try:
                entries[name] = importlib.import_module(name).main
            except Exception:  # noqa: BLE001 - whatever is wrong with one module, the others still start
                problems[name] = traceback.format_exc()
        self._entries = entries
        if len(os.listdir("/proc/self/task")) > 1:
            # A thread's locks would be copied as they stand, and the thread would not.
            self._may_fork = False
            problems["*"] = "an import has started a thread: processes are executed instead of forked"
        gc.collect()
        self._fillers = self._fillers or fill_holes()
        gc.freeze()
        return problems

    def spawn(self, launch: Launch | ProgramLaunch) -> PosixProcess:
        """See `ProcessControl`."""
        if isinstance(launch, ProgramLaunch):
            self._become_subreaper()
            process = self._fork(lambda _order: program_launch.become(launch), launch.error_path)
            process.end_with(launch.environment.get(INVOCATION_VARIABLE, ""))
            return process
        entry = (self._entries or {}).get(launch.module) if self._may_fork else None
        if entry is None:
            return self._fork(_executing(launch), launch.stderr_path)
        return self._take_spare(launch) or self._fork(_calling(entry, launch), launch.stderr_path)

    def provide(self) -> None:
        """See `ProcessControl`: have a spare."""
        if self._spare is not None and self._spare.poll_exit() is not None:
            self._spare.close()
            self._spare = None
        self._condemned = [process for process in self._condemned if not _is_over(process)]
        if self._spare is None and not self._condemned and self._may_fork and self._entries:
            try:
                self._spare = self._fork(self._obey, os.devnull, _SPARE)
            except OSError:  # no room for a process: the next start does without
                return

    def dismiss(self) -> None:
        """See `ProcessControl`."""
        if self._spare is not None:
            self._spare.kill()
            self._condemned.append(self._spare)
            self._spare = None
        self._condemned = [process for process in self._condemned if not _is_over(process)]

    def adopt(self, identity: ProcessIdentity, invocation: str = "") -> PosixProcess | None:
        """See `ProcessControl`."""
        pidfd = open_pidfd(identity)
        if pidfd is None:
            return None
        process = PosixProcess(identity, pidfd, is_child=False)
        process.end_with(invocation)
        return self._hold(process)

    @property
    def sees_orphans(self) -> bool:
        """See `ProcessControl`."""
        return True

    @property
    def held(self) -> Collection[int]:
        """See `ProcessControl`."""
        return self._held

    def orphans(self, known: Sequence[ProcessIdentity]) -> list[ProcessIdentity]:
        """See `ProcessControl`: children that were not forked here; the kernel lists them in one small file."""
        strangers = [pid for pid in children_of_thread(self._children_path) if pid not in self._held]
        found = []
        for pid in strangers:
            identity = identity_of(pid)
            if identity is not None:
                found.append(identity)
            else:  # a zombie, whose number is its own until just this
                _reap(pid)
        others = [who for who in known if who.pid not in self._held and who not in found]
        return found + [who for who in others if who.is_running()]

    def _become_subreaper(self) -> None:
        """Ask to become the parent of every orphan below this process, those of processes that run already included.

        Nobody inherits that. Only a launcher that runs programs pays for what loads the C library's call.
        """
        if self._children_path:
            return
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
            self._children_path = f"/proc/{os.getpid()}/task/{os.getpid()}/children"

    def _hold(self, process: PosixProcess) -> PosixProcess:
        self._held.add(process.identity.pid)
        process.held_in = self._held
        return process

    def copy_durably(self, source: str, target: str) -> PosixProcess:
        """See `ProcessControl`."""
        process = self._fork(lambda _order: durable.copy(source, target), os.devnull)
        process.release()
        return process

    def _take_spare(self, launch: Launch) -> PosixProcess | None:
        """Return the spare, told what to be; None if there is none that would hear it."""
        order = json.dumps([launch.module, launch.stderr_path, asdict(launch.arguments)]).encode()
        if self._spare is None or len(order) >= _ORDER_BYTES_MAX:
            return None
        fields = stat_fields(self._spare.identity.pid)
        if fields is None or fields[0] not in _FIT:
            self.dismiss()
            return None
        spare, self._spare = self._spare, None
        spare.assign(order)
        return spare

    def _obey(self, order: bytes) -> int:
        """In the spare: become what the order says."""
        module, stderr_path, arguments = json.loads(order)
        _lead_stderr_to(stderr_path)
        return (self._entries or {})[module](ProcessArguments(**arguments))

    def _fork(self, run: Callable[[bytes], int], stderr_path: str, title: str = "") -> PosixProcess:
        reader, writer = os.pipe()
        # No handler of the launcher's may run in the child, where it would wake the launcher.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_child(run, stderr_path, title, reader, writer)
        except BaseException:
            os.close(writer)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reader)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # no descriptor left: without its gate the child leaves
            os.close(writer)
            os.waitpid(pid, 0)
            raise
        fields = stat_fields(pid)
        identity = ProcessIdentity(pid, int(fields[START_TIME]) if fields else 0, boot_id())
        return self._hold(PosixProcess(identity, pidfd, is_child=True, gate=writer))

    def _become_child(
        self, run: Callable[[bytes], int], stderr_path: str, title: str, reader: int, writer: int
    ) -> NoReturn:
        code = EXIT_CRASHED
        try:
            os.close(writer)
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in _HANDLED:
                signal.signal(number, signal.SIG_DFL)
            self._drop_inherited()
            for other in (*self._condemned, *filter(None, [self._spare])):
                other.close()  # above all its gate: whoever waits there waits for the last one who could open it
            _leave_standard_streams(stderr_path)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if title:
                _set_title(title)
            order = os.read(reader, _ORDER_BYTES_MAX)
            os.close(reader)
            code = run(order) if order.endswith(GO) else 0
        except SystemExit as request:
            code = request.code if isinstance(request.code, int) else EXIT_CRASHED
        except BaseException:  # noqa: BLE001 - nothing of the launcher's stack above may run in the child
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            os._exit(code)


def _leave_standard_streams(stderr_path: str) -> None:
    """Let go of the launcher's terminal, which somebody may have stopped."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    _lead_stderr_to(stderr_path)


def _lead_stderr_to(path: str) -> None:
    descriptor = open_stderr(path)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _reap(pid: int) -> None:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return


def _is_over(process: PosixProcess) -> bool:
    over = process.poll_exit() is not None
    if over:
        process.close()
    return over


def _calling(entry: Entry, launch: Launch) -> Callable[[bytes], int]:
    return lambda _order: entry(launch.arguments)


def _executing(launch: Launch) -> Callable[[bytes], int]:
    def run(_order: bytes) -> NoReturn:
        os.execve(sys.executable, launch.command(), child_environment())  # noqa: S606 - from a list, no shell

    return run
