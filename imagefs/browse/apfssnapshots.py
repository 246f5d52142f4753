"""The snapshots of APFS volumes, each as the container was when it was made.

A snapshot keeps the superblock that its volume had; all else of that time is still in the container, under the object
map of today, which knows when each object was written. So the container with the old superblock in the place of the new
one is the volume of then, for whoever reads APFS. The parser runs in a worker process.
"""

from __future__ import annotations

import struct

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

    def encrypted(self) -> bool:
        """Whether a volume is."""
        return any(volume.encrypted for volume in self._disk.volumes())

    def snapshots(self) -> list[object]:
        """[what could not be read, the others]: sentences, one for each, and [transaction, name, ns since 1970, offset
        of its volume's superblock, what was there] of each, oldest first."""
        told, known = list[str](), list[tuple[int, Volume, Snapshot]]()
        volumes = self._disk.volumes()
        for volume in volumes:
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
            name = f"{volume.name}: {each.name}" if len(volumes) > 1 else each.name
            found.append([each.transaction, name, made, volume.block * self._disk.block_size, block])
        return [told[:_MOST], found]

    def close(self) -> None:
        pass


def superblock_of(disk: Disk, volume: Volume, snapshot: Snapshot) -> bytes:
    """The superblock of a volume as it was, to stand where it stands now: with today's object map, which is asked for
    what was there at the snapshot, and without snapshots of its own."""
    raw = bytearray(disk.volume(snapshot.block).raw)
    raw[8:32] = struct.pack("<QQ", volume.identifier, snapshot.transaction) + volume.raw[24:32]
    struct.pack_into("<Q", raw, 128, volume.map)
    struct.pack_into("<Q", raw, 152, 0)
    raw[:8] = checksum(bytes(raw)).to_bytes(8, "little")
    return bytes(raw)


def as_of(reader: Reader, place: int, superblock: bytes) -> Reader:
    """The container on ``reader`` with ``superblock`` at byte ``place``."""
    end = place + len(superblock)
    return JoinedReader(
        [SliceReader(reader, 0, place), BytesReader(superblock), SliceReader(reader, end, reader.size - end)]
    )
