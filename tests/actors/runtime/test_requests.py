"""One outcome per request id, whatever arrives how often; a seeded run checks the bounds and the promise."""

import random

from actors.runtime.requests import (
    ADDRESSES_MAX,
    FORGOTTEN_AFTER_S,
    OUTCOME_BYTES_MAX,
    OUTCOME_S_MIN,
    Admission,
    RequestBook,
)

ID = b"request-id-00001"
OTHER = b"request-id-00002"
FRAMES = (b"header", b"result")


def test_a_new_request_runs_and_its_repetition_joins_it() -> None:
    book = RequestBook()
    assert book.admit(ID, 7, b"a1", 10.0, 0.0) is Admission.RUN
    assert book.admit(ID, 7, b"a2", 10.0, 1.0) is Admission.JOINED
    assert book.admit(ID, 7, b"a2", 10.0, 1.0) is Admission.JOINED
    assert book.finish(ID, FRAMES, 2.0) == [b"a1", b"a2"]


def test_a_finished_request_is_replayed() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"a1", 10.0, 0.0)
    book.finish(ID, FRAMES, 1.0)
    assert book.admit(ID, 7, b"a2", 10.0, 2.0) is Admission.REPLAYED
    assert book.outcome(ID) == FRAMES
    assert book.running_count == 0


def test_an_expired_request_never_runs() -> None:
    assert RequestBook().admit(ID, 7, b"a", 10.0, 10.0) is Admission.EXPIRED


def test_an_id_with_other_content_is_a_conflict_while_it_runs_and_after() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"a", 10.0, 0.0)
    assert book.admit(ID, 8, b"a", 10.0, 0.0) is Admission.CONFLICT
    book.finish(ID, FRAMES, 1.0)
    assert book.admit(ID, 8, b"a", 10.0, 2.0) is Admission.CONFLICT


def test_an_outcome_that_says_it_never_began_is_not_remembered() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"a", 10.0, 0.0)
    assert book.finish(ID, FRAMES, 1.0, remember=False) == [b"a"]
    assert book.admit(ID, 7, b"a", 10.0, 2.0) is Admission.RUN


def test_an_outcome_is_kept_until_no_honest_repetition_can_come() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"a", 100.0, 0.0)
    book.admit(OTHER, 7, b"a", 1.0, 0.0)
    book.finish(ID, FRAMES, 0.5)
    book.finish(OTHER, FRAMES, 0.5)
    book.forget(0.5 + OUTCOME_S_MIN)
    assert book.outcome_count == 1
    book.forget(100.0)
    assert (book.outcome_count, book.outcome_bytes) == (0, 0)


def test_a_lost_brokers_addresses_are_not_used_again() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"old", 10.0, 0.0)
    book.disconnected()
    book.admit(ID, 7, b"new", 10.0, 1.0)
    assert book.finish(ID, FRAMES, 2.0) == [b"new"]


def test_addresses_outcomes_and_running_requests_are_bounded() -> None:
    book = RequestBook(running_max=2, outcomes_max=3, outcomes_bytes_max=100)
    book.admit(ID, 7, b"0", 10.0, 0.0)
    for number in range(100):
        book.admit(ID, 7, b"%d" % number, 10.0, 0.0)
    book.admit(OTHER, 7, b"a", 10.0, 0.0)
    assert book.admit(b"request-id-00003", 7, b"a", 10.0, 0.0) is Admission.FULL
    addresses = book.finish(ID, (bytes(60),), 0.0)
    assert (len(addresses), addresses[-1]) == (ADDRESSES_MAX, b"99")
    book.finish(OTHER, (bytes(60),), 0.0)
    assert book.outcome_bytes == 60
    assert book.admit(ID, 7, b"a", 10.0, 0.0) is Admission.RUN


def test_a_huge_outcome_is_not_remembered() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"a", 10.0, 0.0)
    book.finish(ID, (bytes(OUTCOME_BYTES_MAX + 1),), 0.0)
    assert book.outcome_count == 0


def test_a_request_that_nobody_answers_is_given_up() -> None:
    book = RequestBook()
    book.admit(ID, 7, b"a", 10.0, 0.0)
    assert book.forget(10.0 + FORGOTTEN_AFTER_S) == 0
    assert book.forget(10.1 + FORGOTTEN_AFTER_S) == 1
    assert book.finish(ID, FRAMES, 400.0) == []
    assert book.outcome_count == 0


def test_no_schedule_executes_an_id_twice() -> None:
    seed = random.randrange(2**32)
    choice = random.Random(seed)
    for _ in range(200):
        book, now, executed = RequestBook(), 0.0, dict.fromkeys(range(5), 0)
        deadlines = {number: choice.uniform(1, 30) for number in executed}
        for _ in range(100):
            now += choice.random()
            number = choice.randrange(5)
            request_id = b"request-%08d" % number
            match choice.randrange(4):
                case 0 | 1:
                    address = choice.randbytes(8)
                    admission = book.admit(request_id, number, address, deadlines[number], now)
                    executed[number] += admission is Admission.RUN
                    assert (admission is Admission.EXPIRED) == (now >= deadlines[number]), f"seed {seed}"
                case 2:
                    book.finish(request_id, FRAMES, now)
                case 3:
                    book.disconnected() if choice.random() < 0.3 else book.forget(now)
        assert max(executed.values()) <= 1, f"seed {seed}"
