"""`relctl diagnostics`: pack what somebody needs who is to find out what went wrong here."""

import os
from typing import Final

import click

from actors.runtime.paths import DATABASE_FILE
from app.reliability._cli.audit import record
from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.output import printable, size
from app.reliability._cli.session import Session

MISSING_SHOWN_MAX: Final = 12
"""Told to people; the manifest in the bundle has all."""


@click.command(cls=RelctlCommand, short_help="Pack logs, settings and system information into a zip.")
@click.option("--output", metavar="FILE", help="Where to [default: DATA/diagnostics/, where the newest few are kept].")
@pass_session
def diagnostics(session: Session, output: str | None) -> None:
    """Pack what is needed to find out elsewhere what went wrong here: events, evidence, settings, the machine.

    Works whatever is dead, hung or damaged; what could not be had is listed. Secrets are taken out.
    """
    from app.reliability._diagnostics import COLLECT_S_MAX, create_bundle

    try:
        result = create_bundle(
            session.data_dir,
            output,
            timeout_s=session.timeout_s(COLLECT_S_MAX),
            progress=session.output.progress,
            open_client=session.ports.client,
        )
    finally:
        session.output.progress("")
    if os.path.exists(os.path.join(session.data_dir, DATABASE_FILE)):  # else there is nobody yet to tell
        record(session, "diagnostics_created", f"a diagnostics bundle was made: {result.path}", path=result.path)
    if session.output.json:
        missing = [{"what": failure.what, "why": failure.why} for failure in result.not_collected]
        session.output.document(
            {
                "path": result.path,
                "bytes": result.bytes,
                "entries": result.entries,
                "redactions": result.redactions,
                "not_collected": missing,
            }
        )
        return
    lines = [f"{result.path}: {result.entries} entries, {size(result.bytes)}, {result.redactions} redactions."]
    lines += [f"  missing: {printable(item.what)}: {printable(item.why)}" for item in result.not_collected]
    if len(lines) > MISSING_SHOWN_MAX:
        lines[MISSING_SHOWN_MAX:] = [f"  ... and {len(lines) - MISSING_SHOWN_MAX} more; manifest.json lists them"]
    lines.append("Known secrets are taken out. Look through it all the same before you hand it on.")
    session.output.text("\n".join(lines))
