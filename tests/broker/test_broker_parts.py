"""The small parts of the broker, each by itself."""

import os
from dataclasses import replace

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.routing.accounts import Counters, DeadLetter, DeadLetters
from broker.routing.backlog import Backlog, BacklogBounds
from broker.routing.bounds import DEAD_LETTERS_MAX
from broker.routing.headers import HeaderReader, content_of
from broker.routing.outcomes import Outcomes
from broker.routing.registry import Service
from broker.routing.requests import Request
from broker.routing.topics import Topics
from protocol.codec import pack
from protocol.errors import ProtocolError
from protocol.limits import TOPIC_BODY_BYTES_MAX, TOPICS_MAX
from protocol.messages import RequestHeader, decode_request_header

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 1 << 50),
    st.floats(),
    st.binary(max_size=40),
    st.text("ab._ ü\0", max_size=60),
    st.lists(st.integers(0, 9), max_size=3),
)
FIELDS = st.dictionaries(st.sampled_from(["v", "id", "op", "deadline_ms", "trace_id", "span_id", "error", "x"]), VALUES)
ALMOST = st.fixed_dictionaries(
    {
        "v": st.sampled_from([1, True, 1.0, 2]),
        "id": st.binary(min_size=7, max_size=33),
        "op": st.text("ab_.- ü", max_size=50),
        "deadline_ms": st.sampled_from([0, 1, -1, 1 << 62, True, 2.0]),
    },
    optional={"trace_id": st.binary(max_size=33), "y": VALUES},
)
RAW = st.binary(max_size=60)
TWICE = b"\x84\xa1v\x01\xa1v\x01\xa2id\xc4\x08" + bytes(8) + b"\xa2op\xa1x"
EXTENDED = b"\x84\xa1v\xd4\x01\x01\xa2id\xc4\x08" + bytes(8) + b"\xa2op\xa1x\xabdeadline_ms\x01"


class TestHeaders:
    @settings(deadline=None)
    @given(st.lists(st.one_of(RAW, FIELDS.map(msgpack.packb), ALMOST.map(msgpack.packb)), min_size=1, max_size=4))
    @example([TWICE])
    @example([EXTENDED])
    @example([b"\x84" * 4097])
    @example([pack({"v": 1, "id": bytes(8), "op": "x", "deadline_ms": 1}) + b"\x00"])
    def test_the_reader_accepts_and_refuses_exactly_what_the_protocol_does(self, frames: list[bytes]) -> None:
        reader = HeaderReader()
        for frame in frames:
            self.compare(reader, frame)

    @settings(deadline=None)
    @given(
        st.sampled_from(["ping", "p", "x" * 48]),
        st.integers(0, 1 << 40),
        st.integers(0, 80),
        st.binary(max_size=3),
        st.integers(0, 3),
    )
    def test_so_it_does_with_what_is_nearly_like_a_known_form(
        self, op: str, deadline_ms: int, at: int, put: bytes, removed: int
    ) -> None:
        reader = HeaderReader()
        reader.read(RequestHeader(bytes(16), op, 1 << 31).encode())
        frame = RequestHeader(os.urandom(16), op, deadline_ms).encode()
        self.compare(reader, frame)
        self.compare(reader, frame[:at] + put + frame[at + removed :])

    @staticmethod
    def compare(reader: HeaderReader, frame: bytes) -> None:
        try:
            header = decode_request_header(frame)
            expected: object = (header.id, header.op, header.deadline_ms)
        except ProtocolError as error:
            expected = error.code
        for _ in range(2):
            try:
                got: object = reader.read(frame)
            except ProtocolError as error:
                got = error.code
            assert got == expected

    def test_whatever_the_transport_lends_is_read_alike(self) -> None:
        header = RequestHeader(os.urandom(16), "ping", 123456)
        expected = (header.id, "ping", 123456)
        reader = HeaderReader()
        assert reader.read(header.encode()) == expected
        assert reader.read(replace(header, trace_id=bytes(16), span_id=bytes(8)).encode()) == expected
        assert reader.read(memoryview(header.encode())) == expected

    def test_forms_are_bounded(self) -> None:
        reader = HeaderReader()
        for number in range(1000):
            reader.read(RequestHeader(bytes(16), f"op-{number}", 1 << 31).encode())
        assert len(reader._op_of_form) == 256

    def test_content_does_not_depend_on_the_header(self) -> None:
        assert content_of(b"s", "op", [b"h1", b"a", b"r"]) == content_of(b"s", "op", [b"h2", b"a", b"r"])

    @pytest.mark.parametrize(
        "other",
        [
            (b"t", "op", [b"", b"a"]),
            (b"s", "po", [b"", b"a"]),
            (b"s", "op", [b"", b"b"]),
            (b"s", "op", [b"", b"a", b""]),
        ],
    )
    def test_content_depends_on_everything_else(self, other: tuple[bytes, str, list[bytes]]) -> None:
        assert content_of(b"s", "op", [b"", b"a"]) != content_of(*other)

    def test_large_frames_are_told_apart_by_length_head_and_tail(self) -> None:
        large = bytearray(200_000)

        def content() -> int:
            return content_of(b"s", "put", [b"h", b"a", memoryview(bytes(large))])

        before = content()
        assert content() == before
        large[-1] = 1
        assert content() != before


