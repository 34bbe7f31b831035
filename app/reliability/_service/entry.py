"""relctl as a service manager starts it: by the path of this file, wherever it is and whatever is installed."""

import os
import sys

SOURCE_ROOT = os.path.abspath(__file__)
for _ in range(4):
    SOURCE_ROOT = os.path.dirname(SOURCE_ROOT)
if SOURCE_ROOT not in sys.path:  # so it is under -P, which keeps a host's own modules from shadowing ours
    sys.path.insert(0, SOURCE_ROOT)

from app.reliability.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
