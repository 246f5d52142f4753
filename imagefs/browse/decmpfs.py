"""Files that macOS compressed (``ditto --hfsCompression``): the content, 64 KiB at a time.

The attribute ``com.apple.decmpfs`` says how: ``fpmc``, a type in 4 bytes, the size of the content in 8. What is
compressed lies behind that, or with an even type in the resource fork. There zlib's chunks are listed in the
resource itself, those of the others at the start of the fork. Sources: ``bsd/sys/decmpfs.h`` of XNU, Apple's
``copyfile.c``, "Apple File System" by J. Metz, TSK's ``decmpfs.c``. Knows nothing of TSK.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from imagefs.block.views import BytesReader
from imagefs.browse.chunked import ChunkedReader
from imagefs.browse.content import damaged
from imagefs.browse.hfsplus import HfsPlus
from imagefs.browse.lzfse import unpack_lzfse, unpack_lzvn
from imagefs.errors import BrowseError
from imagefs.interfaces import Reader

ATTRIBUTE = b"com.apple.decmpfs"
CHUNK = 65536
_HEAD = struct.Struct("<4sIQ")
#: What is stored as it is has one byte before it, and is never longer.
_MOST = CHUNK + 1
#: What lies in an attribute is one piece. An attribute of 16 KiB of zlib makes no more.
_MOST_IN_ATTRIBUTE = 16 << 20
_ZLIB_FORK = 4


class Head(NamedTuple):
    """What the attribute says first: how it is compressed, and how long the content is in bytes."""

    type: int
    size: int

    @property
    def in_fork(self) -> bool:
        return self.type % 2 == 0


def read_head(attribute: bytes) -> Head | None:
    """None where that makes no sense."""
    if len(attribute) < _HEAD.size:
        return None
    magic, kind, size = _HEAD.unpack_from(attribute)
    return Head(kind, size) if magic == b"fpmc" and not size >> 63 else None


def told_of(trees: HfsPlus | None, number: int) -> tuple[Head, bytes] | None:
    """What the attribute of a file says, and all of it; None where there is none that makes sense. Raises
    ImagefsError where it cannot be read."""
    attribute = trees.attribute(number, ATTRIBUTE) if trees is not None else None
    head = read_head(attribute or b"")
    return None if attribute is None or head is None else (head, attribute)


def open_packed(trees: HfsPlus | None, number: int, label: str) -> DecmpfsReader:
    """The content of the file of HFS+ with this number; BrowseError where it cannot be decoded."""
    attribute = trees.attribute(number, ATTRIBUTE) if trees is not None else None
    return open_content(attribute, lambda: trees.resource_fork(number, label) if trees else None, label)


def open_content(attribute: bytes | None, fork: Callable[[], Reader | None], label: str) -> DecmpfsReader:
    """The content of the file that has this attribute; ``fork`` opens its resource fork, None where there is none.
    BrowseError where it cannot be decoded."""
    head = read_head(attribute or b"")
    if attribute is None or head is None:
        raise damaged(label, 0, "nothing says how macOS compressed them")
    packed = fork() if head.in_fork else BytesReader(attribute)
    if packed is None and head.size:
        raise damaged(label, 0, "the resource fork with its compressed content is missing")
    return DecmpfsReader(head, packed or BytesReader(b""), label=label)


def _unzip(data: bytes, size: int) -> bytes:
    """``size`` bytes out of one zlib stream; never makes more than that."""
    if data[0] & 15 == 15:
        return data[1:]
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, size)
        more = b"" if unpacker.eof else unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError("they cannot be decompressed") from error
    if more:
        raise ValueError(f"they decompress to more than {size} bytes")
    if not unpacker.eof:
        raise ValueError("they end too early")
    return plain


def _unstore(data: bytes, size: int) -> bytes:
    if data[0] != 0xCC:
        raise ValueError("they are not stored as they should be")
    return data[1:]


def _unpack_lzvn(data: bytes, size: int) -> bytes:
    return data[1:] if data[0] == 0x06 and len(data) == size + 1 else unpack_lzvn(data, size)


def _unpack_lzfse(data: bytes, size: int) -> bytes:
    stored = data[0] in (0xFF, 0x06) and len(data) == size + 1
    return data[1:] if stored else unpack_lzfse(data, size)


#: Type -> what makes a number of bytes of a chunk; ValueError for what is damaged. Of type 5 some say that it
#: stands for zeros and XNU that the content lies in the generation store: it is not known here, as 13 and 14.
_UNPACK: dict[int, Callable[[bytes, int], bytes]] = {
    1: lambda data, size: data,
    3: _unzip,
    _ZLIB_FORK: _unzip,
    7: _unpack_lzvn,
    8: _unpack_lzvn,
    9: _unstore,
    10: _unstore,
    11: _unpack_lzfse,
    12: _unpack_lzfse,
}


class DecmpfsReader(ChunkedReader):
    """The content of a file, out of ``packed``: its attribute, or its resource fork where ``head`` says so.
    Nothing longer than a chunk is read or made at once; what does not add up is an error."""

    def __init__(self, head: Head, packed: Reader, *, label: str) -> None:
        if head.type not in _UNPACK:
            raise BrowseError(
                f"'{label}' is compressed by macOS in a way (type {head.type}) that cannot be decoded",
                hint="mount the image and open the partition's pN.raw with a system that can",
                path=label,
            )
        if not head.in_fork and head.size > _MOST_IN_ATTRIBUTE:
            raise damaged(label, 0, "an attribute cannot hold so much")
        chunk = CHUNK if head.in_fork else max(1, head.size)
        super().__init__(packed, head.size, chunk=chunk, label=label)
        self._head = head

    def _decode(self, number: int) -> bytes:
        at, size, packed = number * self._chunk_size, self._length(number), self._packed
        first, end = self._place(packed, number) if self._head.in_fork else (_HEAD.size, packed.size)
        if not 0 <= first < end <= packed.size or end - first > _MOST:
            raise damaged(self._label, at, "the table of its compressed parts makes no sense")
        try:
            plain = _UNPACK[self._head.type](packed.read_at(first, end - first), size)
        except ValueError as error:
            raise damaged(self._label, at, str(error)) from error
        if len(plain) != size:
            raise damaged(self._label, at, f"they decompress to {len(plain)} bytes instead of {size}")
        return plain

    def _place(self, packed: Reader, number: int) -> tuple[int, int]:
        """Where a chunk begins and ends in the resource fork; (0, 0) where that is not told."""
        if self._head.type == _ZLIB_FORK:
            (data,) = struct.unpack(">I", packed.read_at(0, 4).ljust(4, b"\0"))
            (count,) = struct.unpack("<I", packed.read_at(data + 4, 4).ljust(4, b"\0"))
            entry = packed.read_at(data + 8 + 8 * number, 8)
            if number >= count or len(entry) < 8:
                return 0, 0
            first, length = struct.unpack("<II", entry)
            return data + 4 + first, data + 4 + first + length
        (table,) = struct.unpack("<I", packed.read_at(0, 4).ljust(4, b"\0"))
        entries = packed.read_at(4 * number, 8)
        if 4 * number + 8 > table or len(entries) < 8:
            return 0, 0
        first, end = struct.unpack("<II", entries)
        return first, end
