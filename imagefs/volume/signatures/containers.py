"""What is no file system but holds one, or memory: LVM2, Linux RAID, LUKS, swap."""

from __future__ import annotations

from imagefs.volume.facts import ByteOrder, FileSystemFacts, Window, dashed, text
from imagefs.volume.mdraid import read_old_member

_RAID_MAGIC = b"\xfc\x4e\x2b\xa9"
_SWAP_MAGIC = frozenset({b"SWAPSPACE2", b"SWAP-SPACE"})
#: A hibernated machine: the swap space holds its memory.
_SUSPEND_MAGIC = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")
#: Version 1, by the byte order of the machine that made it.
_SWAP_VERSIONS: dict[bytes, ByteOrder] = {b"\x01\0\0\0": "little", b"\0\0\0\x01": "big"}
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)


def probe_lvm(window: Window) -> FileSystemFacts | None:
    """The label may be in any of the first four sectors; the UUID has dashes after 6, 4, 4 … 6."""
    for sector in range(4):
        label = window.at(sector * 512, 512)
        if label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001":
            header = min(int.from_bytes(label[20:24], "little"), 472)
            raw = label[header : header + 32].decode("ascii", "replace")
            cuts = (0, 6, 10, 14, 18, 22, 26, 32)
            parts = [raw[cuts[i] : cuts[i + 1]] for i in range(7)]
            size = int.from_bytes(label[header + 32 : header + 40], "little")
            return FileSystemFacts("lvm2", uuid="-".join(parts), size=size)
    return None


def probe_raid(window: Window) -> FileSystemFacts | None:
    """Superblock 1.1 at 0, 1.2 at 4 KiB, 1.0 near the end; each says itself where it lies. Then 0.90."""
    last = ((window.size // 512 - 16) & ~7) * 512
    for offset in (0, 4096, last):
        block = window.at(offset, 256)
        if block[:4] != _RAID_MAGIC or block[4:8] != b"\x01\0\0\0":
            continue
        if int.from_bytes(block[144:152], "little") * 512 == offset:
            size = int.from_bytes(block[136:144], "little") * 512
            return FileSystemFacts("raid", label=text(block[32:64]), uuid=dashed(block[16:32]), size=size)
    old = read_old_member(window)
    return FileSystemFacts("raid", uuid=old.array, size=old.size) if old is not None else None


def probe_luks(window: Window) -> FileSystemFacts | None:
    block = window.at(0, 512)
    version = int.from_bytes(block[6:8], "big")
    if block[:6] != b"LUKS\xba\xbe" or version not in (1, 2):
        return None
    label = text(block[24:72]) if version == 2 else ""
    return FileSystemFacts("luks", label=label, uuid=text(block[168:208], "ascii"))


def probe_swap(window: Window) -> FileSystemFacts | None:
    for page in _PAGE_SIZES:
        magic = window.at(page - 10, 10)
        if magic not in _SWAP_MAGIC and not magic.startswith(_SUSPEND_MAGIC):
            continue
        version = window.at(1024, 4)
        if magic == b"SWAP-SPACE" or version not in _SWAP_VERSIONS:
            return FileSystemFacts("swap", block_size=page)
        size = (window.number(1028, 4, _SWAP_VERSIONS[version]) + 1) * page
        label, unique = text(window.at(1052, 16)), dashed(window.at(1036, 16))
        return FileSystemFacts("swap", label=label, uuid=unique, size=size, block_size=page)
    return None
