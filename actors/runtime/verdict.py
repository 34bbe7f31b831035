"""Who hangs, and of what: pure functions of what was observed.

`HangDetector` counts the observer's own on-time ticks without the other's progress, never elapsed seconds. An observer
(watchdog, launcher, any survivor) calls `tick` once per turn of its own loop with what the board says of each peer. So
a suspended laptop, a jump of the clock or a starved observer costs nobody anything: while the observer does not tick,
nothing is counted.

What a peer is taken for - the first row that fits (`_standing`) - and what that does to its count:

========= ==================================================================== ============== ==================
standing  when                                                                 count          hung after
========= ==================================================================== ============== ==================
(new)     another incarnation or pid than before                               0, no doubts
MISSING   no such process: never a hang, whatever grace is running             0              never
STARTING  its own record is of another incarnation, or it is not ready         + 1            the start timeout
OVERDUE   it declared long work, and the cap of that lease is past             + 1            its hang timeout
TICKING   its loop has turned since the last look                              0
HOLDING   its loop itself does long work, under a lease that still runs        0
SILENT    none of these                                                        + 1            its hang timeout
========= ==================================================================== ============== ==================

Timeouts are turned into ticks of the observer, rounded up: that is a peer's window. A doubt puts its deadline off until
one whole window from now:

=============== ========================================== ==================== ================================
doubt           when                                       for whom             granted again after
=============== ========================================== ==================== ================================
OWN_TICK_LATE   the observer's own tick came late: it      all that are being   a whole window of on-time ticks;
                slept or starved                           counted              till then a late tick counts as 1
MOST_SILENT     one is due, and most peers fell silent     those that fell      a whole window in which most were
                together with it: it is the machine        silent together      not silent
`extend`        the observer had a look, and the peer      that peer            `EXTENSIONS_MAX` times in one
                wants the processor but does not get it                         silence
=============== ========================================== ==================== ================================

So whatever happens, a peer whose loop stands still is hung after a bounded number of the observer's ticks.

Stages: OK -> SUSPECT (half the window is over: look at the process) -> ASK (one tick left: ask it for its stacks) ->
HUNG (act), and back to OK as soon as it moves. With `ask_s` (programs: they beat as seldom as twice in a window, and
need time to answer): SUSPECT when a quarter of the window is left, ASK when that time is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from math import ceil, floor
from typing import Final

WINDOW_TICKS_MIN: Final = 4
"""So many silent ticks no living peer has: see `BEATS_PER_HANG_TIMEOUT`."""
LATE_FACTOR: Final = 2.0
"""An own tick is late when it comes after more than so many intervals."""
EARLY_FACTOR: Final = 0.75
"""An own tick that comes after less than so many intervals is not counted."""
SOON_FACTOR: Final = 0.8
"""After a late tick the next one comes as soon as this, and counts."""
ROUNDING: Final = 1e-6
"""A part of an interval by which a clock that has come to a multiple may seem to be before it."""
BEATS_PER_HANG_TIMEOUT: Final = 5
"""A loop beats so many times in its hang timeout or more often, or else once per tick of the launcher."""
ONSET_TICKS_MIN: Final = 3
ONSET_TICKS_MAX: Final = 5
"""Peers fell silent together when their counts differ by no more than lies between two beats, which each makes in a
phase of its own: no more than four ticks of the watchdog."""
MOST_OF_MIN: Final = 3
"""With fewer peers than this nothing follows from most of them being silent."""
EXTENSIONS_MAX: Final = 3


class Standing(StrEnum):
    """What an observation says of a peer; see the module's first table."""

    MISSING = "missing"
    STARTING = "starting"
    OVERDUE = "overdue"
    TICKING = "ticking"
    HOLDING = "holding"
    SILENT = "silent"


COUNTED: Final = frozenset({Standing.STARTING, Standing.OVERDUE, Standing.SILENT})


class Stage(IntEnum):
    """How far the count against a peer has come."""

    OK = 0
    SUSPECT = 1
    ASK = 2
    HUNG = 3


class Doubt(StrEnum):
    """Why deadlines were put off."""

    OWN_TICK_LATE = "own_tick_late"
    MOST_SILENT = "most_silent"


