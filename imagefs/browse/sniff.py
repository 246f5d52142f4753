"""What a volume seems to be when no file system can be opened on it: magic numbers, nothing more.

The answer is only for a sentence; nothing is decided by it. Magics as in util-linux' libblkid.
"""

from __future__ import annotations

from imagefs.interfaces import Reader

#: (offset, magic, name, can be mounted with the kernel from pN.raw)
_MAGICS: tuple[tuple[int, bytes, str, bool], ...] = (
    (0, b"XFSB", "XFS", True),
    (0x10040, b"_BHRfS_M", "Btrfs", True),
    (1024, b"\x10\x20\xf5\xf2", "F2FS", True),
    (0, b"hsqs", "SquashFS", True),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS", True),
    (32, b"NXSB", "APFS", False),
    (3, b"-FVE-FS-", "BitLocker", False),
    (0, b"LUKS\xba\xbe", "LUKS encryption", True),
    (512, b"LABELONE", "LVM", True),
    (3, b"\0\0\0\0ReFS\0", "ReFS", False),
    (3, b"ReFS", "ReFS", False),
    (0x8000, b"JFS1", "JFS", True),
    (0x10034, b"ReIsEr", "ReiserFS", True),
    (1024 + 56, b"\x53\xef", "a damaged ext2/3/4", False),
    (3, b"NTFS    ", "a damaged NTFS", False),
    (3, b"EXFAT   ", "a damaged exFAT", False),
    (82, b"FAT32   ", "a damaged FAT32", False),
    (54, b"FAT", "a damaged FAT", False),
    (1024, b"H+", "a damaged HFS+", False),
    (0x8001, b"CD001", "a damaged ISO 9660", False),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID", False),
    (0, b"\xfc\x4e\x2b\xa9", "Linux RAID", False),
)
_SWAP = tuple(size - 10 for size in (4096, 8192, 16384, 65536))


def seems_to_be(reader: Reader) -> tuple[str, bool]:
    """(name, whether the kernel mounts it); ``("", False)`` when nothing is recognised."""
    for offset, magic, name, mountable in _MAGICS:
        if reader.read_at(offset, len(magic)) == magic:
            return name, mountable
    for offset in _SWAP:
        if reader.read_at(offset, 10) in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return "Linux swap space", False
    if looks_empty(reader):
        return "empty (zeros)", False
    return "", False


def looks_empty(reader: Reader) -> bool:
    head = reader.read_at(0, 1 << 16)
    return not any(head)


def refusal(reader: Reader, reason: str) -> tuple[str, str]:
    """(sentence, hint) for a volume that no file system could be opened on."""
    name, mountable = seems_to_be(reader)
    if not name:
        return "the volume holds no file system that can be browsed", _hint(False)
    what = f"the volume seems to be {name}, which cannot be browsed"
    if name.startswith("a damaged"):
        what = f"the volume seems to be {name}, which cannot be opened" + (f" ({reason})" if reason else "")
    return what, _hint(mountable)


def _hint(mountable: bool) -> str:
    if mountable:
        return "let the kernel mount the partition, which is pN.raw on a mount of the image"
    return "try the tools for it on the partition, which is pN.raw on a mount of the image"
