"""NTFS reparse points: what the buffer of attribute 0xC0 says. Bytes in, values out; no I/O.

Layout (little-endian): tag u32, data length u16, reserved u16, data. A tag decides what the data
means; the bit 0x20000000 (name surrogate) says that the entry stands for another name.
Source: [MS-FSCC] 2.1.2, and wsl's lx tags as ntfs3 and ntfs-3g read them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from imagefs.interfaces import EntryType

#: The longest buffer Windows allows; a longer attribute is not read.
MAX_BUFFER = 16 * 1024

WOF = 0x80000017
DEDUP = 0x80000013
_MOUNT_POINT = 0xA0000003
_SYMLINK = 0xA000000C
_LX_SYMLINK = 0xA000001D
_SURROGATE = 0x20000000
_TYPES = {
    0x80000023: EntryType.SOCKET,
    0x80000024: EntryType.FIFO,
    0x80000025: EntryType.DEVICE,
    0x80000026: EntryType.DEVICE,
}
_NAMES = {
    WOF: "kept in a WIM file or compressed in an unknown way by Windows (CompactOS, WOF)",
    DEDUP: "deduplicated by Windows Server",
    0x80000008: "kept in a WIM file",
    0xC0000004: "moved to other storage (HSM)",
    0x80000006: "moved to other storage (HSM)",
}


#: Version 1 of both structs, provider 2: a file that is compressed by itself.
_WOF_FILE = struct.pack("<3I", 1, 2, 1)


@dataclass(frozen=True, slots=True)
class Reparse:
    """A decoded reparse point. ``type`` is None where the entry stays what it is; ``target`` is None
    where it is no link or its target cannot be decoded; ``packing`` is WOF's number of how a file is
    compressed, None where it is not."""

    tag: int
    type: EntryType | None = None
    target: bytes | None = None
    packing: int | None = None

    @property
    def flag(self) -> str:
        if self.tag == WOF:
            return "wof"
        return "junction" if self.tag == _MOUNT_POINT else f"reparse-{self.tag:08x}"

    @property
    def reason(self) -> str:
        """Why the data stream is not the content, as the rest of a sentence."""
        if self.tag & 0xFFFF0FFF == 0x9000001A:
            return "kept in the cloud, with only a part of it on this disk"
        return _NAMES.get(self.tag, f"kept elsewhere by Windows (reparse tag 0x{self.tag:08x})")


def decode(buffer: bytes) -> Reparse | None:
    """The reparse point in ``buffer``; None when it is too short to be one."""
    if len(buffer) < 8:
        return None
    tag, length, _ = struct.unpack_from("<IHH", buffer)
    data = buffer[8 : 8 + length]
    if tag == _SYMLINK:
        return Reparse(tag, EntryType.SYMLINK, _names(data, 12, relative=_is_relative(data)))
    if tag == _MOUNT_POINT:
        return Reparse(tag, EntryType.SYMLINK, _names(data, 8, relative=False))
    if tag == _LX_SYMLINK:
        return Reparse(tag, EntryType.SYMLINK, data[4:] or None)
    if tag == WOF and data[:12] == _WOF_FILE and len(data) >= 16:
        return Reparse(tag, packing=struct.unpack_from("<I", data, 12)[0])
    if tag & _SURROGATE:
        return Reparse(tag, EntryType.SYMLINK)
    return Reparse(tag, _TYPES.get(tag))


def _is_relative(data: bytes) -> bool:
    return len(data) >= 12 and bool(struct.unpack_from("<I", data, 8)[0] & 1)


def _names(data: bytes, start: int, *, relative: bool) -> bytes | None:
    """The print name, else the substitute name without its ``\\??\\``, as UTF-8.

    Relative targets get slashes, so that they work where they are extracted; absolute ones
    (``C:\\Users``) stay as Windows writes them.
    """
    if len(data) < start:
        return None
    sub_offset, sub_length, print_offset, print_length = struct.unpack_from("<HHHH", data)
    for offset, length in ((print_offset, print_length), (sub_offset, sub_length)):
        raw = data[start + offset : start + offset + length]
        if length and len(raw) == length and length % 2 == 0:
            text = raw.decode("utf-16-le", "surrogatepass").removeprefix("\\??\\").split("\0")[0]
            text = text.replace("\\", "/") if relative else text
            return text.encode("utf-8", "surrogatepass") or None
    return None
