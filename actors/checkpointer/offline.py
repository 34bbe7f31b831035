"""Reads checkpoints from the files, for an application whose system does not answer: a process of its own.

``python -P -m actors.checkpointer.offline DATA recover|show NAME [RUN in hexadecimal digits]``

An application opens no database of ours in its own process. Written to the standard output: one line of JSON, what the
operation of the same name answers, or ``{"error": {"code", "message", "hint"}}``; behind it the bytes of the state.
"""

import json
import sys
import time
from typing import BinaryIO

from actors.checkpointer.core import parse_name
from actors.checkpointer.queries import read_one, read_spooled, recover
from protocol.errors import ReliabilityError


def main(arguments: list[str], output: BinaryIO) -> int:
    """Answer one question; returns the exit code."""
    try:
        data_dir, op, name, *rest = arguments
        spooled = read_spooled(data_dir, parse_name(name), time.time_ns() // 1_000_000)
        if op == "recover":
            found = recover(data_dir, name, bytes.fromhex(rest[0]) if rest else None, spooled)
        else:
            found = read_one(data_dir, name, int(rest[0]) if rest else None, spooled)
    except ReliabilityError as error:
        answer = {"error": {"code": str(error.code), "message": error.message, "hint": error.hint}}
        output.write(json.dumps(answer).encode() + b"\n")
        return error.exit_code
    output.write(json.dumps(found.document()).encode() + b"\n")
    output.write(found.payload)
    output.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout.buffer))
