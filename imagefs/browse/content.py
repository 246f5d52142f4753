"""Readers over the content of one file: mapped straight onto the volume, or fetched by a library.

Where the runs of a file are known and its bytes lie on the disk as they are, no library is needed
to read them: reads then run in parallel and take no lock. Nothing here knows a file system.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from imagefs.block.views import clamp, extents_of, merged, moved
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Extent, Reader, State

#: (offset, length) → at most so many bytes of a file.
Fetch = Callable[[int, int], bytes]
#: Has many ranges (offset, length) of a volume read at once, for reads that come soon; does not wait for them.
FetchMany = Callable[[Iterable[tuple[int, int]]], None]
#: What one call of a library is asked for at most.
FETCH_SIZE = 1 << 20
#: So many pieces of a table are fetched at once.
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes of a file from ``start``; they lie at ``source``, or are a hole where None."""

    start: int
    length: int
    source: int | None


class MappedReader:
    """A file whose ``pieces`` (in order, without overlap) lie on ``reader``. Owns neither."""

    def __init__(self, reader: Reader, size: int, pieces: list[Piece], *, label: str) -> None:
        self.size = size
        self._reader: Reader | None = reader
        self.pieces = pieces
        self._starts = [piece.start for piece in pieces]
        self.label = label

    def lies_on(self, reader: Reader | None) -> bool:
        """Whether the pieces are places of ``reader`` itself."""
        return reader is not None and self._reader is reader

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        reader = self._open_reader()
        out = []
        for piece, skip, part in self._cut(offset, count):
            out.append(bytes(part) if piece.source is None else self._read(reader, piece, skip, part))
        return b"".join(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        """Where nothing is known of a part, it may hold data: reading it will say what is wrong."""
        reader, count = self._open_reader(), clamp(self.size, offset, length)
        if len(self.pieces) == 1 and count:
            (piece,) = self.pieces
            inside = piece.start <= offset and offset + count <= piece.start + piece.length
            if inside and piece.source is not None and piece.source + piece.length <= reader.size:
                by = piece.start - piece.source
                return moved(extents_of(reader, offset - by, count), by)
        return merged(self._extents(reader, offset, count))

    def _extents(self, reader: Reader, offset: int, count: int) -> Iterator[Extent]:
        end = offset + count
        for piece, skip, part in self._known(offset, end):
            at = piece.start + skip
            if at > offset:
                yield Extent(State.STORED, offset, at - offset)
            offset = at + part
            if piece.source is None:
                yield Extent(State.ZERO, at, part)
                continue
            inside = min(part, max(0, reader.size - piece.source - skip))
            yield from self._told(reader, piece, skip, inside)
            if inside < part:  # past the end of the volume: reading it says so
                yield Extent(State.STORED, at + inside, part - inside)
        if offset < end:
            yield Extent(State.STORED, offset, end - offset)

    def parts(self, offset: int, length: int) -> list[Piece]:
        """What is known of a range, as pieces cut to it."""
        return [
            Piece(piece.start + skip, part, None if piece.source is None else piece.source + skip)
            for piece, skip, part in self._known(offset, offset + length)
        ]

    def _known(self, offset: int, end: int) -> Iterator[tuple[Piece, int, int]]:
        """The pieces that touch a range, as ``_cut`` gives them; parts without a piece are left out."""
        for index in range(max(0, bisect_right(self._starts, offset) - 1), len(self.pieces)):
            piece = self.pieces[index]
            if piece.start >= end:
                return
            skip = max(0, offset - piece.start)
            part = min(end, piece.start + piece.length) - piece.start - skip
            if part > 0:
                yield piece, skip, part

    def _cut(self, offset: int, count: int) -> Iterator[tuple[Piece, int, int]]:
        """The pieces under a range: (piece, bytes to skip in it, bytes to take)."""
        end = offset + count
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            piece = self.pieces[index] if 0 <= index < len(self.pieces) else None
            if piece is None or not piece.start <= offset < piece.start + piece.length:
                raise damaged(self.label, offset, "the file system does not say where they lie")
            part = min(end, piece.start + piece.length) - offset
            yield piece, offset - piece.start, part
            offset += part
            index += 1

    def _told(self, reader: Reader, piece: Piece, skip: int, length: int) -> Iterator[Extent]:
        """What is known of ``length`` bytes of a piece that is no hole, behind its first ``skip``."""
        assert piece.source is not None
        return moved(extents_of(reader, piece.source + skip, length), piece.start - piece.source)

    def _read(self, reader: Reader, piece: Piece, skip: int, length: int) -> bytes:
        assert piece.source is not None
        source = piece.source + skip
        data = reader.read_at(source, length)
        if len(data) < length:
            raise damaged(self.label, source, "they lie past the end of the volume")
        return data

    def _open_reader(self) -> Reader:
        if self._reader is None:
            raise BrowseError(f"'{self.label}' is closed")
        return self._reader

    def close(self) -> None:
        self._reader = None


class FetchReader:
    """A file read through a library: ``fetch(offset, length)`` gives at most ``length`` bytes.

    ``layout``, where its place on the disk is known, answers for its holes.
    """

    def __init__(
        self,
        size: int,
        fetch: Fetch,
        *,
        label: str,
        layout: MappedReader | None = None,
    ) -> None:
        self.size = size
        self._fetch: Fetch | None = fetch
        self._label = label
        self.layout = layout

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if self._fetch is None:
            raise BrowseError(f"'{self._label}' is closed")
        out = []
        while count:
            data = self._fetch(offset, min(count, FETCH_SIZE))
            if not data or len(data) > count:
                raise damaged(self._label, offset, "the file system does not give them")
            out.append(data)
            offset += len(data)
            count -= len(data)
        return b"".join(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        count = clamp(self.size, offset, length)
        if self._fetch is None:
            raise BrowseError(f"'{self._label}' is closed")
        if self.layout is not None:
            return self.layout.extents(offset, count)
        return iter([Extent(State.STORED, offset, count)] if count else [])

    def close(self) -> None:
        self._fetch = None


class PieceCache:
    """The last ``most`` pieces of a table that were read, by their numbers. Safe in several threads."""

    def __init__(self, read: Callable[[int], bytes], most: int) -> None:
        self._read = read
        self._most = most
        self._kept: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def get(self, number: int) -> bytes:
        found = self._kept.get(number)
        if found is None:
            found = self._read(number)
            with self._lock:
                self._kept[number] = found
                if len(self._kept) > self._most:
                    del self._kept[next(iter(self._kept))]
        return found

    def expect(
        self,
        numbers: Iterable[int],
        places: Callable[[int], Iterable[tuple[int, int]]],
        fetch: FetchMany,
    ) -> Iterator[None]:
        """Read those of ``numbers`` that are not here, no more than can be kept, many at once; ``places`` are the
        ranges of one. After each step some are on their way."""
        lacking = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        lacking = lacking[: self._most // 2]
        for first in range(0, len(lacking), _AT_ONCE):
            some = lacking[first : first + _AT_ONCE]
            with suppress(ImagefsError):  # who asks for it will hear of it
                fetch(place for number in some for place in places(number))
            yield
            for number in some:
                with suppress(ImagefsError):
                    self.get(number)


def merged_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, length) of ranges in any order, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        before, size = found[-1] if found else (0, -1)
        if size >= 0 and start <= before + size:
            found[-1] = before, max(size, start + length - before)
        else:
            found.append((start, length))
    return found


def damaged(label: str, offset: int, why: str) -> BrowseError:
    return BrowseError(
        f"'{label}' cannot be read from byte {offset}: {why}",
        hint="the file is damaged; bytes before that one can still be read",
        path=label,
        offset=offset,
    )
