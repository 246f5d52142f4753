"""Extended attributes of XFS: in the inode, or in blocks of their own, their values there or further on.

Named as Linux names them. What the kernel shows of an access control list is made from what XFS keeps.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

from imagefs.browse.xfsdisk import LOCAL, Disk, Fork, Inode, broken

_IN_PLACE, _ROOT, _SECURE, _PARENT, _INCOMPLETE = 0x1, 0x2, 0x4, 0x8, 0x80
_LEAF, _NODE = {4: 0xFBEE, 5: 0x3BEE}, {4: 0xFEBE, 5: 0x3EBE}
_MAX_VALUE = 1 << 16
_MAX_LEVELS = 8
_ACL = {b"SGI_ACL_FILE": b"system.posix_acl_access", b"SGI_ACL_DEFAULT": b"system.posix_acl_default"}
_ACL_USER, _ACL_GROUP = 0x02, 0x08


def attributes(disk: Disk, inode: Inode, what: str) -> dict[bytes, bytes]:
    fork = inode.attributes
    if fork is None or (fork.format != LOCAL and not fork.extents):
        return {}
    found = _short(fork, what) if fork.format == LOCAL else _Blocks(disk, inode, fork, what).all()
    return dict(_named(flags, name, value) for flags, name, value in found if not flags & _PARENT)


def _named(flags: int, name: bytes, value: bytes) -> tuple[bytes, bytes]:
    if flags & _ROOT and name in _ACL:
        return _ACL[name], _acl(value)
    space = b"trusted." if flags & _ROOT else b"security." if flags & _SECURE else b"user."
    return space + name, value


def _acl(value: bytes) -> bytes:
    """A count and (tag, id, permissions), as Linux has it: a version and (tag, permissions, id)."""
    out = [struct.pack("<I", 2)]
    for tag, number, allowed, _ in struct.iter_unpack(">IIHH", value[4 : 4 + (len(value) - 4) // 12 * 12]):
        named = tag in (_ACL_USER, _ACL_GROUP)
        out.append(struct.pack("<HHI", tag & 0xFFFF, allowed, number if named else 0xFFFFFFFF))
    return b"".join(out)


Found = Iterator[tuple[int, bytes, bytes]]


def _short(fork: Fork, what: str) -> Found:
    raw = fork.raw
    total, count = struct.unpack_from(">HB", raw) if len(raw) >= 4 else (0, 0)
    at = 4
    for _ in range(count):
        end = at + 3 + raw[at] + raw[at + 1] if at + 3 <= len(raw) else len(raw) + 1
        if end > min(total, len(raw)):
            raise broken(what, "its extended attributes are damaged")
        middle = at + 3 + raw[at]
        yield raw[at + 2], raw[at + 3 : middle], raw[middle:end]
        at = end


class _Blocks:
    """The blocks of an attribute fork, by their number in it."""

    def __init__(self, disk: Disk, inode: Inode, fork: Fork, what: str) -> None:
        self._disk = disk
        self._inode = inode
        self._what = what
        self._five = disk.xfs.version == 5
        self._runs = disk.metadata_runs(inode, fork, what)
        self._starts = [run.start for run in self._runs]

    def all(self) -> Found:
        number, seen = self._first_leaf(), set[int]()
        while True:
            raw, magic = self._block(number)
            if magic != _LEAF[self._disk.xfs.version] or number in seen:
                raise self._damaged()
            seen.add(number)
            yield from self._leaf(raw)
            number = struct.unpack_from(">I", raw)[0]
            if number == 0:
                return

    def _first_leaf(self) -> int:
        number = 0
        for _ in range(_MAX_LEVELS):
            raw, magic = self._block(number)
            if magic != _NODE[self._disk.xfs.version]:
                return number
            number = struct.unpack_from(">I", raw, (64 if self._five else 16) + 4)[0]
        raise self._damaged()

    def _block(self, number: int) -> tuple[bytes, int]:
        raw = self._at(number)
        if self._five:
            owner = self._inode.number
            self._disk.check(raw, self._what, sum_at=12, uuid_at=32, owner_at=48, owner=owner)
        return raw, struct.unpack_from(">H", raw, 8)[0]

    def _at(self, number: int) -> bytes:
        block, index = self._disk.xfs.block, bisect_right(self._starts, number) - 1
        run = self._runs[index] if index >= 0 else None
        if run is None or run.source is None or number >= run.start + run.blocks:
            raise self._damaged()
        return self._disk.block(run.source + (number - run.start) * block, block, self._what)

    def _leaf(self, raw: bytes) -> Found:
        count = struct.unpack_from(">H", raw, 56 if self._five else 12)[0]
        head = 80 if self._five else 32
        if head + count * 8 > len(raw):
            raise self._damaged()
        for number in range(count):
            at, flags = struct.unpack_from(">HB", raw, head + number * 8 + 4)
            if flags & _INCOMPLETE:
                continue
            try:
                yield flags, *self._entry(raw, at, flags)
            except (struct.error, IndexError):
                raise self._damaged() from None

    def _entry(self, raw: bytes, at: int, flags: int) -> tuple[bytes, bytes]:
        if flags & _IN_PLACE:
            length, width = struct.unpack_from(">HB", raw, at)
            start, end = at + 3 + width, at + 3 + width + length
            if end > len(raw):
                raise self._damaged()
            return raw[at + 3 : start], raw[start:end]
        block, length, width = struct.unpack_from(">IIB", raw, at)
        if length > _MAX_VALUE or at + 9 + width > len(raw):
            raise self._damaged()
        return raw[at + 9 : at + 9 + width], self._value(block, length)

    def _value(self, block: int, length: int) -> bytes:
        out = b""
        while len(out) < length:
            raw = self._at(block)
            if self._five:
                owner = self._inode.number
                self._disk.check(raw, self._what, sum_at=12, uuid_at=16, owner_at=32, owner=owner)
                magic, offset, count = struct.unpack_from(">4sII", raw)
                if magic != b"XARM" or offset != len(out) or not 0 < count <= len(raw) - 56:
                    raise self._damaged()
                raw = raw[56 : 56 + count]
            out += raw
            block += 1
        return out[:length]

    def _damaged(self) -> Exception:
        return broken(self._what, "its extended attributes are damaged")
