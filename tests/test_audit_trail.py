"""The audit trail's table in docs/operating.md names every event type that the code writes, and no other."""

import ast
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "operating.md"
HEADING = "## The audit trail"
SOURCES = ("protocol", "broker", "actors", "supervisor", "app")

PLACES = {
    "log": (1, 2),
    "say": (1,),
    "Say": (1,),
    "log_event": (3,),
    "Event": (4,),
    "record": (1,),
    "_event": (1,),
    "_report": (2,),
    "_log": (1,),
}
"""Functions that write an event, by the last part of their name, and where its type may stand among their arguments."""
FORMATTED = {
    "{op}_requested": {"restart_requested", "start_requested", "stop_requested"},
    "sqlite_{severity.lower()}": {"sqlite_notice", "sqlite_warn", "sqlite_error"},
}
"""What types that are put together at run time come to."""
EVENT_TYPE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def written() -> dict[str, list[str]]:
    """Every event type that is written somewhere, with the places."""
    files = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    shared = {name: text for tree in trees.values() for name, text in _constants(tree)}
    found: dict[str, list[str]] = {}
    for path, tree in trees.items():
        constants = shared | dict(_constants(tree))
        for node in ast.walk(tree):
            for expression in _types(node):
                for event_type in _values(expression, constants):
                    found.setdefault(event_type, []).append(f"{path}:{expression.lineno}")
    return found


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
        ):
            yield node.target.id, str(node.value.value)


def _types(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that say an event's type: an argument, or what is assigned to `event_type`."""
    if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["event_type"]:
        yield node.value
    if isinstance(node, ast.Call):
        yield from _type_arguments(node)


def _type_arguments(call: ast.Call) -> Iterator[ast.expr]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    yield from (keyword.value for keyword in call.keywords if keyword.arg == "event_type")
    yield from (call.args[place] for place in PLACES.get(name, ()) if len(call.args) > place)


def _values(expression: ast.expr, constants: dict[str, str]) -> set[str]:
    match expression:
        case ast.Constant(value=str(text)):
            return {text} if EVENT_TYPE.fullmatch(text) else set()
        case ast.Name(id=name) if name in constants:
            return {constants[name]}
        case ast.IfExp(body=body, orelse=orelse):
            return _values(body, constants) | _values(orelse, constants)
        case ast.JoinedStr():
            return FORMATTED.get(ast.unparse(expression)[2:-1], set())
    return set()


def documented() -> list[str]:
    section = GUIDE.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in rows for name in re.findall(r"`([a-z0-9_]+)`", cell)]


def test_every_event_type_is_documented() -> None:
    missing = {name: places for name, places in written().items() if name not in documented()}
    assert not missing, f"add a row to '{HEADING}' in docs/operating.md: {missing}"


def test_no_other_is() -> None:
    stale = set(documented()) - written().keys()
    assert not stale, f"nothing writes them: {stale}"


def test_none_stands_there_twice() -> None:
    names = documented()
    assert len(names) == len(set(names))


def test_the_scan_sees_what_it_should() -> None:
    assert {
        "process_hung",
        "restart",
        "recovery",
        "stop_requested",
        "clock_jumped",
        "hostile_messages",
    } <= written().keys()
