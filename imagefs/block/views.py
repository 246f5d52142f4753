"""Readers over Readers: a slice, bytes in memory; and a file object over any Reader."""

from __future__ import annotations

import errno
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from imagefs.errors import ImagefsError, SourceError, TargetError
from imagefs.interfaces import HOLES, Extent, Reader, State, Writable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

#: So many extents are looked at to see how much of a Reader holds data.
MAX_RUNS = 20_000
_BLOCK = 64 << 10


def clamp(size: int, offset: int, length: int) -> int:
    """How many bytes a read of ``length`` at ``offset`` gives in something of ``size`` bytes."""
    if offset < 0 or length < 0:
        raise ValueError(f"read_at({offset}, {length}): neither may be negative")
    return max(0, min(length, size - offset))


class BytesReader:
    """A Reader over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data
        self.size = len(data)

    def read_at(self, offset: int, length: int, /) -> bytes:
        data = self._data  # once: another thread may close in between
        if data is None:
            raise SourceError("read from closed bytes")
        return data[offset : offset + clamp(self.size, offset, length)]

    def close(self) -> None:
        self._data = None


class SliceReader:
    """``length`` bytes of ``reader`` from ``start``. A slice never owns what it is cut from."""

    def __init__(self, reader: Reader, start: int, length: int) -> None:
        if start < 0:
            raise ValueError(f"a slice cannot begin at {start}")
        self._reader: Reader | None = reader
        self.start = start
        self.size = max(0, min(length, reader.size - start))

    def read_at(self, offset: int, length: int, /) -> bytes:
        reader = self._reader  # once: another thread may close in between
        if reader is None:
            raise SourceError("read from a closed slice")
        return reader.read_at(self.start + offset, clamp(self.size, offset, length))

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        """(reader, offset in it, bytes) of each part of a range, in order."""
        if self._reader is None:
            raise SourceError("read from a closed slice")
        yield self._reader, self.start + offset, clamp(self.size, offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        if self._reader is None:
            raise SourceError("read from a closed slice")
        count = clamp(self.size, offset, length)
        return moved(extents_of(self._reader, self.start + offset, count), -self.start)

    def hole_bytes(self, offset: int, length: int, /) -> int:
        if self._reader is None:
            raise SourceError("read from a closed slice")
        return hole_bytes(self._reader, self.start + offset, clamp(self.size, offset, length))

    def close(self) -> None:
        self._reader = None


class MarkedReader:
    """Another Reader of which some ranges are ``state``, whatever its extents say.

    ``first`` and ``end`` are those ranges in bytes, sorted and disjoint. Closes ``reader``.
    """

    def __init__(self, reader: Reader, first: Sequence[int], end: Sequence[int], state: State) -> None:
        self._reader = reader
        self._first, self._end = list(first), list(end)
        self._state = state
        self.size = reader.size

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._reader.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        position, stop = offset, offset + clamp(self.size, offset, length)
        for i in range(bisect_right(self._end, offset), len(self._first)):
            first, end = max(self._first[i], position), min(self._end[i], stop)
            if first >= stop:
                break
            yield from extents_of(self._reader, position, first - position)
            yield Extent(self._state, first, end - first)
            position = end
        yield from extents_of(self._reader, position, stop - position)

    def close(self) -> None:
        self._reader.close()


class WritableSlice(SliceReader):
    """A slice of what can be written to; no write reaches past its end."""

    def __init__(self, disk: Writable, start: int, length: int) -> None:
        super().__init__(disk, start, length)
        self._disk = disk

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None:
        self._check_range(offset, memoryview(data).nbytes)
        self._disk.write_at(self.start + offset, data)

    def zero_at(self, offset: int, length: int, /) -> None:
        self._check_range(offset, length)
        self._disk.zero_at(self.start + offset, length)

    def sync(self) -> None:
        self._check_range(0, 0)
        self._disk.sync()

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise ValueError(f"{length} bytes at {offset}: neither may be negative")
        if self._reader is None:
            raise TargetError("write to a closed slice")
        if offset + length > self.size:
            said = f"the volume ends at byte {self.size}, {offset + length} were to be written"
            raise TargetError(said, offset=offset, length=length, errno=errno.ENOSPC)


class RefusingReader:
    """Another Reader of which some ranges are refused: a read that touches one is a SourceError.

    ``first`` and ``end`` are those ranges in bytes, sorted and disjoint; they are UNREADABLE extents.
    Closes ``reader``.
    """

    def __init__(self, reader: Reader, first: Sequence[int], end: Sequence[int], what: str) -> None:
        self._reader = reader
        self._first, self._end = list(first), list(end)
        self._what = what
        self.size = reader.size
        self._marked = MarkedReader(reader, first, end, State.UNREADABLE)

    def parts(self, offset: int, length: int) -> Iterator[tuple[Reader, int, int]]:
        yield self._reader, offset, clamp(self.size, offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return self._marked.extents(offset, length)

    def read_at(self, offset: int, length: int, /) -> bytes:
        stop = offset + clamp(self.size, offset, length)
        i = bisect_right(self._end, offset)
        if i < len(self._first) and self._first[i] < stop:
            raise SourceError(
                f"bytes {self._first[i]} to {self._end[i] - 1} {self._what}",
                offset=self._first[i],
                length=self._end[i] - self._first[i],
            )
        return self._reader.read_at(offset, length)

    def close(self) -> None:
        self._reader.close()


def extents_of(reader: Reader, offset: int, length: int) -> Iterator[Extent]:
    """The extents of any Reader: its own where it knows them, else one that may hold data."""
    count = clamp(reader.size, offset, length)
    if count == 0:
        return iter(())
    extents = getattr(reader, "extents", None)  # isinstance of a Protocol takes ten times as long
    if extents is None:
        return iter((Extent(State.STORED, offset, count),))
    found: Iterator[Extent] = extents(offset, count)
    return found


def hole_bytes(reader: Reader, offset: int, length: int) -> int:
    """How much of a range is known to be zeros. Extents beyond ``MAX_RUNS`` are taken to hold data, unless the
    Reader can tell without looking at each."""
    count = clamp(reader.size, offset, length)
    told = getattr(reader, "hole_bytes", None)
    if told is not None:
        found: int = told(offset, count)
        return found
    runs = islice(extents_of(reader, offset, count), MAX_RUNS)
    return sum(extent.length for extent in runs if extent.state in HOLES)


def moved(extents: Iterator[Extent], by: int) -> Iterator[Extent]:
    """The same, ``by`` bytes further on."""
    for extent in extents:
        yield Extent(extent.state, extent.offset + by, extent.length)


def merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Neighbours of equal state become one."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.state == extent.state:
            last = Extent(last.state, last.offset, last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


class ReaderFile(io.RawIOBase):
    """A read-only, seekable binary file over a Reader, for libraries that want one.

    Unlike its Reader it has a position, so one thread at a time. ``read`` comes back short only at
    end of file. Closing it leaves the Reader open.
    """

    def __init__(self, reader: Reader, name: str = "") -> None:
        super().__init__()
        self._reader = reader
        self._position = 0
        self.name = name
        self.mode = "rb"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.closed:
            raise ValueError("seek in a closed file")
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size}
        if whence not in bases:
            raise ValueError(f"unknown whence {whence}")
        base = bases[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        if self.closed:
            raise ValueError("read from a closed file")
        rest = max(0, self._reader.size - self._position)
        count = rest if size is None or size < 0 else min(size, rest)
        data = self._reader.read_at(self._position, count)
        self._position += len(data)
        return data

    def write(self, data: ReadableBuffer, /) -> int:
        raise io.UnsupportedOperation("not writable")

    def readall(self) -> bytes:
        return self.read(-1)


class LibraryFile(ReaderFile):
    """What a C library reads from. ``error`` is what the Reader raised last, which the library would make a sentence
    of its own. Libraries read sector by sector: each short read takes the block of 64 KiB it lies in along."""

    error: BaseException | None = None
    _block, _held = -1, b""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size) if size is None or size < 0 else self._taken(size)
        except BaseException as error:
            self.error = error
            raise

    def _taken(self, size: int) -> bytes:
        at = self.tell()
        block, inside = divmod(at, _BLOCK)
        if inside + size > _BLOCK:
            return super().read(size)
        if block != self._block:
            try:
                self._block, self._held = block, self._reader.read_at(block * _BLOCK, _BLOCK)
            except ImagefsError:  # what is wanted may lie beside what cannot be read
                return super().read(size)
        found = self._held[inside : inside + size]
        self.seek(at + len(found))
        return found

    def get_size(self) -> int:
        return self._reader.size
