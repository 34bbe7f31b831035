"""Rows gathered into batches, and what an answer to a batch means for each of its rows. No socket, no clock.

One batch is one request: rows that came together, within what a frame of the control lane takes.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgpack

from app.reliability._event_rows import Row, row_bytes
from protocol.errors import ErrorCode, RemoteError
from protocol.limits import KIB, MIB

BATCH_ROWS_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 200 * KIB
"""Within what a frame of the control lane takes; the largest row is smaller."""
QUEUED_ROWS_MAX: Final = 20_000
QUEUED_BYTES_MAX: Final = 8 * MIB
"""What waits to be sent at most; then whoever logs waits."""

Waiter = TypeVar("Waiter")

OP: Final = "emit_rows"


@dataclass(slots=True)
class Batch(Generic[Waiter]):
    """Rows that travel together, and who waits for each."""

    rows: list[Row]
    waiters: list[Waiter]

    def frame(self) -> bytes:
        """Return the raw frame of the request."""
        packed: bytes = msgpack.packb(self.rows, use_bin_type=True)
        return packed

    def halves(self) -> "tuple[Batch[Waiter], Batch[Waiter]]":
        """Return two smaller ones, to find out which row it is that is refused."""
        middle = len(self.rows) // 2
        return (
            Batch(self.rows[:middle], self.waiters[:middle]),
            Batch(self.rows[middle:], self.waiters[middle:]),
        )

    def outcomes(self, answer: dict[str, Any]) -> "list[dict[str, Any] | RemoteError]":
        """Return for each row what its caller gets, given the answer of `DurableCaller`."""
        if answer["spooled"]:
            return [{"id": row[0].hex(), "seq": None, "spooled": True} for row in self.rows]
        return [
            _conflict(row) if seq is None else {"id": row[0].hex(), "seq": seq, "spooled": False}
            for row, seq in zip(self.rows, answer["seqs"], strict=True)
        ]


class Gatherer(Generic[Waiter]):
    """Rows that wait to be sent, in their order."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: deque[tuple[Row, Waiter, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many rows wait."""
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether whoever logs has to wait."""
        return len(self._rows) >= QUEUED_ROWS_MAX or self._bytes >= QUEUED_BYTES_MAX

    def add(self, row: Row, waiter: Waiter) -> None:
        """Queue a row."""
        size = row_bytes(row)
        self._rows.append((row, waiter, size))
        self._bytes += size

    def take(self) -> Batch[Waiter]:
        """Take the next batch off the queue."""
        rows: list[Row] = []
        waiters: list[Waiter] = []
        size_bytes = 0
        while self._rows and len(rows) < BATCH_ROWS_MAX:
            row, waiter, size = self._rows[0]
            if rows and size_bytes + size > BATCH_BYTES_MAX:
                break
            self._rows.popleft()
            size_bytes += size
            rows.append(row)
            waiters.append(waiter)
        self._bytes -= size_bytes
        return Batch(rows, waiters)


def _conflict(row: Row) -> RemoteError:
    return RemoteError(ErrorCode.ID_CONFLICT, f"id {row[0].hex()} is that of another event")
