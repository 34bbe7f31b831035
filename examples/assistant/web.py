"""HTTP/1.1, as little of it as the assistant needs: JSON there, JSON back, and a bound for everything."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 1024 * 1024
IDLE_S = 30.0


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        """Say why."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its path's parts, decoded, and its JSON body; None without one."""

    method: str
    path: tuple[str, ...]
    body: Any


Handler = Callable[[Request], Awaitable[tuple[HTTPStatus, Any]]]


async def serve(handler: Handler, host: str, port: int) -> asyncio.Server:
    """Listen, and have `handler` answer."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(handler, reader, writer):
                continue
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it went away, or said nothing for too long
        finally:
            writer.close()

    return await asyncio.start_server(connected, host, port, limit=HEAD_BYTES_MAX)


async def _exchange(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; tell whether another may follow."""
    goes_on = False
    try:
        request = await asyncio.wait_for(_read(reader), IDLE_S)
        goes_on = True
        status, answer = await handler(request)
    except Refusal as refusal:
        status, answer = refusal.status, {"error": str(refusal)}
    payload = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(payload)}\r\nConnection: {'keep-alive' if goes_on else 'close'}\r\n\r\n"
    writer.write(head.encode() + payload)
    await writer.drain()
    return goes_on


async def _read(reader: asyncio.StreamReader) -> Request:
    """Read a request.

    Raises:
        Refusal: it is none, or too large.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large") from None
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refusal(HTTPStatus.BAD_REQUEST, "that is not HTTP/1.1")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = fields.get("content-length", "0")
    if not length.isdecimal() or "transfer-encoding" in fields:
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the body's length is missing, or no number")
    if len(length) > 9 or int(length) > BODY_BYTES_MAX:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_BYTES_MAX} bytes")
    payload = await reader.readexactly(int(length))
    try:
        body = json.loads(payload) if payload else None
    except (ValueError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    path = words[1].partition("?")[0]
    return Request(words[0], tuple(unquote(part) for part in path.split("/") if part), body)
