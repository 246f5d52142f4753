"""Where on the disk the bytes of a volume lie, also of one inside others: followed from Reader to Reader.

A Reader that is made of others tells of which part each of its ranges is (``parts``); what it decrypts keeps its place.
Of BitLocker and shadow copies nobody tells, so there any byte may come of any.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from imagefs.block.ranges import Range, Ranges, joined, overlaps, without
from imagefs.interfaces import Reader

#: Stripes of more than this are not told apart.
_MAX_PIECES = 100_000


class Piece(NamedTuple):
    """``length`` bytes from ``first`` of a volume lie from ``place`` of the disk on. They are decrypted ``unit`` bytes
    at once; such a unit begins at ``grid``."""

    first: int
    place: int
    length: int
    unit: int = 1
    grid: int = 0

    @property
    def end(self) -> int:
        return self.first + self.length


@dataclass(frozen=True, slots=True)
class Located:
    """``pieces`` in order of the volume of ``size`` bytes. With ``loose`` any byte of it may come of any of theirs,
    whose ``first`` says nothing then. ``keys`` are what they are decrypted with. Equal ones show the same bytes where
    the disk is the same."""

    size: int
    pieces: tuple[Piece, ...]
    loose: bool = False
    keys: frozenset[Hashable] = frozenset()

    def in_volume(self, ranges: Iterable[Range]) -> list[Range]:
        """Where in the volume ``ranges`` of the disk lie, as far as they do."""
        wanted = Ranges(ranges)
        if self.loose:
            touched = any(wanted.within(each.place, each.place + each.length) for each in self.pieces)
            return [(0, self.size)] if touched else []
        return joined(part for each in self.pieces for part in _in_piece(each, wanted))

    def on_disk(self, first: int, end: int) -> list[Range]:
        """Where on the disk bytes ``first`` to before ``end`` of the volume lie; with ``loose`` anywhere."""
        if self.loose:
            return [(each.place, each.place + each.length) for each in self.pieces]
        found = []
        for each in islice(self.pieces, bisect_right(self.pieces, first, key=lambda piece: piece.end), None):
            if each.first >= end:
                break
            low, high = max(first, each.first), min(end, each.end)
            found.append((each.place + low - each.first, each.place + high - each.first))
        return found

    def changed(self, older: Located, changes: list[Range]) -> list[Range] | None:
        """Where the volume may differ from what it was as ``older``, if outside of ``changes`` the disk did not; None
        where it does not lie at the same place of the disk anywhere."""
        if self == older:
            return self.in_volume(changes)
        if self.loose or older.loose or self.keys != older.keys:
            return None
        same = joined(_in_same_place(self.pieces, older.pieces))
        if not same:
            return None
        elsewhere = without([(0, max(self.size, older.size))], same)
        return joined([*self.in_volume(changes), *elsewhere])


def _in_piece(piece: Piece, wanted: Ranges) -> Iterator[Range]:
    place, length, unit = piece.place, piece.length, piece.unit
    for first, end in wanted.within(max(0, place - unit + 1), place + length + unit - 1):
        first -= (first - piece.grid) % unit
        end += (piece.grid - end) % unit
        low, high = max(first, place), min(end, place + length)
        if low < high:
            yield piece.first + low - place, piece.first + high - place


def _in_same_place(one: tuple[Piece, ...], other: tuple[Piece, ...]) -> Iterator[Range]:
    """The ranges of a volume that lie at the same place with both."""
    mine, theirs = (defaultdict[Hashable, list[Range]](list) for _ in range(2))
    for pieces, found in ((one, mine), (other, theirs)):
        for each in pieces:
            found[each.place - each.first, each.unit, each.grid].append((each.first, each.end))
    for shift, ranges in mine.items():
        yield from overlaps(ranges, theirs.get(shift, ()))


def partition(start: int, length: int) -> Located:
    return Located(length, (Piece(0, start, length),))


def anywhere(partitions: Mapping[int, tuple[int, int]], size: int = 0) -> Located:
    """Of a volume of which nobody knows in which of ``partitions`` it lies."""
    return Located(size, tuple(Piece(0, start, length) for start, length in partitions.values()), loose=True)


def locate(reader: Reader, partitions: Mapping[int, tuple[int, int]]) -> Located:
    """Where the bytes of ``reader`` lie. ``partitions`` are the Readers it goes back to, each by its ``id()`` as (start
    on the disk, bytes)."""
    walk = _Walk(partitions)
    pieces = tuple(islice(_in_one(walk.pieces(reader, 0, reader.size)), _MAX_PIECES + 1))
    if len(pieces) > _MAX_PIECES:
        return anywhere(partitions, reader.size)
    return Located(reader.size, pieces, walk.loose, frozenset(walk.keys))


class _Walk:
    def __init__(self, partitions: Mapping[int, tuple[int, int]]) -> None:
        self.loose = False
        self.keys: set[Hashable] = set()
        self._partitions = partitions

    def pieces(self, reader: Any, at: int, length: int) -> Iterator[Piece]:
        """Of a range of ``reader``, in its own bytes."""
        there = self._partitions.get(id(reader))
        if there is not None:
            yield Piece(at, there[0] + at, length)
            return
        source = getattr(reader, "source", None)
        if source is not None:
            self.loose = True
            yield from self.pieces(source, 0, source.size)
            return
        unit = getattr(reader, "unit", 1)
        if unit > 1:
            self.keys.add(reader.key)
        if not hasattr(reader, "parts"):  # bytes that are made up, as the superblock of a snapshot is
            return
        for below, place, count in reader.parts(at, length):
            for each in self.pieces(below, place, count):
                first = at + each.first - place
                piece = each._replace(first=first)
                if unit > each.unit:
                    piece = piece._replace(unit=unit, grid=(each.place - first) % unit)
                yield piece
            at += count


def _in_one(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Those that go on where the one before ended become one with it."""
    last: Piece | None = None
    for each in pieces:
        if last is not None and each == _next_to(last, each.length):
            last = last._replace(length=last.length + each.length)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def _next_to(piece: Piece, length: int) -> Piece:
    return piece._replace(first=piece.end, place=piece.place + piece.length, length=length)
