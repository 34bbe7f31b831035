"""The search index, and searches with it, without it, and with what is left of it: all find the same events."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.event_logger import search_index, searching
from actors.event_logger.folding import fold, folding_version, like_pattern, trigrams
from actors.event_logger.queries import query, read_events
from actors.event_logger.records import Event, EventFilter
from actors.event_logger.search_index import SearchIndex
from actors.event_logger.store import SCHEMA, EventStore
from actors.runtime import database as database_module
from actors.runtime.database import Database
from protocol.severity import Severity

ROOT = Path(__file__).parents[3]
SEED = int(os.environ.get("RELCTL_TEST_SEED", random.randrange(10**6)))
WORDS = [
    "pool",
    "POOL exhausted",
    "Zahlung über Straße",
    "ΣΊΣΥΦΟΣ",
    "naïve",
    "日本語のログ",
    "K",
    "a_b%c\\d",
    '"AND"',
    "\u017ftop",
]


def event(number: int, message: str, **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "id": number.to_bytes(16),
        "timestamp_ms": 1_000 * number,
        "severity": Severity.INFO,
        "component": "shop",
        "event_type": "order_paid",
        "message": message,
        "attributes": "{}",
    }
    return Event(**(fields | changes))


class Log:
    """A log and its index in one directory."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "reliability.db")
        self.index_path = str(directory / "search.db")
        self.store = EventStore(Database(self.path, SCHEMA))
        self.index = SearchIndex(self.index_path, self.path)
        self.count = 0

    def add(self, *messages: str, **changes: Any) -> None:
        self.append(*(event(self.count + place, text, **changes) for place, text in enumerate(messages, 1)))

    def append(self, *events: Event) -> None:
        self.store.append(list(events), 5)
        self.count += len(events)

    def follow(self) -> list[str]:
        """Index everything; return why the index was begun anew."""
        rebuilt = []
        while True:
            progress = self.index.step(time.monotonic)
            rebuilt += [progress.rebuilt] if progress.rebuilt else []
            if not progress.more:
                return rebuilt

    def reopen(self) -> None:
        """Begin another life of the index's writer, without the former one's orderly end."""
        self.index = SearchIndex(self.index_path, self.path)

    def search(self, text: str, **wanted: Any) -> dict[str, Any]:
        return read_events(self.path, EventFilter(text=text, **({"limit": 10_000} | wanted)))

    def found(self, text: str, **wanted: Any) -> list[int]:
        return [item["seq"] for item in self.search(text, **wanted)["events"]]

    def expected(self, text: str) -> list[int]:
        """Look at every event."""
        events = read_events(self.path, EventFilter(limit=10_000), bytes_max=10**9)["events"]
        return [item["seq"] for item in events if any(fold(text) in fold(text_) for text_ in texts_of(self, item))]

    def statement(self, sql: str, *values: object) -> Any:
        connection = apsw.Connection(self.index_path)
        try:
            return connection.execute(sql, values).get
        finally:
            connection.close()


