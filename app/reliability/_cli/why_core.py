"""The story of a process's last end, in plain sentences, from what was recorded. Pure: time is an argument.

What happened, why, what it was doing then, what was done about it, what is left of its budget; and before that what
else went wrong in the same minute, with the connection where one is known (`_LINKS`).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

AFTER_S: Final = 0.2
"""How much later what led to an end may have been noticed than the end."""
BEFORE_S: Final = 60.0
"""How long before an end something may have led to it."""
RELATED_MAX: Final = 8
THREADS_TOLD_MAX: Final = 3
LAST_WORDS_MAX: Final = 3
WARN: Final = 13

_TOLD_ANYWAY: Final = frozenset(
    {
        "clock_jumped",
        "configuration_changed",
        "launcher_started",
        "machine_suspended",
        "restart",
        "restart_requested",
        "start_requested",
        "stop_requested",
        "succession",
        "system_stopping",
    }
)
"""Events that are no warning and may still be what led to an end."""
_OWN: Final = frozenset({"process_condemned", "process_killed", "process_quarantined", "recovery", "restart"})
"""Events that tell of the end itself."""
_NO_NEWS: Final = frozenset({"output", "output_skipped"})
_REASON: Final = re.compile(r"(?P<how>exited with code|killed by signal) (?P<number>\d+)(?: \((?P<name>\w+)\))?")
_FRAME: Final = re.compile(r'^\s*File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.+)$')
_LIBRARY: Final = re.compile(r"/(?:lib|lib64)/python3|<frozen|/site-packages/", re.IGNORECASE)
_SIGNALS: Final = {
    "SIGKILL": "something outside killed it: a person, a script, or the kernel when memory ran out",
    "SIGTERM": "somebody asked it to leave",
    "SIGINT": "somebody interrupted it",
    "SIGHUP": "its terminal or session was closed",
    "SIGPIPE": "it wrote to somebody who had closed the connection",
    "SIGSEGV": "it touched memory that is not its own: a defect in native code, or damaged memory",
    "SIGBUS": "it touched memory whose file could not be read: a full disk, or a file that was cut",
    "SIGABRT": "it gave up by itself (abort)",
    "SIGILL": "it ran into an instruction that this processor does not have",
    "SIGFPE": "it divided by zero, or calculated something else that is impossible",
    "SIGXFSZ": "it wrote a file beyond the size that is allowed",
}
_STATES: Final = {
    "R": "busy",
    "S": "asleep",
    "D": "waiting for a device",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}
_CODES: Final = {
    126: "its command could not be executed",
    127: "its command was not found",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known.

    Attributes:
        name: the process.
        now: present moment, with a time zone.
        state: the launcher's word; empty if it is not on the board.
        reason: why its last life ended, or why it does not run, as the board says.
        restart: its newest restart record, as `restart-status` has it; None if it was never restarted.
        restarts_in_period: charged ones; None if it is not known.
        restarts_left: what the budget still allows.
        retry_in_s: until it is tried again; None if that is not due.
        evidence: what the watchdog found at it, if anything.
        events: of the minute before its end and of the time after, of everybody, oldest first.
        last_words: the last lines that it wrote in that life.
        after: the programs that it comes after.
    """

    name: str
    now: datetime
    state: str = ""
    reason: str = ""
    restart: dict[str, Any] | None = None
    restarts_in_period: int | None = None
    restarts_left: int | None = None
    retry_in_s: float | None = None
    evidence: dict[str, Any] | None = None
    events: Sequence[dict[str, Any]] = ()
    last_words: Sequence[str] = ()
    after: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """What to tell.

    Attributes:
        before: events that came before and may have led to it.
        what: one sentence.
        why: sentences.
        doing: where it was then: stacks, last words.
        done: sentences on what followed.
    """

    what: str
    before: list[dict[str, Any]] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    doing: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


def moment_of(facts: Facts) -> datetime | None:
    """Return when the end that is told of came; None if there is none."""
    return None if facts.restart is None else datetime.fromisoformat(facts.restart["timestamp"])


def tell(facts: Facts, duration: Callable[[float], str]) -> Story:
    """Return the story; `duration` puts a number of seconds into words."""
    at = moment_of(facts)
    if facts.restart is None or at is None:
        return Story(_never(facts), done=_present(facts, duration))
    before = related(facts, at)
    ago = duration(max(0.0, (facts.now - at).total_seconds()))
    restart = facts.restart
    how = "was restarted on request" if restart.get("manual") else "ended"
    return Story(
        what=f"{facts.name} {how} {ago} ago ({restart['reason']}).",
        before=before,
        why=[*_why(facts, duration), *_links(facts, before)],
        doing=_doing(facts),
        done=[*_done(facts, duration), *_present(facts, duration)],
    )


