"""Which clusters a FAT12, FAT16 or FAT32 file system uses, by its file allocation table.

Source: Microsoft's FAT specification (fatgen103). Nothing is guessed: what is not understood, what was
not unmounted cleanly and what does not add up is an AllocationError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagefs.allocation.usedmap import UsedMap, UsedRuns
from imagefs.errors import AllocationError
from imagefs.interfaces import Reader

_FAT12_CLUSTERS, _FAT16_CLUSTERS, _FAT32_CLUSTERS = 4085, 65525, 0x0FFFFFF5
#: What is read of a table at once; whole entries of 12, 16 and 32 bits fit in it.
_PART = 12 << 20
_UNKNOWN = 0xFFFFFFFF
#: 65,536 entries of 32 bytes, and what is left of a last cluster.
_MAX_FOLDER = (2 << 20) + (1 << 18)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the boot sector says, in bytes; ``clusters`` counts those that hold data."""

    bits: int
    tables: tuple[int, ...]  # where each copy of the table begins
    table_size: int
    data: int
    cluster_size: int
    clusters: int
    end: int
    roots: int  # bytes of a root directory of fixed size, which lies right before the data
    root: int  # first cluster of any other
    info: int  # of FAT32's sector of counts, 0 where there is none
    dirty: bool


def read_fat(volume: Reader) -> UsedMap:
    """The used clusters of the file system on ``volume``. Raises AllocationError, and what reading raises."""
    fat = _layout(volume)
    flags = np.zeros(fat.clusters + 2, np.uint8)
    for first, entries in _entries(volume, fat):
        if first == 0:
            _check_state(fat, entries)
        _check_entries(fat, first, entries)
        flags[first : first + len(entries)] = entries != 0
    flags[:2] = 0
    _check_chains(volume, fat, flags)
    _check_folders(volume, fat, flags)
    used = UsedRuns(volume.size, fat.cluster_size)
    count = used.add_flags(flags[2:], offset=fat.data)
    free = _free_count(volume, fat)
    if free is not None and free != fat.clusters - count:
        raise AllocationError(f"it counts {free} free clusters and its table {fat.clusters - count}")
    # Boot area, tables and root directory; and what lies behind the last cluster.
    used.add_bytes(0, fat.data)
    used.add_bytes(fat.data + fat.clusters * fat.cluster_size, volume.size)
    return used.finish("file allocation table")


