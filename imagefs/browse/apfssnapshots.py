"""The snapshots of APFS volumes, each as the container was when it was made.

A snapshot keeps the superblock that its volume had; all else of that time is still in the container, under the object
map of today, which knows when each object was written. So the container with the old superblock in the place of the new
one is the volume of then, for whoever reads APFS. Other volumes of the container are left out: a snapshot is of one.
The parser runs in a worker process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from imagefs.block.joined import JoinedReader
from imagefs.block.views import BytesReader, SliceReader
from imagefs.browse.apfsdisk import Disk, Snapshot, Volume, checksum
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader

#: More than this of one container are no Mac's; the newest are told of.
_MOST = 1024


class Snapshots:
    """What the worker holds."""

    kind = "apfs"
    case_insensitive = False

    def __init__(self, reader: Reader) -> None:
        self._disk = Disk(reader)
        self._superblocks = self._disk.superblocks()

    def encrypted(self) -> bool:
        """Whether a volume is."""
        return any(volume.encrypted for volume in self._disk.volumes())

    def snapshots(self) -> list[object]:
        """[what could not be read, the others]: sentences, one for each, and [transaction, name, ns since 1970, what
        stands in its container, as offsets and bytes] of each, oldest first."""
        told, known = list[str](), list[tuple[int, Volume, Snapshot]]()
        several = len(self._disk.slots()) > 1
        for volume in self._disk.volumes():
            try:
                known += [(each.made_ns, volume, each) for each in self._disk.snapshots(volume)]
            except ImagefsError as error:
                told.append(error.message)
        known.sort(key=lambda each: each[0])
        found = list[list[object]]()
        for made, volume, each in known[-_MOST:]:
            try:
                block = superblock_of(self._disk, volume, each)
            except ImagefsError as error:
                told.append(error.message)
                continue
            name = f"{volume.name}: {each.name}" if several else each.name
            changes = [[volume.block * self._disk.block_size, block]]
            if several:
                changes += self._alone(volume)
            found.append([each.transaction, name, made, changes])
        return [told[:_MOST], found]

    def _alone(self, volume: Volume) -> list[list[object]]:
        """The superblocks of a container that has this volume alone: of that time nothing is known of the others."""
        changes = list[list[object]]()
        for block, raw in self._superblocks.items():
            changed = bytearray(raw)
            changed[184:984] = struct.pack("<Q", volume.identifier).ljust(800, b"\0")
            changes.append([block * self._disk.block_size, sealed(changed)])
        return changes

    def close(self) -> None:
        pass


def superblock_of(disk: Disk, volume: Volume, snapshot: Snapshot) -> bytes:
    """The superblock of a volume as it was, to stand where it stands now: with today's object map, which is asked for
    what was there at the snapshot, and without snapshots of its own."""
    raw = bytearray(disk.volume(snapshot.block).raw)
    raw[8:32] = struct.pack("<QQ", volume.identifier, snapshot.transaction) + volume.raw[24:32]
    struct.pack_into("<Q", raw, 128, volume.map)
    struct.pack_into("<Q", raw, 152, 0)
    return sealed(raw)


def sealed(raw: bytes | bytearray) -> bytes:
    """An object with the checksum it should have."""
    return checksum(bytes(raw)).to_bytes(8, "little") + bytes(raw[8:])


def as_of(reader: Reader, changes: Iterable[tuple[int, bytes]]) -> Reader:
    """The container on ``reader`` with other bytes at some places, which do not overlap."""
    parts, at = list[Reader](), 0
    for place, raw in sorted(changes):
        parts += [SliceReader(reader, at, place - at), BytesReader(raw)]
        at = place + len(raw)
    return JoinedReader([*parts, SliceReader(reader, at, reader.size - at)])
