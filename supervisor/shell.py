"""The launcher's one loop: what happens is told to the core, what the core wants is done.

No thread, no ZeroMQ, no database, no wait for a disk. Everything the loop waits for is a descriptor (exits, control
connections, signals) or the next deadline.
"""

import json
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from actors.runtime import paths
from actors.runtime.control_client import caller_name, unnamed
from actors.runtime.identity import boot_id, own_identity
from actors.runtime.journal import new_entry
from actors.runtime.liveness import LAUNCHER_SLOT, ProcessRecord, ProcessState
from actors.runtime.process import register_stacks
from actors.runtime.verdict import next_tick
from actors.runtime.version import VERSION
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import BROKER, LAUNCHER, WATCHDOG
from protocol.severity import Severity
from supervisor import console
from supervisor.control import ControlServer, Refusals, Request, listen_local, listen_tcp
from supervisor.copies import DurableCopies
from supervisor.core import Supervisor
from supervisor.desk import Desk
from supervisor.fleet import Fleet
from supervisor.ground import Ground, clear, run_info
from supervisor.keeping import keep, kept
from supervisor.memory import Moment, RestartsFile
from supervisor.model import (
    Effect,
    Exit,
    Kill,
    Leave,
    MarkStop,
    Persist,
    Phase,
    RecordRecovery,
    RecordRestart,
    Remembered,
    Say,
    Spawn,
    State,
    Terminate,
)
from supervisor.notify import Notifications
from supervisor.notify_core import Message
from supervisor.orphans import Orphanage
from supervisor.port import ProcessControl
from supervisor.programs import Roster
from supervisor.records import Records
from supervisor.settings import Settings
from supervisor.signals import Signals
from supervisor.slots import record_of_launcher
from supervisor.takeover import Takeover, take_over
from supervisor.upward import Standing, upward_of
from supervisor.wake import Wake
from supervisor.watch import Watch

READINESS_POLL_S: Final = 0.005
"""How often the board is read while a process starts."""
CALM_S: Final = 0.005
"""How long after the last start what is not urgent goes on waiting: the started one is answering its first requests."""
EXIT_POLL_S: Final = 0.1
"""How often processes are looked at whose exit wakes nobody up."""
SHOW_INTERVAL_S: Final = 5.0
"""How often the board is brought up to date when nothing happens: restarts age out of the period."""
LATE_TURN_TICKS: Final = 3.0
AT_REST: Final = frozenset({State.READY, State.QUARANTINED, State.STOPPED})
"""The states of a process that is on no way: waiting longer would not make the system any more ready."""
FAREWELL_S: Final = 2.0
"""How long the last durable copies may take before the launcher leaves without them."""


class Replaced(Exception):
    """Another launcher rules the board; this one leaves without touching anything."""


class GroundLostError(Exception):
    """The runtime directory was removed, as some systems do when their user logs out."""


