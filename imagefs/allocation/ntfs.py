"""Which clusters an NTFS volume uses, by its $Bitmap.

Sources: the NTFS documentation of the linux-ntfs project and libfsntfs; what makes a $LogFile clean,
as ntfs-3g sees it. What is not understood or does not add up is an AllocationError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from imagefs.allocation.usedmap import UsedMap, UsedRuns
from imagefs.errors import AllocationError
from imagefs.interfaces import Reader

#: Opens a file of the volume by its path from the root; None where there is no such file.
OpenFile = Callable[[bytes], Reader | None]

_PART = 8 << 20
_VOLUME_RECORD, _VOLUME_INFORMATION, _END = 3, 0x70, 0xFFFFFFFF
#: dirty; chkdsk is under way
_DIRTY = 0x0001 | 0x4000
_LOG_CLEAN, _NO_CLIENT = 0x0002, 0xFFFF


@dataclass(frozen=True, slots=True)
class _Layout:
    cluster_size: int
    clusters: int
    mft: int  # bytes, as are the next ones
    mirror: int
    record_size: int


def read_ntfs(volume: Reader, open_file: OpenFile) -> UsedMap:
    """The used clusters of ``volume``, whose files ``open_file`` opens.

    Raises AllocationError, and what reading and opening raise.
    """
    layout = _layout(volume)
    _check_clean(volume, layout)
    _check_log(_needed(open_file, b"/$LogFile"))
    check_awake(open_file(b"/hiberfil.sys"))
    bitmap = _needed(open_file, b"/$Bitmap")
    if bitmap.size < -(-layout.clusters // 8):
        raise AllocationError("its $Bitmap has no room for all its clusters")
    own = {0, layout.mft // layout.cluster_size, layout.mirror // layout.cluster_size}
    used = UsedRuns(volume.size, layout.cluster_size)
    for at in range(0, -(-layout.clusters // 8), _PART):
        bits = bitmap.read_at(at, _PART)
        count = min(len(bits) * 8, layout.clusters - at * 8)
        used.add_bits(bits, count, base=at * 8)
        inside = [cluster - at * 8 for cluster in own if 0 <= cluster - at * 8 < count]
        if not all(bits[place >> 3] >> (place & 7) & 1 for place in inside):
            raise AllocationError("its $Bitmap calls clusters free that its own tables use")
    # The copy of the boot sector lies behind the last cluster.
    used.add_bytes(layout.clusters * layout.cluster_size, volume.size)
    return used.finish("NTFS $Bitmap")


def _layout(volume: Reader) -> _Layout:
    boot = volume.read_at(0, 512)
    if len(boot) < 512 or boot[3:11] != b"NTFS    ":
        raise AllocationError("its boot sector is not that of NTFS")
    sector, per_cluster = struct.unpack_from("<HB", boot, 11)
    sectors, mft, mirror = struct.unpack_from("<QQQ", boot, 40)
    per_cluster = per_cluster if per_cluster <= 128 else 1 << 256 - per_cluster
    record = struct.unpack_from("<b", boot, 64)[0]
    sane = 256 <= sector <= 4096 and sector.bit_count() == 1
    sane = sane and per_cluster.bit_count() == 1 and sector * per_cluster <= 2 << 20
    size = sector * per_cluster
    record_size = record * size if record > 0 else 1 << min(-record, 31)
    clusters = sectors // per_cluster if sane else 0
    sane = sane and 512 <= record_size <= 65536 and record_size.bit_count() == 1
    if not sane or not mft < clusters or not mirror < clusters:
        raise AllocationError("its boot sector makes no sense")
    if sectors * sector > volume.size:
        raise AllocationError(f"it has {sectors * sector} bytes, more than the {volume.size} of its volume")
    return _Layout(size, clusters, mft * size, mirror * size, record_size)


def _check_clean(volume: Reader, layout: _Layout) -> None:
    """By the flags in $VOLUME_INFORMATION; the first records of the MFT lie where the boot sector says."""
    place = layout.mft + _VOLUME_RECORD * layout.record_size
    record = _fixed_up(volume.read_at(place, layout.record_size))
    at = struct.unpack_from("<H", record, 20)[0]
    while at + 24 <= len(record):
        kind, length, resident = struct.unpack_from("<IIB", record, at)
        if kind == _END or length < 24 or length % 8:
            break
        if kind == _VOLUME_INFORMATION and not resident:
            value = at + struct.unpack_from("<H", record, at + 20)[0]
            major, flags = record[value + 8 : value + 9], record[value + 10 : value + 12]
            if len(flags) < 2 or major not in (b"\x01", b"\x03"):
                break
            if int.from_bytes(flags, "little") & _DIRTY:
                raise AllocationError("it was not unmounted cleanly, or has errors")
            return
        at += length
    raise AllocationError("its $Volume does not say whether it was unmounted cleanly")


def _fixed_up(record: bytes) -> bytes:
    """A record with the last two bytes of each of its sectors put back."""
    if len(record) < 512 or record[:4] != b"FILE":
        raise AllocationError("the record of its $Volume is damaged")
    where, count = struct.unpack_from("<HH", record, 4)
    if where + 2 * count > 510 or count < 2 or (count - 1) * 512 > len(record):
        raise AllocationError("the record of its $Volume is damaged")
    fixed = bytearray(record)
    for number in range(1, count):
        end = number * 512
        if fixed[end - 2 : end] != record[where : where + 2]:
            raise AllocationError("the record of its $Volume is damaged")
        fixed[end - 2 : end] = record[where + 2 * number : where + 2 * number + 2]
    return bytes(fixed)


def _check_log(log: Reader) -> None:
    """The newer of the two restart pages says that no client is in the log, or that all is done."""
    head = log.read_at(0, 512)
    if head == b"\xff" * len(head):
        return  # as mkntfs makes it, and who empties it
    page = struct.unpack_from("<I", head, 16)[0] if len(head) == 512 else 0
    areas = [_restart(log.read_at(at, 512)) for at in (0, page if 512 <= page <= 65536 else 0)]
    found = [area for area in areas if area is not None]
    if not found:
        raise AllocationError("its $LogFile is not understood")
    _, in_use, flags = max(found)
    if in_use != _NO_CLIENT and not flags & _LOG_CLEAN:
        raise AllocationError("its journal has to be replayed first")


def _restart(page: bytes) -> tuple[int, int, int] | None:
    """(sequence number, first client, flags) of a restart page."""
    if len(page) < 512 or page[:4] != b"RSTR":
        return None
    at = struct.unpack_from("<H", page, 24)[0]
    if not 30 <= at <= 480:
        return None
    sequence, _, _, in_use, flags = struct.unpack_from("<QHHHH", page, at)
    return sequence, in_use, flags


def check_awake(hiberfil: Reader | None) -> None:
    """AllocationError where ``hiberfil`` holds the memory of a machine that sleeps."""
    if hiberfil is not None and hiberfil.read_at(0, 4).lower() == b"hibr":
        raise AllocationError("Windows is hibernated on it, or shut down by fast startup")


def _needed(open_file: OpenFile, path: bytes) -> Reader:
    file = open_file(path)
    if file is None:
        raise AllocationError(f"it has no {path[1:].decode()}")
    return file
