"""XFS: a FileSystem over what ``xfsdisk``, ``xfsdir`` and ``xfsattr`` decode.

Ours, because libfsxfs (20260901) was tried and gives wrong bytes for long symbolic links, no names that
are not UTF-8, no much fragmented files and looks at no checksum; ARCHITECTURE.md has what was tried.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator

from imagefs.browse.content import MappedReader
from imagefs.browse.listing import Listings
from imagefs.browse.names import join, printable, safe_name, shown_name
from imagefs.browse.xfsattr import attributes
from imagefs.browse.xfsdir import Name, names
from imagefs.browse.xfsdisk import DEVICE, LOCAL, Disk, Inode, broken, read_superblock
from imagefs.errors import BrowseError, PathNotFound
from imagefs.interfaces import Entry, EntryType, Named, Place, Reader, device_flags

_MAX_LINK = 1024
_LINK_HEAD = 56
_KEPT_NAMES = 100_000


def open_xfs(reader: Reader) -> XfsFileSystem:
    """The XFS on ``reader``, which stays the caller's; NotAFileSystem if it is none that can be read."""
    return XfsFileSystem(Disk(reader, read_superblock(reader)))


class XfsFileSystem:
    """A FileSystem and what it has beside: names alone, extended attributes."""

    kind = "xfs"

    def __init__(self, disk: Disk) -> None:
        self.label = disk.xfs.label
        self.case_insensitive = disk.xfs.folds
        self._disk: Disk | None = disk
        self._last: tuple[str, dict[bytes, Name]] = ("", {})  # names of the directory asked last
        self._listings = Listings(
            self._scan, case_insensitive=self.case_insensitive, readlink=self.readlink, find=self._find
        )

    @property
    def used_bytes(self) -> int | None:
        xfs = self._opened().xfs
        return (xfs.blocks - xfs.free_blocks) * xfs.block if xfs.free_blocks <= xfs.blocks else None

    def root(self) -> Entry:
        disk = self._opened()
        root = _entry(b"/", disk.inode(disk.xfs.root))
        if root.type is not EntryType.DIRECTORY:
            raise broken("the root directory", "its inode is none of a directory")
        return root

    def lookup(self, path: bytes, /) -> Entry:
        return self._listings.lookup(self.root(), path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def names(self, entry: Entry, /) -> Iterator[Entry | Named]:
        return self._listings.kept(entry) or self._names(entry)

    def open(self, entry: Entry, /) -> Reader:
        shown = printable(entry.path)
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{shown}' is not a file but a {entry.type}", path=entry.path)
        disk, inode = self._of(entry)
        if inode.realtime and inode.size:
            said = f"'{shown}' cannot be read: its content lies on the real-time device, not on this volume"
            raise BrowseError(said, hint="take it from the image of that device", path=entry.path)
        pieces = disk.pieces(inode, inode.data, f"'{shown}'", inode.size)
        return MappedReader(disk.reader, inode.size, pieces, label=shown)

    def readlink(self, entry: Entry, /) -> bytes:
        shown = f"'{printable(entry.path)}'"
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"{shown} is not a symbolic link", path=entry.path)
        disk, inode = self._of(entry)
        if not 0 < inode.size <= _MAX_LINK:
            raise broken(shown, "its target has no length that makes sense")
        target = inode.data.raw if inode.data.format == LOCAL else _far_target(disk, inode, shown)
        if len(target) < inode.size:
            raise broken(shown, "its target is cut off")
        return target[: inode.size]

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        disk, inode = self._of(entry)
        return attributes(disk, inode, f"'{printable(entry.path)}'")

    def places(self, entry: Entry, /) -> list[Place]:
        disk, inode = self._of(entry)
        if inode.data.format in (LOCAL, DEVICE) or inode.realtime:
            return []
        block = disk.xfs.block
        return [
            Place(b"", run.source, run.source + run.blocks * block)
            for run in disk.runs(inode, inode.data, f"'{printable(entry.path)}'")
            if run.source is not None
        ]

    def close(self) -> None:
        self._disk = None
        self._last = "", {}
        self._listings.clear()

    def _opened(self) -> Disk:
        disk = self._disk
        if disk is None:
            raise BrowseError("the file system is closed")
        return disk

    def _of(self, entry: Entry) -> tuple[Disk, Inode]:
        disk = self._opened()
        try:
            return disk, disk.inode(int(entry.inode))
        except ValueError:
            raise PathNotFound(f"there is no inode {entry.inode}", path=entry.path) from None

    # -- directories -------------------------------------------------------------------------------

    def _shown(self, directory: Entry) -> Iterator[tuple[bytes, Name]]:
        """Path and name of all in a directory; of equal names the later ones carry their inode."""
        disk, inode = self._of(directory)
        what = f"'{printable(directory.path)}'"
        if not stat.S_ISDIR(inode.mode):
            raise broken(what, "its inode is none of a directory")
        seen: set[bytes] = set()
        for each in names(disk, inode, what):
            name = safe_name(each.name)
            if name in seen:
                name = shown_name(name, str(each.inode), twice={name}, taken=seen)
            seen.add(name)
            yield join(directory.path, name), each

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        disk = self._opened()
        for path, each in self._shown(directory):
            yield _made(disk, path, each)

    def _names(self, directory: Entry) -> Iterator[Entry | Named]:
        disk = self._opened()
        for path, each in self._shown(directory):
            if each.type is None or each.type is EntryType.DIRECTORY:
                yield _made(disk, path, each)
            else:
                yield Named(path.rpartition(b"/")[2], each.type, str(each.inode))

    def _find(self, directory: Entry, name: bytes) -> list[Entry] | None:
        """The child of that name, with no look at the inodes of the others; None where a scan must tell."""
        if self.case_insensitive:
            return None
        disk, last = self._opened(), self._last
        if last[0] != directory.inode:
            shown: dict[bytes, Name] = {}
            for path, each in self._shown(directory):
                shown[path.rpartition(b"/")[2]] = each
                if len(shown) > _KEPT_NAMES and name in shown:
                    break
            last = directory.inode, shown
            if len(shown) <= _KEPT_NAMES:
                self._last = last
        found = last[1].get(name)
        return [] if found is None else [_made(disk, join(directory.path, name), found)]