def finished(request_id: bytes | int, deadline: float = 5.0) -> Request:
    service = Service(b"s", protected=False, waits_until=0.0)
    return Request(request_id, "op", service, b"peer", [], 0, deadline, 0)


class TestOutcomes:
    def test_a_request_without_an_id_leaves_nothing(self) -> None:
        outcomes = Outcomes(count_max=2, bytes_max=10_000, s_min=60)
        outcomes.keep(finished(7), [b""], 0, 0.0)
        assert len(outcomes) == 0

    def test_the_oldest_make_room_by_number(self) -> None:
        outcomes = Outcomes(count_max=2, bytes_max=10_000, s_min=60)
        for number in range(3):
            outcomes.keep(finished(bytes([number])), [b"x"], 1, 0.0)
        assert [outcomes.get(bytes([number])) is not None for number in range(3)] == [False, True, True]

    def test_the_oldest_make_room_by_bytes(self) -> None:
        outcomes = Outcomes(count_max=100, bytes_max=10_000, s_min=60)
        for number in range(100):
            outcomes.keep(finished(bytes([number])), [bytes(900)], 900, 0.0)
        assert outcomes.bytes <= 10_000
        assert 0 < len(outcomes) < 20

    def test_bytes_are_given_back(self) -> None:
        outcomes = Outcomes(count_max=100, bytes_max=10_000, s_min=60)
        outcomes.keep(finished(b"1"), [b""], 0, 0.0)
        outcomes.keep(finished(b"2", deadline=90.0), [b""], 0, 0.0)
        outcomes.forget(60.0)
        assert outcomes.get(b"1") is None
        assert outcomes.get(b"2") is not None
        outcomes.forget(90.0)
        assert (len(outcomes), outcomes.bytes) == (0, 0)


class TestTopics:
    def test_the_last_value_of_a_state_is_kept(self) -> None:
        topics = Topics()
        for body in (b"1", b"2"):
            assert topics.accept(b"state.health", body)
        assert topics.accept(b"event.x", b"3")
        assert topics.matching(b"") == [b"state.health"]
        assert topics.matching(b"state.h") == [b"state.health"]
        assert topics.matching(b"event") == []
        assert topics.last(b"state.health") == b"2"
        assert topics.last(b"event.x") is None

    def test_topics_are_bounded_and_the_one_unchanged_for_longest_goes(self) -> None:
        topics = Topics()
        for number in range(TOPICS_MAX):
            topics.accept(b"state.%d" % number, b"")
        topics.accept(b"state.0", b"again")
        topics.accept(b"state.new", b"")
        assert topics.last(b"state.0") == b"again"
        assert topics.last(b"state.1") is None
        assert len(topics.names()) == TOPICS_MAX

    def test_a_body_is_bounded(self) -> None:
        assert not Topics().accept(b"state.x", bytes(TOPIC_BODY_BYTES_MAX + 1))


def test_dead_letters_are_bounded() -> None:
    letters = DeadLetters()
    for number in range(DEAD_LETTERS_MAX + 5):
        letters.add(DeadLetter(number, "reason", "service", "op", ""))
    assert len(letters.as_list()) == DEAD_LETTERS_MAX
    assert letters.as_list()[-1]["at_ms"] == DEAD_LETTERS_MAX + 4


def test_an_imbalance_shows() -> None:
    counters = Counters(received=3, delivered=1, pending=1)
    assert counters.imbalance() == 1


class TestBacklog:
    def make(self) -> Backlog:
        return Backlog(BacklogBounds(peers_max=2, peer_bytes_max=100, bytes_max=150, s_max=5.0))

    def test_what_is_held_comes_back_in_order(self) -> None:
        backlog = self.make()
        first, second = (b"p", [b"1"], True), (b"p", [b"2"], True)
        assert backlog.hold(first, 0.0)
        assert backlog.hold(second, 0.0)
        assert backlog.first_of_each() == [first]
        assert backlog.sent(b"p", 1.0) == second
        assert backlog.sent(b"p", 1.0) is None
        assert not backlog
        assert backlog.bytes == 0

    def test_it_is_bounded_in_every_way(self) -> None:
        backlog = self.make()
        assert backlog.hold((b"a", [bytes(120)], True), 0.0)
        assert not backlog.hold((b"a", [bytes(1)], True), 0.0)
        assert backlog.hold((b"b", [bytes(20)], True), 0.0)
        assert not backlog.hold((b"b", [bytes(20)], True), 0.0)
        assert not backlog.hold((b"c", [b""], True), 0.0)
        assert backlog.bytes == 140

    def test_a_peer_that_takes_nothing_is_given_up(self) -> None:
        backlog = self.make()
        for number in range(3):
            backlog.hold((b"a", [bytes([number])], True), float(number))
        assert backlog.overdue(5.0) == []
        backlog.sent(b"a", 4.0)
        assert backlog.overdue(8.0) == []
        assert backlog.overdue(9.5) == [b"a"]
        assert [frames for _, frames, _ in backlog.give_up(b"a")] == [[b"\x01"], [b"\x02"]]
        assert not backlog
        assert backlog.bytes == 0
