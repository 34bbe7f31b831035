"""The spool: where a durable call goes when its owner does not answer, until the owner takes it in, once.

``DATA/spool/SERVICE/<32 hexadecimal digits>.spool``: files of records (`spool_format`), each written by one process.

A writer locks its file for the length of one append, and never waits for a lock: if somebody else holds it, or it has a
successor, the writer begins another file. What it returned from is in the page cache: it survives every process; a
short-lived thread brings it to the disk. The reader is the owner alone (``reader.lock``). It reads each record as often
as it must until `done` says that it is committed, so the owner takes it in by its id; then the file goes as soon as
nobody appends. What is torn at the end of a file that nobody locks was never acknowledged, and is passed over. What
else is damaged was: it is counted, and the file is kept aside whole as ``*.damaged``.

Times in names only order the files; a clock that jumps loses nothing.
"""

from actors.runtime.spool_files import hint_path, spool_directory
from actors.runtime.spool_reader import SpoolEntry, SpoolReader
from actors.runtime.spool_writer import SpoolWriter

__all__ = ["SpoolEntry", "SpoolReader", "SpoolWriter", "hint_path", "spool_directory"]
