"""Files that Windows compressed by itself (CompactOS, ``compact /exe``): the content, chunk by chunk.

The stream ``WofCompressedData`` begins with a table: for each chunk but the first, where it begins behind
the table, in 4 bytes (8 for files of more than 4 GiB). A chunk that is as long as what it holds is
stored as it is. Source: wimlib's ``wof.h`` and ``resource.c``. Knows neither NTFS nor the decoders.
"""

from __future__ import annotations

from collections.abc import Callable

from imagefs.browse.chunked import ChunkedReader
from imagefs.browse.content import damaged
from imagefs.interfaces import Reader

STREAM = b"WofCompressedData"
#: Bytes of a chunk, and whether it is LZX instead of XPRESS, by the number in the reparse point.
ALGORITHMS = {0: (4096, False), 1: (32768, True), 2: (8192, False), 3: (16384, False)}


class WofReader(ChunkedReader):
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
        super().__init__(packed, size, chunk=chunk, label=label)
        self._unpack = unpack
        self._count = -(-size // chunk)
        self._entry = 8 if size > 0xFFFFFFFF else 4
        self._data = max(0, self._count - 1) * self._entry
        self._end = packed.size - self._data

    def _decode(self, number: int) -> bytes:
        at, size, packed = number * self._chunk_size, self._length(number), self._packed
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