@dataclass(frozen=True, slots=True)
class Observation:
    """What the board and the process table say of one peer at one tick.

    Attributes:
        key: its slot.
        incarnation: its life, as the launcher records it.
        pid: its process id, as the launcher records it.
        running: whether that very process exists (a zombie does not).
        registered: whether the process itself has written its record of that incarnation.
        ready: whether it says that it is past its start.
        tick: turns of its loop.
        lease_until_s: monotonic time at which its declared work counts as stuck; 0 without a lease.
        lease_holds_loop: whether its loop itself does that work.
        hang_timeout_s: silence that counts as a hang.
        start_timeout_s: time it has to become ready.
    """

    key: int
    incarnation: int
    pid: int
    running: bool
    registered: bool
    ready: bool
    tick: int
    lease_until_s: float
    lease_holds_loop: bool
    hang_timeout_s: float
    start_timeout_s: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the detector says of one peer after a tick.

    Attributes:
        key: its slot.
        incarnation: the life that was judged.
        standing: what it was taken for.
        stage: how far the count has come.
        changed: whether the stage is another than after the tick before.
        silent_ticks: the count.
        silent_s: time since the count began.
    """

    key: int
    incarnation: int
    standing: Standing
    stage: Stage
    changed: bool
    silent_ticks: int
    silent_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """All judgements of one tick, the doubt that put deadlines off in it, and how late the observer itself was."""

    judgements: tuple[Judgement, ...] = ()
    doubt: Doubt | None = None
    gap_s: float = 0.0


@dataclass(slots=True)
class _Peer:
    incarnation: int
    pid: int
    tick: int
    window: int
    standing: Standing = Standing.TICKING
    count: int = 0
    counted_since: float = 0.0
    deadline: int = WINDOW_TICKS_MIN
    extensions: int = 0
    stage: Stage = Stage.OK

    def clear(self) -> None:
        """It moves: nothing is held against it."""
        self.count = self.extensions = 0
        self.deadline = self.window

    def put_off(self) -> None:
        """Grant one whole window from now."""
        self.deadline = self.count + self.window

    @property
    def onset(self) -> int:
        """Within how many ticks the last beats of peers lie that fell silent together."""
        return min(ONSET_TICKS_MAX, max(ONSET_TICKS_MIN, 1 + ceil(self.window / BEATS_PER_HANG_TIMEOUT)))

    def next_stage(self, ask_ticks: int) -> Stage:
        """Return the stage that the count has come to; `ask_ticks` is 0 for who is asked in the last tick."""
        left = self.deadline - self.count
        ask = max(1, min(ask_ticks, self.window // 4))
        if self.count == 0 or left > (max(ask + 1, self.window // 4) if ask_ticks else self.window // 2):
            return Stage.OK
        return Stage.HUNG if left <= 0 else Stage.ASK if left <= ask else Stage.SUSPECT


@dataclass(slots=True)
class _Grace:
    """Granted once, and again only after a whole window without disturbance."""

    armed: bool = True
    quiet_ticks: int = 0

    def asked(self, *, disturbed: bool, wanted: bool, window: int) -> bool:
        """Take note of one tick; tell whether grace is granted in it."""
        if not disturbed:
            self.quiet_ticks += 1
            self.armed = self.armed or self.quiet_ticks >= window
            return False
        self.quiet_ticks = 0
        granted = wanted and self.armed
        self.armed = self.armed and not granted
        return granted


class HangDetector:
    """Judges any number of peers; one per observer. See the module for its rules."""

    def __init__(self, interval_s: float, ask_s: float = 0.0) -> None:
        """`interval_s` is the time between two ticks of the observer; `ask_s` is told of in the module, at Stages."""
        self._interval_s = interval_s
        self._ask_ticks = ceil(ask_s / interval_s)
        self._last_tick: float | None = None
        self._peers: dict[int, _Peer] = {}
        self._own_tick = _Grace()
        self._machine = _Grace()

    def tick(self, now: float, observations: Iterable[Observation]) -> Round:
        """Count one tick of the observer and judge the peers; peers that are not observed any more are forgotten.

        A call that comes too early counts nothing and returns an empty round.
        """
        gap_s = 0.0 if self._last_tick is None else now - self._last_tick
        if self._last_tick is not None and gap_s < self._interval_s * EARLY_FACTOR:
            return Round()
        self._last_tick = now
        seen = {item.key: item for item in observations}
        self._peers = {key: self._observed(now, item) for key, item in seen.items()}
        doubt = self._doubt(late=gap_s > self._interval_s * LATE_FACTOR)
        judgements = []
        for key, peer in self._peers.items():
            before, peer.stage = peer.stage, peer.next_stage(self._ask_ticks)
            silent_s = now - peer.counted_since if peer.count else 0.0
            judgements.append(
                Judgement(key, peer.incarnation, peer.standing, peer.stage, peer.stage != before, peer.count, silent_s)
            )
        return Round(tuple(judgements), doubt, gap_s)

    def stage_of(self, item: Observation) -> Stage:
        """Return the stage of a peer after the last tick; OK if it is another life since, or has moved."""
        peer = self._peers.get(item.key)
        if peer is None or (peer.incarnation, peer.pid, peer.tick) != (item.incarnation, item.pid, item.tick):
            return Stage.OK
        return peer.stage

    def extend(self, key: int) -> bool:
        """Put a peer's deadline off by one window; False if this silence has had `EXTENSIONS_MAX` of them."""
        peer = self._peers.get(key)
        if peer is None or peer.extensions >= EXTENSIONS_MAX:
            return False
        peer.extensions += 1
        peer.put_off()
        return True

    def _observed(self, now: float, item: Observation) -> _Peer:
        """Apply the first table to one peer."""
        peer = self._peers.get(item.key)
        if peer is None or (peer.incarnation, peer.pid) != (item.incarnation, item.pid):
            peer = _Peer(item.incarnation, item.pid, item.tick - 1, WINDOW_TICKS_MIN)
        standing = _standing(now, item, peer.tick)
        window = self._ticks(item.start_timeout_s if standing is Standing.STARTING else item.hang_timeout_s)
        started = (peer.standing is Standing.STARTING) != (standing is Standing.STARTING)
        if standing not in COUNTED or started or window != peer.window:
            peer.window = window
            peer.clear()
        if standing in COUNTED:
            peer.counted_since = peer.counted_since if peer.count else now
            peer.count += 1
        peer.standing = standing
        peer.tick = item.tick
        return peer

    def _doubt(self, *, late: bool) -> Doubt | None:
        """Apply the second table to all."""
        peers = [peer for peer in self._peers.values() if peer.standing is not Standing.MISSING]
        counted = [peer for peer in peers if peer.standing in COUNTED]
        window = max((peer.window for peer in peers), default=WINDOW_TICKS_MIN)
        if self._own_tick.asked(disturbed=late, wanted=True, window=window):
            for peer in counted:
                peer.put_off()
            return Doubt.OWN_TICK_LATE
        silent = [peer for peer in peers if peer.standing is Standing.SILENT and peer.count > peer.onset]
        together = max((_alike(peer, silent) for peer in silent if peer.count >= peer.deadline), key=len, default=[])
        wanted = _are_most(together, peers)
        if self._machine.asked(disturbed=_are_most(silent, peers), wanted=wanted, window=window):
            for peer in together:
                peer.put_off()
            return Doubt.MOST_SILENT
        return None

    def _ticks(self, timeout_s: float) -> int:
        return max(WINDOW_TICKS_MIN, ceil(timeout_s / self._interval_s))


