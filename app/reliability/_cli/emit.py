"""`relctl emit`: write one event to the event log, for shell scripts."""

import os
import time

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.session import Session
from protocol.ids import RANDOMNESS_BYTES, uuid7
from protocol.names import EVENT_LOGGER
from protocol.severity import Severity, parse_severity


def _parse_level(_context: click.Context, _parameter: click.Parameter, value: str) -> Severity:
    try:
        return parse_severity(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _parse_details(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    details = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        details[key] = text
    return details


@click.command(cls=RelctlCommand, short_help="Write one event to the log.")
@click.argument("level", callback=_parse_level)
@click.argument("component")
@click.argument("event_type", metavar="TYPE")
@click.argument("message")
@click.option(
    "--detail", "details", metavar="KEY=VALUE", multiple=True, callback=_parse_details, help="An attribute; repeatable."
)
@pass_session
def emit(
    session: Session, level: Severity, component: str, event_type: str, message: str, details: dict[str, str]
) -> None:
    """Write one event to the log; done once it is durable.

    While event_logger does not answer, that is in the spool, from which it takes the event as soon as it runs.

    LEVEL is TRACE, DEBUG, INFO, NOTICE, WARN, ERROR, CRITICAL or FATAL.
    """
    now_ms = time.time_ns() // 1_000_000
    event = {
        "severity": level.name,
        "component": component,
        "event_type": event_type,
        "message": message,
        "attributes": details,
        "timestamp_ms": now_ms,
    }
    request_id = uuid7(now_ms, os.urandom(RANDOMNESS_BYTES))
    reply = session.durable(EVENT_LOGGER).call("emit", request_id, event, timeout=session.timeout_s())
    if session.output.json:
        session.output.document({name: reply[name] for name in ("id", "seq", "spooled")})
    elif reply["spooled"]:
        session.output.text("The event is kept in the spool; event_logger takes it in as soon as it runs.")
    else:
        session.output.text(f"Event {reply['seq']} is written.")