def _layout(volume: Reader) -> _Layout:
    boot = volume.read_at(0, 512)
    if len(boot) < 512 or boot[510:] != b"\x55\xaa":
        raise AllocationError("its boot sector is not that of a FAT file system")
    sector, per_cluster, reserved, copies, roots, small, _, small_fat = struct.unpack_from(
        "<HBHBHHBH", boot, 11
    )
    large, large_fat, ext_flags, version = struct.unpack_from("<IIHH", boot, 32)
    sectors, fat_sectors = small or large, small_fat or large_fat
    sane = sector in (512, 1024, 2048, 4096) and per_cluster.bit_count() == 1 and reserved and copies
    root_sectors = -(-roots * 32 // sector) if sane else 0
    data = reserved + copies * fat_sectors + root_sectors
    if not sane or not fat_sectors or data >= sectors:
        raise AllocationError("its boot sector makes no sense")
    clusters = (sectors - data) // per_cluster
    bits = 12 if clusters < _FAT12_CLUSTERS else 16 if clusters < _FAT16_CLUSTERS else 32
    wide = bits == 32
    if wide != (small_fat == 0) or (wide and (ext_flags & 0x80 or version or roots)):
        raise AllocationError("its boot sector is of a kind of FAT that is not understood here")
    if clusters >= _FAT32_CLUSTERS or (clusters + 2) * bits > fat_sectors * sector * 8:
        raise AllocationError("its table has no room for all its clusters")
    if sectors * sector > volume.size:
        raise AllocationError(f"it has {sectors * sector} bytes, more than the {volume.size} of its volume")
    info = struct.unpack_from("<H", boot, 48)[0] if wide else 0
    return _Layout(
        bits,
        tuple((reserved + number * fat_sectors) * sector for number in range(copies)),
        fat_sectors * sector,
        data * sector,
        per_cluster * sector,
        clusters,
        sectors * sector,
        root_sectors * sector,
        struct.unpack_from("<I", boot, 44)[0] if wide else 0,
        info * sector if 0 < info < reserved else 0,
        bool(boot[65 if wide else 37] & 3),
    )


def _entries(volume: Reader, fat: _Layout) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """(first cluster, entries of the first table); every other copy has to be the same."""
    total = (fat.clusters + 2) * fat.bits
    for at in range(0, -(-total // 8), _PART):
        length = min(_PART, -(-total // 8) - at)
        data = volume.read_at(fat.tables[0] + at, length)
        if any(volume.read_at(other + at, length) != data for other in fat.tables[1:]):
            raise AllocationError("the copies of its table differ")
        first = at * 8 // fat.bits
        yield first, _decoded(data, fat.bits)[: fat.clusters + 2 - first]


def _decoded(data: bytes, bits: int) -> npt.NDArray[np.uint32]:
    if bits == 32:
        return np.frombuffer(data, "<u4") & np.uint32(0x0FFFFFFF)
    if bits == 16:
        return np.frombuffer(data, "<u2").astype(np.uint32)
    triples = np.frombuffer(data + bytes(-len(data) % 3), np.uint8).reshape(-1, 3).astype(np.uint32)
    low = triples[:, 0] | (triples[:, 1] & 15) << 8
    high = triples[:, 1] >> 4 | triples[:, 2] << 4
    return np.stack((low, high), axis=1).reshape(-1)


def _check_state(fat: _Layout, entries: npt.NDArray[np.uint32]) -> None:
    """The second entry's two highest bits are set where all is well; FAT12 has none."""
    clean = 0xC000 if fat.bits == 16 else 0x0C000000
    if fat.dirty or (fat.bits != 12 and int(entries[1]) & clean != clean):
        raise AllocationError("it was not unmounted cleanly, or has errors")


def _limits(fat: _Layout) -> tuple[int, int]:
    """(number behind the last cluster, first of the values with a meaning of their own)."""
    return fat.clusters + 2, (0x0FFFFFF0, 0xFFF0, 0xFF0)[(32, 16, 12).index(fat.bits)]


def _check_entries(fat: _Layout, first: int, entries: npt.NDArray[np.uint32]) -> None:
    end, special = _limits(fat)
    values = entries[max(0, 2 - first) :]
    if bool(np.any((values == 1) | ((values >= end) & (values < special)))):
        raise AllocationError("its table has entries that make no sense")


def _check_chains(volume: Reader, fat: _Layout, flags: npt.NDArray[np.uint8]) -> None:
    """Each chain goes on to a cluster that is used, and no two to the same one."""
    end, _ = _limits(fat)
    targets = np.zeros(end, np.uint8)
    for first, entries in _entries(volume, fat):
        values = entries[max(0, 2 - first) :]
        values = values[(values >= 2) & (values < end)]
        if not bool(np.all(flags[values])):
            raise AllocationError("a chain of its table leads to a free cluster")
        if bool(np.any(targets[values])) or len(np.unique(values)) < len(values):
            raise AllocationError("two chains of its table meet")
        targets[values] = 1


def _check_folders(volume: Reader, fat: _Layout, flags: npt.NDArray[np.uint8]) -> None:
    """Every file and folder that has a name begins in a used cluster; then, as no chain leads to a free
    one, all of it is used."""
    waiting, seen = [fat.root] if fat.bits == 32 else [], np.zeros(len(flags), bool)
    if fat.bits == 32:
        _check_starts(fat, flags, np.array(waiting))
    else:
        waiting += _starts(fat, flags, volume.read_at(fat.data - fat.roots, fat.roots))
    while waiting:
        cluster, parts = waiting.pop(), []
        while 2 <= cluster < len(flags) and not seen[cluster]:
            seen[cluster] = True
            parts.append(volume.read_at(fat.data + (cluster - 2) * fat.cluster_size, fat.cluster_size))
            if len(parts) * fat.cluster_size > _MAX_FOLDER:
                raise AllocationError("it has a folder larger than a folder can be")
            cluster = _next(volume, fat, cluster)
        waiting += _starts(fat, flags, b"".join(parts))


def _starts(fat: _Layout, flags: npt.NDArray[np.uint8], folder: bytes) -> list[int]:
    """First clusters of the folders in a folder, once those of all its entries are checked."""
    rows = np.frombuffer(folder[: len(folder) // 32 * 32], np.uint8).reshape(-1, 32)
    ends = np.flatnonzero(rows[:, 0] == 0)
    rows = rows[: ends[0] if len(ends) else None]
    # Deleted ones, the folder itself and its parent, labels and parts of long names begin nothing.
    rows = rows[(rows[:, 0] != 0xE5) & (rows[:, 0] != 0x2E) & (rows[:, 11] & 0x08 == 0)]
    low, high = (rows[:, at].astype(np.int64) | rows[:, at + 1].astype(np.int64) << 8 for at in (26, 20))
    first = low | high << 16 if fat.bits == 32 else low
    _check_starts(fat, flags, first[first != 0])
    return [int(each) for each in first[(rows[:, 11] & 0x10 != 0) & (first != 0)]]


def _check_starts(fat: _Layout, flags: npt.NDArray[np.uint8], first: npt.NDArray[np.int64]) -> None:
    if bool(np.any((first < 2) | (first >= len(flags)))) or not bool(np.all(flags[first])):
        raise AllocationError("a file or folder of it begins in a cluster that its table calls free")


def _next(volume: Reader, fat: _Layout, cluster: int) -> int:
    """What the table says behind a cluster."""
    data = volume.read_at(fat.tables[0] + cluster * fat.bits // 8, 4)
    value = int.from_bytes(data, "little") >> (4 if fat.bits == 12 and cluster % 2 else 0)
    return value & (1 << min(fat.bits, 28)) - 1


def _free_count(volume: Reader, fat: _Layout) -> int | None:
    """What FAT32's information sector counts; None where it does not know."""
    if not fat.info:
        return None
    data = volume.read_at(fat.info, 512)
    if data[:4] != b"RRaA" or data[484:488] != b"rrAa":
        return None
    count = int(struct.unpack_from("<I", data, 488)[0])
    return None if count == _UNKNOWN else count