def texts_of(log: Log, item: dict[str, Any]) -> Iterator[str]:
    connection = apsw.Connection(log.path, flags=apsw.SQLITE_OPEN_READONLY)
    row = connection.execute(
        "SELECT message, event_type, component, attributes FROM events WHERE seq = ?", (item["seq"],)
    ).fetchone()
    connection.close()
    assert row is not None
    yield from map(str, row)


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the index asked even where there are so few events that a scan is quicker."""
    monkeypatch.setattr(searching, "SELECTIVE_EVENTS_MAX", 0)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.index.close()
    log.store.database.close()


# --- folding ---


def test_folding_is_that_of_the_tokenizer_for_every_character_there_is() -> None:
    characters = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    tokenize = apsw.Connection(":memory:").fts5_tokenizer("trigram", [])
    text = "".join([*characters, "zz"]).encode()
    tokens = tokenize(text, apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False, include_colocated=False)
    wrong = [c for c, token in zip(characters, tokens, strict=True) if fold(f"{c}é")[0] != str(token)[0]]
    assert wrong == []
    assert [c for c in characters if c.isascii() and fold(c) != fold(f"{c}é")[0]] == []


@given(st.text(min_size=1, max_size=5), st.text(max_size=20), st.text(max_size=20))
def test_the_pattern_for_like_rules_out_nothing_that_holds_the_text(text: str, before: str, after: str) -> None:
    holder = before + random.choice([text, text.lower(), fold(text)]) + after
    if fold(text) not in fold(holder) or "\0" in holder:
        return
    matches = apsw.Connection(":memory:").execute("SELECT ? LIKE ? ESCAPE '\\'", (holder, like_pattern(text))).get
    assert matches


# --- finding ---


def test_phrases_and_parts_of_words_are_found_in_every_part_of_an_event_in_any_case(log: Log) -> None:
    log.append(
        event(1, "Connection POOL exhausted: 5 waiting"),
        event(2, "nothing here", event_type="pool_exhausted"),
        event(3, "nothing here", component="db.pool"),
        event(4, "nothing here", attributes='{"queue":"Pool exhausted","n":17}'),
        event(5, "exhausted the pool"),
    )
    log.follow()
    assert log.found("pool exhausted") == [1, 4]
    assert log.found("OOL") == [1, 2, 3, 4, 5]
    assert log.found("pool_ex") == [2]
    assert log.found('"n":17') == [4]
    assert log.search("pool")["index"] == {"through_seq": 5, "last_seq": 5, "rebuilding": False, "problem": None}


@pytest.mark.parametrize(
    "text",
    [
        '"',
        '""',
        'a" OR "b',
        "AND",
        "NOT x",
        "NEAR(a b)",
        "text:abc",
        "^abc",
        "a*",
        "ab*c",
        "(",
        "-abc",
        "a + b",
        "%",
        "_",
        "\\",
        "\n",
        "it's",
        "'; DROP TABLE events; --",
        "{text}: x",
        "\ufffd\ufffe\uffff",
    ],
)
def test_nothing_in_a_text_is_syntax(log: Log, text: str) -> None:
    log.add("plain abc", f"with {text} inside", "a b c AND x NOT y")
    log.follow()
    assert 2 in log.found(text)
    assert log.found(text) == log.expected(text)


def test_letters_of_all_alphabets_fold_alike_in_index_and_scan(log: Log) -> None:
    log.add(*WORDS, *(word.upper() for word in WORDS), *(word.lower() for word in WORDS), *map(fold, WORDS))
    expected = {
        text: log.found(text) for word in WORDS for text in (word, word.swapcase(), word[:2], word[1:4], fold(word))
    }
    assert all(log.expected(text) == seqs for text, seqs in expected.items())
    log.follow()
    assert {text: log.found(text) for text in expected} == expected
    assert log.found("ÜBER") == log.found("über") == [3, 13, 23, 33]
    assert log.found("uber") == []


ALPHABET = st.sampled_from("abAB\"' *()%_\\:^-+äÄß\u03c3Σςk\u212a\u017f日\ufffd\uffffé\U00010400\U00010428")
TEXT = st.text(ALPHABET, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=12), st.lists(TEXT.filter(bool), min_size=1, max_size=8), st.data())
def test_index_and_scan_agree_wherever_one_ends_and_the_other_begins(
    tmp_path_factory: pytest.TempPathFactory, messages: list[str], texts: list[str], data: st.DataObject
) -> None:
    log = Log(tmp_path_factory.mktemp("log"))
    indexed = data.draw(st.integers(0, len(messages)))
    log.add("first", *messages[:indexed])
    log.follow()
    if messages[indexed:]:
        log.add(*messages[indexed:])
    for text in [*texts, *(message[1:6] for message in messages if message[1:6])]:
        seqs = log.expected(text)
        assert log.found(text) == seqs
        assert log.found(text, reverse=True, limit=2) == seqs[::-1][:2]
        assert log.found(text, after_seq=1, limit=2) == [seq for seq in seqs if seq > 1][:2]
    log.index.close()
    log.store.database.close()


def test_every_filter_combines_with_a_text(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SELECTIVE_EVENTS_MAX", 20)
    monkeypatch.setattr(searching, "INDEX_WINDOW", 37)
    monkeypatch.setattr(searching, "SCAN_WINDOW", 11)
    draw = random.Random(SEED)
    print(f"RELCTL_TEST_SEED={SEED}")
    levels = [Severity.INFO, Severity.WARN, Severity.ERROR]
    events = [
        event(
            number,
            f"{draw.choice(['order', 'login', 'Order'])} {draw.randrange(50)} {draw.choice(['failed', 'paid'])}",
            component=draw.choice(["shop", "shop", "shop", "rare"][: 4 if number < 60 else 3]),
            event_type="t",
            severity=draw.choice(levels),
            timestamp_ms=1000 * draw.choice([number, number, draw.randrange(300)]),
        )
        for number in range(1, 301)
    ]
    log.append(*events[:250])
    log.follow()
    log.append(*events[250:])
    for _ in range(300):
        wanted: dict[str, Any] = {"text": draw.choice(["order", "ORDER 1", "er 2", "failed", "3", "absent text"])}
        if draw.random() < 0.3:
            wanted["component"] = draw.choice(["shop", "rare", "none"])
        if draw.random() < 0.3:
            wanted["since_ms"] = 1000 * draw.randrange(310)
        if draw.random() < 0.3:
            wanted["until_ms"] = 1000 * draw.randrange(310)
        if draw.random() < 0.3:
            wanted["low"] = draw.choice(levels)
        if draw.random() < 0.2:
            wanted["grep"] = "^[a-z]+ [0-9] "
        if draw.random() < 0.3:
            wanted["after_seq"] = draw.randrange(310)
        if draw.random() < 0.3:
            wanted["before_seq"] = draw.randrange(310)
        wanted |= {"reverse": draw.random() < 0.5, "limit": draw.choice([0, 1, 3, 1000])}
        without = {name: value for name, value in wanted.items() if name not in {"text", "limit", "reverse"}}
        everything = read_events(log.path, EventFilter(**without, limit=1000), bytes_max=10**9)["events"]
        seqs = [item["seq"] for item in everything if fold(wanted["text"]) in fold(item["message"])]
        kept = seqs[: wanted["limit"]] if "after_seq" in wanted else seqs[max(0, len(seqs) - wanted["limit"]) :]
        reply = read_events(log.path, EventFilter(**wanted))
        assert [item["seq"] for item in reply["events"]] == (kept[::-1] if wanted["reverse"] else kept), wanted
        assert reply["more"] == (len(seqs) > len(kept)), wanted


@pytest.mark.parametrize("text", ["order", "or"])
@pytest.mark.parametrize("indexed", [0, 40, 90])
def test_pages_go_on_where_the_time_was_up(log: Log, monkeypatch: pytest.MonkeyPatch, text: str, indexed: int) -> None:
    monkeypatch.setattr(searching, "SELECTIVE_EVENTS_MAX", 5)
    monkeypatch.setattr(searching, "SEARCH_S_MAX", -1.0)
    monkeypatch.setattr(searching, "INDEX_WINDOW", 10)
    monkeypatch.setattr(searching, "SCAN_WINDOW", 7)
    messages = ["order" if number % 23 == 0 else "nothing" for number in range(90)]
    log.add("x", *messages[:indexed])
    log.follow()
    if messages[indexed:]:
        log.add(*messages[indexed:])
    for direction, start in (("before_seq", None), ("after_seq", 0)):
        found: list[int] = []
        arguments: dict[str, Any] = {"text": text, "component": "shop", "reverse": direction == "before_seq"}
        place = start
        pages = 0
        while True:
            reply = query(log.path, arguments | ({} if place is None else {direction: place}))
            found += [item["seq"] for item in reply["events"]]
            pages += 1
            place = reply["next_seq"]
            if not reply["more"]:
                assert place is None
                break
        assert pages > 3
        assert sorted(found) == log.expected("order")


# --- following ---


def test_an_event_is_found_the_moment_it_is_stored(log: Log) -> None:
    log.add(*(f"event {number}" for number in range(50)))
    log.follow()
    log.add("a needle")
    reply = log.search("needle")
    assert [item["seq"] for item in reply["events"]] == [51]
    assert reply["index"]["through_seq"] == 50


def test_steps_are_bounded_and_each_leaves_a_true_mark(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "SLICE_EVENTS_MAX", 20)
    log.add(*(f"event {number} " + "x" * (5000 if number % 40 == 0 else 10) for number in range(500)))
    through = 0
    while (progress := log.index.step(time.monotonic)).more:
        assert progress.through_seq - through <= 20
        through = progress.through_seq
        assert log.search("event 4")["index"]["through_seq"] == through
        assert log.found("event 499") == [500]
    assert progress.through_seq == 500


def test_what_retention_removed_is_not_found_and_leaves_the_index(log: Log) -> None:
    log.add(*(f"order {number}" for number in range(1200)))
    log.follow()
    before = log.statement("SELECT count(*) FROM event_text_docsize")
    log.store.database.write(lambda connection: connection.execute("DELETE FROM events WHERE seq <= 1100"), 5)
    assert log.found("order 7") == []
    assert log.found("order 1150") == [1151]
    log.add("order retired")
    log.follow()
    assert (before, log.statement("SELECT count(*) FROM event_text_docsize")) == (1200, 101)
    assert log.found("order")[0] == 1101
    assert log.statement("PRAGMA integrity_check") == "ok"


def test_a_log_that_begins_late_is_not_pruned_place_by_place(log: Log) -> None:
    log.add(*(f"order {number}" for number in range(100)))
    log.store.database.write(lambda connection: connection.execute("DELETE FROM events WHERE seq < 90"), 5)
    log.follow()
    assert log.statement("SELECT value FROM state WHERE name = 'oldest_seq'") == 90


def test_places_that_a_power_cut_gave_free_are_indexed_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "SLICE_EVENTS_MAX", 10)
    log.add(*(f"before {number}" for number in range(50)))
    log.follow()

    def lose(connection: apsw.Connection) -> None:
        connection.execute("DELETE FROM events WHERE seq > 33")
        for seq in range(34, 61):
            connection.execute(
                "INSERT INTO events (seq, id, timestamp_ms, severity, component, event_type, message, attributes, hash)"
                " SELECT ?, randomblob(16), 1, 9, 'c', 't', 'after ' || ?, '{}', hash FROM events WHERE seq = 1",
                (seq, seq),
            )

    log.store.database.write(lose, 5)
    assert log.found("after 3") == list(range(34, 40))
    assert log.search("after")["index"]["through_seq"] == 30
    assert log.found("before 4") == [5]
    log.follow()
    assert log.search("after")["index"]["through_seq"] == 60
    assert log.found("after") == list(range(34, 61))
    assert log.found("before 4") == [5]
    assert log.statement("PRAGMA integrity_check") == "ok"


def test_an_index_of_another_log_counts_for_nothing(log: Log, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Log(tmp_path / "other")
    other.append(*(event(1000 + number, f"other {number}") for number in range(20)))
    other.follow()
    other.index.close()
    log.add(*(f"order {number}" for number in range(20)))
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(other.index_path + suffix):
            os.rename(other.index_path + suffix, log.index_path + suffix)
    assert log.search("order")["index"]["through_seq"] == 0
    assert len(log.found("order")) == 20
    log.follow()
    assert len(log.found("order")) == 20
    assert log.search("order")["index"]["through_seq"] == 20
    other.store.database.close()


@pytest.mark.chaos
def test_kill_9_amid_indexing_leaves_nothing_out_and_nothing_twice(log: Log, tmp_path: Path) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    for first in range(0, 8000, 1000):
        log.add(*(f"order {number} {draw.randbytes(30).hex()}" for number in range(first, first + 1000)))
    for _ in range(8):
        command = [sys.executable, "-m", "tests.actors.event_logger.indexing", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _line in range(draw.randrange(1, 12)):
                process.stdout.readline()
            time.sleep(draw.random() * 0.03)  # anywhere in a step
            process.kill()
        assert log.found("order 4711") == [4712]
        assert log.found("zzz") == []
    assert log.follow() == []
    assert log.statement("PRAGMA integrity_check") == "ok"
    assert log.statement("SELECT count(*) FROM event_text_docsize") == 8000
    for number in draw.sample(range(8000), 50):
        assert log.found(f"order {number} ") == [number + 1]


# --- damage ---


def flip(path: str, draw: random.Random, count: int) -> None:
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for _ in range(count):
            file.seek(draw.randrange(size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ (1 << draw.randrange(8))]))


@pytest.fixture
def damages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever is taken for damage of the events' database."""
    reported: list[str] = []
    monkeypatch.setattr(database_module, "_damage_reported_to", lambda path, _what: reported.append(path))
    return reported


