"""The names in directories of ext and NTFS, read straight from the directory's own blocks.

TSK compares each name with all before it: 60,000 entries take it six seconds, a million half an hour.
Here a directory is read block by block, in memory that does not grow with it. A block that makes
no sense is skipped and counted. Bytes in, names out: where the blocks come from is the caller's matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from imagefs.browse.content import Piece
from imagefs.errors import ImagefsError
from imagefs.interfaces import EntryType, Reader

_STEP = 1 << 20
_DOS_NAME = 2
_DIRECTORY = 2
_SECTOR = 512
_NUMBER, _ROOT = (1 << 48) - 1, 5
#: Flags of a $FILE_NAME: it has an index, so it is a directory; it is a link of some kind or the like.
_INDEXED, _REPARSE = 0x10000000, 0x400
_INDEX_TYPES = {0: EntryType.FILE, _INDEXED: EntryType.DIRECTORY}
_DOTS = (b".", b"..")
EXT_TYPES = {
    1: EntryType.FILE,
    2: EntryType.DIRECTORY,
    3: EntryType.DEVICE,
    4: EntryType.DEVICE,
    5: EntryType.FIFO,
    6: EntryType.SOCKET,
    7: EntryType.SYMLINK,
}
_unpack_dirent = struct.Struct("<IHBB").unpack_from
_unpack_flags = struct.Struct("<I").unpack_from
_unpack_index = struct.Struct("<QHHH").unpack_from


class Name(NamedTuple):
    """``sequence`` must be that of the metadata it points to on NTFS, None elsewhere; ``type`` is the
    directory's word, OTHER where it has none."""

    name: bytes
    inode: int
    sequence: int | None = None
    type: EntryType = EntryType.OTHER


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


class Names(Protocol):
    """The names of one directory, block by block. Safe in several threads; keeps nothing."""

    @property
    def size(self) -> int:
        """How many bytes the blocks have."""
        ...

    def blocks(self, damage: Damage) -> Iterator[tuple[int, list[Name]]]:
        """Where each block begins and the names in it, in the order of the disk."""
        ...

    def block(self, start: int) -> list[Name]:
        """The names in the block that begins at ``start``, which ``blocks`` has told."""
        ...

    def named(self, name: bytes) -> list[Name]:
        """Those that are ``name``: only blocks in which it occurs are decoded. What cannot be read is left out."""
        ...


class ExtNames:
    """Live names of an ext directory, linear or hashed: the blocks of the hash tree look empty.

    ``pieces`` tell where its blocks lie; holes are passed, however long they are.
    """

    def __init__(self, content: Reader, block_size: int, pieces: list[Piece]) -> None:
        self._content = content
        self._block_size = block_size
        self._pieces = pieces
        self.size = sum(piece.length for piece in self._pieces if piece.source is not None)
        self.content = content

    def blocks(self, damage: Damage) -> Iterator[tuple[int, list[Name]]]:
        for start, raw in self._raw(damage):
            yield start, _ext_block(raw, start, damage)

    def _raw(self, damage: Damage) -> Iterator[tuple[int, bytes]]:
        for piece in self._pieces:
            if piece.source is None:
                damage.note(piece.start)
                continue
            yield from _blocks(
                self._content, piece.start, piece.start + piece.length, self._block_size, damage
            )

    def named(self, name: bytes) -> list[Name]:
        blocks = (_ext_block(raw, start, Damage()) for start, raw in self._raw(Damage()) if name in raw)
        return _named(blocks, name)

    def block(self, start: int) -> list[Name]:
        return _ext_block(self._content.read_at(start, self._block_size), start, Damage())


class InlineNames:
    """Live names of an ext directory that is kept in its inode: in the room of the block pointers, behind the
    number of the folder above, and where that is full among the extended attributes."""

    _FIRST, _SECOND = 4, 60

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def blocks(self, damage: Damage) -> Iterator[tuple[int, list[Name]]]:
        for start in (self._FIRST, self._SECOND):
            yield start, self._block(start, damage)

    def block(self, start: int) -> list[Name]:
        return self._block(start, Damage())

    def named(self, name: bytes) -> list[Name]:
        return _named((block for _, block in self.blocks(Damage())), name)

    def _block(self, start: int, damage: Damage) -> list[Name]:
        end = self._SECOND if start < self._SECOND else None
        return _ext_block(self._content[start:end], start, damage)


def _ext_block(block: bytes, start: int, damage: Damage) -> list[Name]:
    at, end, names = 0, len(block), []
    while at + 8 <= end:
        inode, length, size, kind = _unpack_dirent(block, at)
        if length in (0, 65535):
            length = 65536
        if length < 8 + size or length & 3 or at + length > end:
            damage.note(start + at)
            break
        if inode and size:
            name = block[at + 8 : at + 8 + size]
            if size > 2 or name not in _DOTS or kind not in (0, _DIRECTORY):
                names.append(Name(name, inode, None, EXT_TYPES.get(kind, EntryType.OTHER)))
        at += length
    return names


