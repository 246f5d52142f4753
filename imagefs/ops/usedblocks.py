"""Which bytes of a disk need no capture: those that its file systems do not use, and what swap holds.

The rule: whatever is not understood, or does not add up, is captured whole, and the reason is told.
Boot areas, gaps between volumes and both partition tables lie in no file system, so they always stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imagefs.allocation import partclone
from imagefs.allocation.exfat import read_exfat
from imagefs.allocation.ext import read_ext
from imagefs.allocation.fat import read_fat
from imagefs.allocation.ntfs import check_awake, read_ntfs
from imagefs.allocation.swap import read_swap
from imagefs.allocation.usedmap import UsedMap
from imagefs.block.devices import DeviceReader
from imagefs.block.views import SliceReader
from imagefs.errors import AllocationError, ImagefsError, PathNotFound
from imagefs.interfaces import EntryType, FileSystem, Reader, Volume
from imagefs.ops.skips import I64, NOTHING, Skips
from imagefs.volume import probe, read_table, rivals

#: How the map of a file system is read, by the kind that the probe names.
READERS: dict[str, Callable[[Reader], UsedMap]] = {
    "ext2": read_ext,
    "ext3": read_ext,
    "ext4": read_ext,
    "fat12": read_fat,
    "fat16": read_fat,
    "fat32": read_fat,
    "exfat": read_exfat,
    "swap": read_swap,
}
#: What Windows keeps memory in, in the root of a volume; it makes each anew when it needs it.
SWAP_FILES = (b"/pagefile.sys", b"/hiberfil.sys", b"/swapfile.sys")
_WINDOWS = frozenset({"ntfs", "fat12", "fat16", "fat32", "exfat"})


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """What is captured of one volume, in bytes; ``reason`` says why all of it, where that is so."""

    volume: str
    kind: str
    length: int
    used_bytes: int
    source: str = ""
    reason: str = ""


def find_skips(
    source: DeviceReader, *, sector_size: int, keep_swap: bool = False, changing: str = ""
) -> tuple[Skips, list[VolumeUse]]:
    """What of ``source`` needs no capture, and what is to be told of each volume.

    Content never makes it raise. ``keep_swap`` keeps swap areas and the files that Windows keeps memory
    in; ``changing`` says why no map can be believed, where the source was not still: then only swap is left out.
    """
    try:
        volumes = read_table(source, sector_size=sector_size).volumes
    except ImagefsError as error:
        return NOTHING, [VolumeUse("disk", "", source.size, source.size, reason=error.message)]
    found, uses = [], []
    for volume in volumes:
        use, ranges = _look_at(source, volume, volumes, keep_swap=keep_swap, changing=changing)
        uses.append(use)
        found.append(ranges)
    return _joined(found), uses


def _look_at(
    source: DeviceReader, volume: Volume, others: Sequence[Volume], *, keep_swap: bool, changing: str
) -> tuple[VolumeUse, tuple[I64, I64]]:
    """One volume: what is told of it, and its unused ranges in bytes of the disk."""
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    part, kind = SliceReader(source, volume.start, volume.length), ""
    try:
        kind = probe(part).kind
        if changing and kind != "swap":
            raise AllocationError(changing)
        if kind == "swap" and keep_swap:
            raise AllocationError("it was asked to keep swap")
        _check_alone(volume, others)
        used = _read_map(source, volume, part, kind)
        first, end = _complement(used, volume.length)
        if kind in _WINDOWS:
            first, end = _without_swap_files(part, first, end, keep_swap=keep_swap)
    except ImagefsError as error:
        return VolumeUse(volume.id, kind, volume.length, volume.length, reason=error.message), none
    left_out = int((end - first).sum())
    use = VolumeUse(volume.id, kind, volume.length, volume.length - left_out, used.source)
    return use, (first + volume.start, end + volume.start)


def _check_alone(volume: Volume, others: Sequence[Volume]) -> None:
    for other in others:
        overlap = volume.start < other.start + other.length and other.start < volume.start + volume.length
        if other is not volume and overlap:
            raise AllocationError(f"it overlaps {other.id}")


def _read_map(source: DeviceReader, volume: Volume, part: Reader, kind: str) -> UsedMap:
    if kind not in READERS and kind not in partclone.KINDS and kind != "ntfs":
        raise AllocationError(
            f"which blocks of {kind} are used is not known" if kind else "no file system is known on it"
        )
    rival = rivals(part, kind)
    if rival:
        raise AllocationError(f"it looks like {kind} and like {rival}")
    if kind == "ntfs":
        return _read_ntfs(part)
    if kind in partclone.KINDS:
        return partclone.read_partclone(part, source.place, volume.start, kind)
    return READERS[kind](part)


def _read_ntfs(part: Reader) -> UsedMap:
    with contextlib.closing(_open(part)) as fs:

        def open_file(path: bytes) -> Reader | None:
            try:
                return fs.open(fs.lookup(path))
            except PathNotFound:
                return None

        return read_ntfs(part, open_file)


def _without_swap_files(part: Reader, first: I64, end: I64, *, keep_swap: bool) -> tuple[I64, I64]:
    """The unused ranges of a volume, and where the contents of its swap files lie.

    AllocationError where a machine is hibernated on it: what it holds in memory is not on the disk yet.
    """
    places = []
    with contextlib.closing(_open(part)) as fs:
        for path in SWAP_FILES:
            with contextlib.suppress(PathNotFound):
                entry = fs.lookup(path)
                if entry.type is EntryType.FILE and not set(entry.flags) & {"compressed", "encrypted"}:
                    check_awake(fs.open(entry))
                    places += [(place.first, place.end) for place in fs.places(entry) if not place.stream]
    if not places or keep_swap:
        return first, end
    more = np.array(places, np.int64)
    if int(more.min()) < 0 or int(more.max()) > part.size:
        raise AllocationError("a swap file lies past its end")
    skips = _joined([(first, end), (more[:, 0], more[:, 1])])
    return skips.first, skips.end


def _open(part: Reader) -> FileSystem:
    from imagefs.browse.apart import open_apart

    return open_apart(part)


def _complement(used: UsedMap, size: int) -> tuple[I64, I64]:
    first = np.concatenate(([0], used.end)).astype(np.int64)
    end = np.concatenate((used.first, [size])).astype(np.int64)
    keep = end > first
    return first[keep], end[keep]


def _joined(parts: Sequence[tuple[I64, I64]]) -> Skips:
    """All ranges in order, touching and overlapping ones as one."""
    if not parts:
        return NOTHING
    first, end = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(first):
        return NOTHING
    order = np.argsort(first, kind="stable")
    first, end = first[order], np.maximum.accumulate(end[order])
    cut = np.flatnonzero(first[1:] > end[:-1])
    return Skips(first[np.concatenate(([0], cut + 1))], end[np.concatenate((cut, [len(end) - 1]))])
