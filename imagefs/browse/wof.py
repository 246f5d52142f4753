"""Files that Windows compressed by itself (CompactOS, ``compact /exe``): the content, chunk by chunk.

The stream ``WofCompressedData`` begins with a table: for each chunk but the first, where it begins behind
the table, in 4 bytes (8 for files of more than 4 GiB). A chunk that is as long as what it holds is
stored as it is. Source: wimlib's ``wof.h`` and ``resource.c``. Knows neither NTFS nor the decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from imagefs.block.views import clamp
from imagefs.browse.content import damaged
from imagefs.errors import BrowseError
from imagefs.interfaces import Extent, Reader, State

STREAM = b"WofCompressedData"
#: Bytes of a chunk, and whether it is LZX instead of XPRESS, by the number in the reparse point.
ALGORITHMS = {0: (4096, False), 1: (32768, True), 2: (8192, False), 3: (16384, False)}
#: Chunks kept decoded.
_KEPT = 32


class WofReader:
    """``size`` bytes out of ``packed``, which becomes ours. ``unpack(data, count)`` gives ``count`` bytes or
    raises ValueError. Nothing longer than a chunk is read at once; what does not add up is an error."""

    def __init__(
        self,
        packed: Reader,
        size: int,
        *,
        chunk: int,
        unpack: Callable[[bytes, int], bytes],
        label: str,
    ) -> None:
        self.size = size
        self._packed: Reader | None = packed
        self._chunk_size = chunk
        self._unpack = unpack
        self._label = label
        self._count = -(-size // chunk)
        self._entry = 8 if size > 0xFFFFFFFF else 4
        self._data = max(0, self._count - 1) * self._entry
        self._end = packed.size - self._data
        self._chunk = lru_cache(maxsize=_KEPT)(self._decode)

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._packed is None:
            raise BrowseError(f"'{self._label}' is closed")
        end, out = offset + clamp(self.size, offset, length), []
        while offset < end:
            number, skip = divmod(offset, self._chunk_size)
            part = self._chunk(number)[skip : skip + end - offset]
            out.append(part)
            offset += len(part)
        return b"".join(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        count = clamp(self.size, offset, length)
        return iter([Extent(State.STORED, offset, count)] if count else [])

    def _decode(self, number: int) -> bytes:
        """Chunk ``number``, never empty: ``read_at`` stays below ``size``."""
        at, packed = number * self._chunk_size, self._packed
        size = min(self._chunk_size, self.size - at)
        if packed is None:
            raise BrowseError(f"'{self._label}' is closed")
        first, end = self._place(packed, number)
        if not 0 <= first < end <= self._end or end - first > size:
            raise damaged(self._label, at, "the table of its compressed parts makes no sense")
        data = packed.read_at(self._data + first, end - first)
        if len(data) == size:
            return data
        try:
            return self._unpack(data, size)
        except ValueError as error:
            raise damaged(self._label, at, str(error)) from error

    def _place(self, packed: Reader, number: int) -> tuple[int, int]:
        """Where a chunk begins and ends behind the table."""
        wide, before = self._entry, max(0, number - 1)
        after = min(number + 1, self._count - 1)
        raw = packed.read_at(before * wide, (after - before) * wide)
        places = [int.from_bytes(raw[at : at + wide], "little") for at in range(0, len(raw), wide)]
        first = places.pop(0) if number and places else 0
        return first, places[0] if number + 1 < self._count and places else self._end

    def close(self) -> None:
        if self._packed is not None:
            self._packed.close()
        self._packed = None
        self._chunk.cache_clear()
