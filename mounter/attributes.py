"""What ``stat`` says of the things the mount shows. Values only; knows neither FUSE nor readers."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple

from imagefs.interfaces import Entry, EntryType, Named

_TYPE_BITS = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.OTHER: stat.S_IFREG,
}
_INODE_BITS = 48
_MAX_SIZE = 2**63 - 1
_MAX_ID = 2**32 - 2  # 2**32 - 1 means "leave it" to chown and "nobody" to the kernel's id maps


class Attributes(NamedTuple):
    """The fields of ``stat`` that the mount fills; times in ns since 1970, ``mode`` with type bits.

    ``allocated`` is how many of the bytes may hold data, None for all of them. ``nlink`` is 0 where
    only type and inode are known.
    """

    mode: int
    size: int
    inode: int
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    ctime_ns: int = 0
    rdev: int = 0
    allocated: int | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def attributes_of(entry: Entry, slot: int) -> Attributes:
    """What an entry of the file system in ``slot`` (0, 1, …) shows: its own mode, owner and times.

    A time that is unknown follows the modification time, an unknown modification time is 1970.
    """
    mtime, size, links = entry.mtime_ns or 0, entry.size, entry.nlink
    return Attributes(
        _type_bits(entry) | entry.mode & 0o7777,
        size if 0 <= size <= _MAX_SIZE else min(max(size, 0), _MAX_SIZE),
        inode_of(entry, slot),
        links if 0 < links < 1 << 32 else min(max(links, 1), 2**32 - 1),
        entry.uid if 0 <= entry.uid <= _MAX_ID else min(max(entry.uid, 0), _MAX_ID),
        entry.gid if 0 <= entry.gid <= _MAX_ID else min(max(entry.gid, 0), _MAX_ID),
        mtime,
        mtime if entry.atime_ns is None else entry.atime_ns,
        mtime if entry.ctime_ns is None else entry.ctime_ns,
        _device_number(entry) if entry.rdev is not None else 0,
    )


def named(entry: Named, slot: int) -> Attributes:
    """What is known of an entry of which only the name was listed: its type and number. No links mark it."""
    return Attributes(_TYPE_BITS[entry.type], 0, inode_of(entry, slot), 0)


def inode_of(entry: Entry | Named, slot: int) -> int:
    """A number that stays the same from mount to mount: slot + 1, then The Sleuth Kit's address.

    Hard links share theirs. An NTFS stream (``file:stream``) has the address of its file and must
    not look like a link to it, so it gets a hash in the upper half of the slot, as does any address
    that is not a number of 47 bits.
    """
    number, dash, _ = entry.inode.partition("-")
    low = int(number) if len(number) < 16 and number.isascii() and number.isdigit() else -1
    if not 0 < low < 1 << (_INODE_BITS - 1) or (dash and b":" in entry.name):
        digest = hashlib.blake2b(entry.inode.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        low = int.from_bytes(digest, "little") >> 17 | 1 << (_INODE_BITS - 1)
    return (slot + 1) << _INODE_BITS | low


def _type_bits(entry: Entry) -> int:
    bits = _TYPE_BITS.get(entry.type)
    return bits or (stat.S_IFBLK if "block" in entry.flags else stat.S_IFCHR)


def _device_number(entry: Entry) -> int:
    if entry.rdev is None:
        return 0
    major, minor = entry.rdev
    return os.makedev(major & 0xFFF, minor & 0xFFFFF)
