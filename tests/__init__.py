"""The tests. A package, so that helpers import as `tests.…` and `python -m tests.chaos.matrix` works."""
