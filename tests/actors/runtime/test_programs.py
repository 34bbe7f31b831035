"""Programs as configuration, control requests and programs.json tell them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime import programs
from actors.runtime.programs import Probe, ProgramSpec, Ready, Restart
from protocol.errors import LocalError

FULL = {
    "command": ["redis-server", "--port", "0"],
    "directory": "work",
    "environment": {"A": "1"},
    "after": ["db"],
    "restart": "always",
    "ready": "notify",
    "probe": {"tcp": "127.0.0.1:6379", "timeout_s": 1},
    "hang_timeout_s": 60,
    "restart_max": 5,
    "restart_period_s": 10.5,
    "start_timeout_s": 5,
    "stop_timeout_s": 2,
    "memory_max_mib": 100,
    "output_bytes_max": 1 << 20,
}


def test_a_table_says_everything() -> None:
    db, web = programs.parse_programs({"db": {"command": ["db"]}, "web": FULL}, "/etc/app")
    assert db == ProgramSpec("db", ("db",), "/etc/app")
    assert web == ProgramSpec(
        name="web",
        command=("redis-server", "--port", "0"),
        directory="/etc/app/work",
        environment={"A": "1"},
        after=("db",),
        restart=Restart.ALWAYS,
        ready=Ready.NOTIFY,
        probe=Probe("tcp", "127.0.0.1:6379", 5.0, 1.0),
        hang_timeout_s=60.0,
        restart_max=5,
        restart_period_s=10.5,
        start_timeout_s=5.0,
        stop_timeout_s=2.0,
        memory_max_mib=100,
        output_bytes_max=1 << 20,
    )


def test_a_probe_makes_a_program_ready_unless_it_says_otherwise() -> None:
    (web,) = programs.parse_programs({"web": {"command": ["x"], "probe": {"command": ["true"]}}}, "/")
    assert (web.ready, web.probe) == (Ready.PROBE, Probe("command", ("true",)))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"web": {}}, "command"),
        ({"web": {"command": "x y"}}, "command"),
        ({"web": {"command": []}}, "command"),
        ({"web": {"command": [""]}}, "command"),
        ({"web": {"command": ["a\0b"]}}, "command"),
        ({"web": {"command": ["x"], "colour": 1}}, "colour"),
        ({"web": {"command": ["x"], "transient": True}}, "transient"),
        ({"web": {"command": ["x"], "restart": "sometimes"}}, "restart"),
        ({"web": {"command": ["x"], "ready": "probe"}}, "probe"),
        ({"web": {"command": ["x"], "probe": {"tcp": "nowhere"}}}, "probe tcp"),
        ({"web": {"command": ["x"], "probe": {"http": "ftp://x"}}}, "probe http"),
        ({"web": {"command": ["x"], "probe": {"tcp": "a:1", "http": "http://a"}}}, "probe"),
        ({"web": {"command": ["x"], "hang_timeout_s": 0.5}}, "hang_timeout_s"),
        ({"web": {"command": ["x"], "hang_timeout_s": float("nan")}}, "hang_timeout_s"),
        ({"web": {"command": ["x"], "restart_max": True}}, "restart_max"),
        ({"web": {"command": ["x"], "environment": {"A": 1}}}, "environment A"),
        ({"web": {"command": ["x"], "environment": {"A=B": ""}}}, "environment"),
        ({"web": {"command": ["x"], "after": ["db"]}}, "'db'"),
        ({"web": {"command": ["x"], "after": ["web"]}}, "web -> web"),
        ({"a": {"command": ["x"], "after": ["b"]}, "b": {"command": ["x"], "after": ["a"]}}, "a -> b -> a"),
        ({"Web": {"command": ["x"]}}, "'Web'"),
        ({"launcher": {"command": ["x"]}}, "'launcher'"),
        ({"x" * 33: {"command": ["x"]}}, "x" * 33),
        ({"../x": {"command": ["x"]}}, "'../x'"),
        ({"web": 1}, "web"),
        ([], "[program]"),
        ({f"p{number}": {"command": ["x"]} for number in range(49)}, "49"),
    ],
)
def test_what_is_wrong_is_named(table: Any, named: str) -> None:
    with pytest.raises(LocalError) as raised:
        programs.parse_programs(table, "/etc")
    assert named in raised.value.message
    assert raised.value.exit_code == 2


def test_the_file_holds_what_was_supervised_and_where(tmp_path: Path) -> None:
    assert programs.load(str(tmp_path)) == {}
    specs = programs.parse_programs({"db": {"command": ["db"]}, "web": FULL}, "/etc/app")
    programs.save(str(tmp_path), specs, {"db": 17, "web": 16})
    assert programs.load(str(tmp_path)) == {spec.name: spec for spec in specs}
    assert programs.load_slots(str(tmp_path)) == {"db": 17, "web": 16}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"programs": 3}', b'{"programs": [3, {"name": "x"}]}', b"\xff"]
)
def test_a_damaged_file_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / programs.PROGRAMS_FILE).write_bytes(content)
    assert programs.load(str(tmp_path)) == {}


_WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1), min_size=1)


@given(command=_WORDS, transient=st.booleans(), restart=st.sampled_from(Restart), limit=st.none() | st.integers(1, 99))
def test_fields_come_back_as_they_went(
    command: list[str], transient: bool, restart: Restart, limit: int | None
) -> None:
    spec = ProgramSpec("x", tuple(command), "/", restart=restart, transient=transient, memory_max_mib=limit)
    assert programs.from_fields(json.loads(json.dumps(programs.to_fields(spec)))) == spec


@pytest.mark.parametrize("change", [{"directory": "here"}, {"name": 3}, {"transient": 1}, {"colour": "red"}])
def test_fields_of_a_request_are_checked(change: dict[str, Any]) -> None:
    fields = programs.to_fields(ProgramSpec("x", ("x",), "/")) | change
    with pytest.raises(LocalError):
        programs.from_fields(fields)


def test_every_life_has_its_own_id() -> None:
    lives = [
        ("boot", "/data", "web", 1),
        ("boot", "/data", "web", 2),
        ("boot", "/data", "db", 1),
        ("b2", "/data", "web", 1),
    ]
    ids = {programs.invocation_id(*life) for life in lives}
    assert len(ids) == len(lives)
    assert all(len(one) == 32 and set(one) <= set("0123456789abcdef") for one in ids)


def test_dependents_are_deeper_than_what_they_depend_on() -> None:
    table = {
        "c": {"command": ["x"], "after": ["b", "a"]},
        "a": {"command": ["x"]},
        "b": {"command": ["x"], "after": ["a"]},
    }
    assert programs.depths(programs.parse_programs(table, "/")) == {"a": 0, "b": 1, "c": 2}
