"""The names in a directory of XFS, whatever its form: in the inode, one block, many blocks.

Only the blocks with names are read; the hash tables beside them (leaf, node, their trees) are for quick
look-ups and hold no name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from imagefs.browse.xfsdisk import LOCAL, Disk, Inode, broken
from imagefs.errors import ImagefsError
from imagefs.interfaces import EntryType

#: Names lie below this byte of a directory, hashes and free lists above it.
_NAMES_END = 1 << 35
_UNUSED = 0xFFFF
#: After so many blocks without names a directory is given up: it may be terabytes of zeros.
_MAX_DAMAGED = 256
_TYPES = (
    None,
    EntryType.FILE,
    EntryType.DIRECTORY,
    EntryType.DEVICE,
    EntryType.DEVICE,
    EntryType.FIFO,
    EntryType.SOCKET,
    EntryType.SYMLINK,
)


class Name(NamedTuple):
    """``type`` is None where the directory does not tell."""

    name: bytes
    inode: int
    type: EntryType | None


def names(disk: Disk, inode: Inode, what: str) -> Iterator[Name]:
    """All names but ``.`` and ``..``, in the order of the disk, as they are found.

    A damaged block costs its own names: BrowseError comes after those of the others.
    """
    if inode.data.format == LOCAL:
        yield from _short(disk, inode, what)
        return
    failed: list[ImagefsError] = []
    for source in _blocks(disk, inode, what):
        found: list[Name] = []
        try:
            found = list(_in_block(disk, inode, source, what))
        except ImagefsError as error:
            failed.append(error)
        except struct.error:  # a name begins too close to the end
            failed.append(broken(what, "its list of names is damaged"))
        yield from found
        if len(failed) > _MAX_DAMAGED:
            break
    if failed:
        raise failed[0]


def _type(number: int) -> EntryType | None:
    return _TYPES[number] if number < len(_TYPES) else None


def _short(disk: Disk, inode: Inode, what: str) -> Iterator[Name]:
    """Names in the inode itself: count, count of long inode numbers, parent, entries."""
    raw, typed = inode.data.raw[: inode.size], disk.xfs.types_in_names
    if len(raw) < 6:
        raise broken(what, "its list of names is cut off")
    width = 8 if raw[1] else 4
    at = 2 + width
    for _ in range(raw[1] or raw[0]):
        end = at + 3 + raw[at] + typed + width if at < len(raw) else len(raw) + 1
        if end > len(raw):
            raise broken(what, "its list of names is cut off")
        name = raw[at + 3 : at + 3 + raw[at]]
        kind = _type(raw[end - width - 1]) if typed else None
        yield Name(name, int.from_bytes(raw[end - width : end], "big"), kind)
        at = end


def _blocks(disk: Disk, inode: Inode, what: str) -> Iterator[list[tuple[int, int]]]:
    """Where each directory block lies: (address, length), several where its blocks do not follow."""
    size, block = disk.xfs.directory_block, disk.xfs.block
    parts: list[tuple[int, int]] = []
    have = 0
    for run in disk.metadata_runs(inode, inode.data, what):
        if run.start * block >= _NAMES_END or run.source is None:
            break
        source, left = run.source, run.blocks * block
        while left:
            part = min(left, size - have)
            parts.append((source, part))
            source, left, have = source + part, left - part, have + part
            if have == size:
                yield parts
                parts, have = [], 0
    if have:
        raise broken(what, "its list of names is cut off")


def _in_block(disk: Disk, inode: Inode, parts: list[tuple[int, int]], what: str) -> Iterator[Name]:
    raw = b"".join(disk.block(source, length, what) for source, length in parts)
    five, typed = disk.xfs.version == 5, disk.xfs.types_in_names
    single = raw[:4] == (b"XDB3" if five else b"XD2B")
    if not single and raw[:4] != (b"XDD3" if five else b"XD2D"):
        raise broken(what, "there are no names in their place")
    if five:
        disk.check(raw, what, sum_at=4, uuid_at=24, owner_at=40, owner=inode.number)
    at, end = 64 if five else 16, len(raw)
    if single:  # hashes and their count follow the names
        end -= 8 + 8 * int(struct.unpack_from(">I", raw, len(raw) - 8)[0])
    while at < end:
        tag, length = struct.unpack_from(">HH", raw, at)
        if tag == _UNUSED:
            if length < 8 or length % 8:
                raise broken(what, "its list of names is damaged")
            at += length
            continue
        number, width = struct.unpack_from(">QB", raw, at)
        following = at + (8 + 1 + width + typed + 2 + 7) // 8 * 8
        if not width or following > end:
            raise broken(what, "its list of names is damaged")
        name = raw[at + 9 : at + 9 + width]
        if name not in (b".", b".."):
            yield Name(name, number, _type(raw[at + 9 + width]) if typed else None)
        at = following
    if at != end:
        raise broken(what, "its list of names is damaged")
