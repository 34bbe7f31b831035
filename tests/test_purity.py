"""Decisions are pure and time is an argument (docs/ARCHITECTURE.md): checked on the source of every pure core.

The linter bans clock calls and the import contracts ban modules; this test needs no tool but pytest, and also covers
what they cannot: cores that lie in a directory of shells, and the `__init__.py` files that importing a core runs.
"""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

PURE = (
    "protocol/**/*.py",
    "broker/routing.py",
    "broker/routing/**/*.py",
    "supervisor/core.py",
    "supervisor/budget.py",
    "supervisor/model.py",
    "supervisor/orphans_core.py",
    "supervisor/policy.py",
    "actors/*/core.py",
    "actors/*/core/**/*.py",
    "actors/*/records.py",
    "actors/checkpointer/retention.py",
    "actors/checkpointer/runs.py",
    "actors/watchdog/program_core.py",
    "actors/*/outputs_core.py",
    "actors/runtime/verdict.py",
    "actors/runtime/operations.py",
    "actors/runtime/redaction.py",
    "actors/runtime/registration.py",
    "actors/runtime/requests.py",
    "actors/runtime/succession_core.py",
)

IMPURE_MODULES = frozenset(
    [
        "apsw",
        "asyncio",
        "ctypes",
        "fcntl",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "psutil",
        "select",
        "selectors",
        "setproctitle",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "zmq",
    ]
)
IMPURE_CALLS = frozenset({"__import__", "input", "open", "print"})
CLOCK_METHODS = frozenset({"now", "today", "utcnow"})
CLOCK_OWNERS = frozenset({"date", "datetime"})


def pure_files() -> list[str]:
    """The pure cores that exist, and the package files that importing them runs, relative to the repository."""
    cores = {path for pattern in PURE for path in ROOT.glob(pattern)}
    packages = {
        parent / "__init__.py" for core in cores for parent in core.parents if parent != ROOT and ROOT in parent.parents
    }
    return sorted(path.relative_to(ROOT).as_posix() for path in cores | {path for path in packages if path.exists()})


def impurities(source: str) -> Iterator[str]:
    """Yield each use of the outside world in a module's source, wherever it stands, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                yield f"{node.lineno}: calls {name}"
                continue
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=method) if (
                owner in CLOCK_OWNERS and method in CLOCK_METHODS
            ):
                yield f"{node.lineno}: reads the clock with {owner}.{method}"
                continue
            case _:
                continue
        for module in modules:
            if module.partition(".")[0] in IMPURE_MODULES:
                yield f"{node.lineno}: imports {module}"


@pytest.mark.parametrize("path", pure_files())
def test_a_pure_core_imports_no_clock_and_no_io(path: str) -> None:
    assert list(impurities((ROOT / path).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path as p",
        "from socket import socket",
        "def decide():\n    import zmq",
        "from datetime import datetime\nnow = datetime.now()",
        "import datetime\nnow = datetime.datetime.utcnow()",
        "text = open('file').read()",
    ],
)
def test_an_impure_module_is_noticed(source: str) -> None:
    assert len(list(impurities(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import enum, dataclasses, msgpack",
        "from datetime import datetime, UTC\nx = datetime.fromtimestamp(0, UTC)",
        "late = state.now - state.last",
    ],
)
def test_a_pure_module_passes(source: str) -> None:
    assert list(impurities(source)) == []
