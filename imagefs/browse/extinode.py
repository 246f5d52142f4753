"""The inodes of ext2/3/4 as they lie on the disk.

The Sleuth Kit loses some of it: the bits that carry times past 2038 and before 1970, times of inodes
without room for nanoseconds (it reads those from the next inode), device numbers, and the flag that
says a file is encrypted. It is slow too: for each name it reads the whole block map of the file, that
of ``..`` as well. Knows nothing of TSK. Layout: Documentation/filesystems/ext4 of the Linux kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from imagefs.browse.content import FetchMany, Piece, PieceCache
from imagefs.browse.extmap import map_file
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader

_MAGIC = 0xEF53
_INCOMPAT_COMPRESSION, _INCOMPAT_META_BG, _INCOMPAT_64BIT = 0x1, 0x10, 0x80
_INCOMPAT_ENCRYPT = 0x10000
#: Which groups have a copy of the superblock: some (``sparse_super``), or two that are named (``sparse_super2``).
_SPARSE, _SPARSE_2 = 0x1, 0x200
_FLAG_COMPRESSED, _FLAG_ENCRYPTED = 0x4, 0x800
_FLAG_EXTENTS, _FLAG_INLINE = 0x80000, 0x10000000
_TYPE, _CHAR, _DIRECTORY, _BLOCK, _REGULAR, _SYMLINK = 0xF000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000
#: mode, uid, size, atime, ctime, mtime, gid, nlink, flags, i_block, high size, high uid, high gid
_FIXED = struct.Struct("<HHIiii4xHH4xI4x60s8xI8xHH4x")
#: The same, and the extra size, the extra words of ctime, mtime and atime, crtime and its extra word.
_WHOLE = struct.Struct(_FIXED.format + "H2xIIIiI")
_LARGE = 160
_SECOND = 1_000_000_000
#: How much of an inode table is read at once, and how many such pieces are kept.
_PIECE, _PIECES = 16 << 10, 1024


@dataclass(frozen=True, slots=True)
class Superblock:
    """The facts of an ext superblock that are needed here; sizes in bytes."""

    block_size: int
    blocks: int
    free_blocks: int
    inodes: int
    inodes_per_group: int
    blocks_per_group: int
    first_data_block: int
    inode_size: int
    descriptor_size: int
    incompat: int
    label: str
    meta_from: int | None  # with meta_bg: the first block of descriptors that lies among its groups
    sparse: bool
    backups: tuple[int, int] | None  # with sparse_super2

    @property
    def is_wide(self) -> bool:
        """Whether block numbers may have more than 32 bits."""
        return bool(self.incompat & _INCOMPAT_64BIT)

    def has_super(self, group: int) -> bool:
        """Whether a copy of the superblock lies at the start of a group."""
        if group == 0:
            return True
        if self.backups is not None:
            return group in self.backups
        return not self.sparse or group == 1 or any(_is_power(group, base) for base in (3, 5, 7))

    def descriptor_place(self, group: int) -> int:
        """Where the descriptor of a group lies, in bytes. With ``meta_bg`` each block of them lies in the first
        group that it tells of (``descriptor_loc`` in Linux's ``fs/ext4/super.c``)."""
        # With bigalloc the superblock's block is 1 even where the first group begins with block 0.
        first = max(self.first_data_block, int(self.block_size == 1024)) + 1
        block, inside = divmod(group * self.descriptor_size, self.block_size)
        if self.meta_from is None or block < self.meta_from or not block:
            return (first + block) * self.block_size + inside
        head = block * (self.block_size // self.descriptor_size)
        start = self.first_data_block + head * self.blocks_per_group
        return (start + self.has_super(head)) * self.block_size + inside


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1


class Inode(NamedTuple):
    """Times in ns since 1970; ``crtime_ns`` None where the inode has no room for it. ``mode`` holds
    the type too; ``block`` is where extents or block pointers begin, or a short symlink's target."""

    mode: int
    size: int
    uid: int
    gid: int
    nlink: int
    flags: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    crtime_ns: int | None
    block: bytes

    @property
    def rdev(self) -> tuple[int, int] | None:
        """(major, minor) of a device."""
        return _rdev(self.block) if self.mode & _TYPE in (_CHAR, _BLOCK) else None

    @property
    def is_inline(self) -> bool:
        """Whether the content is in the inode itself, its end among the extended attributes."""
        return bool(self.flags & _FLAG_INLINE) and not self.flags & _FLAG_ENCRYPTED

    @property
    def link(self) -> bytes | None:
        """The target of a symlink that is kept in the inode itself."""
        elsewhere = self.flags & (_FLAG_EXTENTS | _FLAG_INLINE | _FLAG_ENCRYPTED)
        is_short = self.mode & _TYPE == _SYMLINK and 0 < self.size < 60 and not elsewhere
        return self.block[: self.size] if is_short else None


def read_superblock(reader: Reader) -> Superblock | None:
    """The primary superblock; None when there is none that makes sense."""
    raw = reader.read_at(1024, 1024)
    if len(raw) < 1024 or struct.unpack_from("<H", raw, 56)[0] != _MAGIC:
        return None
    inodes, blocks, _, free, _, first, log_size = struct.unpack_from("<7I", raw)
    blocks_per_group, per_group = struct.unpack_from("<I4xI", raw, 32)
    revision = struct.unpack_from("<I", raw, 76)[0]
    compat, incompat, read_only = struct.unpack_from("<3I", raw, 92) if revision else (0, 0, 0)
    inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
    wide = bool(incompat & _INCOMPAT_64BIT)
    descriptor = max(32, struct.unpack_from("<H", raw, 254)[0]) if wide else 32
    if wide:
        blocks += struct.unpack_from("<I", raw, 336)[0] << 32
        free += struct.unpack_from("<I", raw, 344)[0] << 32
    if (
        log_size > 6
        or not per_group
        or not blocks_per_group
        or not 128 <= inode_size <= 65536
        or descriptor > 1024
    ):
        return None
    label = raw[120:136].split(b"\0")[0].decode("utf-8", "replace")
    return Superblock(
        1024 << log_size,
        blocks,
        free,
        inodes,
        per_group,
        blocks_per_group,
        first,
        inode_size,
        descriptor,
        incompat,
        label,
        meta_from=struct.unpack_from("<I", raw, 260)[0] if incompat & _INCOMPAT_META_BG else None,
        sparse=bool(read_only & _SPARSE),
        backups=struct.unpack_from("<2I", raw, 588) if compat & _SPARSE_2 else None,
    )


class ExtInodes:
    """Looks inodes up by number. Keeps the last pieces of tables it read; safe in several threads."""

    def __init__(self, reader: Reader, superblock: Superblock) -> None:
        self._super = superblock
        self._reader = reader
        self.may_refuse = bool(superblock.incompat & (_INCOMPAT_ENCRYPT | _INCOMPAT_COMPRESSION))
        self._last = superblock.inodes
        self._per_group, self._size = superblock.inodes_per_group, superblock.inode_size
        self._step = max(1, _PIECE // superblock.inode_size)
        self._in_group = -(-self._per_group // self._step)
        self._pieces = PieceCache(self._read_piece, _PIECES)
        self._table = lru_cache(maxsize=4096)(self._read_table)

    def get(self, number: int) -> Inode | None:
        """Inode ``number``; None where there is none of that number."""
        if not 1 <= number <= self._last:
            return None
        group, index = divmod(number - 1, self._per_group)
        piece, at = divmod(index, self._step)
        try:
            raw = self._pieces.get(group * self._in_group + piece)
        except ImagefsError:  # what is wanted may lie beside what cannot be read
            raw, at = self._read(group, index, 1), 0
        at *= self._size
        if at + self._size <= len(raw):
            return decode_inode(raw, at, room=self._size)
        return decode_inode(raw, at, room=len(raw) - at) if at + 128 <= len(raw) else None

    def raw(self, number: int) -> bytes:
        """Inode ``number`` as it lies on the disk; nothing where it cannot be found."""
        if not 1 <= number <= self._last:
            return b""
        return self._read(*divmod(number - 1, self._per_group), 1)

    def soon(self, numbers: Iterable[int], fetch: FetchMany) -> Iterator[None]:
        """Have the inodes that will be asked for next read at once; after each step some are on their way."""
        wanted, per_group = [], self._per_group
        for number in numbers:
            if 1 <= number <= self._last:
                group, index = divmod(number - 1, per_group)
                wanted.append(group * self._in_group + index // self._step)
        block, size = self._super.block_size, self._size

        def places(piece: int) -> list[tuple[int, int]]:
            group, first, count = self._part(piece)
            table = self._table(group)
            return [] if table is None else [(table * block + first * size, count * size)]

        return self._pieces.expect(wanted, places, fetch)

    def _part(self, piece: int) -> tuple[int, int, int]:
        """(group, first inode in it, number of inodes) of a piece."""
        group, first = divmod(piece, self._in_group)
        first *= self._step
        return group, first, min(self._step, self._per_group - first)

    def _read_piece(self, piece: int) -> bytes:
        return self._read(*self._part(piece))

    def _read(self, group: int, first: int, count: int) -> bytes:
        table = self._table(group)
        if table is None:
            return b""
        return self._reader.read_at(table * self._super.block_size + first * self._size, count * self._size)

    @property
    def size(self) -> int:
        """Bytes of one inode."""
        return self._size

    @property
    def last(self) -> int:
        """The number of the last inode."""
        return self._last

    def place(self, number: int) -> int | None:
        """Where inode ``number`` begins; None where that cannot be told."""
        if not 1 <= number <= self._last:
            return None
        group, index = divmod(number - 1, self._per_group)
        table = self._table(group)
        return None if table is None else table * self._super.block_size + index * self._size

    def pieces(self, inode: Inode, label: str) -> list[Piece] | None:
        """Where the content of an inode lies; None where it lies in the inode itself."""
        if inode.flags & _FLAG_INLINE:
            return None
        return map_file(
            self._reader,
            self._super.block_size,
            inode.block,
            size=inode.size,
            extents=bool(inode.flags & _FLAG_EXTENTS),
            label=label,
        )

    def must_refuse(self, inode: Inode | None) -> str:
        """Why content cannot be decoded (``encrypted``, ``compressed``), else an empty string; of an
        inode that was not found, the worst is believed."""
        incompat = self._super.incompat
        if incompat & _INCOMPAT_ENCRYPT and (inode is None or inode.flags & _FLAG_ENCRYPTED):
            return "encrypted"
        if incompat & _INCOMPAT_COMPRESSION and (inode is None or inode.flags & _FLAG_COMPRESSED):
            return "compressed"
        return ""

    def _read_table(self, group: int) -> int | None:
        """The first block of a group's inode table."""
        raw = self.descriptor(group)
        if len(raw) < self._super.descriptor_size:
            return None
        low = struct.unpack_from("<I", raw, 8)[0]
        high = struct.unpack_from("<I", raw, 40)[0] if self._super.descriptor_size >= 64 else 0
        return int(low + (high << 32))

    def descriptor(self, group: int) -> bytes:
        """The descriptor of a group, short past the end of the volume."""
        sb = self._super
        return self._reader.read_at(sb.descriptor_place(group), sb.descriptor_size)

    def table(self, group: int, first: int, count: int) -> bytes:
        """The bytes of ``count`` inodes of a group from its ``first`` on."""
        return self._read(group, first, min(count, self._per_group - first))


def decode_inode(raw: bytes, start: int, *, room: int) -> Inode:
    """The inode in the ``room`` bytes from ``start`` of ``raw``; 128 are needed, 160 matter."""
    if room >= _LARGE:
        mode, uid, size, atime, ctime, mtime, gid, nlink, flags, block, high, uid_high, gid_high, *more = (
            _WHOLE.unpack_from(raw, start)
        )
        extra, ctime_x, mtime_x, atime_x, birth, birth_x = more
    else:
        mode, uid, size, atime, ctime, mtime, gid, nlink, flags, block, high, uid_high, gid_high = (
            _FIXED.unpack_from(raw, start)
        )
        extra = birth = birth_x = 0
    if extra < 16:
        ctime_x = mtime_x = atime_x = 0
    if high and mode & _TYPE in (_REGULAR, _DIRECTORY):
        size += high << 32
    return Inode(
        mode,
        size,
        uid | uid_high << 16,
        gid | gid_high << 16,
        nlink,
        flags,
        _ns(mtime, mtime_x) if mtime_x else mtime * _SECOND,
        _ns(atime, atime_x) if atime_x else atime * _SECOND,
        _ns(ctime, ctime_x) if ctime_x else ctime * _SECOND,
        _ns(birth, birth_x) if extra >= 24 else None,
        block,
    )


def _ns(seconds: int, extra: int) -> int:
    """Two low bits of ``extra`` go on top of the signed seconds, the rest are nanoseconds."""
    nanos = extra >> 2
    return (seconds + ((extra & 3) << 32)) * _SECOND + (nanos if nanos < _SECOND else 0)


def _rdev(block: bytes) -> tuple[int, int]:
    """Device numbers: the old 8 + 8 bits in i_block[0], else the new 12 + 20 bits in i_block[1]."""
    old, new = struct.unpack_from("<II", block)
    if old:
        return (old >> 8) & 0xFF, old & 0xFF
    return (new >> 8) & 0xFFF, (new & 0xFF) | ((new >> 12) & 0xFFF00)
