"""Which blocks an ext2/3/4 file system uses, by its group descriptors and block bitmaps.

Source: the kernel's Documentation/filesystems/ext4, and the layout rules of e2fsprogs. Nothing is
guessed: what is not understood, or whose counts or checksums do not agree, is an AllocationError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from imagefs.allocation.usedmap import UsedMap, UsedRuns
from imagefs.errors import AllocationError
from imagefs.interfaces import Reader

_MAGIC = 0xEF53
_CLEAN, _ERRORS = 1, 2
_RECOVER, _META_BG, _64BIT, _CSUM_SEED = 0x4, 0x10, 0x80, 0x2000
#: filetype, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold
_KNOWN_INCOMPAT = (
    0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
)
_SPARSE_SUPER, _GDT_CSUM, _BIGALLOC, _METADATA_CSUM = 0x1, 0x10, 0x200, 0x400
#: sparse_super to extra_isize, quota, bigalloc, metadata_csum, readonly, project, verity
_KNOWN_RO_COMPAT = 0x7F | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000
_RESIZE_INODE, _SPARSE_SUPER2 = 0x10, 0x200
_BLOCK_UNINIT = 0x2
#: 128 TiB of blocks of 4 KiB; more groups than that take more memory than a map is worth.
_MAX_GROUPS = 1 << 20
#: Bitmaps read at once, where they lie side by side.
_TOGETHER = 64


def read_ext(volume: Reader) -> UsedMap:
    """The used blocks of the file system on ``volume``. Raises AllocationError, and what reading raises."""
    fs = _superblock(volume)
    groups = _descriptors(volume, fs)
    used = UsedRuns(volume.size, fs.cluster_size)
    for first, count in _metadata(fs, groups):
        used.add(first // fs.ratio, -(-(first + count) // fs.ratio) - first // fs.ratio)
    for number, bits in _bitmaps(volume, fs, groups):
        first, count = (each // fs.ratio for each in fs.span(number))
        there = used.add_bits(bits, count, base=first)
        if count - there != groups[number].free:
            raise AllocationError(
                f"group {number} counts {groups[number].free} free blocks and its bitmap {count - there}"
            )
    found = used.finish(fs.source)
    counted = found.used_bytes // fs.block_size
    told = fs.blocks - fs.first_block - fs.free
    if counted != told:
        raise AllocationError(f"its bitmaps count {counted} used blocks, its superblock {told}")
    # The boot block, and what lies behind the file system, belong to nobody we know.
    used.add_bytes(0, fs.first_block * fs.block_size)
    used.add_bytes(fs.blocks * fs.block_size, volume.size)
    return used.finish(fs.source)


@dataclass(frozen=True, slots=True)
class _FileSystem:
    """What the superblock says; blocks in numbers, sizes in bytes."""

    block_size: int
    ratio: int  # blocks in what one bit of a bitmap stands for, more than one with bigalloc
    blocks: int
    free: int
    first_block: int
    per_group: int
    inode_table: int  # blocks of one
    reserved: int  # descriptor blocks kept for growth
    desc_size: int
    meta_from: int | None  # with meta_bg: the first block of descriptors that lies among its groups
    sparse: bool
    backups: tuple[int, int] | None  # with sparse_super2
    seed: int | None  # of the checksums, where there are any
    uuid: bytes | None  # of the older checksums of descriptors alone
    source: str

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.per_group)

    @property
    def cluster_size(self) -> int:
        return self.block_size * self.ratio

    @property
    def bitmap_size(self) -> int:
        return self.per_group // self.ratio // 8

    @property
    def checked(self) -> bool:
        """Whether descriptors have checksums: only then does the flag for an unset bitmap count."""
        return self.seed is not None or self.uuid is not None

    @property
    def together(self) -> int:
        """Descriptors in one block."""
        return self.block_size // self.desc_size

    def span(self, group: int) -> tuple[int, int]:
        """(first block, blocks) of a group; the last may be short."""
        first = self.first_block + group * self.per_group
        return first, min(self.per_group, self.blocks - first)

    def has_super(self, group: int) -> bool:
        if group == 0:
            return True
        if self.backups is not None:
            return group in self.backups
        return not self.sparse or group == 1 or any(_is_power(group, base) for base in (3, 5, 7))


@dataclass(frozen=True, slots=True)
class _Group:
    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free: int
    uninit: bool
    checksum: int


def _superblock(volume: Reader) -> _FileSystem:
    data = volume.read_at(1024, 1024)
    if len(data) < 1024 or struct.unpack_from("<H", data, 56)[0] != _MAGIC:
        raise AllocationError("its superblock is not that of an ext file system")
    blocks_low, _, free_low = struct.unpack_from("<III", data, 4)
    first_block, log_size = struct.unpack_from("<II", data, 20)
    per_group, _, inodes = struct.unpack_from("<III", data, 32)
    compat, incompat, ro_compat = struct.unpack_from("<III", data, 92)
    _check_features(data, incompat, ro_compat)
    wide = bool(incompat & _64BIT)
    high, free_high = (struct.unpack_from("<I", data, at)[0] if wide else 0 for at in (0x150, 0x158))
    blocks, free = blocks_low | high << 32, free_low | free_high << 32
    inode_size = struct.unpack_from("<H", data, 88)[0] if struct.unpack_from("<I", data, 76)[0] else 128
    desc_size = struct.unpack_from("<H", data, 0xFE)[0] if wide else 32
    size = 1024 << log_size if log_size <= 6 else 0
    ratio = _ratio(data, ro_compat, log_size)
    per_bitmap = per_group // ratio
    sane = size and first_block == (size == 1024 and ratio == 1) and first_block < blocks
    sane = sane and 8 <= per_bitmap <= 8 * size and per_group % (8 * ratio) == 0 and blocks % ratio == 0
    sane = sane and 128 <= inode_size <= size and desc_size in (32, 64, 128, 256, 512, 1024)
    if not sane or free > blocks or blocks - first_block > per_group * _MAX_GROUPS:
        raise AllocationError("its superblock makes no sense")
    if blocks * size > volume.size:
        raise AllocationError(f"it has {blocks * size} bytes, more than the {volume.size} of its volume")
    return _FileSystem(
        size,
        ratio,
        blocks,
        free,
        first_block,
        per_group,
        -(-inodes * inode_size // size),
        struct.unpack_from("<H", data, 0xCE)[0] if compat & _RESIZE_INODE else 0,
        desc_size,
        struct.unpack_from("<I", data, 0x104)[0] if incompat & _META_BG else None,
        bool(ro_compat & _SPARSE_SUPER),
        struct.unpack_from("<II", data, 0x24C) if compat & _SPARSE_SUPER2 else None,
        _seed(data, incompat) if ro_compat & _METADATA_CSUM else None,
        data[104:120] if ro_compat & (_GDT_CSUM | _METADATA_CSUM) == _GDT_CSUM else None,
        "ext block bitmaps",
    )


def _ratio(data: bytes, ro_compat: int, log_size: int) -> int:
    """Blocks in a cluster."""
    if not ro_compat & _BIGALLOC:
        return 1
    log_cluster = struct.unpack_from("<I", data, 28)[0]
    blocks, clusters = struct.unpack_from("<II", data, 32)
    if not log_size < log_cluster <= 30 or clusters << log_cluster - log_size != blocks:
        raise AllocationError("its superblock makes no sense")
    return 1 << int(log_cluster - log_size)


def _check_features(data: bytes, incompat: int, ro_compat: int) -> None:
    """AllocationError for a state or a feature under which the bitmaps cannot be taken at their word."""
    state = struct.unpack_from("<H", data, 58)[0]
    if incompat & _RECOVER:
        raise AllocationError("its journal has to be replayed first")
    if not state & _CLEAN or state & _ERRORS:
        raise AllocationError("it was not unmounted cleanly, or has errors")
    if incompat & _META_BG and struct.unpack_from("<I", data, 92)[0] & _RESIZE_INODE:
        raise AllocationError("its descriptors lie where its inode for growth has blocks")
    unknown = (incompat & ~_KNOWN_INCOMPAT, ro_compat & ~_KNOWN_RO_COMPAT)
    if any(unknown):
        raise AllocationError(
            f"it has features that are not understood here ({unknown[0]:#x}, {unknown[1]:#x})"
        )


def _seed(data: bytes, incompat: int) -> int:
    """The seed of all checksums; the superblock's own is checked first."""
    if _crc(0xFFFFFFFF, data[:0x3FC]) != struct.unpack_from("<I", data, 0x3FC)[0]:
        raise AllocationError("the checksum of its superblock does not match")
    if incompat & _CSUM_SEED:
        return int(struct.unpack_from("<I", data, 0x270)[0])
    return _crc(0xFFFFFFFF, data[104:120])


