"""What a program's datagrams say, in systemd's words (sd_notify): parsed without trust, one message for each datagram.

| Field | What it means here |
| --- | --- |
| READY=1 | it is ready |
| STOPPING=1 | an exit that follows is a clean one |
| WATCHDOG=1 | it moves; the first one has it judged by its beats |
| WATCHDOG=trigger | it holds itself for hung |
| WATCHDOG_USEC=N | how long this life may be silent; 1 s to a day |
| EXTEND_TIMEOUT_USEC=N | so much more time, from now on, to become ready or to leave; at most a day |
| STATUS=TEXT | shown as what it is doing |
| RELOADING=1 | shown as what it is doing, until READY=1 comes again |
| MAINPID=N | another process of its own is its main one from now on |
| ERRNO=N | why it will have failed, if it fails |
| X_RELIABILITY_STACKS=N | upon this signal it writes the stacks of its threads |

Every other field is skipped, as systemd does with what it does not know.
"""

from dataclasses import dataclass
from typing import Final

DATAGRAM_BYTES_MAX: Final = 4096
"""As systemd has it: a longer one is not a message."""
STATUS_CHARACTERS_MAX: Final = 256
_USEC: Final = 1_000_000
_DAY_S: Final = 86400.0
_DIGITS_MAX: Final = 20
_SIGNALS: Final = range(1, 65)
_PIDS: Final = range(2, 2**31)
_ERRNOS: Final = range(1, 4096)


@dataclass(frozen=True, slots=True)
class Message:
    """What one datagram says; at its defaults, nothing.

    Attributes:
        ready: it is ready.
        stopping: it leaves by itself.
        beat: it moves.
        hung: it holds itself for hung.
        hang_timeout_s: how long it may be silent from now on.
        extend_s: how much longer it needs.
        status: what it is doing.
        reloading: it reads its configuration anew.
        main_pid: its main process from now on.
        errno: the system's number of an error that it has met.
        stacks_signal: the signal that has it write its stacks.
    """

    ready: bool = False
    stopping: bool = False
    beat: bool = False
    hung: bool = False
    hang_timeout_s: float | None = None
    extend_s: float | None = None
    status: str | None = None
    reloading: bool = False
    main_pid: int = 0
    errno: int = 0
    stacks_signal: int = 0


def parse(datagram: bytes) -> Message | None:
    """Return what a datagram says; None if it is no message: too long, or with a NUL before its end."""
    text = datagram.rstrip(b"\0")
    if len(datagram) > DATAGRAM_BYTES_MAX or b"\0" in text:
        return None
    fields: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        key, equals, value = line.partition(b"=")
        if equals:
            fields.setdefault(key, value)  # systemd takes the first of a kind too
    status = fields.get(b"STATUS")
    signal_number = _whole(fields.get(b"X_RELIABILITY_STACKS")) or 0
    main_pid = _whole(fields.get(b"MAINPID")) or 0
    errno = _whole(fields.get(b"ERRNO")) or 0
    silence_s = _seconds(fields.get(b"WATCHDOG_USEC"))
    return Message(
        ready=fields.get(b"READY") == b"1",
        stopping=fields.get(b"STOPPING") == b"1",
        beat=fields.get(b"WATCHDOG") == b"1",
        hung=fields.get(b"WATCHDOG") == b"trigger",
        hang_timeout_s=None if not silence_s else min(max(silence_s, 1.0), _DAY_S),
        extend_s=_seconds(fields.get(b"EXTEND_TIMEOUT_USEC")),
        status=None if status is None else _printable(status),
        reloading=fields.get(b"RELOADING") == b"1",
        main_pid=main_pid if main_pid in _PIDS else 0,
        errno=errno if errno in _ERRNOS else 0,
        stacks_signal=signal_number if signal_number in _SIGNALS else 0,
    )


def _whole(value: bytes | None) -> int | None:
    if value is None or not value.isdigit() or len(value) > _DIGITS_MAX:
        return None
    return int(value)


def _seconds(value: bytes | None) -> float | None:
    number = _whole(value)
    return None if number is None else min(number / _USEC, _DAY_S)


def _printable(value: bytes) -> str:
    text = value.decode("utf-8", "replace")[:STATUS_CHARACTERS_MAX]
    return "".join(character if character.isprintable() else " " for character in text)
