"""The FUSE operations of a mount with an overlay: ``disk.raw`` and ``pN.raw`` can be written to as well.

Only their bytes: sizes, names, modes and everything in the trees stay as they are. They are opened past
the kernel's page cache (``direct_io``), which keeps one for each file and would show in ``p2.raw`` what
``disk.raw`` held before. Does not import FUSE; gets its class handed in by mounter/binding.py.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, NoReturn

from imagefs.interfaces import Writable
from mounter import requests
from mounter.operations import MountOperations
from mounter.requests import ENCODING, Answer, Requests

_SET_SIZE, _SET_HANDLE = 1 << 3, 1 << 6
#: Mode, owner and group; times, which come along where a file is made shorter.
_SET_WHO, _SET_TIMES = 0b111, 0b1_1011_0000
_WRITE_IN, _WRITE_HEAD = struct.Struct("<QQI"), 40
_CHANGES_NAMES = (
    *(requests.SYMLINK, requests.MKNOD, requests.MKDIR, requests.UNLINK, requests.RMDIR, requests.LINK),
    *(requests.RENAME, requests.RENAME2, requests.SETXATTR, requests.REMOVEXATTR, requests.CREATE),
)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _read_only(self: object, *_: object) -> NoReturn:
    """What would change the tree of names; libfuse would answer that it knows no such call."""
    _refuse(errno.EROFS)


class WritableOperations(MountOperations):
    """As MountOperations, over a tree whose raw files are Writable."""

    create = mknod = mkdir = unlink = rmdir = symlink = link = rename = _read_only
    chmod = chown = utimens = setxattr = removexattr = _read_only

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            try:
                node = self._tree.find(path.encode(ENCODING))
            except Exception as error:
                self._fail(error, f"open {path!r}")
            if not isinstance(node.reader, Writable):
                _refuse(errno.EROFS)
        return super().open(path, flags & ~os.O_ACCMODE)

    def is_direct(self, fh: int) -> bool:
        return isinstance(self._files[fh].reader, Writable)

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        """Like a block device: as much as fits, ENOSPC at its end."""
        disk, name = self._writable(fh)
        data = data[: max(0, disk.size - offset)]
        if not data:
            _refuse(errno.ENOSPC)
        try:
            disk.write_at(offset, data)
        except Exception as error:
            self._fail(error, f"write {len(data)} bytes at {offset} of {name!r}")
        return len(data)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        """A disk has the size it has; setting that one is harmless. O_TRUNC is left aside as for a device:
        libfuse hands it to ``open``."""
        if length != self.attributes(None if path is None else path.encode(ENCODING), fh).size:
            _refuse(errno.EPERM)
        return 0

    def fallocate(self, path: str | None, mode: int, offset: int, length: int, fh: int) -> int:
        """Punching and zeroing both make zeros. Space cannot be promised beforehand."""
        disk, name = self._writable(fh)
        if mode not in (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
            _refuse(errno.EOPNOTSUPP)
        if offset + length > disk.size and not mode & _KEEP_SIZE:
            _refuse(errno.ENOSPC)
        try:
            disk.zero_at(min(offset, disk.size), max(0, min(length, disk.size - offset)))
        except Exception as error:
            self._fail(error, f"zero {length} bytes at {offset} of {name!r}")
        return 0

    def flush(self, path: str | None, fh: int) -> int:
        """A file that is closed is kept, even if the mount is killed after that."""
        return self.fsync(path, 0, fh) if self.is_direct(fh) else 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        opened = self._files[fh]
        if isinstance(opened.reader, Writable):
            try:
                opened.reader.sync()
            except Exception as error:
                self._fail(error, f"sync {opened.path!r}")
        return 0

    def _writable(self, fh: int) -> tuple[Writable, str]:
        opened = self._files[fh]
        if not isinstance(opened.reader, Writable):
            _refuse(errno.EROFS)
        return opened.reader, opened.path


class WritableRequests(Requests):
    """As Requests, over WritableOperations."""

    operations: WritableOperations

    def __init__(self, operations: WritableOperations) -> None:
        super().__init__(operations)
        self.answers |= {
            requests.SETATTR: self._setattr,
            requests.WRITE: self._write,
            requests.FLUSH: self._flush,
            requests.FSYNC: self._fsync,
            requests.FALLOCATE: self._fallocate,
            **dict.fromkeys(_CHANGES_NAMES, _read_only),
        }

    def _setattr(self, node: int, body: memoryview) -> Answer:
        wanted, _, handle, size = struct.unpack_from("<IIQQ", body)
        given = handle if wanted & _SET_HANDLE else None
        if wanted & _SET_WHO or (wanted & _SET_TIMES and not wanted & _SET_SIZE):
            _refuse(errno.EROFS)
        if wanted & _SET_SIZE:
            self.operations.truncate(self.text(node), size, given)
        return self.told(node, given)

    def _write(self, node: int, body: memoryview) -> Answer:
        handle, offset, size = _WRITE_IN.unpack_from(body)
        data = bytes(body[_WRITE_HEAD : _WRITE_HEAD + size])
        return struct.pack("<II", self.operations.write(None, data, offset, handle), 0)

    def _flush(self, node: int, body: memoryview) -> Answer:
        self.operations.flush(None, *struct.unpack_from("<Q", body))
        return b""

    def _fsync(self, node: int, body: memoryview) -> Answer:
        handle, flags = struct.unpack_from("<QI", body)
        self.operations.fsync(None, flags & 1, handle)
        return b""

    def _fallocate(self, node: int, body: memoryview) -> Answer:
        handle, offset, length, mode = struct.unpack_from("<QQQI", body)
        self.operations.fallocate(None, mode, offset, length, handle)
        return b""


def direct_files(fuse_class: Any) -> Any:
    """A subclass of the binding's FUSE that opens writable files past the page cache.

    And hands the file along when an open one is to be truncated: mfusepy passes a path that libfuse 3
    leaves out then.
    """

    class DirectFUSE(fuse_class):  # type: ignore[misc]
        def open(self, path: bytes, info: Any) -> int:
            answer: int = super().open(path, info)
            info.contents.direct_io = self.operations.is_direct(info.contents.fh)
            return answer

        def truncate_fuse_3(self, path: bytes | None, length: int, info: Any) -> int:
            decoded = None if path is None else path.decode(self.encoding)
            handle = info.contents.fh if info else None
            answer: int = self.operations.truncate(decoded, length, handle)
            return answer

    return DirectFUSE
