"""The FUSE operations: each answers from the tree, and turns what goes wrong into an errno.

Read-only throughout. A read is answered whole or with an error, never short except at end of file:
after one short reply the kernel serves the rest as end of file and ``dd`` exits 0.

Knows the tree; does not import FUSE. Paths and names are bytes carried in ``str`` as Latin-1, which
loses nothing and is how the binding is told to decode (mounter/binding.py).
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from imagefs.block.views import extents_of
from imagefs.errors import BrowseError, line_of
from imagefs.interfaces import HOLES, Reader, Whole
from mounter.attributes import Attributes
from mounter.errnos import errno_of
from mounter.folderstream import FolderStream
from mounter.requests import ENCODING
from mounter.tree import MountTree, Node

if TYPE_CHECKING:
    from mounter.historytree import HistoryTree

_BLOCK = 4096
#: Extended attributes that tell how much of a file is in which state begin so.
_ATTRIBUTE = "user.imagefs."
#: The names of the streams of a file, which are opened as ``file:name``.
_STREAMS = _ATTRIBUTE + "streams"
#: What nobody asks every file for.
_PLAIN_NAMES = ("user.", "trusted.")
#: So many different errors are logged; a mount over a dying disk must not fill the log's one.
MAX_LOGGED = 10_000


@dataclass(slots=True)
class _OpenFile:
    attributes: Attributes
    reader: Reader
    size: int
    owned: bool
    path: str


@dataclass(slots=True)
class _OpenFolder:
    attributes: Attributes
    stream: FolderStream
    path: str


class MountOperations:
    """What libfuse calls. Safe to call from several threads.

    ``log`` hears one line about each new error; ``on_error`` the number of failed requests so far;
    ``on_init`` is called once when the kernel has the mount, from the dispatcher: it must be quick
    and must not touch the mount.
    """

    #: As the tree has them: whether what lies in the root may change, and who hears what of it is gone.
    fleeting: bool
    listen: Callable[[Callable[[bytes], None]], None]

    use_ns = True  # times are integers in ns
    flag_nopath = flag_nullpath_ok = 1  # a read needs its handle only; spares libfuse the path

    def __init__(
        self,
        tree: MountTree | HistoryTree,
        *,
        log: Callable[[str], None],
        on_error: Callable[[int], None] = lambda count: None,
        on_init: Callable[[], None] = lambda: None,
    ) -> None:
        self._tree = tree
        self.fleeting = tree.fleeting
        self.listen = tree.listen
        self._log = log
        self._on_error = on_error
        self._on_init = on_init
        self._numbers = itertools.count(1)
        self._files: dict[int, _OpenFile] = {}
        self._folders: dict[int, _OpenFolder] = {}
        self._logged: set[str] = set()
        self._lock = threading.Lock()
        self.errors = 0

    def init(self, path: str) -> None:
        self._on_init()

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        return _stat_of(self.attributes(None if path is None else path.encode(ENCODING), fh))

    def attributes(self, path: bytes | None, fh: int | None = None) -> Attributes:
        try:
            if path is not None:
                return self._tree.find(path).attributes
            opened = self._files.get(fh or 0) or self._folders.get(fh or 0)
            if opened is None:
                raise OSError(errno.EBADF, "no such handle")
            return opened.attributes
        except Exception as error:
            self._fail(error, f"stat {None if path is None else path.decode(ENCODING)!r}")

    def readlink(self, path: str) -> str:
        try:
            return self._tree.readlink(self._tree.find(path.encode(ENCODING))).decode(ENCODING)
        except Exception as error:
            self._fail(error, f"readlink {path!r}")

    def listxattr(self, path: str) -> list[str]:
        try:
            node = self._tree.find(path.encode(ENCODING))
            names = [_ATTRIBUTE + word for word in self._states(node)]
            names += [_STREAMS] if self._tree.streams(node) else []
            return names + [name.decode(ENCODING) for name in self._tree.xattrs(node) or ()]
        except Exception as error:
            self._fail(error, f"list the attributes of {path!r}")

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """Those of the image by their own names; ``user.imagefs.skipped`` and so on: bytes of the file in that
        state, in decimal; ``user.imagefs.streams``: names of streams, a line each.

        ``security.*`` and ``system.*`` that a file has not are refused as unknown to the file system, so
        that ``ls`` asks for them only once.
        """
        try:
            value = self._attribute(self._tree.find(path.encode(ENCODING)), name)
        except Exception as error:
            self._fail(error, f"read the attributes of {path!r}")
        if value is None:
            number = errno.ENODATA if name.startswith(_PLAIN_NAMES) else errno.EOPNOTSUPP
            raise OSError(number, os.strerror(number))
        return value

    def _attribute(self, node: Node, name: str) -> bytes | None:
        if name == _STREAMS:
            return b"\n".join(self._tree.streams(node)) or None
        if name.startswith(_ATTRIBUTE):
            count = self._states(node).get(name.removeprefix(_ATTRIBUTE))
            return None if count is None else str(count).encode()
        return (self._tree.xattrs(node) or {}).get(name.encode(ENCODING))

    def _states(self, node: Node) -> Mapping[str, int | Whole]:
        """None for a file that cannot be decoded: its other attributes are told all the same."""
        with suppress(BrowseError):
            return self._tree.states(node)
        return {}

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        try:
            node = self._tree.find(path.encode(ENCODING))
            opened = self._tree.open(node)
        except Exception as error:
            self._fail(error, f"open {path!r}")
        number = next(self._numbers)
        self._files[number] = _OpenFile(
            node.attributes, opened.reader, opened.reader.size, opened.owned, path
        )
        return number

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        file = self._files[fh]
        try:
            data = file.reader.read_at(offset, size)
        except Exception as error:
            self._fail(error, f"read {size} bytes at {offset} of {file.path!r}")
        if len(data) != size and len(data) != max(0, min(size, file.size - offset)):
            short = OSError(errno.EIO, f"the reader gave {len(data)} bytes")
            self._fail(short, f"read {size} bytes at {offset} of {file.path!r}")
        return data

    def is_direct(self, fh: int) -> bool:
        """Whether the kernel must not cache what this handle reads."""
        return False

    def lseek(self, path: str | None, offset: int, whence: int, fh: int) -> int:
        """SEEK_DATA and SEEK_HOLE, so that a copy need not read what is known to be zeros."""
        file = self._files[fh]
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE) or offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset >= file.size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        try:
            for extent in extents_of(file.reader, offset, file.size - offset):
                if (extent.state not in HOLES) == (whence == os.SEEK_DATA):
                    return extent.offset
        except Exception as error:
            self._fail(error, f"seek from {offset} of {file.path!r}")
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return file.size

    def release(self, path: str | None, fh: int) -> int:
        file = self._files.pop(fh, None)
        if file is not None and file.owned:
            try:
                file.reader.close()
            except Exception as error:
                self._fail(error, f"close {file.path!r}")
        return 0

    def opendir(self, path: str) -> int:
        try:
            node = self._tree.find(path.encode(ENCODING))
        except Exception as error:
            self._fail(error, f"open {path!r}")
        number = next(self._numbers)
        stream = FolderStream(lambda: self._tree.children(node), node.attributes)
        self._folders[number] = _OpenFolder(node.attributes, stream, path)
        return number

    def folder_items(self, offset: int, fh: int) -> list[tuple[bytes, Attributes]]:
        """Name and attributes of some items of an open folder from position ``offset`` on; none at its end."""
        folder = self._folders[fh]
        try:
            return folder.stream.at(offset)
        except Exception as error:
            self._fail(error, f"list {folder.path!r}")

    def readdir(self, path: str | None, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """The whole folder at once, for a binding that knows no offsets."""
        offset = 0
        while items := self.folder_items(offset, fh):
            offset += len(items)
            for name, attributes in items:
                yield name.decode(ENCODING), _stat_of(attributes), 0

    def releasedir(self, path: str | None, fh: int) -> int:
        self._folders.pop(fh, None)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        blocks = -(-self._tree.size // _BLOCK)
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": blocks, "f_namemax": 255}

    def close_files(self) -> None:
        """Close what is still open when the mount has ended."""
        for number in list(self._files):
            self.release(None, number)

    def _fail(self, error: Exception, where: str) -> NoReturn:
        number = self._note_failed(error, where)
        raise OSError(number, os.strerror(number)) from error

    def _note_failed(self, error: Exception, where: str) -> int:
        number = errno_of(error)
        if number == errno.EIO:
            self._note(error, where)
        return number

    def _note(self, error: Exception, where: str) -> None:
        """Count a failed request; log it unless the same thing was said before.

        The kernel asks for a bad page again and again, each time with other borders.
        """
        with self._lock:
            self.errors += 1
            count = self.errors
            what = line_of(error, "")
            fresh = what not in self._logged and len(self._logged) < MAX_LOGGED
            if fresh:
                self._logged.add(what)
                last = len(self._logged) == MAX_LOGGED
        if fresh:
            self._log(line_of(error, where))
            if last:
                self._log("further errors are counted but not logged")
        self._on_error(count)


def _stat_of(attributes: Attributes) -> dict[str, int]:
    used = attributes.size if attributes.allocated is None else attributes.allocated
    return {
        "st_mode": attributes.mode,
        "st_ino": attributes.inode,
        "st_nlink": attributes.nlink,
        "st_uid": attributes.uid,
        "st_gid": attributes.gid,
        "st_rdev": attributes.rdev,
        "st_size": attributes.size,
        "st_blocks": -(-used // 512),
        "st_mtime": attributes.mtime_ns,
        "st_atime": attributes.atime_ns,
        "st_ctime": attributes.ctime_ns,
    }
