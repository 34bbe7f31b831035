"""`relctl checkpoint-info`, `checkpoint save` and `checkpoint show`: states of applications, also for shell scripts."""

import base64
import json
import os
import sys
import time
from typing import Any, Final, NoReturn

import click

from app.reliability._cli.audit import record
from app.reliability._cli.commands import RelctlCommand, pass_session
from app.reliability._cli.offline import banner, database, label
from app.reliability._cli.output import Output, printable, size
from app.reliability._cli.session import ABSENT, Session
from app.reliability._cli.timespec import local_time
from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.names import CHECKPOINTER

LISTED_DEFAULT: Final = 100
SAVE_TIMEOUT_S: Final = 10.0
ANSWER_S: Final = 1.0
"""How long the checkpointer has to answer before the state goes to the spool."""
ANSWER_BYTES_PER_S: Final = 16 * 1024 * 1024


@click.command("checkpoint-info", cls=RelctlCommand, short_help="List the checkpoints of applications.")
@click.argument("name", required=False)
@click.option("-n", "limit", type=click.IntRange(1), default=LISTED_DEFAULT, show_default=True, help="How many.")
@click.option("--verify", is_flag=True, help="Read every payload, not only the newest ones.")
@pass_session
def checkpoint_info(session: Session, name: str | None, limit: int, *, verify: bool) -> None:
    """List checkpoints, of the application NAME or of all, the newest first."""
    arguments = {"name": name, "limit": limit, "verify": verify}
    answer = session.ask_or_absent(CHECKPOINTER, "info", **{key: item for key, item in arguments.items() if item})
    absence = answer if isinstance(answer, ReliabilityError) else None
    report = _offline_list(session, absence, name, limit, verify=verify) if absence else answer
    assert isinstance(report, dict)  # noqa: S101 - told to the type checker
    if name is not None and not report["checkpoints"]:
        raise LocalError(ErrorCode.FAILED, f"there is no checkpoint of {name!r}", "See `relctl checkpoint-info`.")
    if session.output.json:
        session.output.document(report)
        return
    if absence is not None:
        session.output.text(banner(session.output, absence, "the database", report["age_s"]))
    _table(session.output, report)


@click.group(short_help="Save or show the state of an application.")
def checkpoint() -> None:
    """Save or show the state of an application."""


@checkpoint.command(cls=RelctlCommand, short_help="Keep a state.")
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@click.option("--raw", is_flag=True, help="Keep the bytes as they are, even if they are JSON.")
@pass_session
def save(session: Session, name: str, file: Any, *, raw: bool) -> None:
    """Keep the content of FILE (- for the standard input) as a checkpoint of NAME; done once it is durable.

    JSON becomes a state, as an application would have saved it; anything else is kept as bytes.
    """
    payload, kind = _read(file, raw=raw)
    result = _save(session, name, payload, kind)
    record(session, "checkpoint_saved", f"a checkpoint of {name} was saved by hand", name=name, id=result["id"])
    if session.output.json:
        session.output.document(result)
    elif result["spooled"]:
        session.output.text(f"The state of {name} waits in the spool; the checkpointer takes it in when it is back.")
    elif result["unchanged"]:
        session.output.text(f"Checkpoint {result['seq']} of {name} holds this state already.")
    else:
        session.output.text(f"Checkpoint {result['seq']} of {name} is kept, {size(result['bytes'])}.")


@checkpoint.command(cls=RelctlCommand, short_help="Show a state.")
@click.argument("name")
@click.option("--seq", type=click.IntRange(1), help="The checkpoint of this number instead of the newest valid one.")
@pass_session
def show(session: Session, name: str, seq: int | None) -> None:
    """Write the newest valid state of NAME: as JSON, or the bytes if it was kept as bytes.

    With --json it stands under "state" beside its description; bytes are {"base64": ...}.
    """
    document, payload, extra = _find(session, name, seq)
    found = document["checkpoint"]
    skipped = document["skipped"]
    if found is None:
        _not_found(name, seq, skipped)
    if skipped:
        session.output.note(f"{len(skipped)} newer checkpoints are damaged: see `relctl checkpoint-info {name}`.")
    if session.output.json:
        session.output.document({**found, "skipped": skipped, "state": _state(found, payload), **extra})
    elif found["format"] == "bytes":
        sys.stdout.buffer.write(payload)
        sys.stdout.buffer.flush()
    else:
        session.output.document(_state(found, payload))


