"""One image: its facts, its index, its chunks. No byte leaves here unverified."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from imagefs.block.cache import BlockCache
from imagefs.errors import ImagefsError, IntegrityError, StoreError
from imagefs.format.codec import FRAME_SIZE, decompress, digest_of
from imagefs.format.extents import I64, Runs, decode_runs
from imagefs.format.fields import MAX_CHUNK_SIZE, check
from imagefs.format.index import DirectoryEntry, Rows, decode_block, decode_directory
from imagefs.format.trailer import (
    DIRECTORY,
    EXTENTS,
    RANGES,
    STANDS_FOR_TYPE,
    StandsFor,
    decode_stands_for,
)
from imagefs.image.runs import RunTable, child_table, full_table
from imagefs.image.tail import Tail, check_tail, checked, named, read_tail
from imagefs.interfaces import Reader, State

#: Resident index blocks of one chain, in bytes.
INDEX_CACHE = 64 * 1024 * 1024
#: Neighbouring frames are read together up to this many bytes.
MAX_SPAN = 4 * 1024 * 1024
#: A list of extents longer than this is not believed (it would be 64 million runs).
MAX_SECTION = 2**30

IndexCache = BlockCache[tuple[bytes, int], Rows]


class ImageReader:
    """An open image. Thread-safe; owns ``reader``.

    ``cache`` holds index blocks and may be shared by the layers of a chain, or of several. ``tail`` is what was read
    of the image before; the object is held against it.
    """

    def __init__(
        self, reader: Reader, name: str, *, tail: Tail | None = None, cache: IndexCache | None = None
    ) -> None:
        self._reader = reader
        self.name = name
        if tail is not None:
            check_tail(reader, tail, name)
        self.tail = tail or read_tail(reader, name)
        self.header, self.summary, self.seal = self.tail.header, self.tail.summary, self.tail.seal
        self._cache = cache if cache is not None else index_cache()
        self.directory: list[DirectoryEntry] = named(name, self._open)
        self._starts = [0]
        for entry in self.directory:
            self._starts.append(self._starts[-1] + entry.rows)

    @property
    def id(self) -> str:
        return self.header.id

    @property
    def size(self) -> int:
        """Bytes of the image object itself."""
        return self._reader.size

    @property
    def disk_size(self) -> int:
        return self.summary.disk_size

    @property
    def chunks(self) -> int:
        return self.tail.chunks

    @property
    def rows(self) -> int:
        """How many chunks are stored in this layer."""
        return self._starts[-1]

    def plain_length(self, chunk_no: int) -> int:
        """Bytes of chunk ``chunk_no``: the chunk size, or what remains for the last one."""
        size = self.header.chunk_size
        return min(size, self.disk_size - chunk_no * size)

    def _open(self) -> list[DirectoryEntry]:
        front = self._reader.read_at(0, len(self.tail.header_bytes))
        if front != self.tail.header_bytes:
            raise IntegrityError("the header at the front differs from its sealed copy", offset=0)
        directory = decode_directory(self.section(DIRECTORY), self._reader.size)
        rows = sum(entry.rows for entry in directory)
        check(
            rows == self.summary.stored,
            f"{rows} index rows, but the summary counts {self.summary.stored}",
        )
        check(rows <= self.chunks, "the index has more rows than the disk has chunks")
        return directory

    def section(self, type_: bytes) -> bytes:
        """The checked bytes of a section; empty when the image has none of that type."""
        part = self.tail.sections.get(type_)
        if part is None:
            return b""
        check(part.length <= MAX_SECTION, f"section {type_.decode('ascii', 'replace')} is impossibly long")
        return checked(part, self._reader.read_at(part.offset, part.length))

    def extents(self) -> Runs:
        """Zero, skipped and unreadable runs, in chunks."""
        return named(self.name, lambda: decode_runs(self.section(EXTENTS), limit=self.chunks))

    def ranges(self) -> Runs:
        """Skipped and unreadable ranges in bytes, complete for this image, also inside stored chunks."""
        states = (State.SKIPPED, State.UNREADABLE)
        return named(
            self.name, lambda: decode_runs(self.section(RANGES), limit=self.disk_size, states=states)
        )

    def stands_for(self) -> list[StandsFor]:
        return named(self.name, lambda: decode_stands_for(self.section(STANDS_FOR_TYPE)))

    def table(self, layer: int) -> RunTable:
        """This layer's runs. For a full image nothing of the index is read."""
        return named(self.name, lambda: self._table(layer))

    def _table(self, layer: int) -> RunTable:
        extents = self.extents()
        if self.header.parent is None:
            table = full_table(extents, self.chunks, layer)
            stored = table.chunks_in(State.STORED)
            check(stored == self.rows, f"{stored} chunks should be stored, the index has {self.rows}")
            return table
        return child_table(extents, self.chunk_nos(), self.chunks, layer)

    def chunk_nos(self) -> I64:
        """The chunk numbers of all rows, in order."""
        parts = [self.block(i).chunk_no.astype(np.int64) for i in range(len(self.directory))]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def block(self, number: int) -> Rows:
        """Index block ``number``, checked when it was first read."""
        key = (self.seal, number)
        return self._cache.get(key, lambda: named(self.name, lambda: self._read_block(number)))

    def _read_block(self, number: int) -> Rows:
        entry = self.directory[number]
        rows = decode_block(self._reader.read_at(entry.offset, entry.length), entry)
        ends = rows.offset + np.uint64(FRAME_SIZE) + rows.stored_length
        check(bool((rows.offset <= self._reader.size).all()), "an index row points past the end of the image")
        check(bool((ends <= entry.offset).all()), "an index row points past its index block")
        check(bool((rows.stored_length <= MAX_CHUNK_SIZE).all()), "an index row claims too many bytes")
        check(int(rows.chunk_no[-1]) < self.chunks, "an index row lies past the end of the disk")
        return rows

    def locate(self, row: int) -> tuple[Rows, int]:
        """(index block, place in it) of row ``row`` of this layer."""
        number = bisect_right(self._starts, row) - 1
        return self.block(number), row - self._starts[number]

    def read_chunk(self, chunk_no: int, row: int) -> bytes:
        """The plain bytes of chunk ``chunk_no``, which is row ``row``; IntegrityError when they are wrong.

        One chunk at a time, so that it is hashed while in the CPU's cache. Raises StoreError too.
        """
        rows, i = self.locate(row)
        stored = self._reader.read_at(rows.offset.item(i) + FRAME_SIZE, rows.stored_length.item(i))
        if rows.chunk_no.item(i) != chunk_no:
            raise self.bad(chunk_no, "the index holds another chunk in its place")
        try:
            plain = decompress(rows.codec.item(i), stored, self.plain_length(chunk_no))
        except ImagefsError as error:
            raise self.bad(chunk_no, error.message) from error
        if digest_of(plain) != rows.digest[i].tobytes():
            raise self.bad(chunk_no, "its digest does not match")
        return plain

    def digests(self, row: int, count: int) -> bytes:
        """The digests of ``count`` rows from ``row``, 32 bytes each."""
        parts = []
        while count > 0:
            rows, i = self.locate(row)
            part = rows.digest[i : i + count]
            parts.append(part.tobytes())
            row, count = row + len(part), count - len(part)
        return b"".join(parts)

    def frames(self, rows: Rows, start: int, end: int) -> Iterator[memoryview | StoreError]:
        """The frames of rows ``start`` to before ``end`` as they lie in the object, neighbours in one
        read; the error in place of one that cannot be read. For verify and merge."""
        offsets = rows.offset[start:end].tolist()
        ends = (rows.offset[start:end] + rows.stored_length[start:end] + FRAME_SIZE).tolist()
        first = 0
        for i in range(1, len(offsets) + 1):
            if i < len(offsets) and offsets[i] == ends[i - 1] and ends[i] - offsets[first] <= MAX_SPAN:
                continue
            try:
                data = memoryview(self._reader.read_at(offsets[first], ends[i - 1] - offsets[first]))
            except StoreError as error:
                if i - first == 1:
                    yield error
                else:  # one at a time, to know which it is
                    for k in range(start + first, start + i):
                        yield from self.frames(rows, k, k + 1)
            else:
                for k in range(first, i):
                    yield data[offsets[k] - offsets[first] : ends[k] - offsets[first]]
            first = i

    def blocks(self) -> Iterator[Rows]:
        """All index blocks in order."""
        return (self.block(number) for number in range(len(self.directory)))

    def bad(self, chunk_no: int, reason: str) -> IntegrityError:
        """The error for a chunk that must not be believed."""
        return IntegrityError(
            f"{self.name}: chunk {chunk_no} is damaged: {reason}",
            hint="run `imagefs verify` on the image, and restore the file from another copy of it",
            image=self.id,
            chunk=chunk_no,
            offset=chunk_no * self.header.chunk_size,
            length=self.plain_length(chunk_no),
        )

    def close(self) -> None:
        self._reader.close()


def index_cache(limit: int = INDEX_CACHE) -> IndexCache:
    """An empty cache for index blocks."""
    return BlockCache(limit, lambda rows: rows.nbytes)