def _crc(seed: int, data: bytes) -> int:
    """CRC-32C as the kernel counts it: without the inversions before and after."""
    return int(google_crc32c.extend(seed ^ 0xFFFFFFFF, data)) ^ 0xFFFFFFFF


def _descriptors(volume: Reader, fs: _FileSystem) -> list[_Group]:
    data = _descriptor_bytes(volume, fs)
    if len(data) < fs.groups * fs.desc_size:
        raise AllocationError("its group descriptors are cut short")
    groups = []
    for number in range(fs.groups):
        raw = data[number * fs.desc_size : (number + 1) * fs.desc_size]
        _check_descriptor(fs, number, raw)
        groups.append(_group(raw, checked=fs.checked))
        places = (groups[-1].block_bitmap, groups[-1].inode_bitmap, groups[-1].inode_table)
        if not all(fs.first_block < place < fs.blocks for place in places):
            raise AllocationError(f"the descriptor of group {number} makes no sense")
    return groups


def _descriptor_bytes(volume: Reader, fs: _FileSystem) -> bytes:
    """All descriptors: behind the superblock, and with meta_bg in the groups that they tell of."""
    blocks = -(-fs.groups // fs.together)
    ahead = blocks if fs.meta_from is None else min(blocks, fs.meta_from)
    # With bigalloc the superblock's block is 1 even where the first group begins with block 0.
    first = max(fs.first_block, int(fs.block_size == 1024)) + 1
    parts = [volume.read_at(first * fs.block_size, ahead * fs.block_size)]
    for number in range(ahead, blocks):
        group = number * fs.together
        place = first if group == 0 else fs.span(group)[0] + fs.has_super(group)
        parts.append(volume.read_at(place * fs.block_size, fs.block_size))
    return b"".join(parts)


def _group(raw: bytes, *, checked: bool) -> _Group:
    low = struct.unpack_from("<IIIH", raw)
    flags, checksum = struct.unpack_from("<H", raw, 18)[0], struct.unpack_from("<H", raw, 24)[0]
    high = (0, 0, 0, 0)
    if len(raw) >= 64:
        high = struct.unpack_from("<IIIH", raw, 0x20)
        checksum |= struct.unpack_from("<H", raw, 0x38)[0] << 16
    places = [one | other << 32 for one, other in zip(low[:3], high[:3], strict=True)]
    block_bitmap, inode_bitmap, inode_table = places
    uninit = checked and bool(flags & _BLOCK_UNINIT)
    return _Group(block_bitmap, inode_bitmap, inode_table, low[3] | high[3] << 16, uninit, checksum)


def _check_descriptor(fs: _FileSystem, number: int, raw: bytes) -> None:
    told, which = struct.unpack_from("<H", raw, 30)[0], number.to_bytes(4, "little")
    if fs.seed is not None:
        crc = _crc(_crc(_crc(_crc(fs.seed, which), raw[:30]), b"\0\0"), raw[32:])
    elif fs.uuid is not None:
        crc = _crc16(fs.uuid + which + raw[:30] + raw[32:])
    else:
        return
    if crc & 0xFFFF != told:
        raise AllocationError(f"the checksum of the descriptor of group {number} does not match")


def _crc16_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0xA001 if number & 1 else 0)
        table.append(number)
    return table