def _standing(now: float, item: Observation, tick_before: int) -> Standing:
    """The first table: first row that fits."""
    if not item.running:
        return Standing.MISSING
    if not item.registered or not item.ready:
        return Standing.STARTING
    if item.lease_until_s and now > item.lease_until_s:
        return Standing.OVERDUE
    if item.tick != tick_before:
        return Standing.TICKING
    return Standing.HOLDING if item.lease_until_s and item.lease_holds_loop else Standing.SILENT


def _alike(one: _Peer, among: list[_Peer]) -> list[_Peer]:
    """Return those that fell silent together with `one`."""
    return [peer for peer in among if abs(peer.count - one.count) <= one.onset]


def _are_most(some: list[_Peer], of: list[_Peer]) -> bool:
    return len(of) >= MOST_OF_MIN and 2 * len(some) > len(of)


class Cause(StrEnum):
    """Why a process makes no progress, in the words that people read."""

    FROZEN = "frozen (stopped by a signal)"
    TRACED = "stopped by a debugger"
    DID_NOT_START = "did not start"
    LEASE_OVERRUN = "lease overrun"
    WAITING_ON_DISK = "waiting on disk"
    STUCK_IN_LOOP = "stuck in a loop"
    STARVED = "starved"
    BLOCKED = "blocked"
    OVER_MEMORY = "over its memory limit"
    MACHINE_SLEPT = "machine slept"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Look:
    """What the system says of a process at one moment; None where this system does not say.

    Attributes:
        at: monotonic time, s.
        state: of its main thread: R runs or wants to, S sleeps, D waits for a device, T is stopped, t is traced.
        cpu_s: processor time that all its threads have had.
        waited_s: time that its main thread has been waiting for a processor.
        waits_in: kernel function in which its main thread sleeps.
        answers_stacks: whether it would answer a request for its stacks rather than die of it.
        pressure: share of time, in percent over ten seconds, in which some task of the machine waited for each of
            cpu, io and memory.
    """

    at: float
    state: str
    cpu_s: float
    waited_s: float | None = None
    waits_in: str = ""
    answers_stacks: bool = False
    pressure: Mapping[str, float] = field(default_factory=dict)


