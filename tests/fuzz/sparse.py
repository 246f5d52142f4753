"""Disks as a fuzzer can chew them: the sectors that hold something, each behind its number.

A disk of megabytes that is mostly zeros becomes some kilobytes, nearly all of them structures of a file system.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from imagefs.block.views import clamp

SECTOR = 512
_HEAD = struct.Struct("<I")
#: No disk of the fuzzer is larger, in sectors.
MOST = 1 << 22
#: What is smaller is kept in one piece.
_SMALL = 16 << 20


class SparseDisk:
    """A Reader over ``data``: a count of sectors, then records of a number and 512 bytes."""

    def __init__(self, data: bytes) -> None:
        sectors = _HEAD.unpack_from(data.ljust(4, b"\0"))[0] % MOST
        self.size = sectors * SECTOR
        self.place = "/dev/null"
        self._sectors: dict[int, bytes] = {}
        for at in range(4, len(data), 4 + SECTOR):
            number = _HEAD.unpack_from(data[at : at + 4].ljust(4, b"\0"))[0]
            self._sectors[number % MOST] = data[at + 4 : at + 4 + SECTOR].ljust(SECTOR, b"\0")
        self._whole = self._much(0, self.size) if self.size <= _SMALL else b""

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if not count:
            return b""
        if self._whole:
            return self._whole[offset : offset + count]
        first, last = offset // SECTOR, (offset + count - 1) // SECTOR
        if last - first > 4096:
            return self._much(offset, count)
        get, zeros = self._sectors.get, bytes(SECTOR)
        data = b"".join([get(number, zeros) for number in range(first, last + 1)])
        return data[offset - first * SECTOR :][:count]

    def _much(self, offset: int, count: int) -> bytes:
        data = bytearray(count)
        for number, sector in self._sectors.items():
            at = number * SECTOR - offset
            if -SECTOR < at < count:
                part = sector[max(0, -at) : count - at if at >= 0 else None]
                data[max(0, at) : max(0, at) + len(part)] = part
        return bytes(data[:count])

    def close(self) -> None:
        pass


def squeeze(path: Path, most: int) -> bytes:
    """A raw disk for ``SparseDisk``, of which the first ``most`` sectors with something in them are kept."""
    kept, count = [_HEAD.pack(min(path.stat().st_size // SECTOR, MOST - 1))], 0
    with path.open("rb") as disk:
        for at in data_blocks(disk.fileno()):
            block = os.pread(disk.fileno(), 65536, at)
            for start in range(0, len(block), SECTOR):
                sector = block[start : start + SECTOR]
                if any(sector) and count < most:
                    kept.append(_HEAD.pack((at + start) // SECTOR) + sector.ljust(SECTOR, b"\0"))
                    count += 1
            if count >= most:
                break
    return b"".join(kept)


def data_blocks(fd: int):  # type: ignore[no-untyped-def]
    """Where blocks of 64 KiB begin that are no holes."""
    at, size = 0, min(os.fstat(fd).st_size, MOST * SECTOR)
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) & ~65535
        except OSError:
            return
        if at < size:
            yield at
        at += 65536