_CRC16 = _crc16_table()


def _crc16(data: bytes) -> int:
    """CRC-16 of the polynomial 0x8005, reflected."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC16[(crc ^ byte) & 255]
    return crc


def _metadata(fs: _FileSystem, groups: list[_Group]) -> Iterator[tuple[int, int]]:
    """(block, count) of superblocks, descriptors and their copies, bitmaps and inode tables."""
    for number, group in enumerate(groups):
        first, count = fs.span(number)
        head = _head(fs, number)
        if head:
            yield first, min(count, head)
        yield group.block_bitmap, 1
        yield group.inode_bitmap, 1
        yield group.inode_table, fs.inode_table


def _head(fs: _FileSystem, group: int) -> int:
    """Blocks at the start of a group that hold a superblock, descriptors or copies of them."""
    there = fs.has_super(group)
    boot = int(group == 0 and fs.first_block == 0 and fs.block_size == 1024)
    if fs.meta_from is None or group < fs.meta_from * fs.together:
        ahead = -(-fs.groups // fs.together) if fs.meta_from is None else fs.meta_from
        return boot + 1 + ahead + fs.reserved if there else 0
    return boot + there + (group % fs.together in (0, 1, fs.together - 1))


def _bitmaps(volume: Reader, fs: _FileSystem, groups: list[_Group]) -> Iterator[tuple[int, bytes]]:
    """(group, its bitmap) of each group that has one; neighbouring bitmaps come in one read."""
    wanted = [number for number, group in enumerate(groups) if not group.uninit]
    at = 0
    while at < len(wanted):
        start, stop = groups[wanted[at]].block_bitmap, at + 1
        while stop < len(wanted) and stop - at < _TOGETHER:
            if groups[wanted[stop]].block_bitmap != start + stop - at:
                break
            stop += 1
        data = volume.read_at(start * fs.block_size, (stop - at) * fs.block_size)
        for i, number in enumerate(wanted[at:stop]):
            bits = data[i * fs.block_size : i * fs.block_size + fs.bitmap_size]
            _check_bitmap(fs, number, groups[number], bits)
            yield number, bits
        at = stop


def _check_bitmap(fs: _FileSystem, number: int, group: _Group, bits: bytes) -> None:
    if len(bits) < fs.bitmap_size:
        raise AllocationError(f"the block bitmap of group {number} is cut short")
    if fs.seed is not None:
        crc = _crc(fs.seed, bits)
        if crc & (0xFFFFFFFF if fs.desc_size >= 64 else 0xFFFF) != group.checksum:
            raise AllocationError(f"the checksum of the block bitmap of group {number} does not match")


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