LOOP_CPU_SHARE: Final = 0.5
"""A process that had this share of one processor between two looks, and no turn of its loop, runs in circles."""
LOOP_CPU_S: Final = 0.5
"""So does one that wants the processor all the time and had this much of it: a turn of the loop takes milliseconds."""
RUNNABLE_SHARE: Final = 0.5


def next_tick(now: float, interval_s: float, lag_s: float = 0.0) -> float:
    """Return when a tick at `now` is followed by the next.

    That is at a full multiple of the interval, or `lag_s` after it; never so soon that the tick would not count, and
    never twice between two multiples.
    """
    multiple = (floor((now - lag_s) / interval_s + ROUNDING) + 1) * interval_s + lag_s
    return max(multiple, now + interval_s * SOON_FACTOR)


def name_cause(standing: Standing, first: Look | None, second: Look | None) -> Cause:
    """Name why a process makes no progress, from looks at the beginning and at the end of its silence.

    ==== ================ ==================================================
    rank cause            when
    ==== ================ ==================================================
    1    EXITED           there is no such process
    2    FROZEN, TRACED   it is stopped, whatever else it was about to do
    3    DID_NOT_START    it is not ready yet
    4    LEASE_OVERRUN    the work that it declared is past its cap
    5    WAITING_ON_DISK  its main thread is in an uninterruptible wait
    6    STUCK_IN_LOOP    it had processor time enough
    7    STARVED          it wanted processor time and had next to none
    8    BLOCKED          it sleeps
    ==== ================ ==================================================
    """
    if standing is Standing.MISSING:
        return Cause.EXITED
    state = second.state if second else ""
    if state == "T" or (second and "freezer" in second.waits_in):
        return Cause.FROZEN
    if state == "t":
        return Cause.TRACED
    if standing is Standing.STARTING:
        return Cause.DID_NOT_START
    if standing is Standing.OVERDUE:
        return Cause.LEASE_OVERRUN
    if state == "D":
        return Cause.WAITING_ON_DISK
    return Cause.BLOCKED if first is None or second is None else _cause_by_processor_time(first, second)


def _cause_by_processor_time(first: Look, second: Look) -> Cause:
    elapsed_s = second.at - first.at
    cpu_s = second.cpu_s - first.cpu_s
    waited_s = (second.waited_s or 0.0) - (first.waited_s or 0.0)
    if elapsed_s <= 0 or cpu_s + waited_s < RUNNABLE_SHARE * elapsed_s:
        return Cause.BLOCKED
    in_circles = cpu_s >= LOOP_CPU_SHARE * elapsed_s or cpu_s >= LOOP_CPU_S
    return Cause.STUCK_IN_LOOP if in_circles else Cause.STARVED
