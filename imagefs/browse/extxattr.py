"""Extended attributes of ext2/3/4, and what is kept among them: the end of inline data.

They lie behind the fields of an inode, then in a block of their own; a long value has an inode to itself
(``ea_inode``). The Sleuth Kit knows none of it, and takes inline data from the wrong place where an
attribute lies before it. Layout: Documentation/filesystems/ext4/attributes.rst of the Linux kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imagefs.browse.content import MappedReader
from imagefs.browse.extinode import ExtInodes, Inode, Superblock
from imagefs.errors import BrowseError
from imagefs.interfaces import Reader

_MAGIC = 0xEA020000
_FIXED, _BLOCK_HEAD = 128, 32
_ENTRY = struct.Struct("<BBHIIxxxx")
_EA_INODE = 0x200000
#: Linux allows no longer value.
_MAX_VALUE = 65536
_IN_INODE = 60
_DATA = 7, b"data"
_ACCESS, _DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_PREFIXES = {
    0: b"",
    1: b"user.",
    2: _ACCESS,
    3: _DEFAULT,
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
    8: b"system.richacl",
}
#: Tags of an access control list that name a user or group; the others have no id.
_NAMED_TAGS = (2, 8)

_Found = tuple[tuple[int, bytes], bytes]


class ExtAttributes:
    """The attributes of one file system's inodes. Keeps nothing; safe in several threads."""

    def __init__(self, reader: Reader, superblock: Superblock, inodes: ExtInodes) -> None:
        self._reader = reader
        self.superblock = self._super = superblock
        self._inodes = inodes

    def of(self, number: int, label: str) -> dict[bytes, bytes]:
        """By their full names as Linux has them; ``label`` names the file in errors. Raises BrowseError."""
        out: dict[bytes, bytes] = {}
        for key, value in self._all(number, label):
            prefix = _PREFIXES.get(key[0])
            if prefix is None or key == _DATA:
                continue
            name = prefix + key[1]
            out.setdefault(name, _linux_acl(value, label) if name in (_ACCESS, _DEFAULT) else value)
        return out

    def inline(self, number: int, inode: Inode, label: str) -> bytes:
        """The content of a file, folder or symlink that is kept in the inode itself. Raises BrowseError."""
        data = inode.block[:_IN_INODE]
        if inode.size > len(data):
            data += next((value for key, value in self._all(number, label) if key == _DATA), b"")
        if len(data) < inode.size:
            raise _damaged(label, "its inline content is cut off")
        return data[: inode.size]

    def _all(self, number: int, label: str) -> Iterator[_Found]:
        raw = self._inodes.raw(number)
        if len(raw) < _FIXED:
            raise _damaged(label, "its inode cannot be read")
        extra = struct.unpack_from("<H", raw, _FIXED)[0] if len(raw) >= _FIXED + 2 else 0
        start = _FIXED + extra
        if start + 8 <= len(raw) and struct.unpack_from("<I", raw, start)[0] == _MAGIC:
            yield from self._entries(raw[start + 4 :], 0, label)
        low, high = struct.unpack_from("<I", raw, 104)[0], struct.unpack_from("<H", raw, 118)[0]
        block = low | (high << 32 if self._super.is_wide else 0)
        if block:
            yield from self._in_block(block, label)

    def _in_block(self, block: int, label: str) -> Iterator[_Found]:
        size = self._super.block_size
        raw = self._reader.read_at(block * size, size) if block < self._super.blocks else b""
        if len(raw) < size or struct.unpack_from("<I", raw)[0] != _MAGIC or raw[8:12] != b"\1\0\0\0":
            raise _damaged(label, "the block of its extended attributes makes no sense")
        yield from self._entries(raw, _BLOCK_HEAD, label)

    def _entries(self, area: bytes, at: int, label: str) -> Iterator[_Found]:
        """The attributes whose names begin at ``at`` of ``area``; values are told from its start."""
        while at + 4 <= len(area) and area[at : at + 4] != bytes(4):
            if at + 16 > len(area):
                raise _damaged(label, "its extended attributes are cut off")
            length, index, offset, inode, size = _ENTRY.unpack_from(area, at)
            name = area[at + 16 : at + 16 + length]
            if len(name) < length or size > _MAX_VALUE or (not inode and size and offset + size > len(area)):
                raise _damaged(label, "an extended attribute makes no sense")
            value = self._of_inode(inode, size, label) if inode else area[offset : offset + size]
            yield (index, name), value
            at += (16 + length + 3) & ~3

    def _of_inode(self, number: int, size: int, label: str) -> bytes:
        inode = self._inodes.get(number)
        pieces = self._inodes.pieces(inode, label) if inode and inode.flags & _EA_INODE else None
        if inode is None or inode.size != size or pieces is None:
            raise _damaged(label, "the inode of an extended attribute makes no sense")
        return MappedReader(self._reader, size, pieces, label=label).read_at(0, size)


def _linux_acl(value: bytes, label: str) -> bytes:
    """An access control list as ``getxattr`` gives it: version 2, and an id in every entry."""
    if len(value) < 4 or value[:4] != struct.pack("<I", 1):
        raise _damaged(label, "its access control list makes no sense")
    out, at = [struct.pack("<I", 2)], 4
    while at < len(value):
        tag = int.from_bytes(value[at : at + 2], "little")
        length = 8 if tag in _NAMED_TAGS else 4
        entry = value[at : at + length]
        if len(entry) < length:
            raise _damaged(label, "its access control list is cut off")
        out.append(entry.ljust(8, b"\xff"))
        at += length
    return b"".join(out)


def _damaged(label: str, why: str) -> BrowseError:
    return BrowseError(
        f"the extended attributes of '{label}' cannot be read: {why}",
        hint="the file system is damaged there",
        path=label,
    )