def related(facts: Facts, at: datetime) -> list[dict[str, Any]]:
    """Return what else happened in the minute before, nearest last; of too much what is worst, then what is nearest.

    What was told several times is there once, with `times`.
    """
    found: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
    for event in facts.events:
        before_s = (at - datetime.fromisoformat(event["timestamp"])).total_seconds()
        about = event["attributes"].get("name") or event["attributes"].get("process") or event["component"]
        itself = about == facts.name and event["event_type"] in (_OWN | {"process_hung"})
        matters = event["severity_number"] >= WARN or event["event_type"] in _TOLD_ANYWAY
        if -AFTER_S <= before_s <= BEFORE_S and matters and not itself and event["event_type"] not in _NO_NEWS:
            key = event["component"], event["message"]
            times = found[key][1]["times"] + 1 if key in found else 1
            found[key] = before_s, event | {"times": times}
    worst = sorted(found.values(), key=lambda item: (-item[1]["severity_number"], item[0]))[:RELATED_MAX]
    return [event for _, event in sorted(worst, key=lambda item: -item[0])]


def stands_at(stacks: str) -> list[str]:
    """Return a sentence on each of the first threads of a dump of Python stacks: where it stood, called from where."""
    threads: list[list[re.Match[str]]] = []
    for line in stacks.splitlines():
        if line.startswith(("Thread ", "Current thread ")):
            threads.append([])
        elif threads and (frame := _FRAME.match(line)):
            threads[-1].append(frame)
    threads = [frames for frames in threads if frames]
    threads.sort(key=lambda frames: all(_LIBRARY.search(frame["file"]) for frame in frames))
    told = []
    for frames in threads[:THREADS_TOLD_MAX]:
        own = next((frame for frame in frames if not _LIBRARY.search(frame["file"])), None)
        place = _place(frames[0])
        called = f", called from {_place(own)}" if own is not None and own is not frames[0] else ""
        told.append(f"A thread stood in {place}{called}.")
    if len(threads) > THREADS_TOLD_MAX:
        told.append(f"{len(threads) - THREADS_TOLD_MAX} further threads are in the evidence.")
    return told


def threads_of(evidence: dict[str, Any]) -> list[str]:
    """Return a sentence on what the system saw of the threads of a program that has no Python stacks to show."""
    threads = evidence.get("threads")
    if not isinstance(threads, list) or not threads:
        return []
    groups: Counter[tuple[str, str]] = Counter()
    for thread in threads:
        groups[str(thread.get("state")), str(thread.get("waits_in") or "")] += 1
    told = []
    for (state, waits_in), count in groups.most_common(THREADS_TOLD_MAX):
        where = f" in {waits_in}" if waits_in and state in "SD" else ""
        told.append(f"{count} {_STATES.get(state, f'in state {state}')}{where}")
    total = evidence.get("threads_count") or len(threads)
    return [f"Of its {total} thread{'' if total == 1 else 's'}: {', '.join(told)}."]


def _place(frame: re.Match[str]) -> str:
    return f"{frame['function']} ({frame['file']}, line {frame['line']})"


def _why(facts: Facts, duration: Callable[[float], str]) -> list[str]:
    restart = facts.restart or {}
    reason: str = restart["reason"]
    evidence = facts.evidence or {}
    if reason.startswith("hung"):
        cause = reason.partition(": ")[2] or "no progress"
        told = [f"It made no progress: {cause}."]
        silent_s, timeout_s = evidence.get("silent_s"), evidence.get("hang_timeout_s")
        if silent_s and timeout_s:
            told.append(f"It had been silent for {duration(silent_s)}; after {duration(timeout_s)} it counts as hung.")
        return told
    if restart.get("manual"):
        return []
    found = _REASON.match(reason)
    if found is None:
        return []
    if found["how"].startswith("killed"):
        meaning = _SIGNALS.get(found["name"] or "")
        return [f"That means: {meaning}."] if meaning else []
    number = int(found["number"])
    if number == 0:
        return ["It ended by itself, without an error, though it is to run always."]
    if number in _CODES:
        return [f"That means: {_CODES[number]}."]
    if number > 128:
        return [f"A shell says so of a command that signal {number - 128} killed."]
    return ["It ended by itself with an error; the code is its own."]


