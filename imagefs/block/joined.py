"""Readers made of others, which they do not own: one behind the other, in stripes, or with places that nobody has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from imagefs.block.views import clamp, extents_of, merged
from imagefs.errors import BrowseError, SourceError
from imagefs.interfaces import Extent, Reader, State

_WHOLE = "an image captured with --mode all has all that could be read"


class _Joint:
    """What both are: parts of a range, each a range of one of the readers."""

    def __init__(self, readers: Sequence[Reader], size: int) -> None:
        self._readers: Sequence[Reader] | None = readers
        self.size = size

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        """(reader, offset in it, bytes) of each part of a range, in order."""
        raise NotImplementedError

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        found = [reader.read_at(at, part) for reader, at, part in self.parts(offset, count)]
        return found[0] if len(found) == 1 else b"".join(found)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return merged(self._extents(offset, clamp(self.size, offset, length)))

    def _extents(self, offset: int, count: int) -> Iterator[Extent]:
        for reader, at, part in self.parts(offset, count):
            for extent in extents_of(reader, at, part):
                yield Extent(extent.state, extent.offset - at + offset, extent.length)
            offset += part

    def _open(self) -> Sequence[Reader]:
        if self._readers is None:
            raise SourceError("read from a closed volume")
        return self._readers

    def close(self) -> None:
        self._readers = None


class JoinedReader(_Joint):
    """``readers`` one behind the other."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._ends = list(accumulate(reader.size for reader in readers))
        super().__init__(readers, self._ends[-1] if self._ends else 0)

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        readers, end = self._open(), offset + length
        number = bisect_right(self._ends, offset)
        while offset < end:
            part = min(end, self._ends[number]) - offset
            yield readers[number], offset - self._ends[number] + readers[number].size, part
            offset += part
            number += 1


class StripedReader(_Joint):
    """``unit`` bytes of each of ``readers`` in turn, as far as the shortest goes."""

    def __init__(self, readers: Sequence[Reader], unit: int) -> None:
        super().__init__(readers, min(reader.size for reader in readers) * len(readers))
        self._unit = unit

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        readers, end = self._open(), offset + length
        while offset < end:
            row, skip = divmod(offset, self._unit)
            part = min(end - offset, self._unit - skip)
            yield readers[row % len(readers)], row // len(readers) * self._unit + skip, part
            offset += part


class LostReader:
    """``reader``, of which ``lost()`` are ranges whose bytes nobody has, in order: they read as zeros, their extents
    say so, and ``reader`` is not asked for them. Asked for once, when first needed.

    ``source`` is what ``reader`` is made of, where nobody can say which of its bytes comes of which.
    """

    def __init__(
        self, reader: Reader, lost: Callable[[], Sequence[Extent]], source: Reader | None = None
    ) -> None:
        self.source = source
        self._reader = reader
        self._find = lost
        self._lost: Sequence[Extent] | None = None
        self._closed = False
        self.size = reader.size

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._closed:
            raise SourceError("read from a closed volume")
        extents = self._extents(offset, offset + clamp(self.size, offset, length))
        parts = [
            self._reader.read_at(each.offset, each.length)
            if each.state is State.STORED
            else bytes(each.length)
            for each in extents
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        yield self._reader, offset, clamp(self.size, offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return merged(self._extents(offset, offset + clamp(self.size, offset, length)))

    def _extents(self, at: int, end: int) -> Iterator[Extent]:
        if self._lost is None:
            self._lost = self._find()
            self._ends = [each.offset + each.length for each in self._lost]
        for number in range(bisect_right(self._ends, at), len(self._lost)):
            each = self._lost[number]
            first, stop = max(each.offset, at), min(self._ends[number], end)
            if first >= stop:
                break
            if first > at:
                yield Extent(State.STORED, at, first - at)
            yield Extent(each.state, first, stop - first)
            at = stop
        if at < end:
            yield Extent(State.STORED, at, end - at)

    def close(self) -> None:
        """The reader is another's to close."""
        self._closed = True


def lost_in(reader: Reader, unit: int = 1) -> list[Extent]:
    """What of ``reader`` was not captured or could not be read, widened to whole ``unit``s."""
    found: list[Extent] = []
    for each in extents_of(reader, 0, reader.size):
        if each.state in (State.SKIPPED, State.UNREADABLE):
            first = each.offset // unit * unit
            end = min(-(-(each.offset + each.length) // unit) * unit, reader.size)
            first = max(first, found[-1].offset + found[-1].length) if found else first
            if first < end:
                found.append(Extent(each.state, first, end - first))
    return found


class SureReader:
    """``reader``, which refuses a read that touches what was not captured or could not be read: for who would take the
    zeros there for data. ``what`` goes on "bytes 5 to 9 …" in the BrowseError."""

    def __init__(self, reader: Reader, what: str) -> None:
        self._reader = reader
        self._what = what
        self.size = reader.size

    def read_at(self, offset: int, length: int, /) -> bytes:
        for each in extents_of(self._reader, offset, length):
            if each.state in (State.SKIPPED, State.UNREADABLE):
                last = each.offset + each.length - 1
                said = f"bytes {each.offset} to {last} {self._what}"
                raise BrowseError(said, hint=_WHOLE, offset=each.offset)
        return self._reader.read_at(offset, length)

    def close(self) -> None:
        """The reader is another's to close."""