def _made(disk: Disk, path: bytes, name: Name) -> Entry:
    """The entry of a name; one whose inode is damaged is still there, of the type its directory tells."""
    try:
        return _entry(path, disk.inode(name.inode))
    except BrowseError:
        return Entry(path, name.type or EntryType.OTHER, 0, str(name.inode), flags=("damaged",))


def _entry(path: bytes, inode: Inode) -> Entry:
    kind = EntryType.of_mode(inode.mode)
    rdev = None
    if kind is EntryType.DEVICE and inode.data.format == DEVICE and len(inode.data.raw) >= 4:
        number = struct.unpack_from(">I", inode.data.raw)[0]
        rdev = number >> 18, number & 0x3FFFF
    return Entry(
        path,
        kind,
        inode.size,
        str(inode.number),
        mode=stat.S_IMODE(inode.mode),
        uid=inode.uid,
        gid=inode.gid,
        nlink=inode.nlink,
        mtime_ns=inode.mtime_ns,
        atime_ns=inode.atime_ns,
        ctime_ns=inode.ctime_ns,
        crtime_ns=inode.crtime_ns,
        rdev=rdev,
        flags=device_flags(inode.mode),
    )


def _far_target(disk: Disk, inode: Inode, what: str) -> bytes:
    """The target of a link that does not fit into its inode; of version 5 each run has a head."""
    out = b""
    for run in disk.metadata_runs(inode, inode.data, what):
        if run.source is None or len(out) >= inode.size:
            break
        raw = disk.block(run.source, min(run.blocks, 8) * disk.xfs.block, what)
        if disk.xfs.version == 5:
            disk.check(raw, what, sum_at=12, uuid_at=16, owner_at=32, owner=inode.number)
            magic, offset, count = struct.unpack_from(">4sII", raw)
            if magic != b"XSLM" or offset != len(out) or count > len(raw) - _LINK_HEAD:
                raise broken(what, "its target is damaged")
            raw = raw[_LINK_HEAD : _LINK_HEAD + count]
        out += raw
    return out
