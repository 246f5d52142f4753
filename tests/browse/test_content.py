"""Readers over the content of a file: the contract, holes, gaps, and what lies past the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse.content import FETCH_SIZE, FetchReader, MappedReader, Piece, PieceCache, merged_ranges
from imagefs.errors import BrowseError
from imagefs.interfaces import Extent, State
from tests.browse.disks import pattern
from tests.support.reader_contract import check_reader

DISK = pattern(200_000)


def mapped(size: int, *pieces: tuple[int, int, int | None]) -> MappedReader:
    return MappedReader(BytesReader(DISK), size, [Piece(*piece) for piece in pieces], label="/f")


def test_a_mapped_file_keeps_the_reader_contract() -> None:
    reader = mapped(130_000, (0, 50_000, 150_000), (50_000, 60_000, None), (110_000, 20_000, 1_000))
    expected = DISK[150_000:200_000] + bytes(60_000) + DISK[1_000:21_000]
    check_reader(reader, expected)


def test_a_fetched_file_keeps_the_reader_contract() -> None:
    def fetch(offset: int, length: int) -> bytes:
        return DISK[offset : offset + min(length, 777)]  # short answers are asked again

    check_reader(FetchReader(len(DISK), fetch, label="/f"), DISK)


@given(
    st.lists(st.tuples(st.integers(1, 900), st.one_of(st.none(), st.integers(0, 199_000))), max_size=12),
    st.data(),
)
def test_any_layout_reads_as_the_pieces_laid_end_to_end(
    layout: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    pieces, expected = [], b""
    for length, source in layout:
        pieces.append((len(expected), length, source))
        expected += bytes(length) if source is None else DISK[source : source + length]
    reader = mapped(len(expected), *pieces)
    offset = data.draw(st.integers(0, len(expected) + 5))
    length = data.draw(st.integers(0, len(expected) + 5))
    assert reader.read_at(offset, length) == expected[offset : offset + length]
    covered = list(reader.extents(offset, length))
    assert sum(extent.length for extent in covered) == len(expected[offset : offset + length])
    for extent in covered:
        if extent.state is not State.STORED:
            assert not any(expected[extent.offset : extent.offset + extent.length])


def test_holes_are_extents_of_zeros() -> None:
    reader = mapped(3_000, (0, 1_000, 5), (1_000, 1_000, None), (2_000, 500, None), (2_500, 500, 9))
    assert list(reader.extents(500, 2_100)) == [
        Extent(State.STORED, 500, 500),
        Extent(State.ZERO, 1_000, 1_500),
        Extent(State.STORED, 2_500, 100),
    ]


def test_states_of_the_disk_come_through() -> None:
    class Patchy(BytesReader):
        def extents(self, offset: int, length: int):  # type: ignore[no-untyped-def]
            cut = min(length, max(0, 100 - offset))
            if cut:
                yield Extent(State.STORED, offset, cut)
            if length > cut:
                yield Extent(State.UNREADABLE, offset + cut, length - cut)

    reader = MappedReader(Patchy(bytes(300)), 200, [Piece(0, 200, 50)], label="/f")
    assert list(reader.extents(0, 200)) == [
        Extent(State.STORED, 0, 50),
        Extent(State.UNREADABLE, 50, 150),
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 100, 0)],  # too little
        [(0, 100, 0), (150, 850, 0)],  # a gap
        [(100, 900, 0)],  # no start
        [],
    ],
)
def test_a_part_without_a_place_is_refused_never_made_up(pieces: list[tuple[int, int, int | None]]) -> None:
    reader = mapped(1_000, *pieces)
    with pytest.raises(BrowseError, match="/f"):
        reader.read_at(0, 1_000)
    assert sum(extent.length for extent in reader.extents(0, 1_000)) == 1_000


def test_what_can_be_read_before_a_gap_is_read() -> None:
    assert mapped(1_000, (0, 100, 7)).read_at(0, 100) == DISK[7:107]


def test_a_place_past_the_end_of_the_volume_is_refused() -> None:
    reader = mapped(1_000, (0, 1_000, len(DISK) - 10))
    with pytest.raises(BrowseError, match="past the end"):
        reader.read_at(0, 1_000)
    assert list(reader.extents(0, 1_000)) == [Extent(State.STORED, 0, 1_000)]


def test_a_huge_size_costs_nothing() -> None:
    reader = mapped(1 << 62, (0, 1 << 62, None))
    assert reader.read_at((1 << 62) - 4, 100) == bytes(4)
    assert list(reader.extents(0, 1 << 62)) == [Extent(State.ZERO, 0, 1 << 62)]


@pytest.mark.parametrize("answer", [b"", b"x" * (FETCH_SIZE + 1)])
def test_a_library_that_gives_nothing_or_too_much_is_not_believed(answer: bytes) -> None:
    reader = FetchReader(FETCH_SIZE, lambda offset, length: answer, label="/f")
    with pytest.raises(BrowseError, match="byte 0"):
        reader.read_at(0, FETCH_SIZE)


def test_a_library_is_asked_for_a_bounded_amount() -> None:
    asked = []

    def fetch(offset: int, length: int) -> bytes:
        asked.append(length)
        return bytes(length)

    FetchReader(3 * FETCH_SIZE + 1, fetch, label="/f").read_at(0, 3 * FETCH_SIZE + 1)
    assert asked == [FETCH_SIZE] * 3 + [1]


def test_the_layout_of_a_fetched_file_answers_for_its_holes() -> None:
    layout = mapped(2_000, (0, 1_000, 0), (1_000, 1_000, None))
    reader = FetchReader(2_000, lambda offset, length: bytes(length), label="/f", layout=layout)
    assert [extent.state for extent in reader.extents(0, 2_000)] == [State.STORED, State.ZERO]


def test_ranges_that_touch_are_one() -> None:
    assert merged_ranges([]) == []
    assert merged_ranges([(30, 5), (0, 10), (10, 5), (12, 1), (35, 1)]) == [(0, 15), (30, 6)]
    assert merged_ranges([(5, 0), (5, 3), (9, 0)]) == [(5, 3), (9, 0)]


def test_pieces_are_read_once_while_they_are_kept() -> None:
    read: list[int] = []

    def piece(number: int) -> bytes:
        read.append(number)
        return b"%d" % number

    cache = PieceCache(piece, 4)
    assert [cache.get(number) for number in (1, 2, 1, 3, 4, 2)] == [b"1", b"2", b"1", b"3", b"4", b"2"]
    assert read == [1, 2, 3, 4]
    fetched: list[tuple[int, int]] = []
    steps = cache.expect([4, 9, 9, 3, 8, 7], lambda number: [(number, 1)], fetched.extend)
    next(steps)
    assert fetched == [(9, 1), (8, 1)]
    assert read == [1, 2, 3, 4], "what is on its way is not waited for"
    assert list(steps) == []
    assert read == [1, 2, 3, 4, 9, 8]
    assert (cache.get(9), cache.get(1)) == (b"9", b"1")
    assert read == [1, 2, 3, 4, 9, 8, 1]


def test_pieces_are_expected_some_hundred_at_once_and_no_more_than_fit() -> None:
    asked: list[int] = []
    cache = PieceCache(bytes, 1000)
    steps = cache.expect(
        range(2000), lambda number: [(number, 1)], lambda ranges: asked.append(len(list(ranges)))
    )
    assert len(list(steps)) > 1
    assert sum(asked) == 500
    assert 1 < len(asked) <= 5
