"""What relctl knows of programs from files: which there are, and where their output lies."""

import os
from typing import Any

from app.reliability._cli.session import Session
from protocol.errors import ErrorCode, LocalError


def known_programs(session: Session) -> list[str]:
    """Return the programs that are supervised, or that have left output, in their order."""
    from actors.runtime.programs import OUTPUT_DIR, is_program_name, load

    names = list(load(session.runtime_dir()))
    try:
        left = sorted(os.listdir(os.path.join(session.data_dir, OUTPUT_DIR)))
    except OSError:
        left = []
    return list(dict.fromkeys([*names, *filter(is_program_name, left)]))


def require_program(session: Session, name: str) -> None:
    """Check that there is, or was, a program `name`.

    Raises:
        LocalError: there is none; it says what there is.
    """
    known = known_programs(session)
    if name in known:
        return
    board = session.board()
    own = False
    if board is not None:
        with board:
            own = board.find(name) is not None
    if own:
        message, hint = f"{name} is a process of ours and prints nothing", f"`relctl logs {name}` shows its events."
        raise LocalError(ErrorCode.SERVICE_UNKNOWN, message, hint)
    hint = f"There are {', '.join(known)}." if known else "No program has ever run here; `relctl run` starts one."
    raise LocalError(ErrorCode.SERVICE_UNKNOWN, f"there is no program {name!r}", hint)


def output_of(session: Session, name: str) -> str:
    """Return the path of a program's present output."""
    from actors.runtime.programs import output_path

    return output_path(session.data_dir, name)


def state_of(session: Session, name: str) -> Any:
    """Return the launcher's record of a process; None if it is not on the board."""
    board = session.board()
    if board is None:
        return None
    with board:
        found = board.find(name)
        return None if found is None else found[1]
