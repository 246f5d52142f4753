"""What is where on an XFS volume: superblock, inodes, the map of a file's blocks. Bytes to values.

From the "XFS Algorithms & Data Structures" document and the kernel's xfs_format.h. Versions 4 and 5;
of version 5 every block carries a checksum and says whose it is, and both are held against.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c

from imagefs.browse.content import Piece
from imagefs.errors import BrowseError, NotAFileSystem
from imagefs.interfaces import Reader

#: Incompatible features that change nothing of what is read here, or are dealt with: names with types,
#: sparse inodes, a UUID of its own in metadata, bigtime, needs-repair, large counts, exchange, parents.
_KNOWN = 0xFF
_FTYPE, _META_UUID = 0x1, 0x4
_V4_FTYPE, _FEATURES2, _FOLDS = 0x200, 0x8000, 0x4000
_BIGTIME, _LARGE_COUNTS, _REALTIME = 0x8, 0x10, 0x1
DEVICE, LOCAL, EXTENTS, BTREE = range(4)
#: Of every block of a tree: what a level of a map may be, and the bytes before its records.
_MAX_LEVELS = 12
_SECOND = 10**9
_REPAIR = "try xfs_repair on the partition, which is pN.raw on a mount of the image with --overlay"


class Xfs(NamedTuple):
    """The superblock, as far as it is needed. Sizes in bytes, ``blocks`` in blocks."""

    version: int
    block: int
    blocks: int
    free_blocks: int
    root: int
    group_blocks: int
    groups: int
    inode: int
    group_bits: int
    per_block_bits: int
    directory_block: int
    label: str
    uuid: bytes
    types_in_names: bool
    folds: bool

    def address(self, block: int) -> int | None:
        """Where a block lies by its number in maps; None where there is none."""
        group, inside = block >> self.group_bits, block & ((1 << self.group_bits) - 1)
        number = group * self.group_blocks + inside
        if inside >= self.group_blocks or number >= self.blocks:
            return None
        return number * self.block


def read_superblock(reader: Reader) -> Xfs:
    """NotAFileSystem where there is none, or one with features that are not known here."""
    raw = reader.read_at(0, 512)
    if len(raw) < 512 or raw[:4] != b"XFSB":
        raise NotAFileSystem("the volume is not XFS")
    block, blocks = struct.unpack_from(">IQ", raw, 4)
    root = struct.unpack_from(">Q", raw, 56)[0]
    group_blocks, groups = struct.unpack_from(">II", raw, 84)
    flags, sector, inode = struct.unpack_from(">HHH", raw, 100)
    version, features2 = flags & 0xF, struct.unpack_from(">I", raw, 200)[0] if flags & _FEATURES2 else 0
    incompatible = struct.unpack_from(">I", raw, 216)[0] if version == 5 else 0
    in_block, group_bits, directory = raw[123], raw[124], raw[192]
    sane = (
        version in (4, 5)
        and block in (1 << n for n in range(9, 17))
        and inode in (1 << n for n in range(8, 12))
        and sector in (1 << n for n in range(9, 16))
        and inode << in_block == block
        and 0 < group_blocks <= 1 << group_bits <= 1 << 31
        and 0 < blocks <= groups * group_blocks
        and block << directory <= 1 << 16
    )
    if not sane:
        raise NotAFileSystem("the superblock of the XFS file system makes no sense", hint=_REPAIR)
    if version == 5:
        whole = reader.read_at(0, sector)
        if not _sum_is_right(whole, 224):
            raise NotAFileSystem("the superblock of the XFS file system fails its checksum", hint=_REPAIR)
        if incompatible & ~_KNOWN:
            raise NotAFileSystem(
                f"the XFS file system has features that imagefs does not know ({incompatible & ~_KNOWN:#x})",
                hint="let the kernel mount the partition, which is pN.raw on a mount of the image",
            )
    return Xfs(
        version,
        block,
        blocks,
        struct.unpack_from(">Q", raw, 144)[0],
        root,
        group_blocks,
        groups,
        inode,
        group_bits,
        in_block,
        block << directory,
        raw[108:120].rstrip(b"\0").decode("utf-8", "replace"),
        raw[248:264] if incompatible & _META_UUID else raw[32:48],
        bool(incompatible & _FTYPE if version == 5 else features2 & _V4_FTYPE),
        bool(flags & _FOLDS),
    )


class Run(NamedTuple):
    """``blocks`` blocks of a fork from block ``start``, which lie at byte ``source``; None: unwritten."""

    start: int
    blocks: int
    source: int | None


class Fork(NamedTuple):
    """One of the two things an inode may keep: its content, its attributes. ``extents`` is how many it has."""

    format: int
    raw: bytes
    extents: int


class Inode(NamedTuple):
    number: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    crtime_ns: int | None
    realtime: bool
    data: Fork
    attributes: Fork | None


class Disk:
    """Inodes and maps of the XFS on ``reader``. Keeps no state: any number of threads."""

    def __init__(self, reader: Reader, xfs: Xfs) -> None:
        self.reader = reader
        self.xfs = xfs

    def inode(self, number: int) -> Inode:
        xfs = self.xfs
        bits = xfs.group_bits + xfs.per_block_bits
        group, inside = number >> bits, number & ((1 << bits) - 1)
        block = (group << xfs.group_bits) | (inside >> xfs.per_block_bits)
        address = xfs.address(block)
        what = f"inode {number}"
        if address is None:
            raise broken(what, "it lies past the end of the file system")
        at = address + (inside & ((1 << xfs.per_block_bits) - 1)) * xfs.inode
        raw = self._bytes(at, xfs.inode, what)
        if raw[:2] != b"IN":
            raise broken(what, "there is no inode in its place")
        if xfs.version == 5:
            self.check(raw, what, sum_at=100, uuid_at=160, owner_at=152, owner=number)
        return _decoded(raw, number)

    def block(self, source: int, length: int, what: str) -> bytes:
        return self._bytes(source, length, what)

    def _bytes(self, at: int, length: int, what: str) -> bytes:
        data = self.reader.read_at(at, length)
        if len(data) < length:
            raise broken(what, "it lies past the end of the volume")
        return data

    def check(
        self, raw: bytes, what: str, *, sum_at: int, uuid_at: int, owner_at: int, owner: int | None
    ) -> None:
        """Of version 5: that a block of metadata is whole, of this file system and of this owner."""
        if not _sum_is_right(raw, sum_at):
            raise broken(what, "its metadata fails its checksum")
        if raw[uuid_at : uuid_at + 16] != self.xfs.uuid:
            raise broken(what, "its metadata is of another file system")
        if owner is not None and struct.unpack_from(">Q", raw, owner_at)[0] != owner:
            raise broken(what, "its metadata belongs to something else")

    def runs(self, inode: Inode, fork: Fork, what: str) -> list[Run]:
        """The map of a fork, in order; holes are left out."""
        if fork.format == EXTENTS:
            if fork.extents * 16 > len(fork.raw):
                raise broken(what, "its list of extents is longer than its inode")
            records = [fork.raw[: fork.extents * 16]]
        elif fork.format == BTREE:
            records = list(self._leaves(inode, fork, what))
        else:
            raise broken(what, "its inode has no list of extents")
        return list(self._checked(records, what))

    def metadata_runs(self, inode: Inode, fork: Fork, what: str) -> list[Run]:
        """Of names, attributes and targets: no more than the volume has bytes, whatever the superblock says."""
        runs, block = self.runs(inode, fork, what), self.xfs.block
        if any(run.source is None or run.source + run.blocks * block > self.reader.size for run in runs):
            raise broken(what, "its metadata lies past the end of the volume")
        if sum(run.blocks for run in runs) * block > self.reader.size:
            raise broken(what, "its metadata is larger than the volume")
        return runs

    def _checked(self, records: list[bytes], what: str) -> Iterator[Run]:
        end = total = 0
        for raw in records:
            for high, low in struct.iter_unpack(">QQ", raw):
                start, count = (high >> 9) & ((1 << 54) - 1), low & ((1 << 21) - 1)
                block = (high & 0x1FF) << 43 | low >> 21
                source = self.xfs.address(block)
                if start < end or not count or source is None:
                    raise broken(what, "its list of extents makes no sense")
                end, total = start + count, total + count
                if total > self.xfs.blocks:
                    raise broken(what, "it has more blocks than the volume")
                if source + count * self.xfs.block > self.xfs.blocks * self.xfs.block:
                    raise broken(what, "it lies past the end of the volume")
                yield Run(start, count, None if high >> 63 else source)

    def _leaves(self, inode: Inode, fork: Fork, what: str) -> Iterator[bytes]:
        """The records of the leaves of a tree, from left to right; no block is met twice."""
        level, count = struct.unpack_from(">HH", fork.raw)
        most = (len(fork.raw) - 4) // 16
        if not 0 < level <= _MAX_LEVELS or count > most:
            raise broken(what, "the root of its tree of extents makes no sense")
        seen: set[int] = set()
        pointers = struct.unpack_from(f">{count}Q", fork.raw, 4 + most * 8)
        stack = [(pointer, level - 1) for pointer in reversed(pointers)]
        while stack:
            pointer, level = stack.pop()
            source = self.xfs.address(pointer)
            if source is None or pointer in seen:
                raise broken(what, "its tree of extents leads nowhere")
            seen.add(pointer)
            raw, head, count = self._tree_block(inode, source, level, what)
            if level == 0:
                yield raw[head : head + count * 16]
                continue
            most = (len(raw) - head) // 16
            pointers = struct.unpack_from(f">{count}Q", raw, head + most * 8)
            stack.extend((pointer, level - 1) for pointer in reversed(pointers))

    def _tree_block(self, inode: Inode, source: int, level: int, what: str) -> tuple[bytes, int, int]:
        """(bytes, where its records begin, their count)."""
        five = self.xfs.version == 5
        raw, head = self._bytes(source, self.xfs.block, what), 72 if five else 24
        found, count = struct.unpack_from(">HH", raw, 4)
        if raw[:4] != (b"BMA3" if five else b"BMAP") or found != level or count > (len(raw) - head) // 16:
            raise broken(what, "its tree of extents is damaged")
        if five:
            self.check(raw, what, sum_at=64, uuid_at=40, owner_at=56, owner=inode.number)
        return raw, head, count

    def pieces(self, inode: Inode, fork: Fork, what: str, size: int) -> list[Piece]:
        """The map of a fork of ``size`` bytes, holes and all, for a MappedReader."""
        block, pieces, position = self.xfs.block, list[Piece](), 0
        for run in self.runs(inode, fork, what):
            start = run.start * block
            if start >= size:  # preallocated behind the end
                break
            if start > position:
                pieces.append(Piece(position, start - position, None))
            pieces.append(Piece(start, run.blocks * block, run.source))
            position = start + run.blocks * block
        if position < size:
            pieces.append(Piece(position, size - position, None))
        return pieces


def _sum_is_right(raw: bytes, at: int) -> bool:
    """Whether the CRC32C at ``at``, little-endian, is that of ``raw`` with zeros in its place."""
    found = struct.unpack_from("<I", raw, at)[0]
    return bool(google_crc32c.value(raw[:at] + bytes(4) + raw[at + 4 :]) == found)


def _decoded(raw: bytes, number: int) -> Inode:
    what = f"inode {number}"
    mode, version, form, old_links, uid, gid, links = struct.unpack_from(">HBBHIII", raw, 2)
    size, _, _, count, few, forkoff, attribute_form = struct.unpack_from(">QQIIHBb", raw, 56)
    flags2 = struct.unpack_from(">Q", raw, 120)[0] if version == 3 else 0
    attribute_count = few
    if flags2 & _LARGE_COUNTS:
        attribute_count, count = count, struct.unpack_from(">Q", raw, 24)[0]
    core = 176 if version == 3 else 100
    split = core + forkoff * 8 if forkoff else len(raw)
    if version not in (1, 2, 3) or split > len(raw) or size >= 1 << 63:
        raise broken(what, "it makes no sense")
    wide = bool(flags2 & _BIGTIME)
    attributes = Fork(attribute_form, raw[split:], attribute_count) if forkoff else None
    return Inode(
        number,
        mode,
        uid,
        gid,
        old_links if version == 1 else links,
        size,
        _time(raw, 32, wide),
        _time(raw, 40, wide),
        _time(raw, 48, wide),
        _time(raw, 144, wide) if version == 3 else None,
        bool(struct.unpack_from(">H", raw, 90)[0] & _REALTIME),
        Fork(form, raw[core:split], count),
        attributes,
    )


def _time(raw: bytes, at: int, wide: bool) -> int:
    """Nanoseconds since 1970: two signed halves, or (bigtime) one count from December 1901."""
    if wide:
        return int(struct.unpack_from(">Q", raw, at)[0]) - (_SECOND << 31)
    seconds, rest = struct.unpack_from(">ii", raw, at)
    return int(seconds) * _SECOND + int(rest)


def broken(what: str, why: str) -> BrowseError:
    return BrowseError(f"{what} cannot be read: {why}", hint="the file system is damaged there", path=what)