def _read(file: Any, *, raw: bool) -> tuple[bytes, str]:
    """Return what to keep, and its format."""
    import msgpack

    content: bytes = file.read()
    if not raw:
        try:
            return msgpack.packb(json.loads(content), use_bin_type=True), "msgpack"
        except (ValueError, OverflowError, RecursionError):
            pass
    return content, "bytes"


def _save(session: Session, name: str, payload: bytes, kind: str) -> dict[str, Any]:
    """Have the checkpointer keep a state, or the spool.

    Raises:
        ReliabilityError: neither does.
    """
    from actors.runtime.transport import Lane

    arguments = {"name": name, "format": kind, "taken_ms": time.time_ns() // 1_000_000}
    request_id = os.urandom(16)
    timeout_s = session.timeout_s(SAVE_TIMEOUT_S)
    patience_s = min(timeout_s / 2, ANSWER_S + len(payload) / ANSWER_BYTES_PER_S)
    try:
        answer, _ = session.client().call_raw(
            CHECKPOINTER, "save", [payload], Lane.BULK, patience_s, request_id, **arguments
        )
    except ReliabilityError as error:
        if error.code not in ABSENT:
            raise
        from actors.runtime.spool import SpoolWriter

        SpoolWriter(session.data_dir, CHECKPOINTER).append("save", request_id, arguments, [payload])
        answer = {"id": request_id, "seq": None, "unchanged": False}
    return {
        "id": answer["id"].hex(),
        "name": name,
        "seq": answer["seq"],
        "bytes": len(payload),
        "unchanged": answer["unchanged"],
        "spooled": answer["seq"] is None,
    }


def _find(session: Session, name: str, seq: int | None) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Return the answer of `show`, the payload, and what marks an offline view."""
    from actors.runtime.transport import Lane

    arguments = {"name": name} if seq is None else {"name": name, "seq": seq}
    answer = session.ask_or_absent(CHECKPOINTER, "ping")
    if not isinstance(answer, ReliabilityError):
        document, raw = session.client().call_raw(
            CHECKPOINTER, "show", (), Lane.BULK, session.timeout_s(SAVE_TIMEOUT_S), None, **arguments
        )
        return document, raw[0] if raw else b"", {}
    from actors.checkpointer.queries import read_one, read_spooled

    spooled = read_spooled(session.data_dir, name, time.time_ns() // 1_000_000)
    has_state = any(item.save for item in spooled)
    age_s = 0.0 if has_state else database(session, answer)[1]
    found = read_one(session.data_dir, name, seq, spooled)
    return found.document(), found.payload, label(age_s)


def _offline_list(
    session: Session, absence: ReliabilityError, name: str | None, limit: int, *, verify: bool
) -> dict[str, Any]:
    from actors.checkpointer.queries import list_checkpoints

    _, age_s = database(session, absence)
    return list_checkpoints(session.data_dir, name, limit, verify=verify) | label(age_s)


def _state(found: dict[str, Any], payload: bytes) -> Any:
    """Return a state as JSON can hold it."""
    if found["format"] == "bytes":
        return _plain(payload)
    import msgpack

    try:
        return _plain(msgpack.unpackb(payload, raw=False, strict_map_key=False))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise LocalError(ErrorCode.INTEGRITY, f"the checkpoint cannot be decoded: {error}", "") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _not_found(name: str, seq: int | None, skipped: list[dict[str, Any]]) -> NoReturn:
    what = f"checkpoint of {name!r}" if seq is None else f"checkpoint {seq} of {name!r}"
    if skipped:
        problem = skipped[0]["problem"]
        raise LocalError(ErrorCode.INTEGRITY, f"no {what} is whole: {problem}", "Look at the disk; see `relctl logs`.")
    raise LocalError(ErrorCode.FAILED, f"there is no {what}", "See `relctl checkpoint-info`.")


def _table(output: Output, report: dict[str, Any]) -> None:
    rows = [
        (
            item["name"],
            str(item["seq"]),
            local_time(item["timestamp"]),
            size(item["bytes"]),
            output.status("ok") if item["valid"] else output.style(printable(item["problem"]), "red"),
        )
        for item in report["checkpoints"]
    ]
    if not rows:
        output.text("There are no checkpoints yet.")
        return
    output.table(("NAME", "SEQ", "TAKEN", "SIZE", "STATE"), rows, right=("SEQ", "SIZE"))
    for name in report["names"]:
        if name["lost"]:
            output.text(
                f"{name['lost']} checkpoints of {name['name']} were lost; `relctl logs checkpointer` tells more."
            )
        if name["chain_broken_at"]:
            places = ", ".join(map(str, name["chain_broken_at"][:5]))
            output.text(f"The chain of {name['name']} does not hold at {places}: something was changed or removed.")
