"""`relctl logs` and `relctl search`: the event log, from event_logger, or from its database when nobody answers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import banner, database, label
from app.reliability._cli.output import Output, printable
from app.reliability._cli.session import Session
from app.reliability._cli.timespec import local_time, parse_time
from protocol.errors import ReliabilityError
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity, parse_severity_range

EVENTS_DEFAULT: Final = 100
"""Shown when neither -n nor -S says how far to go back."""
FOLLOWED_DEFAULT: Final = 10
PAGE_EVENTS_MAX: Final = 1000
FOLLOW_INTERVAL_S: Final = 1.0
"""How long new events wait at most if no publication tells of them."""
EVENT_TOPICS: Final = "event."
VERIFY: Final = "verify"
"""In the place of a component: not one, but the command to check the log."""
_INDENT: Final = " " * 21
_LEVEL_COLORS: Final = {Severity.NOTICE: "cyan", Severity.WARN: "yellow", Severity.ERROR: "red"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events to show, and in which order.

    Attributes:
        filters: arguments of event_logger's `query`, without those for paging.
        limit: how many at most, the newest of them; None for all.
        reverse: newest first.
    """

    filters: dict[str, Any]
    limit: int | None
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of the event log.

    Attributes:
        events: as JSON objects.
        more: whether there are further ones.
        next_seq: in that case, where to go on: the bound of the next page.
        absence: why the files had to answer, else None.
        age_s: in that case, time since the log was last written to.
        slow: whether a search had to do without an index for much of the log.
    """

    events: list[dict[str, Any]]
    more: bool
    next_seq: int | None = None
    absence: ReliabilityError | None = None
    age_s: float = 0.0
    slow: bool = False

    def last_seq(self, before: int) -> int:
        """Return the highest number shown so far, which was `before` before this page."""
        return max([before, *(int(event["seq"]) for event in self.events if event["seq"] is not None)])


class Log:
    """The event log, wherever it can be read.

    While nobody answers, what event_logger has not taken over yet comes after all that it has, with null as its seq.

    Attributes:
        unnumbered: ids of the events that were shown so.
    """

    def __init__(self, session: Session) -> None:
        """Ask through `session`."""
        self._session = session
        self.unnumbered: set[str] = set()

    def page(self, arguments: dict[str, Any]) -> Page:
        """Return the answer to one query.

        Raises:
            ReliabilityError: an argument is wrong, or neither actor nor files answer.
        """
        answer = self._session.ask_or_absent(EVENT_LOGGER, "query", **arguments)
        if not isinstance(answer, ReliabilityError):
            return Page(answer["events"], answer["more"], answer["next_seq"], slow=_is_slow(answer))
        from actors.event_logger import queries

        try:
            path, age_s = database(self._session, answer)
        except ReliabilityError:
            if self._undrained(arguments):
                return Page([], more=False, absence=answer)  # it died before it ever wrote
            raise
        reply = queries.query(path, arguments)
        return Page(reply["events"], reply["more"], reply["next_seq"], answer, age_s, slow=_is_slow(reply))

    def select(self, selection: Selection) -> Iterator[Page]:
        """Yield the selected events in the order asked for, page by page."""
        if selection.limit is None and not selection.reverse:
            for page in self.after(0, selection.filters):
                yield page
            if page.absence is not None:
                yield replace(page, events=self._undrained(selection.filters), more=False)
            return
        newest_first = self._descending(selection)
        if selection.reverse:
            yield from newest_first
            return
        for page in reversed(list(newest_first)):
            yield replace(page, events=page.events[::-1])

    def after(self, seq: int, filters: dict[str, Any]) -> Iterator[Page]:
        """Yield everything after `seq`, oldest first; at least one page, perhaps empty."""
        more = True
        while more:
            page = self.page({**filters, "after_seq": seq, "limit": PAGE_EVENTS_MAX})
            yield page
            more = page.more
            seq = page.next_seq or seq

    def newest_seq(self) -> int:
        """Return the sequence number of the newest event there is; 0 if there is none."""
        events = self.page({"limit": 1}).events
        return int(events[0]["seq"]) if events else 0

    def _undrained(self, filters: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what event_logger has not taken over yet, oldest first."""
        from actors.event_logger import queries

        now_ms = time.time_ns() // 1_000_000
        events = queries.undrained(self._session.data_dir, self._session.runtime_dir(), filters, now_ms)
        self.unnumbered.update(event["id"] for event in events)
        return events

    def _descending(self, selection: Selection) -> Iterator[Page]:
        arguments = {**selection.filters, "reverse": True}
        left = selection.limit
        while left is None or left > 0:
            page = self.page({**arguments, "limit": PAGE_EVENTS_MAX if left is None else min(left, PAGE_EVENTS_MAX)})
            if page.absence is not None and "before_seq" not in arguments:
                undrained = self._undrained(selection.filters)[::-1][:left]
                yield replace(page, events=undrained, more=True)
                if left is not None:
                    left -= len(undrained)
                    page = replace(page, events=page.events[:left], more=page.more or len(page.events) > left)
            yield page
            if page.next_seq is None:
                return
            arguments["before_seq"] = page.next_seq
            left = None if left is None else left - len(page.events)


