"""HFS, HFS+ and APFS."""

from __future__ import annotations

import hashlib
import uuid

from imagefs.volume.facts import FileSystemFacts, Window, dashed, power_of_two

#: The name space in which Apple makes a UUID of the eight bytes in the volume header.
_NAMESPACE = bytes.fromhex("b3e20f39f29211d697a400306543ecac")
_ROOT_PARENT = 1


def probe_apfs(window: Window) -> FileSystemFacts | None:
    """The container; the volumes in it have names of their own, which need its B-trees."""
    block = window.at(0, 96)
    block_size = int.from_bytes(block[36:40], "little")
    if block[32:36] != b"NXSB" or not power_of_two(block_size, 4096, 65536):
        return None
    size = int.from_bytes(block[40:48], "little") * block_size
    return FileSystemFacts("apfs", uuid=dashed(block[72:88]), size=size, block_size=block_size)


def probe_hfs(window: Window) -> FileSystemFacts | None:
    """HFS+ and HFSX, also inside an HFS wrapper; else classic HFS."""
    block = window.at(1024, 512)
    if block[:2] in (b"H+", b"HX"):
        return _hfs_plus(window, 0)
    if block[:2] != b"BD":
        return None
    block_size = int.from_bytes(block[20:24], "big")
    if not block_size or block_size % 512:
        return None
    if block[124:126] == b"H+":
        first = int.from_bytes(block[28:30], "big") * 512
        return _hfs_plus(window, first + int.from_bytes(block[126:128], "big") * block_size)
    name = block[37 : 37 + min(block[36], 27)].decode("mac_roman")
    size = int.from_bytes(block[18:20], "big") * block_size
    return FileSystemFacts("hfs", label=name, uuid=_unique(block[116:124]), size=size, block_size=block_size)


def _hfs_plus(window: Window, base: int) -> FileSystemFacts | None:
    block = window.at(base + 1024, 512)
    block_size = int.from_bytes(block[40:44], "big")
    if block[:2] not in (b"H+", b"HX") or not power_of_two(block_size, 512, 1 << 20):
        return None
    return FileSystemFacts(
        kind="hfs+",
        label=_name(window, base, block, block_size),
        uuid=_unique(block[104:112]),
        size=int.from_bytes(block[44:48], "big") * block_size,
        block_size=block_size,
    )


def _unique(finder: bytes) -> str:
    """A version 3 UUID of the eight bytes the Finder keeps."""
    if not any(finder):
        return ""
    digest = hashlib.md5(_NAMESPACE + finder, usedforsecurity=False).digest()
    return str(uuid.UUID(bytes=digest, version=3))


def _name(window: Window, base: int, block: bytes, block_size: int) -> str:
    """The name is that of the root folder: the first record of the catalog's first leaf."""
    extents = [
        (int.from_bytes(block[at : at + 4], "big"), int.from_bytes(block[at + 4 : at + 8], "big"))
        for at in range(288, 352, 8)
    ]
    head = window.at(base + extents[0][0] * block_size, 64)
    node_size = int.from_bytes(head[32:34], "big")
    leaf = int.from_bytes(head[24:28], "big")
    if head[8] != 1 or not power_of_two(node_size, 512, 32768) or leaf == 0:
        return ""
    offset = _in_extents(extents, leaf * node_size, block_size)
    node = window.at(base + offset, node_size) if offset is not None else b""
    if node[8:9] != b"\xff" or int.from_bytes(node[16:20], "big") != _ROOT_PARENT:
        return ""
    count = min(int.from_bytes(node[20:22], "big"), 255)
    return node[22 : 22 + 2 * count].decode("utf-16-be", "replace").split("\0", 1)[0]


def _in_extents(extents: list[tuple[int, int]], offset: int, block_size: int) -> int | None:
    for first, count in extents:
        if offset < count * block_size:
            return first * block_size + offset
        offset -= count * block_size
    return None
