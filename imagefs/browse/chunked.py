"""A content kept as chunks that are decoded one at a time. Knows no format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache

from imagefs.block.joined import SureReader, lost_in
from imagefs.block.views import clamp
from imagefs.errors import BrowseError
from imagefs.interfaces import Extent, Reader, State

#: Chunks kept decoded.
_KEPT = 32


class ChunkedReader(ABC):
    """``size`` bytes out of ``packed``, which becomes ours, in chunks of ``chunk`` bytes."""

    def __init__(self, packed: Reader, size: int, *, chunk: int, label: str) -> None:
        self.size = size
        self._source: Reader | None = packed
        self._sure: Reader | None = None
        self._chunk_size = chunk
        self._label = label
        self._chunk = lru_cache(maxsize=_KEPT)(self._decode)

    @property
    def _packed(self) -> Reader:
        """What is compressed. Zeros that stand for what an image does not have are refused: they may decode."""
        if self._source is None:
            raise BrowseError(f"'{self._label}' is closed")
        if self._sure is None:
            self._sure = self._source
            if lost_in(self._source):
                self._sure = SureReader(self._source, "of what is compressed are lacking")
        return self._sure

    def read_at(self, offset: int, length: int, /) -> bytes:
        end, out = offset + clamp(self.size, offset, length), []
        if self._source is None:
            raise BrowseError(f"'{self._label}' is closed")
        while offset < end:
            number, skip = divmod(offset, self._chunk_size)
            part = self._chunk(number)[skip : skip + end - offset]
            out.append(part)
            offset += len(part)
        return b"".join(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        count = clamp(self.size, offset, length)
        return iter([Extent(State.STORED, offset, count)] if count else [])

    @abstractmethod
    def _decode(self, number: int) -> bytes:
        """Chunk ``number``, never empty: ``read_at`` stays below ``size``. All its bytes, or a BrowseError."""

    def _length(self, number: int) -> int:
        return min(self._chunk_size, self.size - number * self._chunk_size)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source = self._sure = None
        self._chunk.cache_clear()