class Shell:
    """One launcher, from taking over to leaving."""

    def __init__(
        self, settings: Settings, ground: Ground, control: ProcessControl, signals: Signals, roster: Roster
    ) -> None:
        """Wire the parts, and take over: from here on this launcher rules the board.

        Raises:
            OverBudgetError: this launcher's own restarts are used up; nothing has been touched.
        """
        self._settings = settings
        self._ground = ground
        self._port = control
        self._signals = signals
        self._selector = _new_selector()
        self._selector.register(signals.descriptor, selectors.EVENT_READ, self._take_signals)
        self._records = Records(ground.runtime_dir)
        self._copies = DurableCopies(control, self._selector)
        self._memory = RestartsFile(self._runtime(paths.RESTARTS_FILE), self._data(paths.RESTARTS_FILE), self._copies)
        self._fleet = Fleet(settings, ground, control, self._selector)
        self._orphans = Orphanage(ground.runtime_dir, control, self._fleet.own_pids, self._records.say)
        self._notify = Notifications(ground.runtime_dir, self._selector, self._fleet.life, self._heard)
        self._wake = Wake(ground.runtime_dir, self._selector, lambda now: self._do(self._desk.hung(now)))
        self._watch = Watch(settings, ground)
        self._upward = upward_of(os.environ, os.getpid(), successor=settings.successor)
        self._slot = ground.board.slots[LAUNCHER_SLOT]
        self._board_file = _file_identity(ground.board.path)
        self._identity = own_identity()
        now = time.monotonic()
        past = self._memory.load(self._moment(now), settings.budget.period_s)
        self._taken = take_over(settings, ground, past, now)
        self._own = self._taken.own
        late_turn_s = settings.supervision.tick_s * LATE_TURN_TICKS
        specs = [*settings.specs(), *map(roster.child_spec, roster.specs)]
        self._core = Supervisor.of(specs, self._taken.remembered, late_turn_s)
        past = {name: past for name, past in self._taken.remembered.items() if name not in self._core.children}
        self._desk = Desk(roster, self._core, self._fleet, past)
        self._server = self._open_control()
        self._refusals = Refusals()
        self._effects: deque[Effect] = deque()
        self._prepared = False
        self._downs: list[Request] = []
        self._next_tick = self._next_show = self._calm_at = 0.0
        self._changed = False
        self._exit_code: int | None = None
        self._announced = False
        self._kept_by = (0, 0)

    # --- from beginning to end ------------------------------------------------------------------------------------

    def run(self) -> int:
        """Supervise until the system is stopped; return the exit code.

        Raises:
            GroundLostError: nobody is left, and everything has to begin anew elsewhere.
        """
        self._begin()
        try:
            while self._exit_code is None:
                self._turn()
        except Replaced:
            console.say("another launcher has taken over and goes on with everything")
            return 0
        except GroundLostError:
            self._abandon()
            raise
        self._leave()
        return self._exit_code

    def close_inherited(self) -> None:
        """In a forked child: drop every descriptor that is the launcher's alone."""
        self._ground.lock.close_inherited()
        self._server.close_inherited()
        self._fleet.close_inherited()
        self._notify.close_inherited()
        self._wake.close_inherited()
        self._copies.close_inherited()
        self._signals.close_inherited()

    def _begin(self) -> None:
        taken, now = self._taken, time.monotonic()
        register_stacks(self._ground.runtime_dir, LAUNCHER_SLOT)
        self._show_own(now)  # and nothing of the others yet: what the board says of them is still needed
        if not taken.running:
            self._prepare()
        kept = self._kept(taken)
        self._notify.inherit(kept)
        for name, identity in taken.running.items():
            self._fleet.adopt(name, taken.found[name].incarnation, identity, heard=name in kept)
            self._listen(name)
            self._show_to_orphans(name, taken.found[name].incarnation, forked=False)
        self._orphans.inherit((name, taken.found[name].incarnation) for name in taken.running)
        self._notify.inherit({})
        for name in taken.found.keys() - taken.running.keys():
            self._fleet.end_rest(name, taken.found[name].incarnation)
        self._orphans.tick(now)  # before anybody is started in place of those whose orphans they are
        if taken.predecessor is not None:
            self._records.restart(taken.predecessor)
        self._do([Persist()])  # this launcher's own restart, before it does anything that it may die of
        self._do(self._core.begin(taken.found, now))
        self._own.state, self._own.since = State.READY, time.monotonic()
        self._tell_beginning(taken)
        self._show(now)
        if taken.running:
            self._prepare()  # only now: nobody waits for it

    def _kept(self, taken: Takeover) -> dict[str, socket.socket]:
        """Return the programs' sockets that have outlived the launcher before, with what waits in them."""
        gentle = any(self._core.children[name].spec.gentle for name in taken.running)
        return kept(self._ground.runtime_dir) if gentle and WATCHDOG in taken.running else {}

    def _turn(self) -> None:
        ready = self._selector.select(self._wait_s(time.monotonic()))
        self._check_ground()  # before anything that a thawed launcher might do
        now = time.monotonic()
        self._slot.beat(int(now * 1000))
        for key, mask in ready:
            key.data(mask, now)
        for name, incarnation, exit_ in self._fleet.ended():
            self._notify.drain(name, now)  # its last words may be that it leaves
            self._orphans.ended(name, incarnation, now)
            self._do(self._core.exited(name, incarnation, exit_, now))
        for child in self._fleet.newly_ready(self._core.children):
            self._became_ready(child.spec.name, child.incarnation, now)
        if now >= self._next_tick:
            self._next_tick = next_tick(now, self._settings.supervision.tick_s)
            self._tick(now)
        self._do(self._core.turn(now))
        self._show(now)
        self._have_kept()
        if self._upward is not None:
            self._upward.turn(now, self._standing())
        calm = now >= self._calm_at and not self._is_starting()
        self._copies.poll(hurried=not calm)
        if calm and self._core.phase is Phase.RUNNING:
            self._port.provide()

    def _have_kept(self) -> None:
        """Have the watchdog hold the programs' sockets too, whenever they or it have changed."""
        revision = self._notify.revision
        watchdog = self._core.children.get(WATCHDOG)
        if revision and watchdog is not None and watchdog.state is State.READY:
            wanted = (watchdog.incarnation, revision)
            if wanted != self._kept_by and keep(self._ground.runtime_dir, self._notify.sockets):
                self._kept_by = wanted

    def _tick(self, now: float) -> None:
        self._server.expire(now)
        self._tell_refused(self._refusals.due(self._server.refused, now))
        self._tell_strangers(self._notify.refused_since(now))
        self._orphans.tick(now)
        self._do(self._desk.hung(now))
        for hung in self._watch.tick(now, time.time(), self._core.judges()):
            self._do(self._core.judged_hung(hung.name, hung.incarnation, hung.cause, hung.evidence, now))

    def _tell_refused(self, count: int) -> None:
        if count:
            message = f"refused on the control socket: {count} times somebody who may not, or no request at all"
            self._records.say(Say(Severity.WARN, "clients_refused", message, LAUNCHER), count=count)

    def _tell_strangers(self, count: int) -> None:
        if count:
            message = f"refused on the programs' notification sockets: {count} messages of strangers, or none at all"
            self._records.say(Say(Severity.WARN, "notifications_refused", message, LAUNCHER), count=count)

    def _listen(self, name: str) -> None:
        """Hear what a program says of itself, from before its first life on."""
        if self._core.children[name].spec.gentle:
            path = self._notify.open(name)
            if path is not None:
                self._fleet.notify_sockets[name] = path

    def _heard(self, name: str, incarnation: int, message: Message, now: float) -> None:
        if message.hang_timeout_s is not None:
            self._fleet.set_hang_timeout(name, message.hang_timeout_s)
        if message.main_pid:
            self._fleet.follow(name, message.main_pid)
        if message.errno:
            self._fleet.set_errno(name, message.errno)
        if message.reloading or message.ready:
            self._fleet.set_reloading(name, message.reloading)
        if message.status is not None:
            self._fleet.set_activity(name, message.status)
        if message.stacks_signal:
            self._fleet.say_of(name, stacks_signal=message.stacks_signal)
        if message.beat:
            self._fleet.beat(name, now)
        if message.extend_s is not None:
            self._core.extend(name, message.extend_s, now)
        if message.stopping:
            self._core.says_stopping(name, incarnation)
        if message.ready and self._fleet.heeds_ready(name):
            self._became_ready(name, incarnation, now)
        if message.hung:
            self._do(self._core.judged_hung(name, incarnation, "the program said so itself", "", now))

    def _leave(self) -> None:
        """Remove what is left of the launcher itself: sockets, board, and whatever is no history."""
        self._server.close()
        self._wake.close()
        self._tell_refused(self._refusals.rest(self._server.refused))
        self._port.dismiss()
        end = time.monotonic() + FAREWELL_S
        self._copies.poll()
        while self._copies.busy and time.monotonic() < end:
            self._selector.select(READINESS_POLL_S)
            self._copies.poll()
        files = (paths.RUN_FILE, paths.RESTARTS_FILE, paths.STOP_MARKER_FILE)
        clear(self._ground.runtime_dir, frozenset(name for name in files if not self._copies.is_safe(self._data(name))))
        self._ground.lock.release()
        console.say("stopped")

    def _abandon(self) -> None:
        """End everybody who still uses a runtime directory that is gone; they would leave by themselves, but later."""
        console.say(f"{self._ground.runtime_dir} was removed; starting everything anew")
        end = time.monotonic() + FAREWELL_S
        self._fleet.kill_all()
        self._port.dismiss()
        while self._fleet.anybody and time.monotonic() < end:
            self._selector.select(READINESS_POLL_S)
            for _ in self._fleet.ended():
                pass
        self._port.dismiss()
        self._server.close()
        self._wake.close()
        self._selector.close()
        self._ground.lock.release()

    # --- what happens ---------------------------------------------------------------------------------------------

    def _take_signals(self, _mask: int, now: float) -> None:
        for name in self._signals.take():
            if self._core.phase is Phase.RUNNING:
                self._do(self._core.stop(name, now))
            elif name == "SIGINT":
                console.say("interrupted again: killing whoever is left")
                self._do(self._core.force(now))

    def _became_ready(self, name: str, incarnation: int, now: float) -> None:
        self._calm_at = now + CALM_S
        effects = self._core.became_ready(name, incarnation, now)
        self._do(effects)
        child = self._core.children.get(name)
        if (
            effects
            and child is not None
            and child.spec.gentle
            and not any(isinstance(item, RecordRecovery) for item in effects)
        ):
            console.say(f"{name} is ready (pid {self._fleet.pid(name)})")
        if name == BROKER:  # it may have had to bind other ports, and have said so in run.json
            self._copies.request(self._runtime(paths.RUN_FILE), self._data(paths.RUN_FILE))
        children = [child for child in self._core.children.values() if not child.spec.gentle]
        if not self._announced and all(child.state is State.READY for child in children):
            self._announced = True
            took_s = now - self._settings.started_at
            where = _short(self._settings.data_dir)
            console.say(f"all {len(children) + 1} processes ready in {took_s:.1f} s (data in {where})")

    def _marked(self, durable: bool) -> None:
        if not durable:
            message = "the stop marker could not be made durable: after a reboot nothing will know of this stop"
            self._records.say(Say(Severity.ERROR, "stop_not_durable", message, LAUNCHER))
        self._do(self._core.stop_marked(time.monotonic()))
        self._answer_downs(durable=durable)

    def _handle(self, request: Request) -> None:
        now = time.monotonic()
        try:
            match request.op:
                case "ping":
                    request.reply(self._about(now))
                case "status":
                    request.reply(
                        self._about(now) | {"phase": self._core.phase.name.lower(), "processes": self._told()}
                    )
                case "down":
                    self._do(self._core.stop(request.who, now))
                    self._downs.append(request)
                    if self._core.phase is not Phase.MARKING:
                        self._answer_downs(durable=self._copies.is_safe(self._data(paths.STOP_MARKER_FILE)))
                case "start" | "stop" | "restart":
                    self._do(self._core.command(request.op, request.name, request.who, now))
                    state = self._core.children[request.name].state
                    request.reply({"name": request.name, "state": state})
                    self._show(now)
                case "run":
                    self._do(self._desk.run(request, now))
                    self._answer_program(request, now)
                case "adopt":
                    self._do(self._desk.adopt(request, now))
                    self._answer_program(request, now)
                case "forget":
                    self._do(self._desk.forget(request, now))
                    self._notify.close(request.name)
                    request.reply({"name": request.name})
                case _:
                    known = "It knows ping, status, start, stop, restart, run, adopt, forget and down."
                    raise LocalError(ErrorCode.UNKNOWN_OPERATION, f"no such operation: {request.op!r}", known)
        except ReliabilityError as error:
            request.fail(error)

    def _answer_program(self, request: Request, now: float) -> None:
        self._show(now)
        name = request.fields["program"]["name"]
        self._listen(name)
        child = self._core.children[name]
        answer = {"name": name, "state": child.state, "incarnation": child.incarnation}
        request.reply(answer | {"notify_socket": self._fleet.notify_sockets.get(name, "")})

    def _answer_downs(self, *, durable: bool) -> None:
        for request in self._downs:
            request.reply({"stopping": True, "durable": durable})
        self._downs.clear()

    # --- what the core wants --------------------------------------------------------------------------------------

    def _do(self, effects: Iterable[Effect]) -> None:
        """Carry effects out in their order; what follows from them comes after all that is already waiting."""
        idle = not self._effects
        self._effects.extend(effects)
        self._changed |= bool(self._effects)
        if not idle:
            return
        while self._effects:
            self._do_one(self._effects[0])
            self._effects.popleft()

    def _do_one(self, effect: Effect) -> None:
        match effect:
            case Persist():
                self._remember()
            case Spawn(name):
                self._spawn(name)
            case Terminate(name):
                self._fleet.terminate(self._core.children[name], time.monotonic())
            case Kill(name):
                self._fleet.kill(self._core.children[name], time.monotonic())
            case RecordRestart():
                self._records.restart(effect)
            case RecordRecovery():
                self._records.recovery(effect)
            case Say():
                self._records.say(effect)
            case MarkStop(who):
                self._mark_stop(who)
            case Leave(exit_code):
                self._exit_code = exit_code

    def _remember(self) -> None:
        remembered = (
            self._desk.past | self._core.remembered() | {LAUNCHER: Remembered(self._own.incarnation, self._own.charges)}
        )
        try:
            self._memory.save(remembered, self._moment(time.monotonic()))
        except OSError as error:
            message = f"the restart budgets cannot be written down: {error.strerror}"
            self._records.say(Say(Severity.ERROR, "memory_failed", message, LAUNCHER))

    def _spawn(self, name: str) -> None:
        self._prepare()
        self._listen(name)
        now = time.monotonic()
        child = self._core.children[name]
        try:
            self._fleet.spawn(child, now)
        except OSError as error:
            exit_ = Exit(f"could not be started: {error.strerror}")
            self._do(self._core.exited(name, child.incarnation, exit_, now))
        else:
            self._show_to_orphans(name, child.incarnation, forked=True)

    def _show_to_orphans(self, name: str, incarnation: int, *, forked: bool) -> None:
        main, life = self._fleet.main_process(name), self._fleet.life(name)
        if main is not None and life is not None:
            self._orphans.began(name, incarnation, main, life.invocation, forked=forked)

    def _mark_stop(self, who: str) -> None:
        self._ground.board.stopping = True
        marker = self._runtime(paths.STOP_MARKER_FILE)
        entry = new_entry("stop", by=who)
        try:
            paths.write_atomically(marker, json.dumps(entry).encode(), sync=False)
        except OSError:
            self._marked(durable=False)
            return
        self._copies.request(marker, self._data(paths.STOP_MARKER_FILE), lambda durable: self._marked(durable=durable))

    def _prepare(self) -> None:
        """Have the port load what the children run, once."""
        if self._prepared:
            return
        self._prepared = True
        modules = [item.module for item in self._settings.definitions if item.module]
        for module, problem in self._port.prepare(modules).items():
            message = (
                f"{module} cannot be loaded ahead, so its process starts slowly: {problem.strip().splitlines()[-1]}"
            )
            self._records.say(Say(Severity.ERROR, "import_failed", message, LAUNCHER), details=problem)

    # --- what the world sees --------------------------------------------------------------------------------------

    def _show(self, now: float) -> None:
        """Bring the board up to date."""
        self._changed, self._next_show = False, now + SHOW_INTERVAL_S
        self._show_own(now)
        self._fleet.show(self._core.children, now)
        if self._core.phase is not Phase.MARKING and self._downs:
            self._answer_downs(durable=False)

    def _show_own(self, now: float) -> None:
        own = self._own
        if self._core.phase is not Phase.RUNNING and own.state is not State.STOPPING:
            own.state, own.since = State.STOPPING, now
        process = ProcessRecord(
            self._identity.pid, self._identity.start_time, own.incarnation, ProcessState(own.state), version=VERSION
        )
        if self._slot.process.read() != process:
            self._slot.process.write(process)
        record = record_of_launcher(own, self._identity, self._settings.supervision.hang_timeout_s, now)
        if self._slot.launcher.read() != record:
            self._slot.launcher.write(record)

    def _standing(self) -> Standing:
        own = [child.state for child in self._core.children.values() if not child.spec.gentle]
        stopping = self._core.phase is not Phase.RUNNING
        count = f"{1 + own.count(State.READY)} of {1 + len(own)} processes ready"
        whole = all(state in AT_REST for state in own)
        return Standing(whole, stopping, "stopping" if stopping else count)

    def _about(self, now: float) -> dict[str, Any]:
        return {
            "name": LAUNCHER,
            "pid": self._identity.pid,
            "incarnation": self._own.incarnation,
            "state": self._own.state,
            "uptime_s": round(now - self._own.started_at, 3),
            "version": VERSION,
        }

    def _told(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "state": child.state, "incarnation": child.incarnation, "wanted": child.wanted}
            for name, child in self._core.children.items()
        ]

    def _open_control(self) -> ControlServer:
        token = paths.read_or_make_token(self._ground.runtime_dir)
        if self._ground.portable:
            earlier = self._ground.previous.control if self._ground.previous else ""
            listener, address = listen_tcp(earlier)
        else:
            address = self._runtime(paths.CONTROL_SOCKET)
            listener = listen_local(address)
        run_file = self._runtime(paths.RUN_FILE)
        paths.write_atomically(run_file, run_info(self._ground, address).to_json().encode(), sync=False)
        self._copies.request(run_file, self._data(paths.RUN_FILE))
        return ControlServer(listener, token if self._ground.portable else None, self._selector, self._handle)

    def _tell_beginning(self, taken: Takeover) -> None:
        mode = "portable ports" if self._ground.portable else "POSIX ports"
        message = f"launcher {self._own.incarnation} began with {mode}; {len(taken.running)} processes were running"
        severity = Severity.NOTICE if taken.running else Severity.INFO
        user = "" if self._settings.successor else caller_name() or unnamed()
        said = Say(severity, "launcher_started", f"{message}; started by {user or 'a survivor'}", LAUNCHER)
        self._records.say(said, successor=self._settings.successor, user=user)
        if taken.predecessor is not None:
            recovery_s = max(0.0, time.monotonic() - taken.predecessor_seen_at)
            self._records.recovery(RecordRecovery(LAUNCHER, taken.predecessor.incarnation, recovery_s))

    # --- helpers --------------------------------------------------------------------------------------------------

    def _wait_s(self, now: float) -> float:
        until = self._next_tick
        deadline = self._core.next_deadline()
        if deadline is not None:
            until = min(until, deadline)
        if self._fleet.needs_polling:
            until = min(until, now + EXIT_POLL_S)
        if self._upward is not None:
            until = min(until, self._upward.due_at)
        if self._is_starting():
            until = min(until, now + READINESS_POLL_S)
        elif now < self._calm_at:
            until = min(until, self._calm_at)
        return max(0.0, until - now)

    def _is_starting(self) -> bool:
        return any(child.state is State.STARTING for child in self._core.children.values())

    def _check_ground(self) -> None:
        if self._ground.board.epoch != self._own.incarnation:
            raise Replaced
        file = _file_identity(self._ground.board.path)
        if file is None:
            raise GroundLostError
        if file != self._board_file:
            raise Replaced

    def _moment(self, now: float) -> Moment:
        return Moment(now, time.time(), boot_id())

    def _runtime(self, name: str) -> str:
        return os.path.join(self._ground.runtime_dir, name)

    def _data(self, name: str) -> str:
        return os.path.join(self._settings.data_dir, name)


def _new_selector() -> selectors.BaseSelector:
    # poll, not epoll: nothing in the kernel that a forked child would share.
    return selectors.PollSelector() if hasattr(selectors, "PollSelector") else selectors.SelectSelector()


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _short(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)
