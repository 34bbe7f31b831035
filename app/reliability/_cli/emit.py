"""`relctl emit`: write one event to the event log, for shell scripts."""

import click

from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.session import Session
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

    LEVEL is TRACE, DEBUG, INFO, NOTICE, WARN, ERROR, CRITICAL or FATAL.
    """
    reply = session.client().call(
        EVENT_LOGGER,
        "emit",
        timeout=session.timeout_s(),
        severity=level.name,
        component=component,
        event_type=event_type,
        message=message,
        attributes=details,
    )
    if session.output.json:
        session.output.document({"id": reply["id"], "seq": reply["seq"], "spooled": False})
    else:
        session.output.text(f"Event {reply['seq']} is written.")
