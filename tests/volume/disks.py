"""Disks for the tests of this room: readers that count or fail, tables by sfdisk, sgdisk and by hand."""

from __future__ import annotations

import binascii
import json
import os
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fixtures.tools import run_tool
from imagefs.block.views import BytesReader, clamp
from imagefs.errors import SourceError
from imagefs.interfaces import Volume
from imagefs.volume import VolumeTable, read_table
from tests.support.oracles import need_tool

MIB = 1 << 20
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
DISK_GUID = "5b0e9ab3-60b6-4d5d-8a71-5ef8a9d1c0de"


class FileReader:
    """A Reader over a file of any size, with pread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int, /) -> bytes:
        return os.pread(self._fd, clamp(self.size, offset, length), offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()


class SparseReader:
    """A disk of any size that is zero but for some pieces."""

    def __init__(self, size: int, pieces: dict[int, bytes]) -> None:
        self.size = size
        self._pieces = pieces

    def read_at(self, offset: int, length: int, /) -> bytes:
        data = bytearray(clamp(self.size, offset, length))
        for start, piece in self._pieces.items():
            low, high = max(offset, start), min(offset + len(data), start + len(piece))
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)

    def close(self) -> None:
        pass


class CountingReader(BytesReader):
    """Bytes in memory that count what is asked of them, so that a test can bound the work."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.calls = 0
        self.total = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        data = super().read_at(offset, length)
        self.calls += 1
        self.total += len(data)
        return data


class FailingReader(BytesReader):
    """Bytes in memory some ranges of which cannot be read."""

    def __init__(self, data: bytes, *bad: range) -> None:
        super().__init__(data)
        self._bad = bad

    def read_at(self, offset: int, length: int, /) -> bytes:
        if any(offset < bad.stop and bad.start < offset + length for bad in self._bad):
            raise SourceError(f"cannot read {length} bytes at {offset}", offset=offset)
        return super().read_at(offset, length)


def table_of(disk: bytes | bytearray | Path, *, sector_size: int = 512) -> VolumeTable:
    reader = FileReader(disk) if isinstance(disk, Path) else BytesReader(bytes(disk))
    table = read_table(reader, sector_size=sector_size)
    reader.close()
    return table


def codes(table: VolumeTable) -> list[str]:
    return [finding.code for finding in table.findings]


def in_sectors(volumes: Iterable[Volume], sector_size: int = 512) -> list[tuple[int, int, int]]:
    """Number, start and length of each, in sectors."""
    return [(v.number, v.start // sector_size, v.length // sector_size) for v in volumes]


# -- tables by tools ------------------------------------------------------------------------------


def empty_disk(folder: Path, size: int = 64 * MIB, name: str = "disk.img") -> Path:
    path = folder / name
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def sfdisk(path: Path, script: str) -> None:
    need_tool("sfdisk")
    run_tool(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path], stdin=script.encode())


def sgdisk(path: Path, *words: str) -> None:
    need_tool("sgdisk")
    run_tool(["sgdisk", *words, path])


def fdisk_4096(path: Path, script: str) -> None:
    """What fdisk makes of ``script`` on a disk with sectors of 4,096 bytes."""
    need_tool("fdisk")
    run_tool(["fdisk", "--sector-size", "4096", "--wipe", "never", path], stdin=script.encode())


def by_sfdisk(path: Path) -> tuple[dict[str, str], list[Volume]]:
    """What ``sfdisk -J`` sees: the facts of the table, and its volumes without extended ones."""
    need_tool("sfdisk")
    table = json.loads(run_tool(["sfdisk", "-J", path]).stdout)["partitiontable"]
    volumes = []
    for part in table.get("partitions", ()):
        mbr = table["label"] == "dos"
        if mbr and int(part["type"], 16) in (0x05, 0x0F, 0x85):
            continue
        number = int(part["node"].removeprefix(str(path)))
        disk = table["id"].removeprefix("0x")
        volumes.append(
            Volume(
                number,
                part["start"] * 512,
                part["size"] * 512,
                f"0x{int(part['type'], 16):02x}" if mbr else part["type"].lower(),
                f"{disk}-{number:02x}" if mbr else part["uuid"].lower(),
                part.get("name", ""),
                bootable=part.get("bootable", "LegacyBIOSBootable" in part.get("attrs", "")),
            )
        )
    return table, volumes


def without_roles(volumes: Iterable[Volume]) -> list[Volume]:
    return [Volume(v.number, v.start, v.length, v.type, v.uuid, v.name, bootable=v.bootable) for v in volumes]


# -- tables by hand: for what no tool would write --------------------------------------------------


def row(type_: int, first: int, count: int, flag: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", flag, b"\xfe\xff\xff", type_, b"\xfe\xff\xff", first, count)


def table_sector(*rows: bytes, disk_id: int = 0x11223344, signature: bytes = b"\x55\xaa") -> bytes:
    """A sector with up to four rows, for sector 0 and for every link of a chain."""
    return bytes(440) + struct.pack("<IH", disk_id, 0) + b"".join(rows).ljust(64, b"\0") + signature


def disk_with(sectors: dict[int, bytes], count: int = 4096, sector_size: int = 512) -> bytearray:
    disk = bytearray(count * sector_size)
    for lba, data in sectors.items():
        disk[lba * sector_size : lba * sector_size + len(data)] = data
    return disk


@dataclass(frozen=True)
class Gpt:
    """A GPT by hand. ``entries`` are raw rows by slot; every field may be set to nonsense."""

    entries: tuple[bytes, ...] = ()
    sectors: int = 4096
    sector_size: int = 512
    entry_size: int = 128
    entry_count: int = 128
    header_size: int = 92

    def table(self) -> bytes:
        rows = b"".join(entry.ljust(self.entry_size, b"\0") for entry in self.entries)
        return rows.ljust(self.entry_count * self.entry_size, b"\0")

    def header(self, lba: int, alternate: int, entries_lba: int, **nonsense: int) -> bytes:
        entries_crc = nonsense.get("entries_crc", binascii.crc32(self.table()))
        count = nonsense.get("entry_count", self.entry_count)
        size = nonsense.get("entry_size", self.entry_size)
        head = struct.pack("<8sII", b"EFI PART", 0x10000, nonsense.get("header_size", self.header_size))
        tail = struct.pack("<IQQQQ", 0, lba, alternate, 34, self.sectors - 34)
        tail += uuid.UUID(DISK_GUID).bytes_le + struct.pack("<QIII", entries_lba, count, size, entries_crc)
        tail = tail.ljust(self.header_size - 20, b"\0")
        return head + struct.pack("<I", binascii.crc32(head + bytes(4) + tail)) + tail

    def disk(self, **nonsense: int) -> bytearray:
        """The whole disk: protective row, both copies; ``nonsense`` goes into both headers."""
        last, length = self.sectors - 1, -(-len(self.table()) // self.sector_size)
        sectors = {
            0: table_sector(row(0xEE, 1, last)),
            1: self.header(1, last, 2, **nonsense),
            2: self.table(),
            last - length: self.table(),
            last: self.header(last, 1, last - length, **nonsense),
        }
        return disk_with(sectors, self.sectors, self.sector_size)


def entry(
    first: int, last: int, *, name: str = "", type_: str = LINUX, number: int = 1, flags: int = 0
) -> bytes:
    ids = uuid.UUID(type_).bytes_le + uuid.UUID(int=number).bytes_le
    return ids + struct.pack("<QQQ", first, last, flags) + name.encode("utf-16-le")
