"""The names in large directories of ext and NTFS, read straight from the directory's own blocks.

TSK compares each name with all before it: 60,000 entries take it six seconds, a million half an hour.
Here a directory is read once, block by block, in memory that does not grow with it. A block that makes
no sense is skipped and counted. Bytes in, names out: where the blocks come from is the caller's matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader

_STEP = 1 << 20
_DOS_NAME = 2
_DIRECTORY = 2
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Name:
    """``sequence`` must be that of the metadata it points to on NTFS; None elsewhere."""

    name: bytes
    inode: int
    sequence: int | None = None


@dataclass(slots=True)
class Damage:
    """How many blocks could not be understood or read, and the first error of reading."""

    blocks: int = 0
    first: int = 0
    error: ImagefsError | None = None

    def note(self, offset: int, error: ImagefsError | None = None) -> None:
        self.first = self.first if self.blocks else offset
        self.blocks += 1
        self.error = self.error or error


def ext_names(content: Reader, block_size: int, damage: Damage) -> Iterator[Name]:
    """Live names of an ext directory, linear or hashed: the blocks of the hash tree look empty."""
    for start, block in _blocks(content, block_size, damage):
        at = 0
        while at + 8 <= len(block):
            inode, length, size, kind = struct.unpack_from("<IHBB", block, at)
            if length in (0, 65535):
                length = 65536
            if length < 8 + size or length % 4 or at + length > len(block):
                damage.note(start + at)
                break
            name = block[at + 8 : at + 8 + size]
            if inode and name and not (name in (b".", b"..") and kind in (0, _DIRECTORY)):
                yield Name(name, inode)
            at += length


def ntfs_names(root: bytes, allocation: Reader, used: bytes, damage: Damage) -> Iterator[Name]:
    """Live names of an NTFS directory: $INDEX_ROOT, $INDEX_ALLOCATION and its $BITMAP."""
    if len(root) < 32:
        damage.note(0)
        return
    yield from _index_entries(root[16:], damage, 0)
    size = struct.unpack_from("<I", root, 8)[0]
    if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        damage.note(0)
        return
    for start, raw in _blocks(allocation, size, damage):
        number = start // size
        if number // 8 < len(used) and used[number // 8] >> number % 8 & 1:
            block = _unfixed(raw)
            if block is None:
                damage.note(start)
            else:
                yield from _index_entries(block[24:], damage, start)


def _blocks(content: Reader, size: int, damage: Damage) -> Iterator[tuple[int, bytes]]:
    """The blocks that can be read; of a stretch that cannot, each block is tried by itself."""
    step = max(size, _STEP // size * size)
    for offset in range(0, content.size, step):
        try:
            data = content.read_at(offset, step)
        except ImagefsError:
            for at in range(offset, min(offset + step, content.size), size):
                try:
                    yield at, content.read_at(at, size)
                except ImagefsError as error:
                    damage.note(at, error)
            continue
        for at in range(0, len(data), size):
            yield offset + at, data[at : at + size]


def _unfixed(raw: bytes) -> bytes | None:
    """An INDX block with the last two bytes of each sector put back; None if it is torn or none."""
    if len(raw) < 40 or raw[:4] != b"INDX":
        return None
    offset, count = struct.unpack_from("<HH", raw, 4)
    if count != len(raw) // _SECTOR + 1 or offset + 2 * count > len(raw):
        return None
    block, check = bytearray(raw), raw[offset : offset + 2]
    for sector in range(1, count):
        end = sector * _SECTOR
        if block[end - 2 : end] != check:
            return None
        block[end - 2 : end] = raw[offset + 2 * sector : offset + 2 * sector + 2]
    return bytes(block)


def _index_entries(node: bytes, damage: Damage, start: int) -> Iterator[Name]:
    """The entries of an index node, from its header on."""
    at, end = struct.unpack_from("<II", node)
    end = min(end, len(node))
    while at + 16 <= end:
        reference, length, key, flags = struct.unpack_from("<QHHH", node, at)
        if flags & 2:
            return
        if length < 16 or at + length > end or (key and (key < 66 or key > length - 16)):
            damage.note(start + at)
            return
        name = node[at + 16 + 66 : at + 16 + 66 + 2 * node[at + 16 + 64]] if key else b""
        if name and node[at + 16 + 65] != _DOS_NAME:
            text = name.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
            yield Name(text, reference & (1 << 48) - 1, reference >> 48)
        at += length
