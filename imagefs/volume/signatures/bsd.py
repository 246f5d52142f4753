"""UFS1 and UFS2, of the BSDs and Solaris."""

from __future__ import annotations

from imagefs.volume.facts import ByteOrder, FileSystemFacts, Window, power_of_two, text

#: Where the superblock may lie, in the order FreeBSD looks (sys/ufs/ffs/fs.h, SBLOCKSEARCH).
_PLACES = (65536, 8192, 0, 262144)
_MAGIC, _UFS1, _UFS2 = 1372, 0x00011954, 0x19540119


def probe_ufs(window: Window) -> FileSystemFacts | None:
    """The superblock (struct fs) in either byte order; only UFS2 has a name and a 64-bit size in it."""
    orders: tuple[ByteOrder, ...] = ("little", "big")
    for place in _PLACES:
        for order in orders:
            magic = window.number(place + _MAGIC, 4, order)
            fragment = window.number(place + 52, 4, order)
            if magic not in (_UFS1, _UFS2) or not power_of_two(fragment, 512, 65536):
                continue
            two = magic == _UFS2
            fragments = window.number(place + 1080, 8, order) if two else window.number(place + 36, 4, order)
            parts = window.number(place + 144, 4, order), window.number(place + 148, 4, order)
            return FileSystemFacts(
                "ufs2" if two else "ufs1",
                label=text(window.at(place + 680, 32)) if two else "",
                uuid=f"{parts[0]:08x}{parts[1]:08x}" if any(parts) else "",
                size=fragments * fragment,
                block_size=fragment,
            )
    return None
