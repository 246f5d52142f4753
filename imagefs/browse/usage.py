"""Label and used bytes of a file system, from its own books. The callers hand in what they can read.

``read_system(inode or name, attribute type)`` gives a system file as bytes, empty when there is none.
None of this is needed to browse: what does not make sense is answered with nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from imagefs.browse.extinode import read_superblock
from imagefs.interfaces import Reader

ReadSystem = Callable[[int | bytes, int], bytes]

#: The bitmap of 2 TiB in 4 KiB clusters; of larger volumes no figure is worth the reading.
MAX_SYSTEM_FILE = 64 << 20
EXFAT_BITMAP = b"$ALLOC_BITMAP"
EXFAT_SYSTEM = frozenset({EXFAT_BITMAP, b"$UPCASE_TABLE"})
_NTFS_BITMAP, _NTFS_VOLUME = 6, 3
_NTFS_DATA, _NTFS_NAME = 128, 96
_STEP = 1 << 20


def label(kind: str, reader: Reader, read_system: ReadSystem) -> str:
    if kind == "ntfs":
        return read_system(_NTFS_VOLUME, _NTFS_NAME).decode("utf-16-le", "replace")
    if kind.startswith("ext"):
        superblock = read_superblock(reader)
        return superblock.label if superblock else ""
    if kind == "iso9660":
        return reader.read_at(0x8028, 32).decode("ascii", "replace").strip(" \0")
    if kind == "exfat":
        return _exfat_label(reader)
    return _fat_label(reader, kind) if kind.startswith("fat") else ""


def used_bytes(kind: str, reader: Reader, read_system: ReadSystem) -> int | None:
    boot = reader.read_at(0, 512)
    if len(boot) < 512:
        return None
    if kind == "ntfs":
        cluster = _ntfs_cluster(boot)
        bitmap = read_system(_NTFS_BITMAP, _NTFS_DATA) if cluster else b""
        return _ones(bitmap) * cluster if 0 < len(bitmap) < MAX_SYSTEM_FILE else None
    if kind.startswith("ext"):
        superblock = read_superblock(reader)
        if superblock is None or superblock.free_blocks > superblock.blocks:
            return None
        return (superblock.blocks - superblock.free_blocks) * superblock.block_size
    if kind == "exfat":
        bitmap = read_system(EXFAT_BITMAP, 1)
        return _ones(bitmap) << (boot[108] + boot[109]) if 0 < len(bitmap) < MAX_SYSTEM_FILE else None
    if kind == "hfs":
        size, total, free = struct.unpack(">III", reader.read_at(1024 + 40, 12))
        return int((total - free) * size) if free <= total else None
    if kind == "iso9660":
        return int(struct.unpack("<I", reader.read_at(0x8050, 4))[0]) * 2048
    return _fat_used(reader, kind, boot) if kind.startswith("fat") else None


def _ones(data: bytes) -> int:
    return sum(
        int.from_bytes(data[at : at + _STEP], "little").bit_count() for at in range(0, len(data), _STEP)
    )


def _ntfs_cluster(boot: bytes) -> int:
    sector = int(struct.unpack_from("<H", boot, 11)[0])
    per_cluster = boot[13]
    return sector * (per_cluster if per_cluster <= 128 else 1 << min(256 - per_cluster, 31))


class _Fat:
    """Where things are on FAT12/16/32, in bytes."""

    def __init__(self, boot: bytes) -> None:
        fields: tuple[int, ...] = struct.unpack_from("<HBHBH", boot, 11)
        self.sector, per_cluster, reserved, fats, root = fields
        total = struct.unpack_from("<H", boot, 19)[0] or struct.unpack_from("<I", boot, 32)[0]
        total = total or struct.unpack_from("<Q", boot, 82)[0]
        per_fat = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
        self.fat = reserved * self.sector
        self.cluster = per_cluster * self.sector
        self.root = self.fat + fats * per_fat * self.sector
        self.data = self.root + root * 32
        self.root_entries = root
        self.clusters = max(0, total * self.sector - self.data) // (self.cluster or 1)


def _fat_used(reader: Reader, kind: str, boot: bytes) -> int | None:
    import numpy as np  # slow to load, and most volumes need none of it

    fat = _Fat(boot)
    if not fat.cluster:
        return None
    bits = int(kind.removeprefix("fat"))
    length = min((fat.clusters + 2) * bits // 8 + 1, max(0, reader.size - fat.fat))
    if bits == 12:
        return _used12(reader.read_at(fat.fat, min(length, 8192)), fat.clusters) * fat.cluster
    step, used, left = bits // 8, 0, fat.clusters
    at = fat.fat + 2 * step
    while left > 0:
        raw = reader.read_at(at, min(_STEP, left * step))
        table = np.frombuffer(raw[: len(raw) // step * step], dtype=f"<u{step}")
        if not len(table):
            return None
        used += int(np.count_nonzero(table & (0x0FFFFFFF if bits == 32 else 0xFFFF)))
        left -= len(table)
        at += len(table) * step
    return used * fat.cluster


def _used12(raw: bytes, clusters: int) -> int:
    used = 0
    for number in range(2, min(clusters, 4085) + 2):
        at = number * 3 // 2
        value = int.from_bytes(raw[at : at + 2], "little")
        used += bool((value >> 4) if number & 1 else value & 0xFFF)
    return used


def _fat_label(reader: Reader, kind: str) -> str:
    """The label of the root directory, else that of the boot sector."""
    boot = reader.read_at(0, 512)
    if len(boot) < 512:
        return ""
    fat = _Fat(boot)
    at, length = fat.root, min(fat.root_entries * 32, 1 << 16)
    if kind == "fat32":
        cluster = max(2, struct.unpack_from("<I", boot, 44)[0])
        at, length = fat.data + (cluster - 2) * fat.cluster, min(fat.cluster, 1 << 16)
    raw = reader.read_at(at, length)
    for slot in range(0, len(raw) - 31, 32):
        if raw[slot] == 0:
            break
        if raw[slot] != 0xE5 and raw[slot + 11] & 0x18 == 0x08 and raw[slot + 11] != 0x0F:
            return raw[slot : slot + 11].decode("cp437").rstrip()
    place = 71 if kind == "fat32" else 43
    text = boot[place : place + 11].decode("cp437").rstrip(" \0")
    return "" if text == "NO NAME" else text


def _exfat_label(reader: Reader) -> str:
    """The label entry (0x83) in the first cluster of the root directory."""
    boot = reader.read_at(0, 512)
    if len(boot) < 512 or not (9 <= boot[108] <= 12 and boot[108] + boot[109] <= 25):
        return ""
    heap, _, root = struct.unpack_from("<III", boot, 88)
    at = (heap << boot[108]) + (max(2, root) - 2 << boot[108] + boot[109])
    raw = reader.read_at(at, 1 << 16)
    for slot in range(0, len(raw) - 31, 32):
        if raw[slot] == 0:
            break
        if raw[slot] == 0x83:
            return raw[slot + 2 : slot + 2 + 2 * min(raw[slot + 1], 11)].decode("utf-16-le", "replace")
    return ""
