"""Files that NTFS compresses (LZNT1): decoded by the library unit by unit, after we looked at each unit.

Asked for a part of a unit, The Sleuth Kit 4.15 answers zeros past the wrong place where a stream has another
valid length than the file has size (`ntfs_file_read_special` takes the offset of the read for that of the
unit), and it goes on with zeros where a unit ends too early. So it is asked for whole units, whose blocks
are counted first. A unit is 16 clusters: all holes (zeros), none (stored as it is), or data and then
holes: blocks with a header of 2 bytes (length, 3 in bits 12 to 14, bit 15 compressed), each of them 4,096
bytes when decoded. Source: [MS-XCA] 2.5 and ntfs-3g's compress.c.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import lru_cache

from imagefs.block.joined import lost_in
from imagefs.block.views import clamp, merged
from imagefs.browse.content import Fetch, MappedReader, Piece, damaged
from imagefs.errors import BrowseError
from imagefs.interfaces import Extent, Reader, State

UNIT_CLUSTERS = 16
_BLOCK = 4096
#: Units kept decoded.
_KEPT = 32


class CompressedReader:
    """``size`` bytes in units of ``unit``; ``pieces`` say where its clusters lie in ``volume``, and
    ``fetch(offset, length)`` decodes."""

    def __init__(
        self,
        volume: Reader,
        size: int,
        pieces: list[Piece],
        *,
        unit: int,
        fetch: Fetch,
        label: str,
    ) -> None:
        self.size = size
        self._unit = unit
        self._clusters = MappedReader(volume, -(-size // unit) * unit, pieces, label=label)
        self._fetch: Fetch | None = fetch
        self._label = label
        self._lost: list[Extent] | None = None
        self._decoded = lru_cache(maxsize=_KEPT)(self._decode)

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._fetch is None:
            raise BrowseError(f"'{self._label}' is closed")
        end, out = offset + clamp(self.size, offset, length), []
        while offset < end:
            number, skip = divmod(offset, self._unit)
            part = self._decoded(number)[skip : skip + end - offset]
            out.append(part)
            offset += len(part)
        return b"".join(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return merged(self._extents(offset, offset + clamp(self.size, offset, length)))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        while offset < end:
            part = min(end - offset, self._unit - offset % self._unit)
            clusters = self._parts(offset - offset % self._unit)
            holes = all(piece.source is None for piece in clusters)
            yield Extent(State.ZERO if clusters and holes else State.STORED, offset, part)
            offset += part

    def _parts(self, start: int) -> list[Piece]:
        return self._clusters.parts(start, self._unit)

    def _decode(self, number: int) -> bytes:
        start = number * self._unit
        size = min(self._unit, self.size - start)
        parts = self._parts(start)
        if parts and all(piece.source is None for piece in parts):
            return bytes(size)
        self._check(parts, start, size)
        self._check_is_here(start)
        data = self._fetch(start, size) if self._fetch is not None else b""
        if len(data) != size:
            raise damaged(self._label, start, "they cannot be decompressed")
        return data

    def _check_is_here(self, start: int) -> None:
        """Zeros that stand for what an image lacks may decode, and a unit may be stored as it is."""
        if self._lost is None:
            self._lost = lost_in(self._clusters)
        if any(each.offset < start + self._unit and start < each.offset + each.length for each in self._lost):
            raise damaged(self._label, start, "a part of what is compressed is not in this image")

    def _check(self, parts: list[Piece], start: int, size: int) -> None:
        """Damage that the library would answer with zeros."""
        holes = [piece.source is None for piece in parts]
        length = sum(piece.length for piece in parts)
        if length != self._unit or sum(a != b for a, b in itertools.pairwise(holes)) > 1 or holes[0]:
            raise damaged(self._label, start, "the list of its clusters makes no sense")
        if not holes[-1]:
            return
        packed = sum(piece.length for piece in parts if piece.source is not None)
        if blocks(self._clusters.read_at(start, packed)) * _BLOCK < size:
            raise damaged(self._label, start, "they cannot be decompressed")

    def close(self) -> None:
        self._clusters.close()
        self._fetch = None
        self._decoded.cache_clear()


def blocks(data: bytes) -> int:
    """How many whole blocks a compressed unit has before its end, or before what is no block."""
    at = count = 0
    while at + 2 <= len(data):
        header = struct.unpack_from("<H", data, at)[0]
        at += 3 + (header & 0xFFF)
        if header & 0x7000 != 0x3000 or at > len(data):
            break
        count += 1
    return count
