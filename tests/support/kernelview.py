"""A file system as the kernel shows it, held against a FileSystem of ours entry by entry."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from imagefs.block.views import extents_of
from imagefs.browse.walk import walk
from imagefs.interfaces import HOLES, Entry, EntryType, FileSystem, HasXattrs, Reader

_TYPES = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFBLK: EntryType.DEVICE,
    stat.S_IFCHR: EntryType.DEVICE,
    stat.S_IFIFO: EntryType.FIFO,
    stat.S_IFSOCK: EntryType.SOCKET,
}
#: Larger files are compared where they hold data and at their holes' borders.
_WHOLE = 64 << 20


def fails(error: Exception) -> None:
    raise error


def same_as_kernel(fs: FileSystem, root: Path, *, inodes: bool = True) -> int:
    """Every entry below ``root``, which the kernel has mounted, is there with all that is known of it, and
    nothing else. The number of entries."""
    ours = {entry.path: entry for entry in walk(fs, fs.root(), onerror=fails)}
    top = os.fsencode(root)
    count = 0
    for folder, folders, files in os.walk(top, onerror=fails):
        for name in folders + files:
            path = os.path.join(folder, name)
            entry = ours.pop(path[len(top) :])
            _same(fs, entry, path, inodes=inodes)
            count += 1
    assert not ours, f"only imagefs shows {sorted(ours)[:10]}"
    return count


def _same(fs: FileSystem, entry: Entry, path: bytes, *, inodes: bool) -> None:
    facts = os.lstat(path)
    expected = (
        _TYPES[stat.S_IFMT(facts.st_mode)],
        stat.S_IMODE(facts.st_mode),
        (facts.st_uid, facts.st_gid, facts.st_nlink, facts.st_size),
        (facts.st_mtime_ns, facts.st_atime_ns, facts.st_ctime_ns),
    )
    found = (
        entry.type,
        entry.mode,
        (entry.uid, entry.gid, entry.nlink, entry.size),
        (entry.mtime_ns, entry.atime_ns, entry.ctime_ns),
    )
    assert found == expected, path
    if inodes:
        assert entry.inode == str(facts.st_ino), path
    device = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    assert entry.rdev == (device if entry.type is EntryType.DEVICE else None), path
    if entry.type is EntryType.DEVICE:
        assert entry.flags == (("block",) if stat.S_ISBLK(facts.st_mode) else ("char",)), path
    if isinstance(fs, HasXattrs):
        assert fs.xattrs(entry) == _attributes(path), path
    if entry.type is EntryType.SYMLINK:
        assert fs.readlink(entry) == os.readlink(path)
    elif entry.type is EntryType.FILE:
        reader = fs.open(entry)
        _same_content(reader, path)
        reader.close()


def _attributes(path: bytes) -> dict[bytes, bytes]:
    """The kernel shows access control lists of XFS twice, also as XFS keeps them."""
    names = [name for name in os.listxattr(path, follow_symlinks=False) if ".SGI_ACL_" not in name]
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def _same_content(reader: Reader, path: bytes) -> None:
    with open(path, "rb") as file:
        if reader.size <= _WHOLE:
            assert reader.read_at(0, reader.size + 1) == file.read(), path
            return
        end = 0
        for extent in extents_of(reader, 0, reader.size):
            end = extent.offset + extent.length
            if extent.state in HOLES:
                assert (
                    os.lseek(file.fileno(), extent.offset, os.SEEK_DATA) >= end if end < reader.size else True
                )
                continue
            for at in range(extent.offset, end, 1 << 20):
                length = min(1 << 20, end - at)
                assert reader.read_at(at, length) == os.pread(file.fileno(), length, at), path
        assert end == reader.size