@pytest.mark.parametrize("how", ["torn", "zeros", "noise", "flips", "empty", "wal"])
def test_a_damaged_index_costs_time_only(log: Log, damages: list[str], how: str) -> None:
    print(f"RELCTL_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    log.add(*(f"order {number} {draw.randbytes(20).hex()}" for number in range(1500)))
    log.follow()
    if how != "wal":
        log.index.close()
    path = log.index_path + ("-wal" if how == "wal" else "")
    log.index = SearchIndex(log.index_path, log.path)
    size = os.path.getsize(path)
    match how:
        case "torn":
            os.truncate(path, size // 2)
        case "empty":
            os.truncate(path, 0)
        case "flips" | "wal":
            flip(path, draw, 2000)
        case _:
            with open(path, "r+b") as file:
                file.write(bytes(size) if how == "zeros" else draw.randbytes(size))
    # Flips that leave the structure sound are what the samples of the next opening are for.
    if how not in {"flips", "wal"}:
        assert log.found("order 77") == log.expected("order 77")
    for _ in range(2):
        log.follow()
        reply = log.search("order 77")
        if reply["index"]["problem"]:
            log.index.suspect(reply["index"]["problem"])
            log.follow()
    assert log.found("order 77") == log.expected("order 77")
    assert log.search("order 77")["index"]["problem"] is None
    assert damages == []


def test_damage_met_by_a_search_is_told_of_and_the_scan_answers(log: Log, damages: list[str]) -> None:
    log.add(*(f"order {number}" for number in range(3000)))
    log.follow()
    log.statement("UPDATE event_text_data SET block = zeroblob(length(block)) WHERE id > 10")
    reply = log.search("order 2999")
    assert [item["seq"] for item in reply["events"]] == [3000]
    assert reply["index"]["problem"]
    log.index.suspect(reply["index"]["problem"])
    assert log.follow() == [reply["index"]["problem"]]
    assert log.search("order 2999")["index"] == {
        "through_seq": 3000,
        "last_seq": 3000,
        "rebuilding": False,
        "problem": None,
    }
    assert damages == []


def test_an_index_that_does_not_find_what_it_must_is_begun_anew(log: Log) -> None:
    log.add(*(f"order {number}" for number in range(300)))
    log.follow()
    log.statement("INSERT INTO event_text (event_text) VALUES ('delete-all')")
    log.reopen()
    assert len(log.follow()) == 1
    assert len(log.found("order")) == 300


@pytest.mark.parametrize(("orderly", "same_boot", "found"), [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
def test_all_of_it_is_checked_after_a_life_that_ended_with_its_boot(
    log: Log, monkeypatch: pytest.MonkeyPatch, orderly: int, same_boot: int, found: int
) -> None:
    monkeypatch.setattr(SearchIndex, "_samples", lambda *_: [])
    log.add(*(f"order {number}" for number in range(300)))
    log.follow()
    log.statement("UPDATE event_text_data SET block = zeroblob(length(block)) WHERE id > 10")
    log.statement("UPDATE state SET value = ? WHERE name = 'orderly'", orderly)
    if not same_boot:
        log.statement("UPDATE state SET value = 'another' WHERE name = 'boot_id'")
    log.reopen()
    assert len([progress for progress in [log.index.step(time.monotonic)] if progress.rebuilt]) == found


def test_an_orderly_end_is_noted(log: Log) -> None:
    log.add("order")
    log.follow()
    assert log.statement("SELECT value FROM state WHERE name = 'orderly'") == 0
    log.index.close()
    assert log.statement("SELECT value FROM state WHERE name = 'orderly'") == 1
    assert log.found("order") == [1]


@pytest.mark.parametrize("change", ["PRAGMA user_version = 0", "UPDATE state SET value = 1 WHERE name = 'folding'"])
def test_another_format_is_built_anew(log: Log, change: str) -> None:
    log.add("order")
    log.follow()
    log.statement(change)
    log.reopen()
    assert len(log.follow()) == 1
    assert log.statement("SELECT value FROM state WHERE name = 'folding'") == folding_version()
    assert log.search("order")["index"]["through_seq"] == 1


@pytest.mark.parametrize("content", ["a database", "no database"])
def test_what_is_not_ours_is_set_aside_whole(log: Log, content: str) -> None:
    log.add("order")
    if content == "a database":
        log.statement("CREATE TABLE diary (text)")
        log.statement("INSERT INTO diary VALUES ('dear')")
    else:
        Path(log.index_path).write_text("dear diary " * 1000)
    assert log.found("order") == [1]
    log.follow()
    assert log.search("order")["index"]["through_seq"] == 1
    kept = Path(f"{log.index_path}.foreign")
    assert kept.exists()
    if content == "a database":
        assert apsw.Connection(str(kept)).execute("SELECT text FROM diary").get == "dear"
    else:
        assert kept.read_text().startswith("dear diary")


@pytest.mark.parametrize("by", ["nobody", "another index"])
def test_a_file_that_was_removed_under_its_writer_is_written_again(log: Log, by: str) -> None:
    log.add("order")
    log.follow()
    os.remove(log.index_path)
    if by == "another index":
        apsw.Connection(log.index_path).execute("CREATE TABLE diary (text)")
    log.add("another order")
    log.follow()
    assert log.search("order")["index"]["through_seq"] == 2
    assert log.found("order") == [1, 2]


def test_a_full_disk_stops_the_index_and_space_lets_it_go_on(log: Log) -> None:
    log.add(*(f"order {number}" for number in range(100)))
    log.follow()
    connection = log.index._connection
    assert connection is not None
    connection.pragma("max_page_count", connection.pragma("page_count"))
    log.add(*(f"{os.urandom(200).hex()} {number}" for number in range(1000)))
    with pytest.raises(apsw.FullError):
        log.follow()
    assert log.found("order 7") == [8, *range(71, 81)]
    assert log.found(" 999") == [1100]
    connection.pragma("max_page_count", 10**6)
    log.follow()
    assert log.search(" 999")["index"]["through_seq"] == 1100
    assert log.found(" 999") == [1100]


def test_the_last_of_a_disk_is_left_to_the_events(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.add("order")
    monkeypatch.setattr(search_index, "DISK_FREE_BYTES_MIN", 2**62)
    with pytest.raises(OSError, match="left to the events"):
        log.follow()
    assert log.found("order") == [1]


def test_tokens_are_chosen_by_what_they_are_not_by_how_often_they_come() -> None:
    assert trigrams("abcabc") == ["abc", "bca", "cab"]
    assert trigrams("ab") == []
