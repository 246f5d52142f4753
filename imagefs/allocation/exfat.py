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

_BITMAP, _UPCASE, _FILE, _STREAM = 0x81, 0x82, 0x85, 0xC0
_LAST, _BAD = 0xFFFFFFFF, 0xFFFFFFF7
#: A root directory has at most 256 MiB, as any directory.
_MAX_ROOT = 256 << 20
_TOGETHER = 16 << 20
_PIECE = 1 << 20
#: As many as FAT32 can have: 8 TiB of clusters of 32 KiB. One byte of memory for each, and a few more.
_MAX_CLUSTERS = 1 << 28


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
    _check_files(volume, fs, flags, chains[0])
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
    if clusters > _MAX_CLUSTERS:
        raise AllocationError(f"it has {clusters} clusters, more than are looked into")
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


def _check_files(volume: Reader, fs: _Layout, flags: npt.NDArray[np.uint8], root: list[int]) -> None:
    """All clusters of every file and folder that has a name are used."""
    table, seen, waiting = _Table(volume, fs), {root[0]}, [root]
    while waiting:
        chain = waiting.pop()
        data = b"".join(volume.read_at(fs.place(cluster), fs.cluster_size) for cluster in chain)
        for is_folder, straight, first, length in _streams(data):
            count = -(-length // fs.cluster_size)
            if not count or not first:
                continue
            own = range(first, first + count) if straight else table.chain(first, count)
            if not 2 <= own[0] <= own[-1] < fs.clusters + 2 if straight else not own:
                raise AllocationError("a file of it lies in clusters that make no sense")
            places = slice(own[0] - 2, own[-1] - 1) if straight else np.array(own, np.int64) - 2
            if not flags[places].all():
                raise AllocationError("its allocation bitmap calls clusters free that a file of it uses")
            if is_folder and length <= _MAX_ROOT and first not in seen:
                seen.add(first)
                waiting.append(list(own))


def _streams(folder: bytes) -> Iterator[tuple[bool, bool, int, int]]:
    """(is a folder, lies in one piece, first cluster, bytes) of each file in a folder."""
    is_folder = False
    for at in range(0, len(folder) - 31, 32):
        kind = folder[at]
        if kind == 0:
            return
        if kind == _FILE:
            is_folder = bool(folder[at + 4] & 0x10)
        elif kind == _STREAM:
            yield (is_folder, bool(folder[at + 1] & 2), *struct.unpack_from("<IQ", folder, at + 20))


class _Table:
    """The table of chains, read in pieces of which one is kept."""

    def __init__(self, volume: Reader, fs: _Layout) -> None:
        self._volume, self._fs = volume, fs
        self._piece: tuple[int, bytes] = (-1, b"")
        self._left = fs.clusters  # no cluster belongs to two files

    def chain(self, cluster: int, count: int) -> list[int]:
        """Up to ``count`` clusters from ``cluster`` on; it ends where the table makes no sense."""
        found: list[int] = []
        while 2 <= cluster < self._fs.clusters + 2 and len(found) < count:
            if len(found) >= self._left:
                raise AllocationError("the chains of its table are longer than it has clusters")
            found.append(cluster)
            number, place = divmod(cluster * 4, _PIECE)
            if self._piece[0] != number:
                self._piece = number, self._volume.read_at(self._fs.fat + number * _PIECE, _PIECE)
            cluster = int.from_bytes(self._piece[1][place : place + 4], "little")
        self._left -= len(found)
        return found


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
