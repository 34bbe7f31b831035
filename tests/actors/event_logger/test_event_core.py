"""Group commit, journal positions, publishing and checkpoints: decisions without a disk."""

import random

import pytest

from actors.event_logger.core import (
    BATCH_EVENTS_MAX,
    CHECKPOINT_INTERVAL_S,
    CHECKPOINT_PAGES,
    PENDING_EVENTS_MAX,
    GroupCommit,
    JournalBook,
    JournalFile,
    Pending,
    PublishBudget,
    Wal,
)
from actors.event_logger.records import Event
from protocol.severity import Severity


def events(count: int = 1, message: str = "m") -> list[Event]:
    return [Event(bytes(16), 0, Severity.INFO, "c", "t", message) for _ in range(count)]


def waiters(requests: list[Pending[str]]) -> list[str]:
    return [pending.waiter for pending in requests]


def test_what_arrives_during_a_commit_forms_the_next_group() -> None:
    commit: GroupCommit[str] = GroupCommit()
    assert commit.offer(events(), "a", deadline=10)
    assert waiters(commit.begin(0)[0]) == ["a"]
    assert commit.offer(events(), "b", deadline=10)
    assert commit.offer(events(), "c", deadline=10)
    assert commit.begin(0) == ([], []), "one group at a time"
    commit.committed()
    assert waiters(commit.begin(0)[0]) == ["b", "c"]
    commit.committed()
    assert commit.pending_events == 0
    assert not commit.in_flight


def test_a_group_is_bounded_and_a_request_is_never_split() -> None:
    commit: GroupCommit[int] = GroupCommit()
    for number in range(5):
        assert commit.offer(events(BATCH_EVENTS_MAX // 2), number, deadline=10)
    sizes = []
    while group := commit.begin(0)[0]:
        sizes.append(len(group))
        commit.committed()
    assert sizes == [2, 2, 1]
    assert commit.offer(events(3, "x" * 1_500_000), 9, deadline=10)
    assert len(commit.begin(0)[0]) == 1, "a request above the bound goes alone rather than never"


def test_more_than_fits_is_refused_and_forgotten() -> None:
    commit: GroupCommit[int] = GroupCommit()
    assert commit.offer(events(PENDING_EVENTS_MAX), 1, deadline=10)
    assert not commit.offer(events(), 2, deadline=10)
    commit.begin(0)
    commit.failed(0, retry=False)
    assert commit.offer(events(), 3, deadline=10)


def test_an_expired_request_is_not_begun() -> None:
    commit: GroupCommit[str] = GroupCommit()
    commit.offer(events(), "late", deadline=1)
    commit.offer(events(), "early", deadline=3)
    group, expired = commit.begin(2)
    assert (waiters(group), waiters(expired)) == (["early"], ["late"])
    assert commit.pending_events == 1


def test_after_a_lock_those_with_time_left_are_tried_again_first_and_the_others_told() -> None:
    commit: GroupCommit[str] = GroupCommit()
    for waiter, deadline in (("patient", 5.0), ("hasty", 1.5), ("also", 5.0)):
        commit.offer(events(), waiter, deadline)
    commit.begin(0)
    commit.offer(events(), "next", 5.0)
    assert waiters(commit.failed(0.5, retry=True)) == ["hasty"]
    assert waiters(commit.begin(0.5)[0]) == ["patient", "also", "next"]
    assert waiters(commit.failed(4.5, retry=True)) == ["patient", "also", "next"]
    assert commit.pending_events == 0


@pytest.mark.parametrize("seed", range(20))
def test_every_waiter_is_told_once_whatever_happens(seed: int) -> None:
    draw = random.Random(seed)
    commit: GroupCommit[int] = GroupCommit()
    told: list[int] = []
    accepted = 0
    now = 0.0
    group: list[Pending[int]] = []
    for number in range(500):
        now += draw.random() / 5
        match draw.choice(("offer", "begin", "commit", "fail", "retry")):
            case "offer":
                accepted += commit.offer(events(draw.randint(1, 900)), number, now + draw.random() * 3)
            case "begin":
                found, expired = commit.begin(now)
                group = found or group
                told += waiters(expired)  # type: ignore[arg-type]
            case "commit" if commit.in_flight:
                told += [pending.waiter for pending in group]
                commit.committed()
            case "fail" | "retry" as outcome if commit.in_flight:
                told += [pending.waiter for pending in commit.failed(now, retry=outcome == "retry")]
    if commit.in_flight:
        told += [pending.waiter for pending in commit.failed(now, retry=False)]
    while commit.pending_events:
        found, expired = commit.begin(now)
        told += [pending.waiter for pending in (*found, *expired)]
        commit.committed()
    assert len(told) == len(set(told)) == accepted, f"seed {seed}"


def file(head: str, size: int = 100, *, turned_over: bool = False) -> JournalFile:
    return JournalFile("launcher", head.encode(), turned_over, size)


def test_a_journal_is_read_on_from_where_it_was_committed() -> None:
    book = JournalBook([], "boot")
    assert book.offset(file("a")) == 0
    position = book.advance(file("a"), 60)
    assert position is not None
    assert book.offset(file("a")) == 0, "not before it is committed"
    book.keep([position])
    assert book.offset(file("a")) == 60
    assert book.advance(file("a"), 60) is None, "nothing new to store"
    assert JournalBook([position], "boot").offset(file("a", turned_over=True)) == 60, "by what it is, not by its name"


def test_a_file_that_was_drained_to_its_end_may_go_and_another_is_missed() -> None:
    book = JournalBook([], "boot")
    whole = book.advance(file("whole", 100, turned_over=True), 100)
    part = book.advance(file("part", 100), 100)
    assert whole is not None
    assert part is not None
    book.keep([whole, part])
    gone = book.gone([file("new")])
    assert gone == [whole, part]
    assert [book.is_lossy(position) for position in gone] == [False, True]
    assert not JournalBook([part], "the next boot").is_lossy(part), "tmpfs does not outlive a boot"
    book.drop(gone)
    assert book.gone([]) == []


def test_publishing_has_a_rate_and_a_burst() -> None:
    budget = PublishBudget(per_second_max=10, burst_max=20)
    assert budget.take(100, 0.0) == 20
    assert budget.take(1, 0.05) == 0
    assert budget.take(100, 1.05) == 10
    assert budget.take(100, 100.0) == 20


def test_checkpoints_come_by_time_and_by_volume() -> None:
    wal = Wal(0.0)
    wal.committed(10)
    assert not wal.is_due(5.0)
    wal.committed(CHECKPOINT_PAGES)
    assert wal.is_due(5.0)
    assert not wal.is_due(5.5), "one that a reader holds up is not repeated in a loop"
    assert wal.is_due(6.0)
    wal.checkpointed(CHECKPOINT_PAGES, CHECKPOINT_PAGES)
    assert not wal.is_due(10.0)
    assert wal.is_due(6.0 + CHECKPOINT_INTERVAL_S)


def test_the_backlog_is_what_the_database_file_has_not() -> None:
    wal = Wal(0.0)
    wal.committed(700)
    wal.checkpointed(700, 600)
    assert (wal.pages, wal.backlog_pages) == (700, 100)
    wal.committed(900)
    assert wal.backlog_pages == 300
    wal.committed(20)
    assert (wal.pages, wal.backlog_pages) == (20, 20), "the log began anew"
    wal.committed(650)
    assert wal.backlog_pages == 650
