"""Deleted entries of ext2/3/4: names left behind in directories, and inodes that no name leads to.

Who deletes a name lets the entry before it reach over it, so that it lies in what looks like padding;
Linux from 5.13 on wipes it. ext3 and ext4 also clear size and block map of the inode: what is left then
is a number and its times. Every directory is read once, whatever points to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from imagefs.block.views import extents_of
from imagefs.browse.allocated import ExtBitmaps
from imagefs.browse.bigdir import EXT_TYPES, Name
from imagefs.browse.content import Piece
from imagefs.browse.extinode import ExtInodes
from imagefs.browse.names import join, printable, safe_name
from imagefs.browse.remains import MAX_DEPTH, ORPHANS, REALLOCATED, Collector
from imagefs.browse.tskentry import EntryMaker
from imagefs.errors import ImagefsError
from imagefs.interfaces import HOLES, Entry, EntryType, Reader

_ROOT, _DOTS = 2, (b".", b"..")
_DIRECTORY, _TYPE = 0x4000, 0xF000
#: Inodes looked at in one go, and how many of them a bit each is kept for (64 MiB).
_STEP, _MAX_INODES = 16384, 512 << 20
#: The names of a directory up to this size are held, those of a larger one read twice.
_KEPT = 1 << 20
_dirent = struct.Struct("<IHBB").unpack_from

I64 = npt.NDArray[np.int64]
#: (the name, whether it is deleted)
Found = tuple[Name, bool]


class ExtDeleted:
    """Finds what was deleted on one volume."""

    def __init__(
        self, reader: Reader, block_size: int, inodes: ExtInodes, bitmaps: ExtBitmaps, maker: EntryMaker
    ) -> None:
        self._reader = reader
        self._block_size = block_size
        self._inodes = inodes
        self._bitmaps = bitmaps
        self._maker = maker
        self._last = min(inodes.last, reader.size // inodes.size, _MAX_INODES)

    def entries(self, collector: Collector) -> Iterator[Entry | None]:
        """None again and again while nothing is found."""
        named = bytearray(self._last // 8 + 1)
        visited = {_ROOT}
        yield from self._below(b"/", _ROOT, False, named, visited, collector)
        parts, ahead = [np.zeros(0, np.int64)], collector.apart()
        for part in self._unnamed(named, collector):
            parts += [part] if len(part) else []
            yield None
        orphans = np.concatenate(parts)
        for number in orphans.tolist():  # what an orphaned directory names is no orphan
            if number not in visited and self._is_folder(number):
                visited.add(number)
                for _ in self._below(b"/", number, True, named, visited, ahead):
                    yield None
        visited.clear()
        for number in orphans.tolist():
            if not named[number >> 3] >> (number & 7) & 1:
                entry = self._entry(ORPHANS + b"/OrphanFile-%d" % number, Name(b"", number), collector)
                yield entry
                if entry.type is EntryType.DIRECTORY and number not in visited:
                    visited.add(number)
                    yield from self._below(entry.path, number, True, named, visited, collector)

    def _below(
        self,
        path: bytes,
        number: int,
        gone: bool,
        named: bytearray,
        visited: set[int],
        collector: Collector,
    ) -> Iterator[Entry | None]:
        """The deleted entries in and below a directory; ``gone`` when it is deleted itself."""
        stack = [(path, gone, self._names(path, number, collector))]
        while stack:
            above, is_gone, names = stack[-1]
            found = next(names, None)
            if found is None:
                stack.pop()
                yield None
                continue
            name, deleted = found
            if name.inode <= self._last:
                named[name.inode >> 3] |= 1 << (name.inode & 7)
            below, is_folder = join(above, safe_name(name.name)), name.type is EntryType.DIRECTORY
            if deleted or is_gone:
                entry = self._entry(below, name, collector)
                yield entry
                is_folder = entry.type is EntryType.DIRECTORY and REALLOCATED not in entry.flags
                below = entry.path
            elif name.type is EntryType.OTHER:
                is_folder = self._is_folder(name.inode)
            if is_folder and name.inode not in visited and len(stack) < MAX_DEPTH:
                visited.add(name.inode)
                stack.append((below, deleted or is_gone, self._names(below, name.inode, collector)))

    def _entry(self, path: bytes, name: Name, collector: Collector) -> Entry:
        """What the inode tells, where it is still that of the deleted file."""
        inode = self._inodes.get(name.inode)
        if inode is None or self._bitmaps.inode_used(name.inode):
            return Entry(path, name.type, 0, str(name.inode), deleted=True, flags=(REALLOCATED,))
        entry = self._maker.from_disk(path, name) if inode.mode else None
        entry = (entry or Entry(path, name.type, 0, str(name.inode)))._replace(deleted=True)
        if entry.type is EntryType.DIRECTORY:
            return entry._replace(path=collector.folder(entry))
        return entry

    def _is_folder(self, number: int) -> bool:
        inode = self._inodes.get(number)
        return inode is not None and inode.mode & _TYPE == _DIRECTORY

    def _names(self, path: bytes, number: int, collector: Collector) -> Iterator[Found]:
        """The live names of a directory, then the deleted ones that are none of those: where the tree of a
        directory grows, its blocks keep copies of names that were moved to others."""
        shown = printable(path)
        try:
            inode = self._inodes.get(number)
            pieces = self._inodes.pieces(inode, shown) if inode is not None else None
            if inode is not None and pieces is None:
                pieces = []
                yield from _block_names(inode.block[4:], self._last)  # inline: only what fits in the inode
            length = sum(piece.length for piece in pieces or [] if piece.source is not None)
            collector.spend(length)
            found: Iterable[Found] = self._all_names(pieces, collector)
            kept = list(found) if length <= _KEPT else None
            gone = dict.fromkeys(name for name, deleted in kept or found if deleted)
            for name, deleted in self._all_names(pieces, collector) if kept is None else kept:
                if not deleted:
                    gone.pop(name, None)
                    yield name, False
            yield from ((name, True) for name in gone)
        except ImagefsError as error:
            collector.note(error)

    def _all_names(self, pieces: list[Piece] | None, collector: Collector) -> Iterator[Found]:
        for piece in pieces or []:
            for at in range(0, piece.length if piece.source is not None else 0, self._block_size):
                try:
                    block = self._reader.read_at((piece.source or 0) + at, self._block_size)
                except ImagefsError as error:
                    collector.note(error)
                    continue
                yield from _block_names(block, self._last)

    def _unnamed(self, named: bytearray, collector: Collector) -> Iterator[I64]:
        """Inodes without a name that were used and are free, by the inode tables and their bitmaps: of each
        group some, perhaps none."""
        per_group = self._bitmaps.inodes_per_group
        names = np.frombuffer(named, np.uint8)
        for group in range(-(-self._last // per_group)):
            try:
                for n in self._unused_in(group, min(per_group, self._last - group * per_group)):
                    yield n[(names[n >> 3] >> (n & 7).astype(np.uint8) & 1) == 0]
            except ImagefsError as error:
                collector.note(error)
            yield np.zeros(0, np.int64)

    def _unused_in(self, group: int, most: int) -> Iterator[I64]:
        count = min(most, self._bitmaps.inodes_in(group))
        bits = np.frombuffer(self._bitmaps.inode_bits(group), np.uint8)
        place = self._inodes.place(group * self._bitmaps.inodes_per_group + 1)
        if not count or place is None or not self._has_data(place, count * self._inodes.size):
            return
        in_use = np.zeros(count, np.uint8)
        bits = np.unpackbits(bits, bitorder="little")[:count]
        in_use[: len(bits)] = bits
        for first in range(0, count, _STEP):
            raw = self._inodes.table(group, first, min(_STEP, count - first))
            table = np.frombuffer(raw[: len(raw) // self._inodes.size * self._inodes.size], np.uint8)
            rows = table.reshape(-1, self._inodes.size)
            changed = rows[:, 12:16].any(axis=1)  # the time of change: 0 in an inode never used
            free = np.flatnonzero(changed & (in_use[first : first + len(rows)] == 0))
            base = group * self._bitmaps.inodes_per_group + first + 1
            yield free.astype(np.int64) + base

    def _has_data(self, first: int, length: int) -> bool:
        inside = max(0, min(length, self._reader.size - first))
        return any(extent.state not in HOLES for extent in extents_of(self._reader, first, inside))


def _zeros(block: bytes, at: int, length: int) -> int:
    """How far to go on over zeros: to four bytes before the first word that holds anything."""
    rest = block[at : at + length]
    return max(4, (len(rest) - len(rest.lstrip(b"\0")) & ~3) - 4)


def _block_names(block: bytes, last_inode: int) -> Iterator[Found]:
    """The names in a block of a directory, deleted ones too: those that lie in the room that another
    entry reaches over, or have no inode. What makes no sense is passed in steps of four bytes."""
    at, end, hidden = 0, len(block), 0  # so many bytes from here on are what a live entry reaches over
    while at + 12 <= end:
        inode, length, size, kind = _dirent(block, at)
        length = 65536 if length in (0, 65535) and end == 65536 else length
        least = 8 + (size + 3 & ~3)
        sensible = size and inode <= last_inode and least <= length <= end - at and not length & 3
        if not sensible or (hidden and least > hidden):
            step = 4 if inode else _zeros(block, at, hidden or end - at)
            at, hidden = at + step, max(0, hidden - step)
            continue
        name = block[at + 8 : at + 8 + size]
        deleted = hidden > 0 or not inode
        if name not in _DOTS and b"\0" not in name and b"/" not in name:
            yield Name(name, inode, None, EXT_TYPES.get(kind, EntryType.OTHER)), deleted
        hidden = hidden - least if hidden else length - least
        at += least
