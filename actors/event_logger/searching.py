"""Searching the events for a text: by the index as far as that goes, and by scanning from there on.

Whatever the index names is a candidate; an event is found if it `folding.holds` the text, and by nothing else. So index
and scan give the same answers, and an index that is behind, damaged or not there costs time only.

All of it happens in windows of seq, newest first (or oldest first, after `after_seq`), until there are enough events or
the time is up: then `next_seq` in the reply says where to go on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from actors.event_logger.folding import LIKE_ESCAPE, SEARCHED, fold, holds, like_pattern, match_all, trigrams
from actors.event_logger.records import Event, EventFilter, event_document
from protocol.severity import Severity

SEARCH_FILE: Final = "search.db"
"""The index, beside the events' database."""
SEARCH_S_MAX: Final = 1.5
"""What one request may take, give or take a window."""
INDEX_WINDOW: Final = 200_000
SCAN_WINDOW: Final = 20_000
"""Places in the log that one statement looks at."""
SELECTIVE_EVENTS_MAX: Final = 5_000
"""As many events of one component or time are looked at one by one rather than through the index."""
TRIGRAMS_MAX: Final = 3
"""The rarest of a text's: each further one costs more than the candidates that it rules out (docs/adr/0007)."""
TRIGRAMS_ASKED_MAX: Final = 96
SEGMENTS_ASKED_MAX: Final = 2
REBUILDING_EVENTS_MIN: Final = 20_000
"""From so many events on that the index lacks, an answer says that it is being built."""
CACHE_KIB: Final = 2000

_COLUMNS: Final = "e.seq, e.id, e.timestamp_ms, e.severity, e.component, e.event_type, e.message, e.attributes"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What of a filter SQL decides, apart from the text and the place: SQL and the values for it."""

    sql: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of the log and how to find candidates in it, `low` and `high` included."""

    statement: str
    values: tuple[object, ...]
    low: int
    high: int
    window: int


class _IndexUnusableError(Exception):
    """The index could not be read; its text is what is damaged, empty if it was only out of reach."""


@dataclass(slots=True)
class _Index:
    """The index as attached: how far it goes, and what is damaged about it, as far as that is known."""

    through_seq: int = 0
    problem: str = ""


