"""NTFS, exFAT, ReFS and BitLocker."""

from __future__ import annotations

import struct

from imagefs.volume.facts import FileSystemFacts, Window, power_of_two, text
from imagefs.volume.signatures.fat import Heap

_TO_GO = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
_VOLUME_RECORD = 3
_VOLUME_NAME = 0x60


def is_ntfs(sector: bytes) -> bool:
    return sector[3:11] == b"NTFS    " and power_of_two(int.from_bytes(sector[11:13], "little"), 256, 4096)


def is_exfat(sector: bytes) -> bool:
    """The name, the 53 bytes that must be zero so that no FAT driver takes it, and sane shifts."""
    return (
        sector[3:11] == b"EXFAT   "
        and not any(sector[11:64])
        and sector[510:512] == b"\x55\xaa"
        and 9 <= sector[108] <= 12
        and sector[108] + sector[109] <= 25
    )


def probe_bitlocker(window: Window) -> FileSystemFacts | None:
    sector = window.at(0, 512)
    windows = sector[:3] in (b"\xeb\x52\x90", b"\xeb\x58\x90") and sector[3:11] == b"-FVE-FS-"
    to_go = sector[3:11] == b"MSWIN4.1" and sector[424:440] == _TO_GO
    return FileSystemFacts("bitlocker") if windows or to_go else None


def probe_refs(window: Window) -> FileSystemFacts | None:
    return FileSystemFacts("refs") if window.at(0, 8) == b"\0\0\0ReFS\0" else None


def probe_ntfs(window: Window) -> FileSystemFacts | None:
    sector = window.at(0, 512)
    if not is_ntfs(sector):
        return None
    sector_size = int.from_bytes(sector[11:13], "little")
    cluster = sector_size * _shift_or_count(sector[13])
    if not power_of_two(cluster, 256, 2 << 20):
        return None
    serial = int.from_bytes(sector[72:80], "little")
    return FileSystemFacts(
        kind="ntfs",
        label=_ntfs_label(window, sector, cluster),
        uuid=f"{serial:016X}" if serial else "",
        size=int.from_bytes(sector[40:48], "little") * sector_size,
        block_size=cluster,
    )


def _shift_or_count(value: int) -> int:
    """A count up to 128; above, a negative power of two (clusters of more than 64 KiB)."""
    return value if value <= 128 else 1 << (256 - value)


def _ntfs_label(window: Window, sector: bytes, cluster: int) -> str:
    """The name attribute of $Volume, which is record 3 of the master file table."""
    per_record = sector[64]
    length = 1 << (256 - per_record) if per_record > 128 else per_record * cluster
    if not power_of_two(length, 512, 65536):
        return ""
    table = int.from_bytes(sector[48:56], "little") * cluster
    record = _fixed_up(window.at(table + _VOLUME_RECORD * length, length))
    position = int.from_bytes(record[20:22], "little")
    while 0 < position <= len(record) - 24:
        kind = int.from_bytes(record[position : position + 4], "little")
        size = int.from_bytes(record[position + 4 : position + 8], "little")
        if kind == _VOLUME_NAME and record[position + 8] == 0:
            count = int.from_bytes(record[position + 16 : position + 20], "little")
            start = position + int.from_bytes(record[position + 20 : position + 22], "little")
            return text(record[start : start + min(count, 256)], "utf-16-le")
        if kind == 0xFFFFFFFF or size < 16:
            return ""
        position += size
    return ""


def _fixed_up(record: bytes) -> bytes:
    """The record with the last two bytes of each 512 put back; empty when it is not one."""
    if record[:4] != b"FILE":
        return b""
    at, count = int.from_bytes(record[4:6], "little"), int.from_bytes(record[6:8], "little")
    fixed = bytearray(record)
    for number in range(1, min(count, len(record) // 512 + 1)):
        saved = record[at + 2 * number : at + 2 * number + 2]
        fixed[number * 512 - 2 : number * 512] = saved.ljust(2, b"\0")
    return bytes(fixed)


def probe_exfat(window: Window) -> FileSystemFacts | None:
    sector = window.at(0, 512)
    if not is_exfat(sector):
        return None
    sector_size, cluster = 1 << sector[108], 1 << (sector[108] + sector[109])
    serial = sector[100:104][::-1].hex().upper()
    return FileSystemFacts(
        kind="exfat",
        label=_exfat_label(window, sector, sector_size, cluster),
        uuid=f"{serial[:4]}-{serial[4:]}" if any(sector[100:104]) else "",
        size=int.from_bytes(sector[72:80], "little") * sector_size,
        block_size=cluster,
    )


def _exfat_label(window: Window, sector: bytes, sector_size: int, cluster: int) -> str:
    fat, _, heap, clusters, root = struct.unpack_from("<5I", sector, 80)
    chain = Heap(fat * sector_size, heap * sector_size, cluster, clusters, mask=0xFFFFFFFF)
    for directory in chain.chain(window, root):
        for position in range(0, len(directory) - 31, 32):
            kind = directory[position]
            if kind == 0:
                return ""
            if kind == 0x83:
                count = min(directory[position + 1], 11)
                return text(directory[position + 2 : position + 2 + 2 * count], "utf-16-le")
    return ""
