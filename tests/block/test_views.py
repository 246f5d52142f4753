"""Slices, bytes in memory and file objects over Readers."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader, LibraryFile, ReaderFile, SliceReader, clamp, extents_of
from imagefs.errors import SourceError
from imagefs.interfaces import Extent, Extents, Reader, State
from tests.support.reader_contract import check_reader

DATA = random.Random(1).randbytes(300_000)


class Patchy:
    """A Reader of zeros but for ``[2000, 3000)``, which knows it."""

    size = 5000

    def read_at(self, offset: int, length: int, /) -> bytes:
        whole = bytes(2000) + b"x" * 1000 + bytes(2000)
        return whole[offset : offset + clamp(self.size, offset, length)]

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        parts = ((State.ZERO, 0, 2000), (State.STORED, 2000, 3000), (State.SKIPPED, 3000, 5000))
        for state, start, end in parts:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                yield Extent(state, low, high - low)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("size", [0, 1, 511, 4097, 300_000])
def test_bytes_keep_the_reader_contract(size: int) -> None:
    check_reader(BytesReader(DATA[:size]), DATA[:size])


@pytest.mark.parametrize(
    ("start", "length"), [(0, 300_000), (1, 4096), (299_999, 1), (1000, 0), (17, 200_001)]
)
def test_slices_keep_the_reader_contract(start: int, length: int) -> None:
    check_reader(SliceReader(BytesReader(DATA), start, length), DATA[start : start + length])


def test_a_slice_of_a_slice_is_a_slice() -> None:
    inner = SliceReader(SliceReader(BytesReader(DATA), 1000, 100_000), 500, 99_000)
    check_reader(inner, DATA[1500 : 1500 + 99_000])


def test_a_slice_is_cut_at_the_end_of_what_it_is_cut_from() -> None:
    assert SliceReader(BytesReader(b"0123456789"), 6, 100).read_at(0, 100) == b"6789"
    assert SliceReader(BytesReader(b"0123456789"), 60, 100).read_at(0, 100) == b""
    assert SliceReader(BytesReader(b"0123456789"), 10, 1).size == 0
    assert SliceReader(BytesReader(b"0123456789"), 2, -1).size == 0


def test_a_slice_cannot_begin_before_its_reader() -> None:
    with pytest.raises(ValueError, match="-1"):
        SliceReader(BytesReader(b"0123456789"), -1, 5)


def test_a_slice_never_shows_bytes_outside_itself() -> None:
    piece = SliceReader(BytesReader(b"0123456789"), 3, 4)
    assert piece.read_at(4, 3) == b""
    assert piece.read_at(2, 30) == b"56"
    with pytest.raises(ValueError):
        piece.read_at(-1, 2)


def test_closing_a_slice_leaves_what_it_was_cut_from_open() -> None:
    whole = BytesReader(b"0123456789")
    SliceReader(whole, 2, 3).close()
    assert whole.read_at(0, 3) == b"012"


def test_a_closed_slice_has_no_extents() -> None:
    piece = SliceReader(Patchy(), 2, 3)
    piece.close()
    with pytest.raises(SourceError):
        list(piece.extents(0, 3))


def test_a_slice_shifts_the_extents_of_its_reader() -> None:
    piece = SliceReader(Patchy(), 1500, 2000)
    assert list(piece.extents(0, 2000)) == [
        Extent(State.ZERO, 0, 500),
        Extent(State.STORED, 500, 1000),
        Extent(State.SKIPPED, 1500, 500),
    ]
    check_reader(piece, Patchy().read_at(1500, 2000))


@given(offset=st.integers(0, 6000), length=st.integers(0, 7000))
def test_extents_cover_exactly_what_is_asked(offset: int, length: int) -> None:
    for reader in (Patchy(), BytesReader(bytes(5000)), SliceReader(Patchy(), 0, 5000)):
        position = offset
        for extent in extents_of(reader, offset, length):
            assert extent.offset == position
            assert extent.length > 0
            position += extent.length
        assert position == offset + max(0, min(length, 5000 - offset))


def test_a_reader_without_extents_may_hold_data_everywhere() -> None:
    assert list(extents_of(BytesReader(bytes(100)), 10, 500)) == [Extent(State.STORED, 10, 90)]
    assert list(extents_of(BytesReader(b""), 0, 10)) == []
    assert not isinstance(BytesReader(b""), Extents)


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (5, -1)])
def test_extents_refuse_negative_ranges(offset: int, length: int) -> None:
    with pytest.raises(ValueError):
        list(extents_of(Patchy(), offset, length))


def test_everything_here_is_a_reader() -> None:
    assert isinstance(BytesReader(b""), Reader)
    assert isinstance(SliceReader(Patchy(), 0, 1), Reader)
    assert isinstance(SliceReader(Patchy(), 0, 1), Extents)


# -- the file object, held against io.BytesIO -----------------------------------------------------

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 200)),
        st.tuples(st.just("readinto"), st.integers(0, 200)),
        st.tuples(st.just("set"), st.integers(0, 300)),
        st.tuples(st.just("cur"), st.integers(0, 50)),
        st.tuples(st.just("end"), st.integers(-100, 50)),
        st.tuples(st.just("line"), st.just(0)),
    ),
    max_size=20,
)


@given(steps=_STEPS)
def test_a_reader_file_behaves_as_any_file(steps: list[tuple[str, int]]) -> None:
    content = bytes(range(10)) * 10
    files = (ReaderFile(BytesReader(content)), io.BytesIO(content))
    for step, number in steps:
        ours, theirs = (_do(file, step, number) for file in files)
        assert ours == theirs, (step, number)
        assert files[0].tell() == files[1].tell()


def _do(file: io.RawIOBase | io.BytesIO, step: str, number: int) -> object:
    if step == "read":
        return file.read(number)
    if step == "readinto":
        buffer = bytearray(number)
        return file.readinto(buffer), bytes(buffer)
    if step == "line":
        return file.readline()
    return file.seek(number, {"set": io.SEEK_SET, "cur": io.SEEK_CUR, "end": io.SEEK_END}[step])


def test_a_reader_file_reads_into_any_buffer() -> None:
    words = memoryview(bytearray(16)).cast("I")
    assert ReaderFile(BytesReader(struct.pack("4I", 1, 2, 3, 4))).readinto(words) == 16
    assert list(words) == [1, 2, 3, 4]


def test_zipfile_opens_an_archive_inside_a_slice() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.txt", "found")
    disk = BytesReader(bytes(512) + packed.getvalue() + bytes(512))
    inside = ReaderFile(SliceReader(disk, 512, len(packed.getvalue())), name="p1")
    with zipfile.ZipFile(io.BufferedReader(inside)) as archive:
        assert archive.read("inside.txt") == b"found"


def test_a_reader_file_says_what_it_is() -> None:
    file = ReaderFile(BytesReader(b"abc"), name="disk.raw")
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert (file.name, file.mode) == ("disk.raw", "rb")
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")


def test_a_reader_file_refuses_impossible_positions() -> None:
    file = ReaderFile(BytesReader(b"abc"))
    with pytest.raises(ValueError, match="negative"):
        file.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        file.seek(0, 77)
    assert file.tell() == 0


def test_closing_a_reader_file_leaves_its_reader_open() -> None:
    reader = BytesReader(b"abc")
    file = ReaderFile(reader)
    file.close()
    with pytest.raises(ValueError):
        file.read()
    with pytest.raises(ValueError):
        file.seek(0)
    assert reader.read_at(0, 3) == b"abc"


class Scratched(BytesReader):
    """DATA with a bad sector at 131,072; remembers how often it was read."""

    reads = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads += 1
        if offset < 131_584 and offset + length > 131_072:
            raise SourceError("a bad sector")
        return super().read_at(offset, length)


def test_a_library_reads_sectors_and_the_reader_gives_blocks() -> None:
    reader = Scratched(DATA)
    file = LibraryFile(reader)
    assert b"".join(file.read(512) for _ in range(256)) == DATA[:131_072]
    assert reader.reads == 2
    with pytest.raises(SourceError):
        file.read(512)
    assert isinstance(file.error, SourceError)
    for start, length in ((131_584, 512), (65_000, 60_000), (299_900, 500), (300_000, 1)):
        file.seek(start)
        assert file.read(length) == DATA[start : start + length]
        assert file.tell() == min(start + length, 300_000)
