"""FAT12, FAT16 and FAT32: the boot sector, and the label in the root directory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imagefs.volume.facts import FileSystemFacts, Window, power_of_two

_MAX12, _MAX16, _MAX32 = 0xFF4, 0xFFF4, 0x0FFFFFF6
#: Of a root directory that is a chain of clusters, which may be endless, look at no more.
MAX_DIRECTORY = 256 << 10

_BPB = struct.Struct("<HBHBHHBH8xI")
_OTHERS = (b"JFS     ", b"HPFS    ")  # put a FAT-like boot sector before something else


@dataclass(frozen=True, slots=True)
class FatBoot:
    """A boot sector that passed ``parse_boot``. Sizes in bytes, positions in bytes of the volume."""

    kind: str
    size: int
    cluster: int
    fat_start: int
    root_start: int
    root_length: int
    root_cluster: int
    data_start: int
    serial: bytes
    clusters: int


def parse_boot(sector: bytes) -> FatBoot | None:
    """The FAT boot sector in ``sector`` (512 bytes), or None; as strict as libblkid."""
    if sector[510:512] != b"\x55\xaa" and not _names_itself(sector):
        return None
    fields = _BPB.unpack_from(sector, 11)
    sector_size, per_cluster, reserved, fats, root_entries, total16, media, fat16, total32 = fields
    fat32 = int.from_bytes(sector[36:40], "little")
    sane = power_of_two(sector_size, 512, 4096) and power_of_two(per_cluster, 1, 128)
    if not (sane and reserved and fats and (media == 0xF0 or media >= 0xF8)) or sector[54:62] in _OTHERS:
        return None
    total, fat_length = total16 or total32, fat16 or fat32
    root_sectors = -(-root_entries * 32 // sector_size)
    data = reserved + fats * fat_length + root_sectors
    clusters = (total - data) // per_cluster
    kind = _kind(clusters, is32=not fat16 and bool(fat32))
    if not kind or not fat_length:
        return None
    serial_at, signature_at = (67, 66) if kind == "fat32" else (39, 38)
    return FatBoot(
        kind=kind,
        size=total * sector_size,
        cluster=per_cluster * sector_size,
        fat_start=reserved * sector_size,
        root_start=(data - root_sectors) * sector_size,
        root_length=root_entries * 32,
        root_cluster=int.from_bytes(sector[44:48], "little") if kind == "fat32" else 0,
        data_start=data * sector_size,
        serial=sector[serial_at : serial_at + 4] if sector[signature_at] in (0x28, 0x29) else b"",
        clusters=clusters,
    )


def _names_itself(sector: bytes) -> bool:
    return sector[82:90] == b"FAT32   " or sector[54:62] in (b"FAT12   ", b"FAT16   ", b"FAT     ")


def _kind(clusters: int, *, is32: bool) -> str:
    """The kind by the count of clusters, as every implementation decides it; empty if impossible."""
    if clusters < 0:
        return ""
    if is32:
        return "fat32" if clusters <= _MAX32 else ""
    if clusters <= _MAX12:
        return "fat12"
    return "fat16" if clusters <= _MAX16 else ""


def probe(window: Window) -> FileSystemFacts | None:
    boot = parse_boot(window.at(0, 512))
    if boot is None:
        return None
    serial = boot.serial[::-1].hex().upper() if any(boot.serial) else ""
    return FileSystemFacts(
        kind=boot.kind,
        label=_label(window, boot),
        uuid=f"{serial[:4]}-{serial[4:]}" if serial else "",
        size=boot.size,
        block_size=boot.cluster,
    )


def _label(window: Window, boot: FatBoot) -> str:
    """The volume label of the root directory. That of the boot sector is what nobody keeps true."""
    for directory in _root(window, boot):
        for position in range(0, len(directory) - 31, 32):
            entry = directory[position : position + 32]
            if entry[0] == 0:
                return ""
            if _is_label(entry):
                name = (b"\xe5" + entry[1:11]) if entry[0] == 0x05 else entry[:11]
                return name.decode("cp850").rstrip(" \0")
    return ""


def _is_label(entry: bytes) -> bool:
    """A label has the volume bit and is no directory, no long name, and owns no cluster."""
    owns = any(entry[20:22]) or any(entry[26:28])
    return entry[0] != 0xE5 and entry[11] & 0x18 == 0x08 and entry[11] & 0x3F != 0x0F and not owns


def _root(window: Window, boot: FatBoot) -> Iterator[bytes]:
    """The root directory in pieces: a fixed area, or the clusters of its chain."""
    if boot.kind != "fat32":
        return iter((window.at(boot.root_start, boot.root_length),))
    return Heap(boot.fat_start, boot.data_start, boot.cluster, boot.clusters).chain(window, boot.root_cluster)


@dataclass(frozen=True, slots=True)
class Heap:
    """Clusters of FAT32 or exFAT, numbered from 2: where they and the table that links them begin."""

    fat_start: int
    data_start: int
    cluster: int
    clusters: int
    mask: int = 0x0FFFFFFF

    def chain(self, window: Window, first: int) -> Iterator[bytes]:
        """The bytes of a chain from cluster ``first``, no more than MAX_DIRECTORY of them."""
        number, rest = first, MAX_DIRECTORY
        while 2 <= number < self.clusters + 2 and rest > 0:
            yield window.at(self.data_start + (number - 2) * self.cluster, min(self.cluster, rest))
            rest -= max(self.cluster, 512)
            number = window.number(self.fat_start + number * 4, 4) & self.mask
