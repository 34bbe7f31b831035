"""What a process that owns tables wires once, before it opens its first database."""

import os

from actors.runtime import database, database_log
from actors.runtime.database_child import Repairs
from actors.runtime.paths import JOURNAL_DIR
from actors.runtime.process import ProcessRuntime


def prepare(runtime: ProcessRuntime) -> None:
    """Have SQLite's own log become events of this process, and damaged databases repaired."""
    database_log.install(runtime.log)
    database.report_damage_to(Repairs(os.path.join(runtime.arguments.runtime_dir, JOURNAL_DIR)))
