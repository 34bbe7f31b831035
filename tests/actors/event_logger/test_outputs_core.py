"""What output becomes: any way of slicing it gives the same lines, and every byte is a line's or is counted."""

import random

import pytest

from actors.event_logger.outputs_core import LINE_BYTES_MAX, Cutter, Line, Lives, OutputPosition, read_line
from protocol.severity import Severity

ALL = 10**9


def cutter(**fields: int) -> Cutter:
    return Cutter(OutputPosition("api", 7, 0, **fields))


def text(data: bytes) -> str:
    return read_line(Line(data, 0, len(data)))[1]


def test_any_slicing_gives_the_same_lines_also_across_a_new_life_of_the_reader() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    for _ in range(200):
        words = ["é" * generator.randrange(40), "", "x" * generator.randrange(3), "y" * LINE_BYTES_MAX + "z"]
        whole = "\n".join(generator.choice(words) for _ in range(30)).encode() + b"\nend"
        first = cutter()
        expected = first.feed(whole, ALL) + first.finish(1)
        second, found, position = cutter(), [], 0
        while position < len(whole):
            size = generator.randrange(1, 3000)
            found += second.feed(whole[position : position + size], ALL)
            position += size
            second = Cutter(second.position)  # all that a successor knows
        found += second.finish(1)
        assert found == expected
        assert [line.size_bytes for line in found] == [len(part) for part in whole.split(b"\n") if part]


def test_an_over_long_line_is_cut_and_its_length_told() -> None:
    taken = cutter()
    assert taken.feed(b"a" * 5000, ALL) == []
    assert taken.feed(b"b" * 2_000_000, ALL) == []
    assert len(taken.position.head) == LINE_BYTES_MAX
    (line,) = taken.feed(b"\nnext", ALL)
    assert line == Line(b"a" * 5000 + b"b" * (LINE_BYTES_MAX - 5000), 0, 2_005_000)
    assert taken.finish(1) == [Line(b"next", 2_005_001, 4)]


def test_a_character_torn_by_the_cut_is_left_out_and_a_wrong_byte_replaced() -> None:
    data = b"a" + "é".encode() * LINE_BYTES_MAX
    (line,) = cutter().feed(data + b"\n", ALL)
    assert read_line(line) == (Severity.INFO, "a" + "é" * (LINE_BYTES_MAX // 2 - 1))
    assert text(b"r\xe9al \xff!") == "r�al �!"
    assert text(b"torn \xc3") == "torn �"  # the program's own doing: no cut


def test_what_is_beyond_the_rate_is_counted_to_the_byte() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    taken, told, fed = cutter(), 0, 0
    for _ in range(300):
        data = b"".join(b"l" * generator.randrange(50) + b"\n" for _ in range(20))[: generator.randrange(1, 600)]
        fed += len(data)
        told += sum(line.size_bytes + 1 for line in taken.feed(data, generator.randrange(4)))
        blank = 0  # lines of nothing that were let through cost one byte each and are not returned
        left = taken.position.length
        assert told + taken.skipped.size_bytes + left + blank <= fed
        assert fed - (told + taken.skipped.size_bytes + left) <= 4 * 300
    assert taken.offset == fed
    assert taken.skipped.lines > 0


def test_skipping_tells_where_it_began() -> None:
    taken = cutter()
    assert [line.data for line in taken.feed(b"one\ntwo\nthree\nfo", 1)] == [b"one"]
    assert taken.skipped == (2, len(b"two\nthree\n"), 4)
    assert taken.feed(b"ur\nfive\n", 0) == []
    assert taken.skipped == (4, len(b"two\nthree\nfour\nfive\n"), 4)
    taken.told()
    assert taken.feed(b"six\n", 0) == []
    assert taken.skipped == (1, 4, 4 + len(b"two\nthree\nfour\nfive\n"))


@pytest.mark.parametrize(
    ("data", "severity", "message"),
    [
        (b"<3>broken", Severity.ERROR, "broken"),
        (b"<0>the end", Severity.FATAL, "the end"),
        (b"<7> detail", Severity.DEBUG, " detail"),
        (b"<8>no level", Severity.INFO, "<8>no level"),
        (b"<b>bold</b>", Severity.INFO, "<b>bold</b>"),
        (b"windows\r", Severity.INFO, "windows"),
        (b" 1 %\r 50 %\r100 %\r", Severity.INFO, "100 %"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07text", Severity.INFO, "red text"),
        (b"a\x00b\tc", Severity.INFO, "a\N{REPLACEMENT CHARACTER}b\tc"),
        (b"   ", Severity.INFO, ""),
        (b"\r\r", Severity.INFO, ""),
    ],
)
def test_a_line_is_read_as_people_read_it(data: bytes, severity: Severity, message: str) -> None:
    assert read_line(Line(data, 0, len(data))) == (severity, message)


def test_a_file_that_was_cut_goes_on_counting() -> None:
    taken = cutter()
    taken.feed(b"one\ntwo", ALL)
    taken.cut(7)
    (line,) = taken.feed(b" and more\n", ALL)
    assert line == Line(b"two and more", 4, 12)
    assert (taken.base, taken.offset) == (7, 10)


def test_what_is_gone_before_it_was_read_is_counted() -> None:
    taken = cutter()
    taken.feed(b"one\nhalf", ALL)
    taken.jump(100)
    assert taken.skipped == (0, 96, 4)
    assert taken.feed(b"x\n", ALL) == [Line(b"x", 100, 1)]


def test_a_file_whose_rank_shrinks_or_whose_beginning_differs_is_another_one() -> None:
    lives = Lives("api")
    first = lives.meet(7, 0, 10)
    first.feed(b"0123456789", ALL)
    assert lives.meet(7, 1, 10) is first
    assert lives.meet(7, 0, 10) is not first
    again = Cutter(first.position)
    assert again.is_continued_by(b"0123456789")
    assert again.is_continued_by(b"..0123456789")
    assert not again.is_continued_by(b"012345678X")
    assert again.is_continued_by(bytes(10))


def test_a_file_that_shrank_begins_anew_and_the_line_it_broke_is_counted() -> None:
    lives = Lives("api")
    taken = lives.meet(7, 0, 100)
    taken.feed(b"whole\nbroken", ALL)
    assert lives.meet(7, 0, 3) is taken
    assert (taken.offset, taken.base, taken.unfinished) == (0, 12, False)
    assert taken.skipped == (0, 6, 6)
