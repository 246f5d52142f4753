"""Disks of APFS for tests: those that macOS made and dissect.apfs publishes, and changes to them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from imagefs.browse.apfsdisk import checksum, is_whole
from tests.support.oracles import sdist_file

BLOCK = 4096
CONTAINER, VOLUME = 0x1, 0xD


@cache
def disk_of(name: str) -> bytes:
    """The container ``name`` of the source package."""
    with TemporaryDirectory() as folder:
        packed = sdist_file("dissect_apfs", f"tests/_data/{name}.bin.gz", Path(folder))
        return gzip.decompress(packed.read_bytes())


def objects(disk: bytes) -> dict[int, int]:
    """The blocks that hold an object with its checksum, and their types (o_type)."""
    found = {}
    for block in range(len(disk) // BLOCK):
        raw = disk[block * BLOCK : (block + 1) * BLOCK]
        kind = int.from_bytes(raw[24:28], "little") & 0xFFFF
        if kind and is_whole(raw):
            found[block] = kind
    return found


def changed(disk: bytes, change: Callable[[bytearray], None], *kinds: int) -> bytes:
    """``disk``, in which every object of one of ``kinds`` went through ``change`` and has its checksum again."""
    found = bytearray(disk)
    for block, kind in objects(disk).items():
        if kind in kinds:
            raw = bytearray(disk[block * BLOCK : (block + 1) * BLOCK])
            change(raw)
            found[block * BLOCK : (block + 1) * BLOCK] = sealed(raw)
    return bytes(found)


def sealed(raw: bytes | bytearray) -> bytes:
    """An object with the checksum it should have."""
    return checksum(bytes(raw)).to_bytes(8, "little") + bytes(raw[8:])
