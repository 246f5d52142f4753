"""A folder read in pieces of any size gives every name once, whoever stops where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mounter.attributes import Attributes
from mounter.folderstream import FolderStream

OWN = Attributes(0o40755, 0, 1)


class Source:
    """A listing that counts how often it was begun and how many items it gave."""

    def __init__(self, names: list[bytes], fail_at: int = -1) -> None:
        self.names, self.fail_at = names, fail_at
        self.begun = self.given = 0

    def __call__(self) -> Iterator[tuple[bytes, Attributes]]:
        self.begun += 1
        for at, name in enumerate(self.names):
            if at == self.fail_at:
                raise OSError(5, "damage")
            self.given += 1
            yield name, OWN


def read_all(stream: FolderStream, sizes: Iterator[int]) -> list[bytes]:
    """As the kernel reads: each piece goes on from the position of the last name that fitted."""
    names: list[bytes] = []
    offset = 0
    while True:
        room = next(sizes)
        piece = []
        for name, _ in stream.at(offset):
            if len(piece) == room:
                break  # did not fit: not taken
            piece.append(name)
        offset += len(piece)
        if not piece:
            return names
        names += piece


@given(st.integers(0, 40), st.lists(st.integers(1, 7), min_size=60, max_size=60))
def test_every_name_once_in_pieces_of_any_size(count: int, sizes: list[int]) -> None:
    names = [b"%d" % at for at in range(count)]
    source = Source(names)
    assert read_all(FolderStream(source, OWN), iter(sizes)) == [b".", b"..", *names]
    assert source.begun == 1, "reading on must not start over"
    assert source.given == count


def test_an_empty_piece_in_the_middle_takes_nothing() -> None:
    source = Source([b"a", b"b"])
    stream = FolderStream(source, OWN)
    assert stream.at(0)[0] == (b".", OWN)
    assert [name for name, _ in stream.at(0)] == [b".", b"..", b"a", b"b"]


@given(st.lists(st.integers(0, 12), max_size=8))
def test_seeking_anywhere_gives_what_comes_after(offsets: list[int]) -> None:
    everything = [b".", b"..", *(b"%d" % at for at in range(8))]
    stream = FolderStream(Source(everything[2:]), OWN)
    for offset in offsets:
        assert [name for name, _ in stream.at(offset)[:3]] == everything[offset : offset + 3]


def test_damage_is_met_again_and_never_looks_like_the_end() -> None:
    stream = FolderStream(Source([b"a", b"b", b"c"], fail_at=2), OWN)
    assert [name for name, _ in stream.at(0)] == [b".", b"..", b"a", b"b"]
    for _ in range(3):
        with pytest.raises(OSError):
            stream.at(4)
    assert [name for name, _ in stream.at(3)] == [b"b"]
    stream = FolderStream(Source([], fail_at=0), OWN)
