"""checkpointer on a loop of its own: what is acknowledged is kept, whatever the disk and the neighbours do."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgpack
import pytest

from actors.checkpointer.actor import Checkpointer
from actors.checkpointer.config import CheckpointsConfig
from actors.checkpointer.payloads import FOLDER, HEADS_FILE
from actors.checkpointer.queries import chain_problems, list_checkpoints
from actors.runtime.identity import own_identity
from actors.runtime.spool import SpoolWriter
from protocol.errors import ErrorCode
from tests.actors.harness import Asked, Harness

RUN = b"r" * 16
LATER = b"s" * 16
LARGE = 300 * 1024
NOTHING = {"reason": "nothing", "checkpoint": None, "skipped": [], "skipped_count": 0}


class Keeper(Harness):
    """A checkpointer, with the requests that tests make of it."""

    def done(self, asked: Asked) -> Asked:
        self.until(lambda: asked.done)
        return asked

    def save(self, state: Any, name: str = "app", run: bytes | None = RUN, **options: Any) -> Asked:
        payload = state if type(state) is bytes else msgpack.packb(state)
        kind = "bytes" if type(state) is bytes else "msgpack"
        options.setdefault("request_id", os.urandom(16))
        return self.done(self.ask("save", raw=[payload], name=name, run=run, format=kind, **options))

    def saved(self, state: Any, **options: Any) -> dict[str, Any]:
        asked = self.save(state, **options)
        assert asked.error is None, asked.error
        return asked.result

    def recover(self, run: bytes | None = None, name: str = "app") -> tuple[dict[str, Any], bytes | None]:
        asked = self.done(self.ask("recover", name=name, run=run))
        assert asked.error is None, asked.error
        return asked.result, asked.raw[0] if asked.raw else None


def text_of(events: Sequence[tuple[Any, str, str]], kind: str) -> list[str]:
    return [message for _, event_type, message in events if event_type == kind]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    """Makes checkpointers on one data directory; an earlier one lets go of it."""
    made: list[Keeper] = []

    def make(**config: Any) -> Keeper:
        for keeper in made:
            stop(keeper)
        actor = Checkpointer(
            str(tmp_path), str(tmp_path), CheckpointsConfig(**config), lambda: time.time_ns() // 1_000_000
        )
        made.append(Keeper(actor))
        return made[-1]

    yield make
    for keeper in made:
        stop(keeper)


def stop(keeper: Keeper) -> None:
    keeper.stop()
    keeper.actor._spool.close()  # type: ignore[attr-defined]
    keeper.actor._store.database.close()  # type: ignore[attr-defined]


def seqs(tmp_path: Path) -> list[int]:
    return sorted(item["seq"] for item in list_checkpoints(str(tmp_path), "app")["checkpoints"])


def execute(tmp_path: Path, statement: str, *values: Any) -> None:
    connection = apsw.Connection(str(tmp_path / "reliability.db"))
    connection.execute(statement, values)
    connection.close()


# --- saving and getting back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_state_comes_back_byte_for_byte(make: Callable[..., Keeper], size: int) -> None:
    keeper, state = make(), os.urandom(size)
    answer = keeper.saved(state)
    assert (answer["seq"], answer["bytes"], answer["unchanged"]) == (1, size, False)
    found, payload = keeper.recover(RUN)
    assert payload == state
    assert (found["reason"], found["checkpoint"]["seq"], found["skipped"]) == ("same_run", 1, [])
    shown = keeper.done(keeper.ask("show", name="app", seq=1))
    assert list(shown.raw) == [state]


def test_large_payloads_lie_in_files_and_small_ones_in_the_database(
    make: Callable[..., Keeper], tmp_path: Path
) -> None:
    keeper = make()
    keeper.saved(os.urandom(1000))
    assert not list((tmp_path / FOLDER).glob("*.state")) if (tmp_path / FOLDER).exists() else True
    keeper.saved(os.urandom(LARGE))
    (file,) = (tmp_path / FOLDER).glob("*.state")
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_same_request_takes_effect_once_also_in_another_life(make: Callable[..., Keeper]) -> None:
    first = make().saved(b"a", request_id=b"i" * 16)
    second = make()
    again = second.saved(b"a", request_id=b"i" * 16)
    assert again["seq"] == first["seq"] == 1
    other = second.save(b"b", request_id=b"i" * 16)
    assert other.error is not None
    assert other.error.code == ErrorCode.ID_CONFLICT


def test_an_unchanged_state_makes_no_second_checkpoint(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.saved(os.urandom(LARGE) + b"1")
    state = os.urandom(LARGE)
    first = keeper.saved(state)
    assert keeper.saved(state) | {"unchanged": False} == first
    assert keeper.call("confirm", name="app", run=RUN, sha256=first["sha256"])["unchanged"]
    assert not keeper.call("confirm", name="app", run=RUN, sha256=bytes(32))["unchanged"]
    assert not keeper.call("confirm", name="app", run=LATER, sha256=first["sha256"])["unchanged"]
    assert not keeper.call("confirm", name="other", run=RUN, sha256=first["sha256"])["unchanged"]
    assert len(list((tmp_path / FOLDER).glob("*.state"))) == 2
    successor = make()
    assert successor.call("confirm", name="app", run=RUN, sha256=first["sha256"])["seq"] == 2
    listed = successor.call("info", name="app")["checkpoints"]
    assert [(item["seq"], item["valid"]) for item in listed] == [(2, True), (1, True)]
    assert listed[0]["confirmed"] >= listed[0]["timestamp"]


def test_a_state_that_returns_is_a_new_checkpoint(make: Callable[..., Keeper]) -> None:
    keeper = make()
    assert [keeper.saved(state)["seq"] for state in (b"a", b"b", b"a", b"a")] == [1, 2, 3, 3]


def test_names_stand_side_by_side(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.saved(b"a", name="one")
    keeper.saved(b"b", name="two", run=LATER)
    assert keeper.recover(name="one")[1] == b"a"
    assert keeper.recover(name="two")[1] == b"b"
    assert keeper.recover(name="three") == (NOTHING, None)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"\x92\x01", "one whole value"),
        (b"\x01\x01", "bytes behind"),
        (b"\xc1", "not msgpack"),
        (b"\x91" * 5000 + b"\x01", "nested too deeply"),
        (b"", "one whole value"),
    ],
)
def test_what_is_no_state_is_refused(make: Callable[..., Keeper], payload: bytes, problem: str) -> None:
    keeper = make()
    asked = keeper.done(keeper.ask("save", raw=[payload], name="app", format="msgpack"))
    assert asked.error is not None
    assert problem in asked.error.message
    assert keeper.recover()[1] is None


def test_wrong_requests_are_refused_at_once(make: Callable[..., Keeper]) -> None:
    keeper = make()
    for raw, arguments in (
        ([], {}),
        ([b"a", b"b"], {}),
        ([b"a"], {"name": "a/b"}),
        ([b"a"], {"run": b"short"}),
        ([b"a"], {"format": "pickle"}),
        ([b"a"], {"sha256": b"x"}),
        ([b"a"], {"taken_ms": -1}),
    ):
        asked = keeper.ask("save", raw=raw, **({"name": "app"} | arguments))
        assert asked.error is not None
        assert asked.error.code == ErrorCode.BAD_REQUEST
    damaged = keeper.save(b"a", sha256=bytes(32))
    assert damaged.error is not None
    assert damaged.error.code == ErrorCode.INTEGRITY


# --- crash and clean stop ---------------------------------------------------------------------------------------------


def holder() -> dict[str, Any]:
    me = own_identity()
    return {"pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id}


def test_after_a_crash_the_state_is_there_after_a_clean_stop_it_is_not(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.call("begin_run", name="app", run=RUN, **holder())
    assert keeper.recover(RUN) == (NOTHING, None)
    keeper.saved(b"one")
    assert keeper.recover(RUN)[1] == b"one"
    keeper.call("begin_run", name="app", run=LATER, **holder())
    found, payload = keeper.recover(LATER)
    assert (found["reason"], payload) == ("crash", b"one")
    keeper.saved(b"two", run=LATER)
    keeper.call("end_run", name="app", run=LATER)
    third = b"t" * 16
    keeper.call("begin_run", name="app", run=third)
    found, payload = keeper.recover(third)
    assert (found["reason"], payload) == ("clean_stop", None)
    keeper.saved(b"two", run=third)
    assert keeper.recover(third)[1] == b"two", "what was saved within a run comes back within it, unchanged or not"


def test_a_later_run_has_the_name_until_it_ends(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.call("begin_run", name="app", run=RUN, **holder())
    keeper.saved(b"old")
    keeper.call("begin_run", name="app", run=LATER, **holder())
    refused = keeper.save(b"too late")
    assert refused.error is not None
    assert refused.error.code == ErrorCode.REFUSED
    assert str(os.getpid()) in refused.error.message
    keeper.saved(b"new", run=LATER)
    assert keeper.recover(LATER)[1] == b"new"
    keeper.call("end_run", name="app", run=LATER)
    keeper.saved(b"again")
    assert keeper.recover(RUN)[1] == b"again"
    assert keeper.recover()[1] == b"again"


def test_a_run_whose_process_is_gone_keeps_nobody_out(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.call("begin_run", name="app", run=RUN, **holder())
    keeper.call("begin_run", name="app", run=LATER, **(holder() | {"start_time": 1}))
    keeper.saved(b"on")
    assert keeper.recover()[1] == b"on"


# --- the spool --------------------------------------------------------------------------------------------------------


def spool(tmp_path: Path, writer: SpoolWriter, state: bytes, request_id: bytes, **arguments: Any) -> None:
    fields = {"name": "app", "run": RUN, "format": "bytes", "taken_ms": 1000} | arguments
    writer.append("save", request_id, fields, [state])


def test_what_waits_in_the_spool_comes_first_and_once(make: Callable[..., Keeper], tmp_path: Path) -> None:
    writer = SpoolWriter(str(tmp_path), "checkpointer")
    writer.append("begin_run", b"b" * 16, {"name": "app", "run": RUN})
    for number in range(5):
        spool(tmp_path, writer, os.urandom(LARGE) if number == 2 else b"%d" % number, bytes([number]) * 16)
    spool(tmp_path, writer, b"damaged on its way", b"d" * 16, sha256=bytes(32))
    keeper = make()
    assert keeper.saved(b"direct")["seq"] == 6
    assert len(text_of(keeper.logged, "spooled_checkpoint_refused")) == 1
    spool(tmp_path, writer, b"4", bytes([4]) * 16)  # a repetition
    spool(tmp_path, writer, b"last", b"l" * 16)
    found, payload = keeper.recover(RUN)
    assert payload == b"last"
    assert found["checkpoint"]["seq"] == 7
    assert found["checkpoint"]["timestamp"] == "1970-01-01T00:00:01.000Z"
    assert not list((tmp_path / "spool" / "checkpointer").glob("*.spool"))
    assert chain_problems(str(tmp_path), "app") == []


def test_a_spooled_state_of_a_run_that_was_taken_over_is_kept_below_the_later_one(
    make: Callable[..., Keeper], tmp_path: Path
) -> None:
    keeper = make()
    keeper.call("begin_run", name="app", run=RUN, **holder())
    keeper.call("begin_run", name="app", run=LATER, **holder())
    keeper.saved(b"new", run=LATER)
    spool(tmp_path, SpoolWriter(str(tmp_path), "checkpointer"), b"old", b"o" * 16)
    assert keeper.recover(LATER)[1] == b"new"
    assert {item["seq"] for item in keeper.call("info")["checkpoints"]} == {1, 2}


def test_the_spool_is_drained_without_being_asked(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.saved(b"a")
    spool(tmp_path, SpoolWriter(str(tmp_path), "checkpointer"), b"b", b"b" * 16)
    (tmp_path / "spooled-checkpointer").touch()
    keeper.until(lambda: keeper.actor.status()["checkpoints"]["spooled"] == 1)


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_recovery_goes_back_past_damaged_ones_and_says_so(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.saved(b"good" * 10)
    files = []
    for _ in range(3):
        keeper.saved(os.urandom(LARGE))
        files += [path for path in (tmp_path / FOLDER).glob("*.state") if path not in files]
    keeper.saved(b"in the row")
    keeper.saved(b"described")
    flip(files[0], 1000)
    files[1].unlink()
    with open(files[2], "ab") as file:
        file.write(b"x")
    execute(tmp_path, "UPDATE checkpoints SET payload = ? WHERE seq = 5", b"in the rox")
    execute(tmp_path, "UPDATE checkpoints SET timestamp_ms = timestamp_ms + 1 WHERE seq = 6")
    found, payload = keeper.recover(RUN)
    assert payload == b"good" * 10
    assert [item["seq"] for item in found["skipped"]] == [6, 5, 4, 3, 2]
    assert len(text_of(keeper.logged, "checkpoint_damaged")) == 5
    assert "past 5 damaged" in text_of(keeper.logged, "recovery")[0]
    listed = list_checkpoints(str(tmp_path), "app", verify=True)
    assert [item["valid"] for item in listed["checkpoints"]] == [False] * 5 + [True]
    assert listed["names"][0]["chain_broken_at"] == [6]


def test_every_flipped_bit_of_a_description_is_seen(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.saved(b"one")
    keeper.saved(b"two")
    changes = {
        "seq": "seq + 7", "id": "zeroblob(16)", "sha256": "zeroblob(32)", "timestamp_ms": "timestamp_ms + 1",
        "prev_hash": "zeroblob(32)", "hash": "zeroblob(32)",
    }  # fmt: skip
    for column, value in changes.items():
        connection = apsw.Connection(str(tmp_path / "reliability.db"))
        before = connection.execute(f"SELECT {column} FROM checkpoints WHERE number = 2").get
        connection.execute(f"UPDATE checkpoints SET {column} = {value} WHERE number = 2")
        assert chain_problems(str(tmp_path), "app"), column
        assert keeper.recover(RUN)[1] == b"one", column
        connection.execute(f"UPDATE checkpoints SET {column} = ? WHERE number = 2", (before,))
        connection.close()
        assert chain_problems(str(tmp_path), "app") == [], column
    assert keeper.recover(RUN)[1] == b"two"


def test_commits_that_vanished_are_told_and_their_numbers_never_used_again(
    make: Callable[..., Keeper], tmp_path: Path
) -> None:
    keeper = make()
    for number in range(5):
        keeper.saved(b"%d" % number)
    keeper.saved(os.urandom(LARGE))
    stop(keeper)
    execute(tmp_path, "DELETE FROM checkpoints WHERE seq > 3")
    execute(
        tmp_path, "UPDATE checkpoint_names SET seq = 3, hash = (SELECT hash FROM checkpoints WHERE seq = 3)"
    )  # fmt: skip
    successor = make()
    assert successor.recover(RUN)[1] == b"2"
    assert "3 checkpoints of app are lost" in text_of(successor.logged, "checkpoints_lost")[0]
    assert successor.saved(b"next")["seq"] == 7
    assert successor.call("info", name="app")["names"][0]["lost"] == 3
    assert chain_problems(str(tmp_path), "app") == []
    assert len(list((tmp_path / FOLDER / "lost").iterdir())) == 1, "nothing of what was lost is thrown away"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "nonsense"])
def test_damaged_heads_are_told_and_written_anew(make: Callable[..., Keeper], tmp_path: Path, damage: str) -> None:
    keeper = make()
    keeper.saved(b"one")
    stop(keeper)
    path = tmp_path / FOLDER / HEADS_FILE
    assert json.loads(path.read_text())["names"]["app"]["seq"] == 1
    match damage:
        case "flip":
            flip(path, path.read_bytes().index(b'"hash": "') + 12)
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "remove":
            path.unlink()
        case "nonsense":
            path.write_text('{"names": [], "sha256": 1}')
    successor = make()
    assert successor.recover(RUN)[1] == b"one"
    assert bool(text_of(successor.logged, "checkpoint_heads_damaged")) == (damage != "remove")
    stop(successor)
    assert json.loads(path.read_text())["names"]["app"]["seq"] == 1


def test_files_without_a_row_are_swept_and_strangers_left_alone(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.saved(os.urandom(LARGE))
    stop(keeper)
    orphan, stranger = tmp_path / FOLDER / ("0" * 32 + ".state"), tmp_path / FOLDER / "notes.txt"
    orphan.write_bytes(b"half")
    stranger.write_bytes(b"mine")
    assert make().recover(RUN)[1] is not None
    assert not orphan.exists()
    assert stranger.exists()
    assert len(list((tmp_path / FOLDER).glob("*.state"))) == 1


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_history_is_thinned_and_the_chain_goes_on(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make(keep_newest=2, keep_all_hours=1.0, tidy_interval_s=0.1, compress_after_s=1000.0)
    hour = 3_600_000
    base = 480_000 * hour
    for number in range(30):
        keeper.saved(os.urandom(LARGE if number % 10 == 0 else 10), taken_ms=base + number * hour // 4)
    expected = [4, 8, 12, 16, 20, 24, 25, 26, 27, 28, 29, 30]
    keeper.until(lambda: seqs(tmp_path) == expected)
    keeper.until(lambda: bool(text_of(keeper.logged, "checkpoints_thinned")))
    assert chain_problems(str(tmp_path), "app") == []
    files = {path.name for path in (tmp_path / FOLDER).glob("*.state")}
    assert len(files) == 0
    assert keeper.saved(b"on")["seq"] == 31


def test_older_payloads_are_compressed_if_that_pays(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make(compress_after_s=0.0)
    compressible = msgpack.packb({"text": "to be or not to be " * 40_000})
    noise = os.urandom(LARGE)
    states = (compressible, noise, b"small", compressible[:5000] + b"x", b"newest" * LARGE)
    for state in states:
        keeper.saved(state)

    def settled() -> bool:
        connection = apsw.Connection(str(tmp_path / "reliability.db"), flags=apsw.SQLITE_OPEN_READONLY)
        with_work = connection.execute("SELECT count(*) FROM checkpoints WHERE settled = 0 AND seq < 5").get
        connection.close()
        return bool(with_work == 0)

    keeper.until(settled)
    keeper.until(lambda: len(list((tmp_path / FOLDER).glob("*.state"))) == 2)
    after = keeper.call("info", name="app", verify=True)
    assert after["names"][0]["stored_bytes"] < sum(map(len, states)) - 700_000
    assert all(item["valid"] for item in after["checkpoints"])
    for seq, state in enumerate(states, 1):
        assert keeper.done(keeper.ask("show", name="app", seq=seq)).raw[0] == state


def test_a_full_disk_is_a_clear_error_and_nothing_acknowledged_is_lost(
    make: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = make()
    keeper.saved(os.urandom(LARGE))
    newest = os.urandom(LARGE)
    keeper.saved(newest)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    asked = keeper.save(os.urandom(LARGE))
    monkeypatch.undo()
    assert asked.error is not None
    assert "No space left" in asked.error.message
    assert len(list((tmp_path / FOLDER).glob("*.state"))) == 2
    assert keeper.recover(RUN)[1] == newest
    assert keeper.saved(b"space again")["seq"] == 3


def test_the_loop_never_waits(make: Callable[..., Keeper]) -> None:
    keeper = make()
    for _ in range(3):
        keeper.saved(os.urandom(32 * 1024 * 1024))
    assert keeper.longest_turn_s < 0.1


def test_a_database_that_a_repair_replaced_is_no_error_and_checkpoints_go_on(
    make: Callable[..., Keeper], tmp_path: Path
) -> None:
    keeper = make()
    keeper.saved(b"first")
    path = tmp_path / "reliability.db"
    execute(tmp_path, "VACUUM INTO ?", str(tmp_path / "salvaged.db"))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(tmp_path / "salvaged.db", path)
    asked = keeper.save(b"second")
    assert asked.error is None or "replaced" in asked.error.message
    assert keeper.saved(b"third")["seq"] == (3 if asked.error is None else 2)
    assert keeper.recover(RUN)[1] == b"third"
    assert text_of(keeper.logged, "database_unavailable") == []
    assert 1 in seqs(tmp_path)
