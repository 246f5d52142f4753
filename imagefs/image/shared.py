"""What the disks of one set share while several are open: one reader for each image object, one cache of decoded
chunks, one of index blocks, and the tables of runs that a child's own can be laid over.

Everything is known by seals: a layer of a parent is the same object, whichever child reads through it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from imagefs.block.cache import BlockCache
from imagefs.image.reader import ImageReader, IndexCache, index_cache
from imagefs.image.runs import RunTable
from imagefs.image.tail import ImageInfo

#: Decoded chunks kept, in bytes.
CHUNK_CACHE = 64 * 1024 * 1024

#: By the seal of the layer that holds it, and the chunk's number.
ChunkCache = BlockCache[tuple[bytes, int], bytes]


def chunk_cache(limit: int = CHUNK_CACHE) -> ChunkCache:
    """An empty cache for decoded chunks."""
    return BlockCache(limit, len)


class _Held:
    """A reader and how many chains have it open."""

    __slots__ = ("reader", "users")

    def __init__(self, reader: ImageReader) -> None:
        self.reader = reader
        self.users = 0


class Shared:
    """For disks of one set. Thread-safe; holds nothing open when no disk is."""

    def __init__(self, *, chunk_bytes: int = CHUNK_CACHE) -> None:
        self.chunks: ChunkCache = chunk_cache(chunk_bytes)
        self.index: IndexCache = index_cache()
        self._held: dict[bytes, _Held] = {}
        self._tables: dict[tuple[bytes, ...], tuple[RunTable, int]] = {}
        self._lock = threading.Lock()

    def take(self, info: ImageInfo, open_image: Callable[[ImageInfo], ImageReader]) -> ImageReader:
        """The reader of ``info``, opened if no chain has it open; to be given back."""
        with self._lock:  # two chains that begin with the same layer wait for one opening of it
            held = self._held.get(info.tail.seal)
            if held is None:
                held = self._held[info.tail.seal] = _Held(open_image(info))
            held.users += 1
            return held.reader

    def give(self, reader: ImageReader) -> None:
        """Give a reader back; the last user closes it."""
        with self._lock:
            held = self._held[reader.seal]
            held.users -= 1
            if held.users:
                return
            del self._held[reader.seal]
        reader.close()

    @property
    def opened(self) -> int:
        """How many image objects are open."""
        return len(self._held)

    def table(self, infos: Sequence[ImageInfo]) -> RunTable | None:
        """What the chain ``infos`` (full first) resolves to, where a disk that shows it is open."""
        with self._lock:
            found = self._tables.get(_seals(infos))
            return found[0] if found else None

    def add_table(self, infos: Sequence[ImageInfo], table: RunTable) -> None:
        """A disk that shows ``infos`` is open now; ``drop_table`` when it is no more."""
        with self._lock:
            _, users = self._tables.get(_seals(infos), (table, 0))
            self._tables[_seals(infos)] = table, users + 1

    def drop_table(self, infos: Sequence[ImageInfo]) -> None:
        with self._lock:
            table, users = self._tables.pop(_seals(infos))
            if users > 1:
                self._tables[_seals(infos)] = table, users - 1


def _seals(infos: Sequence[ImageInfo]) -> tuple[bytes, ...]:
    return tuple(info.tail.seal for info in infos)
