"""Which clusters an exFAT file system uses, by its allocation bitmap.

Source: Microsoft's exFAT file system specification, revision 1.00. PercentInUse is not compared:
Linux does not keep it. What is not understood or does not add up is an AllocationError.
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

_BITMAP, _UPCASE = 0x81, 0x82
_LAST, _BAD = 0xFFFFFFFF, 0xFFFFFFF7
#: A root directory has at most 256 MiB, as any directory.
_MAX_ROOT = 256 << 20
_TOGETHER = 16 << 20


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the boot sector says, in bytes; clusters are counted from 2."""

    fat: int
    heap: int
    cluster_size: int
    clusters: int
    root: int
    end: int

    def place(self, cluster: int) -> int:
        return self.heap + (cluster - 2) * self.cluster_size


def read_exfat(volume: Reader) -> UsedMap:
    """The used clusters of the file system on ``volume``. Raises AllocationError, and what reading raises."""
    fs = _layout(volume)
    chains = [_chain(volume, fs, fs.root, _MAX_ROOT)]
    bitmap: list[int] = []
    for kind, cluster, length in _root_files(volume, fs, chains[0]):
        chain = _chain(volume, fs, cluster, length)
        chains.append(chain)
        if kind == _BITMAP:
            if bitmap or length < -(-fs.clusters // 8):
                raise AllocationError("its allocation bitmap does not fit its clusters")
            bitmap = chain
    if not bitmap:
        raise AllocationError("it has no allocation bitmap")
    flags = _flags(volume, fs, bitmap)
    if not all(flags[np.array(chain, np.int64) - 2].all() for chain in chains):
        raise AllocationError("its allocation bitmap calls clusters free that its own tables use")
    used = UsedRuns(volume.size, fs.cluster_size)
    used.add_flags(flags, offset=fs.heap)
    # Boot area and table; and what lies behind the last cluster.
    used.add_bytes(0, fs.heap)
    used.add_bytes(fs.heap + fs.clusters * fs.cluster_size, volume.size)
    return used.finish("exFAT allocation bitmap")


def _layout(volume: Reader) -> _Layout:
    boot = volume.read_at(0, 512)
    if len(boot) < 512 or boot[3:11] != b"EXFAT   " or boot[510:] != b"\x55\xaa":
        raise AllocationError("its boot sector is not that of an exFAT file system")
    sectors, fat, fat_sectors, heap, clusters, root = struct.unpack_from("<QIIIII", boot, 72)
    flags, shift, cluster_shift, tables = struct.unpack_from("<HBBB", boot, 106)
    if not 9 <= shift <= 12 or shift + cluster_shift > 25 or tables != 1:
        raise AllocationError("its boot sector is of a kind of exFAT that is not understood here")
    _check_boot(volume, 1 << shift)
    if flags & 0b111:  # the second table is in use, dirty, has bad places
        raise AllocationError("it was not unmounted cleanly, or has errors")
    fits = fat >= 24 and fat + fat_sectors <= heap and (clusters + 2) * 4 <= fat_sectors << shift
    if not fits or not clusters or heap + (clusters << cluster_shift) > sectors:
        raise AllocationError("its boot sector makes no sense")
    if sectors << shift > volume.size:
        raise AllocationError(f"it has {sectors << shift} bytes, more than the {volume.size} of its volume")
    return _Layout(fat << shift, heap << shift, 1 << shift + cluster_shift, clusters, root, sectors << shift)


def _check_boot(volume: Reader, sector: int) -> None:
    """The sum over the first eleven sectors, without the fields that change (section 3.4)."""
    data = volume.read_at(0, 12 * sector)
    checksum = 0
    for at, byte in enumerate(data[: 11 * sector]):
        if at not in (106, 107, 112):
            checksum = ((checksum >> 1) + ((checksum & 1) << 31) + byte) & 0xFFFFFFFF
    if data[11 * sector :] != struct.pack("<I", checksum) * (sector // 4):
        raise AllocationError("the checksum of its boot region does not match")


def _chain(volume: Reader, fs: _Layout, cluster: int, length: int) -> list[int]:
    """The clusters of a chain that needs at most ``length`` bytes; each lies in the volume, none twice."""
    chain: list[int] = []
    limit = -(-length // fs.cluster_size)
    while cluster != _LAST:
        if not 2 <= cluster < fs.clusters + 2 or len(chain) >= limit:
            raise AllocationError("a chain of its table makes no sense")
        chain.append(cluster)
        cluster = int.from_bytes(volume.read_at(fs.fat + cluster * 4, 4), "little")
    if len(set(chain)) < len(chain):
        raise AllocationError("a chain of its table makes no sense")
    return chain


def _root_files(volume: Reader, fs: _Layout, root: list[int]) -> Iterator[tuple[int, int, int]]:
    """(kind, first cluster, length) of bitmap and up-case table in the root directory."""
    for cluster in root:
        data = volume.read_at(fs.place(cluster), fs.cluster_size)
        for at in range(0, len(data), 32):
            if data[at] == 0:
                return
            if data[at] in (_BITMAP, _UPCASE):
                first, length = struct.unpack_from("<IQ", data, at + 20)
                if length > fs.clusters * fs.cluster_size:
                    raise AllocationError("a file of its root directory makes no sense")
                yield data[at], first, length


def _flags(volume: Reader, fs: _Layout, bitmap: list[int]) -> npt.NDArray[np.uint8]:
    """One number for each cluster: whether it is used. Neighbouring clusters come in one read."""
    parts, at = [], 0
    while at < len(bitmap):
        stop = at + 1
        while stop < len(bitmap) and bitmap[stop] == bitmap[stop - 1] + 1:
            if (stop - at) * fs.cluster_size >= _TOGETHER:
                break
            stop += 1
        parts.append(volume.read_at(fs.place(bitmap[at]), (stop - at) * fs.cluster_size))
        at = stop
    data = b"".join(parts)
    if len(data) * 8 < fs.clusters:
        raise AllocationError("its allocation bitmap is cut short")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=fs.clusters, bitorder="little")
