"""The inodes of ext2/3/4 all at once: where they lie, what belongs to each, and who lists them.

For comparing two points in time; ``extscan.py`` looks at whole tables.
Layout: Documentation/filesystems/ext4 of the Linux kernel. Knows no TSK.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from imagefs.block.ranges import Ranges
from imagefs.browse.bigdir import Damage, ExtNames, InlineNames
from imagefs.browse.content import MappedReader
from imagefs.browse.extinode import ExtInodes, Inode, Superblock, decode_inode
from imagefs.browse.extlinks import LinkSearch
from imagefs.browse.extmap import map_with_tree
from imagefs.browse.extxattr import ExtAttributes
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import METADATA, Holding, Link, Place, Reader, Structure, Table

_TYPE, _DIRECTORY, _REGULAR, _SYMLINK = 0xF000, 0x4000, 0x8000, 0xA000
_EXTENTS, _INLINE = 0x80000, 0x10000000
#: Descriptors say how many inodes were never used where they have a checksum: uninit_bg, metadata_csum.
_RO_COMPAT_CHECKSUMS = 0x10 | 0x400
_UNINIT = 1
#: Directories whose names are kept while links are searched for.
_KEPT_LISTS = 4096
#: No more groups are believed: 512 TiB of groups of the usual size.
_MAX_GROUPS = 1 << 22
_HEADS = "superblocks and group descriptors"
#: The fields of the superblock that never change but where the file system is made anew or resized: counts, sizes,
#: features that say where things lie, UUID.
_FIXED = ((0, 8), (20, 44), (84, 96), (104, 120), (254, 256), (336, 340))


class ExtRecords:
    """The inodes of one file system. Keeps where the tables are, and the directories' numbers."""

    def __init__(
        self, reader: Reader, superblock: Superblock, inodes: ExtInodes, attributes: ExtAttributes
    ) -> None:
        self._reader = reader
        self._super = superblock
        self._inodes = inodes
        self._attributes = attributes
        self._tables: list[Table] | None = None
        self._folders: list[int] | None = None

    def tables(self) -> list[Table]:
        """One for each group in which an inode was ever used; none where they cannot be found (``meta_bg``)."""
        if self._tables is None:
            self._tables = list(self._read_tables()) if self._inodes.last else []
        return self._tables

    def _read_tables(self) -> Iterator[Table]:
        sb = self._super
        checked = bool(self._field(100, "<I") & _RO_COMPAT_CHECKSUMS)
        for group, each in enumerate(self._descriptors()):
            first = group * sb.inodes_per_group + 1
            count = min(sb.inodes_per_group, sb.inodes + 1 - first)
            if checked:
                count = 0 if each.flags & _UNINIT else max(0, count - each.unused)
            offset = each.table * sb.block_size
            count = min(count, (self._reader.size - offset) // sb.inode_size)
            if count > 0:
                yield Table(first, first + count, sb.inode_size, offset)

    def _descriptors(self) -> list[_Descriptor]:
        sb = self._super
        groups = -(-sb.inodes // sb.inodes_per_group)
        if groups > min(_MAX_GROUPS, self._reader.size // sb.descriptor_size):
            raise BrowseError("the ext file system has an impossible number of groups")
        raw = self._reader.read_at((sb.first_data_block + 1) * sb.block_size, groups * sb.descriptor_size)
        return [
            _descriptor(raw[at : at + sb.descriptor_size])
            for at in range(0, len(raw) - sb.descriptor_size + 1, sb.descriptor_size)
        ]

    def _field(self, at: int, kind: str) -> int:
        """A field of the superblock."""
        return int(struct.unpack(kind, self._reader.read_at(1024 + at, struct.calcsize(kind)))[0])

    def fixed(self, number: int) -> list[Place]:
        """What says where inode ``number`` lies."""
        sb = self._super
        group = (number - 1) // sb.inodes_per_group
        at = (sb.first_data_block + 1) * sb.block_size + group * sb.descriptor_size
        fields = [(1024 + first, 1024 + end) for first, end in _FIXED] + [(at + 8, at + 12)]
        fields += [(at + 40, at + 44)] if sb.descriptor_size >= 64 else []
        return [Place(METADATA, first, end) for first, end in fields]

    def places(self, number: int) -> list[Place]:
        """An inode, its attributes' block, its map and its blocks; of a directory all of it is metadata."""
        start = self._inodes.place(number)
        raw, inode = self._inodes.raw(number), self._inodes.get(number)
        if start is None or inode is None:
            raise BrowseError(f"inode {number} cannot be found")
        found = [Place(METADATA, start, start + self._inodes.size)]
        stream = METADATA if inode.mode & _TYPE == _DIRECTORY else b""
        found += [Place(METADATA, each.first, each.end) for each in self._own(number, raw)]
        for each in self.mapped(number, inode):
            found.append(Place(METADATA if each.is_metadata else stream, each.first, each.end))
        return found

    def _own(self, number: int, raw: bytes) -> list[Holding]:
        """The block of an inode's attributes."""
        (low,), (high,) = struct.unpack_from("<I", raw, 104), struct.unpack_from("<H", raw, 118)
        at = (low + (high << 32)) * self._super.block_size
        return [Holding(number, at, at + self._super.block_size, True)] if at else []

    def mapped(self, number: int, inode: Inode) -> list[Holding]:
        """By the whole map of an inode."""
        if not _has_blocks(inode):
            return []
        sb, label = self._super, f"inode {number}"
        extents = bool(inode.flags & _EXTENTS)
        pieces, tree = map_with_tree(
            self._reader, sb.block_size, inode.block, size=inode.size, extents=extents, label=label
        )
        size = sb.block_size
        found = [Holding(number, block * size, (block + 1) * size, True) for block in tree]
        for piece in pieces:
            if piece.source is not None:
                end = piece.source + -(-piece.length // size) * size
                found.append(Holding(number, piece.source, end, False))
        return found

    def holdings(self, ranges: Ranges) -> list[Holding]:
        """What of ``ranges`` belongs to inodes in use. A map that is damaged is left out."""
        from imagefs.browse import extscan  # numpy, which footprints do not need

        found, self._folders = extscan.holdings(
            self._reader, self.tables(), ranges, self._super.block_size, self.mapped
        )
        return found

    # -- names ------------------------------------------------------------------------------------

    def owners(self, numbers: list[int]) -> list[int]:
        return numbers

    def links(self, wanted: set[int]) -> list[Link]:
        """Every link of ``wanted``, and one of each directory above."""
        from imagefs.browse import extscan

        if self._folders is None:
            self._folders = extscan.directories(self._reader, self.tables())
        inodes = {number: self._inodes.get(number) for number in wanted}
        counts = {
            number: inode.nlink for number, inode in inodes.items() if inode and inode.mode and inode.nlink
        }
        return LinkSearch(self._folders, lru_cache(maxsize=_KEPT_LISTS)(self.listed), self._above).find(
            counts
        )

    def listed(self, number: int) -> list[Link]:
        """The names in a directory; what cannot be read is left out: who walks there hears of it."""
        found: list[Link] = []
        inode = self._inodes.get(number)
        if inode is not None and inode.mode & _TYPE == _DIRECTORY:
            with suppress(ImagefsError):
                for _, block in self._lists(number, inode).blocks(Damage()):
                    found += [Link(each.inode, number, each.name) for each in block]
        return found

    def named(self, number: int, name: bytes) -> list[Link]:
        """Those in a directory that are ``name``."""
        inode = self._inodes.get(number)
        with suppress(ImagefsError):
            if inode is not None and inode.mode & _TYPE == _DIRECTORY:
                return [Link(each.inode, number, name) for each in self._lists(number, inode).named(name)]
        return []

    def _lists(self, number: int, inode: Inode) -> ExtNames | InlineNames:
        label = f"the directory with inode {number}"
        if inode.is_inline:
            return InlineNames(self._attributes.inline(number, inode, label))
        pieces = self._inodes.pieces(inode, label) or []
        content = MappedReader(self._reader, inode.size, pieces, label=label)
        return ExtNames(content, self._super.block_size, pieces)

    def _above(self, number: int) -> int:
        """The directory that one says it lies in: its second name is ``..``; 0 where it cannot be read."""
        inode = self._inodes.get(number)
        with suppress(ImagefsError):
            if inode is not None and inode.is_inline:
                return int.from_bytes(inode.block[:4], "little")
            pieces = self._inodes.pieces(inode, "") if inode is not None else None
            if pieces and pieces[0].source is not None:
                return int.from_bytes(self._reader.read_at(pieces[0].source + 12, 4), "little")
        return 0

    def identities(self, numbers: list[int]) -> list[str]:
        """Generation and birth; the number alone would be that of the next file too."""
        found = []
        for number in numbers:
            raw = self._inodes.raw(number)
            inode = decode_inode(raw, 0, room=len(raw)) if len(raw) >= 128 else None
            if inode is None or not inode.mode or not inode.nlink:
                found.append("")
            else:
                generation = struct.unpack_from("<I", raw, 100)[0]
                found.append(f"{generation:x}:{inode.crtime_ns}:{inode.mode & _TYPE:x}")
        return found

    def structures(self) -> list[Structure]:
        """What the file system keeps for itself outside of files."""
        sb, size = self._super, self._super.block_size
        found = []
        table = -(-sb.inodes_per_group * sb.inode_size // size)
        descriptors = self._descriptors() if self._inodes.last else []
        head = 1 + -(-len(descriptors) * sb.descriptor_size // size) + self._field(206, "<H")
        per_group = self._field(32, "<I")
        for group, each in enumerate(descriptors):
            found.append(Structure("inode tables", each.table * size, (each.table + table) * size))
            bitmaps = (each.block_bitmap, each.inode_bitmap)
            found += [Structure("bitmaps", block * size, (block + 1) * size) for block in bitmaps]
            if _has_superblock(group):
                block = sb.first_data_block + group * per_group
                found.append(Structure(_HEADS, block * size, (block + head) * size))
        return found


class _Descriptor(NamedTuple):
    """Blocks of a group; how many inodes at its end were never used."""

    block_bitmap: int
    inode_bitmap: int
    table: int
    flags: int
    unused: int


def _descriptor(raw: bytes) -> _Descriptor:
    blocks, inodes, table, flags, unused = struct.unpack_from("<III6xH8xH", raw)
    if len(raw) >= 64:
        high = struct.unpack_from("<III6xH", raw, 32)
        blocks, inodes, table = blocks + (high[0] << 32), inodes + (high[1] << 32), table + (high[2] << 32)
        unused += high[3] << 16
    return _Descriptor(blocks, inodes, table, flags, unused)


def _has_superblock(group: int) -> bool:
    """Whether there may be a copy: sparse_super has them in groups 0, 1 and powers of 3, 5 and 7."""
    return group < 2 or any(group == base ** round(math.log(group, base)) for base in (3, 5, 7))


def _has_blocks(inode: Inode) -> bool:
    kind = inode.mode & _TYPE
    return kind in (_DIRECTORY, _REGULAR, _SYMLINK) and not inode.flags & _INLINE and inode.link is None
