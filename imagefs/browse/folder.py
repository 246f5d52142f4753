"""A file system that the kernel has mounted, as a FileSystem: everything below one open folder.

For what no reader of ours knows, when root lets the kernel read it (mounter/kernel.py). Paths are walked
part by part from that folder, and no symbolic link is followed, so nothing outside of it is ever touched.
Subvolumes of Btrfs are folders. Where things lie on the volume is not known here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from imagefs.block.views import clamp
from imagefs.browse.content import damaged
from imagefs.browse.listing import Listings
from imagefs.browse.names import join, parts, printable
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import Entry, EntryType, Extent, Named, Place, Reader, State, device_flags

_SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = _SAFELY | os.O_DIRECTORY
_READ = 1 << 20
_Asking = Callable[[bytes, int], AbstractContextManager[None]]
#: BTRFS_IOC_INO_LOOKUP with its argument, which begins with the tree that a folder is in.
_INO_LOOKUP, _INO_LOOKUP_SIZE, _FIRST_INODE = 0xD0009412, 4096, 256


class FolderFileSystem:
    """A FileSystem over ``folder``, an open descriptor that becomes its own.

    ``cause`` tells what lies behind an error of the kernel's, where that is known; ``on_close`` is called
    when the folder is closed. Safe in several threads: nothing has a position.
    """

    case_insensitive = False

    def __init__(
        self,
        folder: int,
        kind: str,
        *,
        label: str = "",
        cause: Callable[[], ImagefsError | None] = lambda: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.kind = kind
        self.label = label
        self._folder = folder
        self._device = os.fstat(folder).st_dev
        self._trees: dict[int, str] = {self._device: ""}
        self._cause = cause
        self._on_close = on_close
        self._lock = threading.Lock()
        self._listings = Listings(self._scan, case_insensitive=False, readlink=self.readlink)

    @property
    def used_bytes(self) -> int | None:
        with self._asking(b"/", 0):
            facts = os.fstatvfs(self._top())
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    def root(self) -> Entry:
        with self._asking(b"/", 0):
            return self._entry(b"/", os.fstat(self._top()), lambda: "")

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
        with self._asking(entry.path, 0), self._parent(entry.path) as (above, name):
            file = os.open(name, _SAFELY | os.O_NONBLOCK, dir_fd=above)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise BrowseError(f"'{shown}' is not a file", path=entry.path)
        return _Content(file, shown, self._asking, entry.path)

    def readlink(self, entry: Entry, /) -> bytes:
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"'{printable(entry.path)}' is not a symbolic link", path=entry.path)
        with self._asking(entry.path, 0), self._parent(entry.path) as (above, name):
            return os.readlink(name, dir_fd=above)

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        with self._asking(entry.path, 0), self._parent(entry.path) as (above, name):
            place = b"/proc/self/fd/%d/%s" % (above, name)
            found = os.listxattr(place, follow_symlinks=False)
            return {os.fsencode(each): os.getxattr(place, each, follow_symlinks=False) for each in found}

    def places(self, entry: Entry, /) -> list[Place]:
        return []

    def close(self) -> None:
        with self._lock:
            folder, self._folder = self._folder, -1
        self._listings.clear()
        if folder >= 0:
            os.close(folder)
            self._on_close()

    # -- below the folder ----------------------------------------------------------------------------

    def _top(self) -> int:
        folder = self._folder
        if folder < 0:
            raise BrowseError("the file system is closed")
        return folder

    @contextmanager
    def _asking(self, path: bytes, offset: int) -> Iterator[None]:
        """What the kernel refuses, as a sentence: damage, or what is not there (any more)."""
        try:
            yield
        except OSError as error:
            shown = printable(path)
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise PathNotFound(f"there is no '{shown}'", path=path) from error
            cause = self._cause()
            why = f"the kernel says: {os.strerror(error.errno or errno.EIO)}"
            raise damaged(shown, offset, f"{why} ({cause.message})" if cause else why) from error

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        """The folder at ``path``, reached part by part."""
        folder = os.open(b".", _FOLDER, dir_fd=self._top())
        try:
            for name in parts(path):
                if name == b"..":
                    raise PathNotFound("a path in a volume cannot have ..", path=path)
                below = os.open(name, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        with self._opened(above) as folder:
            yield folder, name if name not in (b"", b"..") else b"."

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        with self._listing(directory) as (folder, tree, found):
            for each in found:
                yield self._child(directory.path, folder, each, tree)

    def _names(self, directory: Entry) -> Iterator[Entry | Named]:
        with self._listing(directory) as (folder, tree, found):
            for each in found:
                if each.is_symlink():
                    yield Named(os.fsencode(each.name), EntryType.SYMLINK, f"{tree}{each.inode()}")
                elif each.is_file(follow_symlinks=False):
                    yield Named(os.fsencode(each.name), EntryType.FILE, f"{tree}{each.inode()}")
                else:
                    yield self._child(directory.path, folder, each, tree)

    @contextmanager
    def _listing(self, directory: Entry) -> Iterator[tuple[int, str, Iterator[os.DirEntry[str]]]]:
        """An open folder, what its inodes begin with, what is in it."""
        with self._asking(directory.path, 0), self._opened(directory.path) as folder:
            tree = self._tree(os.fstat(folder).st_dev, folder)
            with os.scandir(folder) as found:
                yield folder, tree, found

    def _child(self, above: bytes, folder: int, each: os.DirEntry[str], tree: str) -> Entry:
        name = os.fsencode(each.name)
        path = join(above, name)
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:  # its inode is damaged; the name is there
            return Entry(path, EntryType.OTHER, 0, f"{tree}{each.inode()}", flags=("damaged",))
        return self._entry(path, facts, lambda: self._tree_of(facts.st_dev, folder, name))

    def _entry(self, path: bytes, facts: os.stat_result, tree: Callable[[], str]) -> Entry:
        kind = EntryType.of_mode(facts.st_mode)
        device = kind is EntryType.DEVICE
        return Entry(
            path,
            kind,
            facts.st_size,
            f"{tree()}{facts.st_ino}",
            mode=stat.S_IMODE(facts.st_mode),
            uid=facts.st_uid,
            gid=facts.st_gid,
            nlink=facts.st_nlink,
            mtime_ns=facts.st_mtime_ns,
            atime_ns=facts.st_atime_ns,
            ctime_ns=facts.st_ctime_ns,
            rdev=(os.major(facts.st_rdev), os.minor(facts.st_rdev)) if device else None,
            flags=device_flags(facts.st_mode),
        )

    # -- subvolumes of Btrfs: a device number of their own each, and inodes counted anew -----------------

    def _tree_of(self, device: int, folder: int, name: bytes) -> str:
        known = self._trees.get(device)
        if known is not None:
            return known
        below = os.open(name, _FOLDER, dir_fd=folder)
        try:
            return self._tree(device, below)
        finally:
            os.close(below)

    def _tree(self, device: int, folder: int) -> str:
        """``257:`` before the inodes of subvolume 257, nothing before those of the top."""
        known = self._trees.get(device)
        if known is None:
            known = f"{_subvolume(folder) or device}:"
            self._trees[device] = known
        return known


class _Content:
    """A Reader of one open file."""

    def __init__(
        self, file: int, shown: str, asking: Callable[[bytes, int], AbstractContextManager[None]], path: bytes
    ) -> None:
        self.size = os.fstat(file).st_size
        self._file = file
        self._shown = shown
        self._asking = asking
        self._path = path
        self._lock = threading.Lock()

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        file, out = self._opened(), []
        while count:
            with self._asking(self._path, offset):
                data = os.pread(file, min(count, _READ), offset)
            if not data:
                raise damaged(self._shown, offset, "the kernel does not give them")
            out.append(data)
            offset, count = offset + len(data), count - len(data)
        return b"".join(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        end = offset + clamp(self.size, offset, length)
        file = self._opened()
        while offset < end:
            data = self._seek(file, offset, os.SEEK_DATA, end)
            if data > offset:
                yield Extent(State.ZERO, offset, data - offset)
            hole = self._seek(file, data, os.SEEK_HOLE, end) if data < end else end
            if hole > data:
                yield Extent(State.STORED, data, hole - data)
            offset = hole

    def _seek(self, file: int, offset: int, whence: int, end: int) -> int:
        try:
            return min(end, os.lseek(file, offset, whence))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            return offset if whence == os.SEEK_DATA else end  # unknown: reading it says what is wrong

    def _opened(self) -> int:
        file = self._file
        if file < 0:
            raise BrowseError(f"'{self._shown}' is closed")
        return file

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()


def _subvolume(folder: int) -> int:
    """The number of the subvolume that a folder is in, 0 where there are none."""
    argument = bytearray(struct.pack("<QQ", 0, _FIRST_INODE).ljust(_INO_LOOKUP_SIZE, b"\0"))
    try:
        fcntl.ioctl(folder, _INO_LOOKUP, argument)
    except OSError:
        return 0
    return int(struct.unpack_from("<Q", argument)[0])