def _doing(facts: Facts) -> list[str]:
    evidence = facts.evidence or {}
    told = stands_at(str(evidence.get("stacks") or "")) or threads_of(evidence)
    words = [line for line in facts.last_words if line.strip()][-LAST_WORDS_MAX:]
    if words:
        told.append("Its last words: " + " / ".join(words))
    return told


def _done(facts: Facts, duration: Callable[[float], str]) -> list[str]:
    restart = facts.restart or {}
    told = []
    if restart["reason"].startswith("hung"):
        told.append("The watchdog named the cause, and it was ended.")
    recovery_ms = restart.get("recovery_ms")
    if recovery_ms is not None:
        told.append(f"It was started again and was ready {duration(recovery_ms / 1000)} after its end.")
    return told


def _present(facts: Facts, duration: Callable[[float], str]) -> list[str]:
    told = []
    again = f"it is tried again in {duration(facts.retry_in_s)}" if facts.retry_in_s is not None else ""
    match facts.state:
        case "ready":
            told.append("It runs and is ready.")
        case "starting":
            told.append("It is starting.")
        case "stopping":
            told.append("It is being stopped.")
        case "hung":
            told.append("It hangs now, and is about to be replaced.")
        case "backoff":
            told.append(f"It does not run; {again or 'it is about to be started again'}.")
        case "quarantined":
            now = f"`relctl restart {facts.name}` does so now"
            told.append(f"It failed too often and is quarantined: {f'{again}; ' if again else ''}{now}.")
        case "stopped" if facts.reason.startswith("waits for"):
            told.append(f"It is not started yet: it {facts.reason}.")
        case "stopped":
            ended = f" ({facts.reason})" if facts.reason else ""
            told.append(f"It is stopped{ended} and stays so until `relctl start {facts.name}`.")
        case _:
            told.append("It is not on the liveness board: the system does not run.")
    if facts.restarts_left is not None and facts.restarts_in_period is not None:
        count = facts.restarts_in_period + facts.restarts_left
        told.append(f"{facts.restarts_left} of {count} restarts of the period are left.")
    return told


def _never(facts: Facts) -> str:
    if facts.state == "stopped" and facts.reason and not facts.reason.startswith("waits for"):
        return f"{facts.name} was never restarted; it does not run: {facts.reason}."
    return f"{facts.name} was never restarted."


# --- connections ------------------------------------------------------------------------------------------------------


def _is_memory(event: dict[str, Any]) -> bool:
    text = f"{event['event_type']} {event['message']}".lower()
    return event["attributes"].get("check") == "memory" or "out of memory" in text or "oom" in text.split()


def _is_disk(event: dict[str, Any]) -> bool:
    return event["attributes"].get("check") == "disk" or "disk is" in event["message"].lower()


def _of_type(*types: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event_type"] in types


def _any_reason(_reason: str) -> bool:
    return True


_LINKS: Final[tuple[tuple[Callable[[str], bool], Callable[[dict[str, Any]], bool], str], ...]] = (
    (
        lambda reason: "SIGKILL" in reason,
        _is_memory,
        "Memory was short just before, so it was probably the kernel that killed it.",
    ),
    (lambda reason: "memory limit" in reason, _is_memory, "The whole machine was short of memory just before."),
    (
        lambda reason: reason.startswith("exited") or "SIGBUS" in reason or "disk" in reason,
        _is_disk,
        "The disk was nearly full just before, which may be why it failed.",
    ),
    (
        lambda reason: reason.startswith("hung"),
        _of_type("machine_suspended"),
        "The machine had been asleep just before.",
    ),
    (
        _any_reason,
        _of_type("clock_jumped"),
        "The wall clock was set just before, which programs that measure time by it do not expect.",
    ),
    (
        _any_reason,
        _of_type("configuration_changed"),
        "The configuration had been changed just before.",
    ),
)
"""What the reason has to be like, what must have happened before, and what to say of it."""


def _links(facts: Facts, before: Sequence[dict[str, Any]]) -> list[str]:
    reason: str = (facts.restart or {})["reason"]
    told = [text for fits, happened, text in _LINKS if fits(reason) and any(map(happened, before))]
    ended = {event["component"] for event in before if event["event_type"] == "restart"}
    told += [f"{other}, which it comes after, had ended just before." for other in facts.after if other in ended]
    if "broker" in ended:
        told.append("The broker had ended just before.")
    return told