def _is_slow(answer: dict[str, Any]) -> bool:
    return bool(answer.get("index", {}).get("rebuilding"))


class Printer:
    """Shows pages of events: one JSON object a line, or lines for people."""

    def __init__(self, output: Output) -> None:
        """Write to `output`."""
        self._output = output
        self._offline = False
        self._slow = False

    def show(self, page: Page) -> None:
        """Show one page; for people, say so when the files begin to answer."""
        if self._output.json:
            mark = label(page.age_s) if page.absence is not None else {}
            for event in page.events:
                self._output.line({**event, **mark})
            return
        if page.absence is not None and not self._offline:
            self._output.text(banner(self._output, page.absence, "the event log's database", page.age_s))
        self._offline = page.absence is not None
        if page.slow and not self._slow:
            self._output.note("The search index is being built; until it is, a search reads the log itself.")
        self._slow = page.slow
        if page.events:
            self._output.text("\n".join(self._line(event) for event in page.events))

    def _line(self, event: dict[str, Any]) -> str:
        severity = event["severity_number"]
        color = next((color for level, color in _LEVEL_COLORS.items() if severity <= level), "red")
        level = self._output.style(f"{event['severity_text']:8}", color if severity >= Severity.NOTICE else None)
        component = self._output.style(printable(event["component"]), bold=True)
        first, *others = event["message"].splitlines() or [""]
        what = f"{printable(event['event_type'])}: {printable(first)}"
        head = f"{local_time(event['timestamp'])}  {level}  {component}  {what}"
        return "\n".join([head, *(_INDENT + printable(line) for line in others)])


