"""The launcher's own socket: start, stop, restart and down work when the broker does not.

One JSON object a line: ``{"op", "name"?, "token"?}`` asks, ``{"ok": {...}}`` or ``{"error": {"code", "message",
"hint"}}`` answers, in order; a connection may ask again once it was answered. On a local socket the system tells who
asks; on TCP (the portable port) the installation's token admits. Nothing here waits: connections are few, lines are
short, and whoever does not read its answer is dropped.
"""

import json
import os
import selectors
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.errors import ErrorCode, LocalError, ReliabilityError
from protocol.secret import same_secret

CONNECTIONS_MAX: Final = 16
LINE_BYTES_MAX: Final = 64 * 1024
IDLE_S_MAX: Final = 10.0
"""A connection that has asked nothing for so long is closed."""
TCP_PREFIX: Final = "tcp:"
REFUSALS_INTERVAL_S: Final = 30.0
"""Refused clients are told of once in so long."""
_USER_CHARACTERS_MAX: Final = 64
_RECEIVE_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request, to be answered once with `reply` or `fail`.

    Attributes:
        op: what is asked for.
        name: which process, or empty.
        who: who asks, for the audit trail.
        reply: answers.
        fail: answers with an error.
        fields: the whole request.
    """

    op: str
    name: str
    who: str
    reply: Callable[[dict[str, Any]], None]
    fail: Callable[[ReliabilityError], None]
    fields: dict[str, Any] = field(default_factory=dict)


class Refusals:
    """Sums up refused clients for the audit trail: whoever knocks in a loop makes one event in a while, not thousands.

    Pure: counts and monotonic times are arguments.
    """

    def __init__(self) -> None:
        """Begin with none told."""
        self._told = 0
        self._next_at = 0.0

    def due(self, count: int, now: float) -> int:
        """Return how many of `count` are to be told of now; 0 for nothing."""
        if count == self._told or now < self._next_at:
            return 0
        self._next_at = now + REFUSALS_INTERVAL_S
        return self.rest(count)

    def rest(self, count: int) -> int:
        """Return how many of `count` have not been told of; now they are."""
        untold, self._told = count - self._told, count
        return untold


class ControlServer:
    """Serves the connections of one listening socket through somebody else's selector.

    The selector's `data` for each descriptor is a callable of (mask, now).

    Attributes:
        refused: connections and requests of somebody who may not, or that were no requests.
    """

    def __init__(
        self,
        listener: socket.socket,
        token: bytes | None,
        selector: selectors.BaseSelector,
        handle: Callable[[Request], None],
    ) -> None:
        """Serve `listener`, which listens already; with `token` (on TCP) only who presents it is heard."""
        self._listener = listener
        self._token = token
        self._selector = selector
        self._handle = handle
        self._connections: set[_Connection] = set()
        self.refused = 0
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def expire(self, now: float) -> None:
        """Close connections that have been idle for too long."""
        for connection in list(self._connections):
            if not connection.waits_for_us and now - connection.active_at > IDLE_S_MAX:
                connection.close()

    def close(self) -> None:
        """Stop serving."""
        for connection in list(self._connections):
            connection.close()
        self._selector.unregister(self._listener)
        self._listener.close()

    def close_inherited(self) -> None:
        """In a forked child: drop the descriptors, which the launcher goes on using."""
        self._listener.close()
        for connection in self._connections:
            connection.socket.close()

    def _accept(self, _mask: int, now: float) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        accepted.setblocking(False)
        uid = _peer_uid(accepted)
        if len(self._connections) >= CONNECTIONS_MAX or (uid is not None and uid not in {0, os.geteuid()}):
            accepted.close()
            self.refused += 1
            return
        connection = _Connection(accepted, uid, now, self)
        self._connections.add(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection.ready)

    def admits(self, fields: dict[str, Any]) -> bool:
        """Tell whether a request may be heard."""
        given = fields.get("token")
        return self._token is None or (isinstance(given, str) and same_secret(given, self._token.hex()))

    def handle(self, request: Request) -> None:
        """Have a request answered."""
        self._handle(request)

    def forget(self, connection: "_Connection") -> None:
        """Drop a connection that is being closed."""
        self._selector.unregister(connection.socket)
        self._connections.discard(connection)


class _Connection:
    """One client: collects a line, has it answered, sends the answer."""

    def __init__(self, accepted: socket.socket, uid: int | None, now: float, server: ControlServer) -> None:
        self.socket = accepted
        self.active_at = now
        self.waits_for_us = False
        self._uid = uid
        self._server = server
        self._received = b""
        self._closed = False

    def ready(self, _mask: int, now: float) -> None:
        """Read what has come, and have a whole line answered."""
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.active_at = now
        self._received += data
        if not data or len(self._received) > LINE_BYTES_MAX:
            self._server.refused += bool(data)
            self.close()
        elif b"\n" in self._received and not self.waits_for_us:
            line, _, self._received = self._received.partition(b"\n")
            self._ask(line)

    def close(self) -> None:
        """Close it; an answer that comes later is lost."""
        if not self._closed:
            self._closed = True
            self._server.forget(self)
            self.socket.close()

    def _ask(self, line: bytes) -> None:
        self.waits_for_us = True
        try:
            request = self._parsed(line)
        except ReliabilityError as error:
            self._server.refused += 1
            self._fail(error)
            return
        self._server.handle(request)

    def _parsed(self, line: bytes) -> Request:
        try:
            fields = json.loads(line)
        except ValueError:
            raise LocalError(ErrorCode.BAD_REQUEST, "not one JSON object a line", "") from None
        if not isinstance(fields, dict) or not self._server.admits(fields):
            raise LocalError(ErrorCode.REFUSED, "refused", "Only the user who runs the system may control it.")
        op, name, user = (fields.get(key, "") for key in ("op", "name", "user"))
        if not isinstance(op, str) or not isinstance(name, str) or not isinstance(user, str):
            raise LocalError(ErrorCode.BAD_REQUEST, "op, name and user are texts", "")
        return Request(op, name, self._who(user), self._reply, self._fail, fields)

    def _who(self, claimed: str) -> str:
        told = "".join(character for character in claimed[:_USER_CHARACTERS_MAX] if character.isprintable())
        if self._uid is None:
            return told or "the system's owner"
        return f"{told} (uid {self._uid})" if told else f"uid {self._uid}"

    def _reply(self, result: dict[str, Any]) -> None:
        self._send({"ok": result})

    def _fail(self, error: ReliabilityError) -> None:
        self._send({"error": {"code": error.code, "message": error.message, "hint": error.hint}})

    def _send(self, answer: dict[str, Any]) -> None:
        self.waits_for_us = False
        if self._closed:
            return
        data = json.dumps(answer).encode() + b"\n"
        try:
            sent = self.socket.send(data)
        except OSError:
            sent = 0
        if sent < len(data):  # a few KiB do not fit into its buffer: it does not read
            self.close()


def listen_local(path: str) -> socket.socket:
    """Return a listening local socket at `path`; a stale one is removed (the caller holds the instance lock)."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(CONNECTIONS_MAX)
    return listener


def listen_tcp(wanted: str) -> tuple[socket.socket, str]:
    """Return a listening socket on the loopback and its address, ``tcp:HOST:PORT``: the wanted one if it is free."""
    port = int(wanted.rpartition(":")[2]) if wanted.startswith(TCP_PREFIX) else 0
    for candidate in dict.fromkeys((port, 0)):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen(CONNECTIONS_MAX)
        except OSError:
            listener.close()
            if not candidate:
                raise
        else:
            return listener, f"{TCP_PREFIX}127.0.0.1:{listener.getsockname()[1]}"
    raise RuntimeError("unreachable: port 0 either binds or raises")


def _peer_uid(connection: socket.socket) -> int | None:
    """Return the user at the other end; None where the system does not tell."""
    if connection.family != getattr(socket, "AF_UNIX", None) or not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