class Search:
    """One search, on a connection to the events that is inside a read transaction."""

    def __init__(
        self, connection: apsw.Connection, index_path: str, wanted: EventFilter, conditions: Conditions, bytes_max: int
    ) -> None:
        """Search for ``wanted.text`` with the help of the index at `index_path`."""
        if wanted.text is None:
            raise ValueError("there is no text to search for")
        self._connection = connection
        self._index_path = index_path
        self._wanted = wanted
        self._conditions = conditions
        self._bytes_max = bytes_max
        self._text = fold(wanted.text)
        self._trigrams = trigrams(wanted.text)
        self._ascending = wanted.after_seq is not None

    def run(self, clock: Callable[[], float]) -> dict[str, Any]:
        """Return ``{"events", "more", "next_seq", "index": {"through_seq", "last_seq", "rebuilding", "problem"}}``.

        Raises:
            apsw.Error: the events cannot be read.
        """
        self._connection.pragma("cache_size", -CACHE_KIB)
        low, high, last_seq = self._bounds()
        index = self._attach()
        stop_at = clock() + SEARCH_S_MAX
        try:
            reply = self._collect(self._parts(low, high, index.through_seq), clock, stop_at)
        except _IndexUnusableError as error:
            index = _Index(problem=str(error))
            reply = self._collect(self._parts(low, high, 0), clock, stop_at)
        if self._wanted.reverse == self._ascending:
            reply["events"].reverse()
        missing = last_seq - index.through_seq
        state = {"through_seq": index.through_seq, "last_seq": last_seq, "rebuilding": missing > REBUILDING_EVENTS_MIN}
        return {**reply, "index": {**state, "problem": index.problem or None}}

    # --- where to look ---

    def _bounds(self) -> tuple[int, int, int]:
        """Return the first and the last place to look at, and the end of the log."""
        first_seq, last_seq = self._ask("SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events)")
        low, high = first_seq or 0, last_seq or -1
        if self._wanted.after_seq is not None:
            low = max(low, self._wanted.after_seq + 1)
        if self._wanted.before_seq is not None:
            high = min(high, self._wanted.before_seq - 1)
        return low, high, last_seq or 0

    def _parts(self, low: int, high: int, through_seq: int) -> list[_Part]:
        """Return what to look at, in the order in which events are wanted."""
        low, high, few = self._narrow(low, high)
        if low > high:
            return []
        if few or not self._trigrams:
            return [self._scan(low, high, high - low + 1 if few else SCAN_WINDOW)]
        parts = []
        if low <= through_seq:
            parts.append(self._by_index(low, min(high, through_seq)))
        if high > through_seq:
            parts.append(self._scan(max(low, through_seq + 1), high, SCAN_WINDOW))
        return parts if self._ascending else parts[::-1]

    def _narrow(self, low: int, high: int) -> tuple[int, int, bool]:
        """Shrink the stretch to where events of the time wanted lie; tell whether so few are left that a scan is best.

        Times need not be in the order of places: only what the table says of all its events counts.
        """
        wanted = self._wanted
        for moment, sense, side in ((wanted.since_ms, ">=", "min"), (wanted.until_ms, "<=", "max")):
            if moment is None:
                continue
            other = "<" if sense == ">=" else ">"
            outside = self._count(f"timestamp_ms {other} ?", (moment,))
            inside = self._count(f"timestamp_ms {sense} ?", (moment,))
            if inside == 0:
                return 1, 0, False
            if outside > SELECTIVE_EVENTS_MAX:
                # Plus nothing: by the index of times rather than place by place until one fits.
                bound = f"SELECT {side}(seq + 0) FROM events WHERE timestamp_ms {sense} ?"  # noqa: S608 - constants
                (place,) = self._ask(bound, moment)
                low, high = (max(low, place), high) if side == "min" else (low, min(high, place))
        few = high - low < SELECTIVE_EVENTS_MAX
        if wanted.component is not None and not few:
            few = self._count("component = ?", (wanted.component,)) <= SELECTIVE_EVENTS_MAX
        return low, high, few

    def _count(self, condition: str, values: tuple[object, ...]) -> int:
        """Count events, but no further than is of interest."""
        counted = f"SELECT 1 FROM events WHERE {condition} LIMIT {SELECTIVE_EVENTS_MAX + 1}"  # noqa: S608 - constants
        (count,) = self._ask(f"SELECT count(*) FROM ({counted})", *values)  # noqa: S608 - constants
        return int(count)

    def _scan(self, low: int, high: int, window: int) -> _Part:
        statement = (
            f"SELECT {_COLUMNS} FROM main.events AS e WHERE e.seq BETWEEN ? AND ? AND {self._conditions.sql}"  # noqa: S608
            f" AND {SEARCHED} LIKE ? ESCAPE '{LIKE_ESCAPE}' ORDER BY e.seq {self._order}"
        )
        return _Part(statement, (*self._conditions.values, like_pattern(self._text)), low, high, window)

    def _by_index(self, low: int, high: int) -> _Part:
        rarest = self._rarest()
        statement = (
            f"SELECT {_COLUMNS} FROM search.event_text AS t CROSS JOIN main.events AS e ON e.seq = t.rowid"  # noqa: S608
            " WHERE t.rowid BETWEEN ? AND ? AND t.event_text MATCH ?"
            f" AND {self._conditions.sql} ORDER BY t.rowid {self._order}"
        )
        return _Part(statement, (match_all(rarest), *self._conditions.values), low, high, INDEX_WINDOW)

    @property
    def _order(self) -> str:
        return "ASC" if self._ascending else "DESC"

    # --- looking ---

    def _collect(self, parts: Sequence[_Part], clock: Callable[[], float], stop_at: float) -> dict[str, Any]:
        """Return ``{"events", "more", "next_seq"}``, events in the order in which they were found."""
        documents: list[dict[str, Any]] = []
        size_bytes = 0
        for part, low, high, is_last in self._windows(parts):
            for seq, event in self._found(part, low, high):
                size_bytes += event.size_bytes + 100
                if len(documents) == self._wanted.limit or (documents and size_bytes > self._bytes_max):
                    # Without a single event wanted, go on right before this one.
                    beside = seq - 1 if self._ascending else seq + 1
                    return _reply(documents, documents[-1]["seq"] if documents else beside)
                documents.append(event_document(seq, event))
            if clock() > stop_at and not is_last:
                return _reply(documents, high if self._ascending else low)
        return _reply(documents, None)

    def _windows(self, parts: Sequence[_Part]) -> Iterator[tuple[_Part, int, int, bool]]:
        for part in parts:
            low, high = part.low, part.high
            while low <= high:
                first = low if self._ascending else max(low, high - part.window + 1)
                last = min(high, low + part.window - 1) if self._ascending else high
                low, high = (last + 1, high) if self._ascending else (low, first - 1)
                yield part, first, last, part is parts[-1] and low > high

    def _found(self, part: _Part, low: int, high: int) -> Iterator[tuple[int, Event]]:
        """Yield the events of one window that hold the text."""
        indexed = part.window == INDEX_WINDOW
        try:
            for seq, event_id, timestamp_ms, severity, *texts in self._connection.execute(
                part.statement, (low, high, *part.values)
            ):
                event = Event(event_id, timestamp_ms, Severity(severity), *texts)
                if holds(event, self._text):
                    yield seq, event
        except apsw.InterruptError:
            raise
        except apsw.Error as error:
            # It may be the events that are damaged: then the scan meets that as well.
            if indexed:
                raise _IndexUnusableError(_damage(error)) from None
            raise

    # --- the index ---

    def _attach(self) -> _Index:
        """Attach the index, READONLY as the events are, and find out how far it goes with them.

        What is wrong with it never leaves this module as an error: it would be taken for damage of the events.
        """
        try:
            self._connection.execute("ATTACH ? AS search", (self._index_path,))
        except apsw.Error:  # not there, which is nobody's fault
            return _Index()
        try:
            through = self._connection.execute(
                "SELECT m.seq FROM search.marks AS m CROSS JOIN main.events AS e ON e.seq = m.seq AND e.id = m.id"
                " ORDER BY m.seq DESC LIMIT 1"
            ).get
        except apsw.InterruptError:
            raise
        except apsw.SQLError:  # no index yet, or somebody else's file: event_logger sees to it
            return _Index()
        except apsw.Error as error:
            return _Index(problem=_damage(error))
        return _Index(through or 0)

    def _rarest(self) -> list[str]:
        if len(self._trigrams) <= TRIGRAMS_MAX:
            return self._trigrams
        try:
            some = self._trigrams[:: -(-len(self._trigrams) // TRIGRAMS_ASKED_MAX)]
            return sorted(some, key=self._frequencies())[:TRIGRAMS_MAX]
        except apsw.InterruptError:
            raise
        except apsw.SQLError:  # an FTS5 that keeps its tables otherwise
            return self._trigrams
        except apsw.Error as error:
            raise _IndexUnusableError(_damage(error)) from None

    def _frequencies(self) -> Callable[[str], int]:
        """Return what estimates how frequent a trigram is: the pages that the largest segments of the index have of it.

        That is read from a table of FTS5's own; only the speed depends on it.
        """
        segments = sorted(self._segments(), reverse=True)

        def pages(token: str) -> int:
            key = b"0" + token.encode()
            return sum(self._pages(segment, key, end) for end, segment in segments[:SEGMENTS_ASKED_MAX])

        return pages

    def _segments(self) -> Iterator[tuple[int, int]]:
        """Yield each segment's last page and its number."""
        segment = 0
        while True:
            (segment,) = self._ask("SELECT min(segid) FROM search.event_text_idx WHERE segid > ?", segment)
            if segment is None:
                return
            last = "SELECT pgno FROM search.event_text_idx WHERE segid = ? ORDER BY term DESC LIMIT 1"
            (end,) = self._ask(last, segment)
            yield end >> 1, segment

    def _pages(self, segment: int, key: bytes, end: int) -> int:
        begins = "SELECT pgno FROM search.event_text_idx WHERE segid = ? AND term <= ? ORDER BY term DESC LIMIT 1"
        follows = "SELECT pgno FROM search.event_text_idx WHERE segid = ? AND term > ? ORDER BY term LIMIT 1"
        first = self._connection.execute(begins, (segment, key)).get
        next_ = self._connection.execute(follows, (segment, key)).get
        return (end + 1 if next_ is None else next_ >> 1) - (0 if first is None else first >> 1)

    def _ask(self, statement: str, *values: object) -> tuple[Any, ...]:
        row = self._connection.execute(statement, values).fetchone()
        return () if row is None else row


def _damage(error: apsw.Error) -> str:
    """Return what is damaged; empty for an error that may pass, such as a lock."""
    damaged = isinstance(error, apsw.CorruptError | apsw.NotADBError | apsw.IOError | apsw.SQLError)
    return (str(error) or type(error).__name__) if damaged else ""


def _reply(documents: list[dict[str, Any]], next_seq: int | None) -> dict[str, Any]:
    return {"events": documents, "more": next_seq is not None, "next_seq": next_seq}