def _parse_moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return parse_time(value, datetime.now(UTC)).isoformat()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _parse_levels(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        low, high = parse_severity_range(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return f"{low.name}..{high.name}"


def _parse_count(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "all":
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number nor 'all'")
    return int(value)


def _filter_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["-S", "--since"],
            callback=_parse_moment,
            metavar="TIME",
            help="Not before: '2026-11-01 10:00', yesterday, -1h.",
        ),
        click.Option(["-U", "--until"], callback=_parse_moment, metavar="TIME", help="Not after."),
        click.Option(
            ["-p", "--priority", "level"],
            callback=_parse_levels,
            metavar="LEVEL|A..B",
            help="This level and worse, or from A to B.",
        ),
        click.Option(
            ["-n", "--lines"],
            callback=_parse_count,
            metavar="N|all",
            help=f"The newest N [default: {EVENTS_DEFAULT}, with -S all].",
        ),
        click.Option(["-g", "--grep"], metavar="PATTERN", help="Messages that match this regular expression."),
        click.Option(["-r", "--reverse"], is_flag=True, help="Newest first."),
        click.Option(
            ["-o", "--output", "form"], type=click.Choice(["short", "json"]), help="For people, or as --json does."
        ),
    ]


def _selection(
    since: str | None,
    until: str | None,
    level: str | None,
    lines: int | str | None,
    grep: str | None,
    reverse: bool,
    **more: Any,
) -> Selection:
    filters = {"since": since, "until": until, "level": level, "grep": grep, **more}
    default = None if since is not None else EVENTS_DEFAULT
    limit = default if lines is None else None if isinstance(lines, str) else lines
    return Selection({name: value for name, value in filters.items() if value is not None}, limit, reverse)


@click.command(cls=RelctlCommand, params=_filter_options(), short_help="Show the event log.")
@click.argument("component", required=False)
@click.option("-u", "--unit", metavar="NAME", help="As COMPONENT; also for one that is called verify.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come.")
@pass_session
def logs(
    session: Session,
    /,
    component: str | None,
    unit: str | None,
    follow: bool,
    lines: int | str | None,
    reverse: bool,
    form: str | None,
    **filters: Any,
) -> int | None:
    """Show events, of COMPONENT only if it is given; oldest first.

    TIME is '2026-11-01 10:00', '10:00', today, yesterday, -1h, '2 days ago' or @SECONDS; local time unless it says
    otherwise. LEVEL is TRACE, DEBUG, INFO, NOTICE, WARN, ERROR, CRITICAL or FATAL.

    `relctl logs verify` checks instead that nobody has changed the log; exit code 12 if somebody has.
    """
    _choose_form(session, form)
    if component == VERIFY and unit is None:
        if follow or reverse or lines is not None or any(value is not None for value in filters.values()):
            raise click.UsageError(f"`logs {VERIFY}` checks the whole log. Events of a component: `logs -u {VERIFY}`.")
        from app.reliability._cli.verify import verify

        return verify(session)
    if component is not None and unit is not None:
        raise click.UsageError("COMPONENT and -u say the same; give one of them.")
    filters["component"] = unit if component is None else component
    if follow and reverse:
        raise click.UsageError("-f goes forward in time; it cannot be combined with -r.")
    if follow and lines is None:
        lines = FOLLOWED_DEFAULT
    selection = _selection(lines=lines, reverse=reverse, **filters)
    log, printer = Log(session), Printer(session.output)
    seq = log.newest_seq() if follow else 0
    for page in log.select(selection):
        printer.show(page)
        seq = page.last_seq(seq)
    if follow:
        _follow(session, log, printer, selection.filters, seq)
    return None


def _choose_form(session: Session, form: str | None) -> None:
    if form is not None:
        session.output.json = form == "json"


def _follow(session: Session, log: Log, printer: Printer, filters: dict[str, Any], seq: int) -> NoReturn:
    """Show what comes after `seq` for ever.

    Publications only wake us up; what is shown is asked for by number, so that nothing is lost, doubled or out of order
    when the broker is replaced or publishes less than there is.
    """
    with session.client().subscribe(EVENT_TOPICS) as publications:
        while True:
            publications.receive(FOLLOW_INTERVAL_S)
            while publications.receive(0) is not None:
                pass
            for page in log.after(seq, filters):
                printer.show(
                    replace(page, events=[event for event in page.events if event["id"] not in log.unnumbered])
                )
                seq = page.last_seq(seq)


@click.command(cls=RelctlCommand, params=_filter_options(), short_help="Find a text in the event log.")
@click.argument("text")
@pass_session
def search(session: Session, /, text: str, form: str | None, **filters: Any) -> None:
    """Show the events whose message, type, component or attributes hold TEXT.

    TEXT is found as it stands, as a part of words or over several of them: "pool exhausted" finds "Pool exhausted: 5",
    not "exhausted pool". The case of letters does not matter, accents do; nothing in TEXT has a special meaning.
    Attributes are searched as they are written in JSON: '"order":17' finds that value. For patterns there is -g, which
    can be combined with TEXT.

    Oldest first; the options are those of `relctl logs`. The newest event is found at once; three characters or more
    are found in milliseconds, fewer by reading through the log.
    """
    _choose_form(session, form)
    printer = Printer(session.output)
    for page in Log(session).select(_selection(text=text, **filters)):
        printer.show(page)
