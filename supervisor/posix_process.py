"""One process on Linux: a pidfd, by which it is signalled and waited for, and a session, with which it ends."""

import os
import select
import signal
from typing import Final

from actors.runtime.identity import ProcessIdentity, boot_id, stat_fields
from actors.runtime.signalling import PidfdSignaller
from supervisor.port import ExitStatus
from supervisor.tree import end_carriers

GO: Final = b"\n"
"""Ends an order, and is in none."""
START_TIME: Final = 19
_PPID, _FLAGS = 1, 6
"""Places in /proc/PID/stat, counted from the state (field 3) on."""
_FORKED_ONLY: Final = 0x40
"""PF_FORKNOEXEC: a process that was forked and has executed nothing yet."""

_signaller: Final = PidfdSignaller()


class PosixProcess:
    """See `supervisor.port.Process`."""

    def __init__(self, identity: ProcessIdentity, pidfd: int, *, is_child: bool, gate: int | None = None) -> None:
        """Hold an open `pidfd` of `identity`; `gate` is the end of the pipe that a spawned one waits at."""
        self.held_in: set[int] = set()
        self.identity = identity
        self._pidfd = pidfd
        self._is_child = is_child
        self._gate = gate
        self._order = b""
        self._invocation = ""
        self._let_go = False
        self._tree: list[ProcessIdentity] = []

    @property
    def exit_fd(self) -> int | None:
        """See `Process`."""
        return self._pidfd

    def assign(self, order: bytes) -> None:
        """Have `release` say what it is to do, to one that was made without knowing."""
        self._order = order

    def end_with(self, invocation: str) -> None:
        """Have everybody end with it who carries this id of a program's life."""
        self._invocation = invocation

    def release(self) -> None:
        """See `Process`."""
        if self._gate is None:
            return
        try:
            os.write(self._gate, self._order + GO)
        except BrokenPipeError:  # it died at the gate; its pidfd says so
            pass
        self._close_gate()

    def runs_command(self) -> bool:
        """See `Process`."""
        fields = stat_fields(self.identity.pid)
        return fields is not None and not int(fields[_FLAGS]) & _FORKED_ONLY

    def poll_exit(self) -> ExitStatus | None:
        """See `Process`."""
        if not self._is_child:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(0):
                return None
        try:
            # WNOWAIT: as long as the leader is not reaped, nobody else can get its number, as a pid or as a session.
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            self._kill_rest()
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # it never was a child of ours, nor did it become one
            self._kill_rest()
            return ExitStatus()
        by_signal = ended.si_code != os.CLD_EXITED
        return ExitStatus(signal=ended.si_status) if by_signal else ExitStatus(exit_code=ended.si_status)

    def let_go(self) -> None:
        """See `Process`."""
        self._let_go = True

    def terminate(self, *, thaw: bool) -> None:
        """See `Process`."""
        self._remember_tree()
        self._signal_group(signal.SIGTERM)
        if thaw:
            self._signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """See `Process`."""
        self._remember_tree()
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._signal_group(signal.SIGKILL)
        self._kill_rest()

    def close(self) -> None:
        """See `Process`."""
        self._close_gate()  # without a word: a process that still waits there leaves
        os.close(self._pidfd)
        self.held_in.discard(self.identity.pid)

    def _close_gate(self) -> None:
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def _remember_tree(self) -> None:
        """Note the descendants now: once their parents are dead, nobody can tell any more whose they were."""
        if self._is_running():
            known = set(self._tree)
            self._tree += [identity for identity in _descendants(self.identity.pid) if identity not in known]

    def _signal_group(self, number: int) -> None:
        if not self._is_running():
            return
        try:
            os.killpg(self.identity.pid, number)
        except (ProcessLookupError, PermissionError):
            # Gone by now, or not a group leader yet: a child that is about to call setsid has no descendants.
            _signaller.send(self.identity, number)

    def _is_running(self) -> bool:
        """Whether the number is still this process's; true for a zombie of ours that was not reaped."""
        fields = stat_fields(self.identity.pid)
        return fields is not None and int(fields[START_TIME]) == self.identity.start_time

    def _kill_rest(self) -> None:
        """Kill what is left of the session and of the remembered tree, if that is not another's by now."""
        if self._let_go:
            return
        for member in session_members(self.identity):
            _signaller.send(member, signal.SIGKILL)
        for descendant in self._tree:
            _signaller.send(descendant, signal.SIGKILL)
        if self._invocation:
            end_carriers(self._invocation, _signaller, self.identity)


def session_members(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """Return the members of the session that `leader` leads or led, but for itself.

    The number of a session is nobody's pid as long as the session has members: so if the pid is somebody else's by
    now, the session has none.
    """
    fields = stat_fields(leader.pid)
    if fields is not None and int(fields[START_TIME]) != leader.start_time:
        return []
    members = []
    for pid in _pids():
        if pid != leader.pid and _session_of(pid) == leader.pid:
            identity = _identity(pid)
            if identity is not None and _session_of(pid) == leader.pid:
                members.append(identity)
    return members


def _descendants(root: int) -> list[ProcessIdentity]:
    """Return who descends from `root`, without this launcher and its own: a survivor that started it is its parent."""
    children: dict[int, list[ProcessIdentity]] = {}
    for pid in _pids():
        fields = stat_fields(pid)
        if fields is not None:
            identity = ProcessIdentity(pid, int(fields[START_TIME]), boot_id())
            children.setdefault(int(fields[_PPID]), []).append(identity)
    found: list[ProcessIdentity] = []
    todo = [root]
    while todo:
        below = [identity for identity in children.get(todo.pop(), []) if identity.pid != os.getpid()]
        found += below
        todo += [identity.pid for identity in below]
    return found


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _identity(pid: int) -> ProcessIdentity | None:
    fields = stat_fields(pid)
    return None if fields is None else ProcessIdentity(pid, int(fields[START_TIME]), boot_id())
