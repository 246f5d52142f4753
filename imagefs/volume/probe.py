"""What is on a volume, by its signature alone: enough to list it and to know a disk again.

Must not know The Sleuth Kit or any file system beyond its first blocks. Reads the first 128 KiB
and a few blocks that they point to, never more than a few MiB however hostile the content.
"""

from __future__ import annotations

from collections.abc import Callable

from imagefs.interfaces import Reader
from imagefs.volume.facts import FileSystemFacts, Window
from imagefs.volume.signatures import apple, bsd, containers, fat, linux, optical, windows

__all__ = ["KINDS", "FileSystemFacts", "probe", "rivals"]

#: Every ``kind`` there is; those of FileSystem.kind have the same word here, except ``hfs+``.
KINDS = frozenset(
    {"ntfs", "fat12", "fat16", "fat32", "exfat", "refs", "bitlocker", "hfs", "hfs+", "apfs"}
    | {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "squashfs", "erofs", "iso9660", "udf"}
    | {"ufs1", "ufs2"}
    | {"swap", "luks", "lvm2", "raid"}
)

# The order decides between two signatures, and what was written last should win: containers
# first (what a mirror holds must not be touched behind its back); ext before the boot sectors,
# which its mkfs leaves alone while theirs overwrite its superblock; a bridge disc is UDF.
_PROBES: tuple[Callable[[Window], FileSystemFacts | None], ...] = (
    containers.probe_raid,
    containers.probe_luks,
    containers.probe_lvm,
    windows.probe_bitlocker,
    linux.probe_ext,
    windows.probe_ntfs,
    windows.probe_exfat,
    windows.probe_refs,
    linux.probe_xfs,
    linux.probe_squashfs,
    linux.probe_erofs,
    linux.probe_f2fs,
    fat.probe,
    apple.probe_apfs,
    apple.probe_hfs,
    bsd.probe_ufs,
    linux.probe_btrfs,
    containers.probe_swap,
    optical.probe_udf,
    optical.probe_iso9660,
)


def probe(reader: Reader) -> FileSystemFacts:
    """The facts about the volume in ``reader``; ``kind`` is empty when nothing is recognised.

    Never raises on bad content; what the Reader raises goes through.
    """
    window = Window(reader)
    for find in _PROBES:
        facts = find(window)
        if facts is not None:
            return facts
    return FileSystemFacts()


def rivals(reader: Reader, kind: str) -> str:
    """Another kind whose signature is on the volume too; empty where ``kind`` stands alone.

    What an older file system left behind does no harm to a reader, but whoever leaves out what
    ``kind`` does not use must be sure that nothing else lives there.
    """
    window = Window(reader)
    for find in _PROBES:
        facts = find(window)
        if facts is not None and facts.kind != kind:
            return facts.kind
    return ""
