"""Reading ahead for whoever reads in order: the next pieces are made on worker threads meanwhile.

Several streams are recognised at once. Knows nothing of chunks: what is ahead is asked of a
``Prefetcher``, whose cache the later read then hits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from imagefs.block.views import hole_bytes
from imagefs.errors import StoreError
from imagefs.interfaces import Extent, Reader

#: How far ahead of a stream the workers may be, in bytes.
WINDOW = 4 * 1024 * 1024
#: A read that begins at most this far before or after a stream's end goes on with it: the kernel
#: asks for neighbouring pieces at once and not always in order.
SLACK = 512 * 1024
STREAMS = 16
#: The window opens only after this many bytes in order, so that random reads cost no extra work.
MINIMUM = 192 * 1024


class Prefetcher(Reader, Protocol):
    """A Reader over blocks that can make them beforehand."""

    @property
    def block_size(self) -> int: ...

    def wanted(self, first: int, end: int, /) -> Iterator[tuple[int, int]]:
        """Groups (first, end) of blocks worth making: they hold data and are not in the cache. Cheap."""
        ...

    def make(self, first: int, end: int, /) -> None:
        """Put those blocks into the cache; damage is left for the read that needs it."""
        ...

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]: ...


class _Stream:
    __slots__ = ("ahead", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end, self.ahead = start, end, end


class ReadAhead:
    """``reader``, with read-ahead on ``threads`` threads. Never owns the reader.

    The threads start with the first stream, so that a process may still fork before that.
    """

    def __init__(self, reader: Prefetcher, *, threads: int = 2, window: int = WINDOW) -> None:
        self.size = reader.size
        self._reader = reader
        self._threads = threads
        self._window = window
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._closed:
            raise StoreError("read through a read-ahead that is closed")
        if length > 4096:
            self._look_ahead(offset, min(offset + length, self.size))
        return self._reader.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return self._reader.extents(offset, length)

    def hole_bytes(self, offset: int, length: int, /) -> int:
        return hole_bytes(self._reader, offset, length)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _look_ahead(self, offset: int, end: int) -> None:
        with self._lock:
            stream = self._stream_of(offset, end)
            if self._closed or stream.end - stream.start < MINIMUM:
                return
            size = self._reader.block_size
            goal = min(stream.end + self._window, self.size)
            first, last = stream.ahead // size, goal // size
            if last - first < self._window // size // 4 and goal < self.size:
                return
            stream.ahead = max(stream.ahead, goal)
            groups = list(self._reader.wanted(first, -(-goal // size)))
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read-ahead")
            for group in groups:
                self._pool.submit(self._reader.make, *group)

    def _stream_of(self, offset: int, end: int) -> _Stream:
        """The stream this read goes on with, or a new one; moved to its new end."""
        for key, stream in self._streams.items():
            if stream.end - SLACK <= offset <= stream.end + SLACK and offset >= stream.start:
                stream.end = max(stream.end, end)
                stream.ahead = max(stream.ahead, stream.end)
                self._streams.move_to_end(key)
                return stream
        stream = _Stream(offset, end)
        self._streams[offset] = stream
        if len(self._streams) > STREAMS:
            self._streams.popitem(last=False)
        return stream
