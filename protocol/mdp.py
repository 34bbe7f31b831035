"""Majordomo 0.2 (ZeroMQ RFC 18), its management interface (RFC 8), and our two additions.

Additions, both on the worker side and invisible to plain MDP peers: READY may carry one more frame
(`protocol.messages.WorkerHello`), and a worker that sent one may PUBLISH: ``["MDPW02", 0x07, topic, body]``.
"""

from typing import Final

CLIENT: Final = b"MDPC02"
WORKER: Final = b"MDPW02"

CLIENT_REQUEST: Final = b"\x01"
CLIENT_PARTIAL: Final = b"\x02"
CLIENT_FINAL: Final = b"\x03"

WORKER_READY: Final = b"\x01"
WORKER_REQUEST: Final = b"\x02"
WORKER_PARTIAL: Final = b"\x03"
WORKER_FINAL: Final = b"\x04"
WORKER_HEARTBEAT: Final = b"\x05"
WORKER_DISCONNECT: Final = b"\x06"
WORKER_PUBLISH: Final = b"\x07"

MMI_SERVICE: Final = b"mmi.service"
MMI_OK: Final = b"200"
MMI_NOT_FOUND: Final = b"404"
MMI_NOT_IMPLEMENTED: Final = b"501"

HEARTBEAT: Final = [WORKER, WORKER_HEARTBEAT]
DISCONNECT: Final = [WORKER, WORKER_DISCONNECT]


def request(service: bytes, *body: bytes) -> list[bytes]:
    """Frames that a client sends."""
    return [CLIENT, CLIENT_REQUEST, service, *body]


def ready(service: bytes, hello: bytes) -> list[bytes]:
    """Frames with which a worker of ours registers."""
    return [WORKER, WORKER_READY, service, hello]


def final(address: bytes, *body: bytes) -> list[bytes]:
    """Frames with which a worker answers the request that came with `address`."""
    return [WORKER, WORKER_FINAL, address, b"", *body]


def publish(topic: bytes, body: bytes) -> list[bytes]:
    """Frames with which a worker of ours publishes."""
    return [WORKER, WORKER_PUBLISH, topic, body]
