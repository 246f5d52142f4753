"""Disks of APFS for tests: those that macOS made and dissect.apfs publishes, and changes to them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from imagefs.browse.apfsdisk import is_whole
from imagefs.browse.apfssnapshots import sealed
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


def node(
    level: int,
    *entries: tuple[bytes, bytes],
    root: bool = False,
    fixed: bool = False,
    headerless: bool = False,
) -> bytes:
    """A node of a B-tree (btree_node_phys_t). ``fixed``: its table has no lengths."""
    raw, end = bytearray(BLOCK), BLOCK - (40 if root else 0)
    length = len(entries) * (4 if fixed else 8)
    struct.pack_into(
        "<HHI4H", raw, 32, root | (not level) << 1 | fixed << 2, level, len(entries), 0, length, 0, 0
    )
    key_at, value_at = 0, 0
    for number, (key, value) in enumerate(entries):
        value_at += len(value)
        if fixed:
            struct.pack_into("<HH", raw, 56 + 4 * number, key_at, value_at)
        else:
            struct.pack_into("<4H", raw, 56 + 8 * number, key_at, len(key), value_at, len(value))
        raw[56 + length + key_at : 56 + length + key_at + len(key)] = key
        raw[end - value_at : end - value_at + len(value)] = value
        key_at += len(key)
    assert 56 + length + key_at <= end - value_at
    if headerless:
        return bytes(raw)
    raw[24:28] = struct.pack("<I", 2 if root else 3)
    return sealed(raw)


def object_map(tree: int) -> bytes:
    """An object map (omap_phys_t), whose tree has its root in the block ``tree``."""
    raw = bytearray(BLOCK)
    struct.pack_into("<I", raw, 24, 0xB)
    struct.pack_into("<Q", raw, 48, tree)
    return sealed(raw)


def mapped(identifier: int, transaction: int, block: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The entry of an object in the tree of an object map."""
    return struct.pack("<QQ", identifier, transaction), struct.pack("<IIQ", flags, BLOCK, block)
