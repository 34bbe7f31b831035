"""A process that indexes a log for ever, begun anew whenever it is done, and waits to be killed.

``python -m tests.actors.event_logger.indexing DIRECTORY``
"""

import sys
import time
from pathlib import Path

from actors.event_logger.search_index import SearchIndex


def main(directory: Path) -> None:
    index = SearchIndex(str(directory / "search.db"), str(directory / "reliability.db"))
    while True:
        progress = index.step(time.monotonic)
        print(progress.through_seq, flush=True)
        if not progress.more:
            index.discard()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
