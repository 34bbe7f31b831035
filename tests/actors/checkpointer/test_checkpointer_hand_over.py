"""States that are handed over as files: taken where they lie if they are what was told, and refused otherwise."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from actors.checkpointer import incoming, payloads
from actors.checkpointer.actor import Checkpointer
from actors.checkpointer.config import CheckpointsConfig
from actors.checkpointer.payloads import FOLDER
from actors.checkpointer.queries import list_checkpoints
from actors.runtime.handover import is_state_name, new_state_name
from protocol.errors import ErrorCode
from tests.actors.harness import Asked, Harness

RUN = b"r" * 16
LARGE = 300 * 1024


class Keeper(Harness):
    """A checkpointer to which states are handed over."""

    def save(self, **arguments: Any) -> Asked:
        arguments = {"name": "app", "run": RUN, "format": "bytes", "request_id": os.urandom(16)} | arguments
        asked = self.ask("save", **arguments)
        self.until(lambda: asked.done)
        return asked

    def recovered(self) -> bytes:
        asked = self.ask("recover", name="app", run=RUN)
        self.until(lambda: asked.done)
        return bytes(asked.raw[0])

    def refuse(self, problem: str, **arguments: Any) -> None:
        asked = self.save(**arguments)
        assert asked.error is not None
        assert problem in asked.error.message, asked.error


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    """Makes checkpointers on one data directory, which has its directory for states; an earlier one lets go of it."""
    made: list[Keeper] = []

    def stop(keeper: Keeper) -> None:
        keeper.stop()
        keeper.actor._spool.close()  # type: ignore[attr-defined]
        keeper.actor._store.database.close()  # type: ignore[attr-defined]

    def make(**config: Any) -> Keeper:
        for keeper in made:
            stop(keeper)
        actor = Checkpointer(str(tmp_path), str(tmp_path), CheckpointsConfig(**config), lambda: 1_800_000_000_000)
        made.append(Keeper(actor))
        assert made[-1].call("info") is not None
        return made[-1]

    yield make
    for keeper in made:
        stop(keeper)


def hand(tmp_path: Path, state: bytes) -> dict[str, Any]:
    name = new_state_name()
    path = tmp_path / FOLDER / name
    path.write_bytes(state)
    path.chmod(0o600)
    return {"file": name, "bytes": len(state)}


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / FOLDER).glob("*.state")}


def test_a_file_becomes_the_checkpoint_without_being_written_again(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper, state = make(), os.urandom(LARGE)
    told = hand(tmp_path, state)
    inode = (tmp_path / FOLDER / told["file"]).stat().st_ino
    asked = keeper.save(**told, sha256=hashlib.sha256(state).digest())
    assert asked.error is None, asked.error
    assert (asked.result["seq"], asked.result["bytes"]) == (1, LARGE)
    assert keeper.recovered() == state
    assert files(tmp_path) == {told["file"]}
    assert (tmp_path / FOLDER / told["file"]).stat().st_ino == inode
    assert make().recovered() == state


def test_file_and_directory_are_flushed_before_the_row_names_them(
    make: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, state = make(), os.urandom(LARGE)
    told, path = hand(tmp_path, state), tmp_path / FOLDER
    happened: list[str] = []
    fsync, store = os.fsync, keeper.actor._store  # type: ignore[attr-defined]
    write = store.database.write

    def flushed(descriptor: int) -> None:
        what = os.fstat(descriptor)
        time.sleep(0.05)  # a disk that takes its time: nobody may go on meanwhile
        fsync(descriptor)
        for name, place in (("file", path / told["file"]), ("directory", path)):
            happened.extend([name] if os.path.samestat(what, os.stat(place)) else [])

    def written(*arguments: Any) -> Any:
        happened.append("row")
        return write(*arguments)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(store.database, "write", written)
    assert keeper.save(**told).error is None
    assert happened[:3] == ["file", "directory", "row"]


def test_a_small_one_goes_into_the_row_and_its_file_away(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    assert keeper.save(**hand(tmp_path, b"small")).error is None
    assert keeper.recovered() == b"small"
    assert files(tmp_path) == set()


def test_an_unchanged_one_leaves_no_second_file(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper, state = make(), os.urandom(LARGE)
    first = hand(tmp_path, state)
    keeper.save(**first)
    assert keeper.save(**hand(tmp_path, state)).result["unchanged"]
    assert files(tmp_path) == {first["file"]}


def test_a_client_that_still_writes_is_waited_for(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper, state, name = make(), os.urandom(LARGE), new_state_name()

    def write() -> None:
        with open(tmp_path / FOLDER / name, "xb", buffering=0) as file:
            file.write(state[:100_000])
            file.write(state[100_000:])

    asked = keeper.ask("save", name="app", run=RUN, format="bytes", file=name, bytes=LARGE, request_id=b"i" * 16)
    writer = threading.Thread(target=write)
    writer.start()
    keeper.until(lambda: asked.done)
    writer.join()
    assert asked.error is None, asked.error
    assert keeper.recovered() == state


def test_the_same_request_takes_effect_once_also_in_another_life(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper, state = make(), os.urandom(LARGE)
    told = hand(tmp_path, state) | {"request_id": b"i" * 16}
    first = keeper.save(**told).result
    for again in (keeper, make()):
        assert again.save(**told).result["seq"] == first["seq"] == 1
    other = make().save(**told | {"bytes": LARGE + 1})
    assert other.error is not None
    assert other.error.code == ErrorCode.ID_CONFLICT
    assert make().recovered() == state


def test_what_is_not_as_told_is_refused_and_removed(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper, state = make(), os.urandom(LARGE)
    keeper.refuse("SHA-256 is another", **hand(tmp_path, state), sha256=bytes(32))
    keeper.refuse("bytes, not", **hand(tmp_path, state) | {"bytes": LARGE + 1})
    keeper.refuse("bytes, not", **hand(tmp_path, state) | {"bytes": LARGE - 1})
    keeper.refuse("not one whole value", **hand(tmp_path, msgpack.packb(state)[:-1]), format="msgpack")
    keeper.refuse("No such file", file=new_state_name(), bytes=LARGE)
    assert files(tmp_path) == set()
    assert list_checkpoints(str(tmp_path))["checkpoints"] == []


def test_no_other_file_is_ever_taken(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper, folder = make(), tmp_path / FOLDER
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(LARGE))
    names = [new_state_name() for _ in range(4)]
    (folder / names[0]).symlink_to(secret)
    (folder / names[1]).mkdir()
    os.mkfifo(folder / names[2])
    os.link(secret, folder / names[3])
    keeper.refuse("symbolic links", file=names[0], bytes=LARGE)
    keeper.refuse("no regular file", file=names[1], bytes=LARGE)
    keeper.refuse("no regular file", file=names[2], bytes=LARGE)
    keeper.refuse("another name", file=names[3], bytes=LARGE)
    for name in ("../secret", "secret", str(secret), "a/../" + names[0], names[0].upper(), ""):
        assert not is_state_name(name)
        keeper.refuse("no name of a file", file=name, bytes=LARGE)
    keeper.refuse("exceeds the limit", file=new_state_name(), bytes=2**40)
    keeper.refuse("size of the file", file=new_state_name(), bytes=-1)
    keeper.refuse("one raw frame", file=new_state_name(), bytes=1, raw=[b"x"])
    assert secret.read_bytes() == bytes(LARGE)


def test_the_file_of_a_checkpoint_is_no_hand_over(make: Callable[..., Keeper], tmp_path: Path) -> None:
    first, state = make(), os.urandom(LARGE)
    told = hand(tmp_path, state)
    first.save(**told)
    for keeper in (make(), make()):
        keeper.refuse("a checkpoint already", **told)
        assert keeper.recovered() == state


@pytest.mark.parametrize("how", ["longer", "overwritten", "exchanged"])
def test_what_changes_while_it_is_taken_is_refused(
    make: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    keeper, state = make(), os.urandom(LARGE)
    keeper.save(raw=[b"before"])
    told = hand(tmp_path, state)
    path = tmp_path / FOLDER / told["file"]
    os.utime(path, (1, 1))  # the clock of the file system is coarse
    read = incoming._read

    def change(descriptor: int, size_bytes: int) -> bytes:
        payload = read(descriptor, size_bytes)
        if how == "exchanged":
            path.rename(tmp_path / "elsewhere")
            path.write_bytes(bytes(LARGE))
        else:
            with open(path, "ab" if how == "longer" else "r+b") as file:
                file.write(b"more")
        return payload

    monkeypatch.setattr(incoming, "_read", change)
    keeper.refuse("changed" if how != "exchanged" else "exchanged", **told)
    assert keeper.recovered() == b"before"
    assert files(tmp_path) == set()


def test_what_changes_later_is_found_out_by_its_digest(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.save(raw=[b"before"])
    told = hand(tmp_path, os.urandom(LARGE))
    with open(tmp_path / FOLDER / told["file"], "r+b") as kept_open:
        assert keeper.save(**told).error is None
        kept_open.write(b"late")
    assert keeper.recovered() == b"before"


def test_a_disk_that_does_not_flush_keeps_nothing(
    make: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = make()
    told = hand(tmp_path, os.urandom(LARGE))

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    asked = keeper.save(**told)
    monkeypatch.undo()
    assert asked.error is not None
    assert asked.error.code == ErrorCode.INTEGRITY
    assert list_checkpoints(str(tmp_path))["checkpoints"] == []
    assert files(tmp_path) == set()


def test_what_dead_clients_leave_is_removed(make: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = make()
    keeper.save(raw=[os.urandom(LARGE)])
    kept = files(tmp_path)
    left = hand(tmp_path, b"half")["file"]
    swept = keeper.actor._store.files.sweep  # type: ignore[attr-defined]
    assert swept(1000.0) == 0
    assert swept(1000.0 + payloads.STALE_S - 1) == 0
    assert files(tmp_path) == kept | {left}
    assert swept(1000.0 + payloads.STALE_S) == 1
    assert files(tmp_path) == kept
