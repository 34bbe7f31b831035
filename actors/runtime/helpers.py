"""Processes that our own processes start by the way: a successor of the launcher, a probe, a tool on the database.

They say in their environment that they are ours, because the launcher becomes the parent of those that lose theirs,
as it does with whatever programs leave behind, which it ends with them.
"""

from collections.abc import Mapping
from typing import Final

HELPER_VARIABLE: Final = "RELIABILITY_HELPER"
"""Set in the environment of whoever is started so; no program inherits it."""


def as_helper(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that is one of ours."""
    return {**environment, HELPER_VARIABLE: "1"}