class NtfsNames:
    """Live names of an NTFS directory: $INDEX_ROOT (at -1), $INDEX_ALLOCATION and its $BITMAP. ``short``: the
    names that DOS has for files with a longer one, which are no further files, instead of all others."""

    def __init__(self, root: bytes, allocation: Reader, used: bytes, *, short: bool = False) -> None:
        self._short = short
        self._root = root
        self._allocation = allocation
        self._used = used
        self._block_size = struct.unpack_from("<I", root, 8)[0] if len(root) >= 32 else 0
        self.size = allocation.size
        self.content = allocation

    def blocks(self, damage: Damage) -> Iterator[tuple[int, list[Name]]]:
        if len(self._root) < 32:
            damage.note(0)
            return
        yield -1, _index_entries(self._root[16:], damage, 0, short=self._short)
        for start, raw in self._raw(damage):
            yield start, self._names(raw, start, damage)

    def named(self, name: bytes) -> list[Name]:
        try:
            text = name.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
        except UnicodeDecodeError:  # such a name is not on NTFS
            return []
        blocks = [self.block(-1)] if len(self._root) >= 32 else []
        for start, raw in self._raw(Damage()) if blocks else ():
            if text in (unfixed_index(raw) or b""):
                blocks.append(self._names(raw, start, Damage()))
        return _named(blocks, name)

    def _raw(self, damage: Damage) -> Iterator[tuple[int, bytes]]:
        size, used = self._block_size, self._used
        if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
            damage.note(0)
            return
        for start, raw in _blocks(self._allocation, 0, self._allocation.size, size, damage):
            number = start // size
            if number // 8 < len(used) and used[number // 8] >> number % 8 & 1:
                yield start, raw

    def block(self, start: int) -> list[Name]:
        if start < 0:
            return _index_entries(self._root[16:], Damage(), 0, short=self._short)
        return self._names(self._allocation.read_at(start, self._block_size), start, Damage())

    def _names(self, raw: bytes, start: int, damage: Damage) -> list[Name]:
        block = unfixed_index(raw)
        if block is None:
            damage.note(start)
            return []
        return _index_entries(block[24:], damage, start, short=self._short)


class KnownNames:
    """The names of a small directory, read once."""

    def __init__(self, names: Names) -> None:
        self.size = names.size
        self._damage = Damage()
        self._blocks = list(names.blocks(self._damage))
        #: The numbers of the folders among them.
        self.folders = [each.inode for each in self.all() if each.type is EntryType.DIRECTORY]

    def all(self) -> Iterator[Name]:
        return (each for _, block in self._blocks for each in block)

    def blocks(self, damage: Damage) -> Iterator[tuple[int, list[Name]]]:
        damage.blocks, damage.first, damage.error = (
            self._damage.blocks,
            self._damage.first,
            self._damage.error,
        )
        return iter(self._blocks)

    def block(self, start: int) -> list[Name]:
        return dict(self._blocks)[start]

    def named(self, name: bytes) -> list[Name]:
        return _named((block for _, block in self._blocks), name)


def _named(blocks: Iterable[list[Name]], name: bytes) -> list[Name]:
    return [each for block in blocks for each in block if each.name == name]


def _blocks(content: Reader, first: int, end: int, size: int, damage: Damage) -> Iterator[tuple[int, bytes]]:
    """The blocks that can be read; of a stretch that cannot, each block is tried by itself."""
    step = max(size, _STEP // size * size)
    for offset in range(first, end, step):
        stop = min(offset + step, end)
        try:
            data = content.read_at(offset, stop - offset)
        except ImagefsError:
            for at in range(offset, stop, size):
                try:
                    yield at, content.read_at(at, min(size, stop - at))
                except ImagefsError as error:
                    damage.note(at, error)
            continue
        if len(data) <= size:
            yield offset, data
            continue
        for at in range(0, len(data), size):
            yield offset + at, data[at : at + size]


def unfixed_index(raw: bytes) -> bytes | None:
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


def _index_entries(node: bytes, damage: Damage, start: int, *, short: bool) -> list[Name]:
    """The entries of an index node, from its header on."""
    at, end = struct.unpack_from("<II", node)
    end, names = min(end, len(node)), []
    while at + 16 <= end:
        reference, length, key, flags = _unpack_index(node, at)
        if flags & 2:
            break
        if length < 16 or at + length > end or (key and (key < 66 or key > length - 16)):
            damage.note(start + at)
            break
        count = node[at + 80] if key else 0
        if count and 66 + 2 * count > key:
            damage.note(start + at)
            break
        if count and (node[at + 81] == _DOS_NAME) is short:
            raw = node[at + 82 : at + 82 + 2 * count]
            text = raw.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
            if text != b"." or reference & _NUMBER != _ROOT:  # the root holds itself
                flags = _unpack_flags(node, at + 72)[0]
                kind = _INDEX_TYPES.get(flags & (_INDEXED | _REPARSE), EntryType.OTHER)
                names.append(Name(text, reference & _NUMBER, reference >> 48, kind))
        at += length
    return names
