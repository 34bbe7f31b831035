"""What becomes of checkpoints that are kept: thinned out, marked if damaged, compressed. Worker thread only."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import apsw

from actors.checkpointer.core import Encoding, Gap, with_gap
from actors.checkpointer.outcomes import Unsettled
from actors.checkpointer.payloads import PayloadFiles, Stored, compress, decode, shrinks
from actors.checkpointer.retention import Retention, plan_thinning
from actors.checkpointer.tables import columns, load_gaps, load_kept, store_gaps
from actors.runtime.database import Database
from protocol.limits import KIB

REMOVED_MAX: Final = 500
"""Checkpoints removed in one transaction."""
COMPRESSED_BYTES_MIN: Final = 4 * KIB
"""A smaller payload takes one page either way."""


class Upkeep:
    """Looks after the checkpoints that a store keeps."""

    def __init__(self, database: Database, files: PayloadFiles, inline_bytes_max: int) -> None:
        """Work on the database and the files of a store, with its bound on payloads in rows."""
        self._database = database
        self._files = files
        self._inline_bytes_max = inline_bytes_max
        self._unthinned: set[str] = set()

    def has_grown(self, names: Iterable[str]) -> None:
        """Note names that have new checkpoints."""
        self._unthinned.update(names)

    def thin(self, retention: Retention, look: Callable[[str], Sequence[tuple[str, int, str]]]) -> int:
        """Remove what is no longer kept, at most `REMOVED_MAX` of each name; returns how many that were.

        Before anything of a name is removed, `look` is asked which of its newest checkpoints are damaged, up to the
        newest valid one: so that one stays.

        Raises:
            DatabaseError: not all of it is removed.
        """
        removed_in_all = 0
        while self._unthinned:
            name = self._unthinned.pop()
            try:
                if self._plan(name, retention):
                    if damaged := look(name):
                        self.mark_damaged(damaged)
                    removed = self._thin(name, retention)
                    removed_in_all += removed
                    if removed == REMOVED_MAX:
                        self._unthinned.add(name)
                        break
            except BaseException:
                self._unthinned.add(name)
                raise
        return removed_in_all

    @property
    def is_thin(self) -> bool:
        """Whether nothing was saved since the last `thin`."""
        return not self._unthinned

    def mark_damaged(self, found: Iterable[tuple[str, int, str]]) -> None:
        """Note checkpoints (name, number, problem) that turned out to be damaged, so that they protect no other.

        Raises:
            DatabaseError: it is not noted.
        """
        marks = [(problem, name, seq) for name, seq, problem in found]

        def work(connection: apsw.Connection) -> None:
            connection.executemany("UPDATE checkpoints SET damaged = ? WHERE name = ? AND seq = ?", marks)

        self._database.write(work)

    def unsettled(self) -> Unsettled | None:
        """Return a checkpoint that may be compressed: one that has a successor. None if there is none.

        Raises:
            DatabaseError: the database cannot be used.
        """

        def work(connection: apsw.Connection) -> Unsettled | None:
            connection.execute(
                "UPDATE checkpoints SET settled = 1 WHERE settled = 0 AND stored_bytes < ?",
                (COMPRESSED_BYTES_MIN,),
            )
            row = connection.execute(
                "SELECT number, c.name, c.seq, size_bytes, sha256, encoding, stored_bytes, payload, file"
                " FROM checkpoints AS c JOIN checkpoint_names AS n ON n.name = c.name AND n.seq > c.seq"
                " WHERE settled = 0 ORDER BY number LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            number, name, seq, size_bytes, sha256, encoding, stored_bytes, payload, file = row
            stored = Stored(Encoding(encoding), stored_bytes, payload, file)
            return Unsettled(number, name, seq, size_bytes, sha256, stored)

        return self._database.write(work)

    def squeeze(self, item: Unsettled) -> Stored:
        """Return a payload compressed, if that pays, in a new file if it is large; from any thread.

        Raises:
            Damaged: it is not what was saved.
            LocalError: there is no space.
        """
        before = item.stored
        stored = before.blob
        if stored is None:
            stored = self._files.read(before.file or "", before.stored_bytes)
        payload = decode(stored, before.encoding, item.size_bytes, item.sha256)
        if before.encoding is not Encoding.STORED or not shrinks(payload):
            return before
        smaller = compress(payload)
        if len(smaller) >= len(payload):
            return before
        if len(smaller) <= self._inline_bytes_max:
            return Stored(Encoding.ZLIB, len(smaller), blob=smaller)
        return Stored(Encoding.ZLIB, len(smaller), file=self._files.write(smaller))

    def settle(self, item: Unsettled, after: Stored) -> None:
        """Let a checkpoint's payload be kept as `after`, and drop what it was before.

        Raises:
            DatabaseError: it is kept as it was.
        """

        def work(connection: apsw.Connection) -> bool:
            connection.execute(
                "UPDATE checkpoints SET settled = 1, encoding = ?, stored_bytes = ?, file = ?, payload = ?"
                " WHERE number = ? AND id = (SELECT id FROM checkpoints WHERE number = ? AND seq = ? AND name = ?)",
                (*columns(after), item.number, item.number, item.seq, item.name),
            )
            return connection.changes() > 0

        done = False
        try:
            done = self._database.write(work)
        finally:
            drop = item.stored if done else after
            if after is not item.stored and drop.file is not None:
                self._files.remove(drop.file)

    def _plan(self, name: str, retention: Retention) -> list[int]:
        return self._database.write(lambda connection: plan_thinning(load_kept(connection, name), retention))

    def _thin(self, name: str, retention: Retention) -> int:
        def work(connection: apsw.Connection) -> tuple[int, list[str]]:
            removed = plan_thinning(load_kept(connection, name), retention)[:REMOVED_MAX]
            gaps = before = load_gaps(connection, name)
            files = []
            for seq in removed:
                prev_hash, hash_, file = connection.execute(
                    "SELECT prev_hash, hash, file FROM checkpoints WHERE name = ? AND seq = ?", (name, seq)
                ).get
                gaps = with_gap(gaps, Gap(seq, seq, prev_hash, hash_))
                files += [file] if file else []
            connection.executemany(
                "DELETE FROM checkpoints WHERE name = ? AND seq = ?", [(name, seq) for seq in removed]
            )
            store_gaps(connection, name, before, gaps)
            return len(removed), files

        removed, files = self._database.write(work)
        for file in files:
            self._files.remove(file)
        return removed
