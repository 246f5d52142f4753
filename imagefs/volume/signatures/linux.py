"""The file systems of Linux: ext, XFS, Btrfs, F2FS, squashfs."""

from __future__ import annotations

from imagefs.volume.facts import FileSystemFacts, Window, dashed, power_of_two, text

_HAS_JOURNAL = 0x4
_JOURNAL_DEVICE = 0x8
#: The features each older kind understands; anything else makes it ext4 (as libblkid decides).
_EXT3_RO = 0x1 | 0x2 | 0x4
_EXT3_INCOMPAT = 0x2 | 0x4 | 0x10
_EXT2_INCOMPAT = 0x2 | 0x10
_64BIT = 0x80


def probe_ext(window: Window) -> FileSystemFacts | None:
    block = window.at(1024, 1024)
    shift = int.from_bytes(block[24:28], "little")
    blocks = int.from_bytes(block[4:8], "little")
    incompat = int.from_bytes(block[96:100], "little")
    if block[56:58] != b"\x53\xef" or shift > 6 or incompat & _JOURNAL_DEVICE:
        return None
    if incompat & _64BIT:
        blocks |= int.from_bytes(block[336:340], "little") << 32
    if not blocks or not any(block[0:4]):
        return None
    return FileSystemFacts(
        kind=_ext_kind(block, incompat),
        label=text(block[120:136]),
        uuid=dashed(block[104:120]),
        size=blocks * (1024 << shift),
        block_size=1024 << shift,
    )


def _ext_kind(block: bytes, incompat: int) -> str:
    journal = int.from_bytes(block[92:96], "little") & _HAS_JOURNAL
    read_only = int.from_bytes(block[100:104], "little")
    if read_only & ~_EXT3_RO or incompat & ~_EXT3_INCOMPAT:
        return "ext4"
    if journal:
        return "ext3"
    return "ext2" if not incompat & ~_EXT2_INCOMPAT else "ext4"


def probe_xfs(window: Window) -> FileSystemFacts | None:
    block = window.at(0, 512)
    block_size = int.from_bytes(block[4:8], "big")
    if block[:4] != b"XFSB" or not power_of_two(block_size, 512, 65536):
        return None
    return FileSystemFacts(
        kind="xfs",
        label=text(block[108:120]),
        uuid=dashed(block[32:48]),
        size=int.from_bytes(block[8:16], "big") * block_size,
        block_size=block_size,
    )


def probe_btrfs(window: Window) -> FileSystemFacts | None:
    """The size is that of the whole file system, which may span several devices."""
    block = window.at(65536, 4096)
    sector_size = int.from_bytes(block[144:148], "little")
    if block[64:72] != b"_BHRfS_M" or not power_of_two(sector_size, 512, 65536):
        return None
    return FileSystemFacts(
        kind="btrfs",
        label=text(block[299:555]),
        uuid=dashed(block[32:48]),
        size=int.from_bytes(block[112:120], "little"),
        block_size=sector_size,
    )


def probe_f2fs(window: Window) -> FileSystemFacts | None:
    block = window.at(1024, 1152)
    shift = int.from_bytes(block[16:20], "little")
    if block[:4] != b"\x10\x20\xf5\xf2" or not 9 <= shift <= 16:
        return None
    return FileSystemFacts(
        kind="f2fs",
        label=text(block[124:1148], "utf-16-le"),
        uuid=dashed(block[108:124]),
        size=int.from_bytes(block[36:44], "little") << shift,
        block_size=1 << shift,
    )


def probe_erofs(window: Window) -> FileSystemFacts | None:
    block = window.at(1024, 128)
    if block[:4] != b"\xe2\xe1\xf5\xe0" or not 9 <= block[12] <= 16:
        return None
    return FileSystemFacts(
        kind="erofs",
        label=text(block[64:80]),
        uuid=dashed(block[48:64]),
        size=int.from_bytes(block[36:40], "little") << block[12],
        block_size=1 << block[12],
    )


def probe_squashfs(window: Window) -> FileSystemFacts | None:
    block = window.at(0, 96)
    block_size = int.from_bytes(block[12:16], "little")
    if block[:4] != b"hsqs" or block[28:30] != b"\x04\x00" or not power_of_two(block_size, 4096, 1 << 20):
        return None
    return FileSystemFacts(
        kind="squashfs",
        size=int.from_bytes(block[40:48], "little"),
        block_size=block_size,
    )
