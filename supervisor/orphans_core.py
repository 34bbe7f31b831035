"""Whose an orphan is, and what is done about it. Pure.

The launcher is the nearest living forebear of all that its programs start, and asks the kernel for their orphans
(see `supervisor.orphans`). So whoever clears its environment, leaves its session and loses its parents becomes a child
of the launcher, which has not started it. The first row that fits decides:

| orphan | belongs to | so it is |
|---|---|---|
| carries the id of a life, or is in the session of its main process | that life | killed when that life ends |
| helper of one of our own processes | us | left alone |
| descended from a life when that was last looked at | that life | killed when that life ends |
| began while just one life ran that could have started it | that life | killed when that life ends |
| began while several did | one of them | told of once; killed when the last of them ends |
| began while none did | nobody we know | told of once, and left alone |

A life could have started an orphan if this launcher has started that life, and the orphan is younger than its main
process and not younger than its end. What an orphan that may belong to several lives has started may do so too.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

LINGER_S: Final = 10.0
"""How long a life that has ended is remembered for orphans that show only then."""

Key: TypeAlias = tuple[int, int]
"""A process: pid and start time."""
Life: TypeAlias = tuple[str, int]
"""A life of a program: its name, and which life it is."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """What is to be seen of a process that has lost its parent.

    Attributes:
        key: which process.
        is_ours: whether it is a helper of one of our own processes.
        invocation: the id of a life that it carries; empty if it carries none.
        session: the number of its session.
        command: for people.
    """

    key: Key
    is_ours: bool = False
    invocation: str = ""
    session: int = 0
    command: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """An orphan that is not ours.

    Attributes:
        key: which process.
        command: for people.
        lives: whom it may belong to.
        evades: whether it is not known whose it is.
    """

    key: Key
    command: str
    lives: frozenset[Life]
    evades: bool


@dataclass(slots=True)
class _Span:
    main: Key
    invocation: str
    forked: bool
    ended_at: float | None = None
    end_time: int = 0


@dataclass(slots=True)
class Orphans:
    """Knows every living orphan, and whose it may be."""

    known: dict[Key, Known] = field(default_factory=dict)
    _ours: set[Key] = field(default_factory=set)
    _spans: dict[Life, _Span] = field(default_factory=dict)

    @property
    def keys(self) -> Collection[Key]:
        """Who has been seen, and not been missed since."""
        return self.known.keys() | self._ours

    def inherit(self, known: Iterable[Known], living: Collection[Life]) -> None:
        """Go on with what a launcher before has known; of their lives, those `living` have not ended."""
        for orphan in known:
            self.known[orphan.key] = orphan
            for life in orphan.lives - set(living):
                self._spans.setdefault(life, _Span((0, 0), "", forked=False, ended_at=0.0))

    def began(self, life: Life, main: Key, invocation: str, *, forked: bool) -> None:
        """A life runs; `forked`: this launcher has started it, so its orphans come to this launcher."""
        self._spans[life] = _Span(main, invocation, forked)

    def runs(self, life: Life) -> bool:
        """Tell whether a life has begun, and not ended."""
        span = self._spans.get(life)
        return span is not None and span.ended_at is None

    def ended(self, life: Life, end_time: int, now: float) -> None:
        """A life has ended, at `end_time` in the units of start times."""
        if self.runs(life):
            self._spans[life].ended_at, self._spans[life].end_time = now, end_time

    def missed(self, running: Collection[Key], now: float) -> bool:
        """Forget whoever is not `running` any more, and lives that nobody can belong to; tell whether anybody was."""
        gone = [key for key in self.known if key not in running]
        for key in gone:
            del self.known[key]
        self._ours &= set(running)
        needed = {life for orphan in self.known.values() for life in orphan.lives}
        for life, span in list(self._spans.items()):
            if span.ended_at is not None and now - span.ended_at > LINGER_S and life not in needed:
                del self._spans[life]
        return bool(gone)

    def seen(self, orphan: Orphan, forebears: Mapping[Key, Life] | None = None) -> Known | None:
        """Decide whose a new orphan is; None if it is ours.

        Args:
            orphan: not one of `keys`.
            forebears: whose descendants some processes were when they were last looked at.
        """
        life = self._marked(orphan)
        if life is None and orphan.is_ours:
            self._ours.add(orphan.key)
            return None
        life = life or (forebears or {}).get(orphan.key)
        lives = frozenset({life}) if life is not None else self._possible(orphan.key[1])
        known = Known(orphan.key, orphan.command, lives, evades=len(lives) != 1)
        self.known[orphan.key] = known
        return known

    def doomed(self) -> list[Key]:
        """Return whoever belongs to lives that have ended, whichever of them it is."""
        return [key for key, orphan in self.known.items() if orphan.lives and not any(map(self.runs, orphan.lives))]

    def _marked(self, orphan: Orphan) -> Life | None:
        for life, span in self._spans.items():
            if orphan.invocation and orphan.invocation == span.invocation:
                return life
            pid, start_time = span.main
            if orphan.session == pid and start_time <= orphan.key[1]:
                return life
        return None

    def _possible(self, start_time: int) -> frozenset[Life]:
        lives = {
            life
            for life, span in self._spans.items()
            if span.forked and span.main[1] <= start_time and (span.ended_at is None or start_time <= span.end_time)
        }
        for orphan in self.known.values():
            if orphan.evades and orphan.key[1] <= start_time:
                lives |= orphan.lives
        return frozenset(lives)


def described(orphan: Known) -> str:
    """Return the sentence about an orphan that evades."""
    pid = orphan.key[0]
    who = f"process {pid} ({orphan.command or 'no command'}) has left its session, its parents and its environment"
    if not orphan.lives:
        return f"{who}; no program of this launcher can have started it, so it is left alone"
    names = sorted({name for name, _ in orphan.lives})
    if len(names) == 1:
        return f"{who}; it belongs to a life of {names[0]}, and is killed when the last that it may belong to has ended"
    return (
        f"{who}; it may belong to {' or '.join(names)}, and is killed when the last of them has ended or is restarted"
    )
