"""The requests of the kernel, answered without libfuse: bytes in, bytes out, by the operations of a mount.

Structures and numbers: ``include/uapi/linux/fuse.h`` of Linux (7.x of the protocol); what each request
means: ``libfuse/lib/fuse_lowlevel.c``. INIT and DESTROY stay libfuse's, which agrees with the kernel on
what both can do. Knows operations and nodes, not trees; imports no FUSE.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from mounter.attributes import Attributes
from mounter.nodes import Nodes

#: Nothing in an image ever changes; what is not there may only seem so while a store is away.
KEEP_SECONDS, KEEP_MISSING_SECONDS = 3600, 10
#: But points in time come and go.
KEEP_FLEETING_SECONDS = 1
#: Entries of one folder whose attributes are handed out with their names: each is a node to remember.
MAX_PLUS = 32_768
#: Names are carried as Latin-1, which loses nothing (mounter/operations.py).
ENCODING = "latin-1"

# fmt: off
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = (
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16)
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = (
    17, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29)
CREATE, INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK = 35, 36, 38, 42, 43, 44, 45, 46
# fmt: on
_DIRECT_IO, _KEEP_CACHE = 1, 2
_BY_HANDLE = 1

_ENTRY = struct.Struct("<QQQQII")  # node, generation, how long: entry, attributes; ns of both
_ATTR_HEAD = struct.Struct("<QII")  # how long, ns, padding
_ATTR = struct.Struct("<6Q10I")
_DIRENT = struct.Struct("<QQII")  # inode, where to go on, length of the name, type
_READ_IN = struct.Struct("<QQI")
_OPENED = struct.Struct("<QII")
_XATTR_IN = struct.Struct("<II")
_STATFS = struct.Struct("<5Q4I24x")
_SECOND = 1_000_000_000
_NOTHING = bytes(_ENTRY.size + _ATTR.size)
_UNKNOWN_BLOCK = 4096
_FILLING = tuple(bytes(-length & 7) for length in range(8))
_DOTS = (b".", b"..")

Answer = bytes | None


class Operations(Protocol):
    """What answers; see mounter/operations.py. Each raises OSError."""

    fleeting: bool

    def listen(self, gone: Callable[[bytes], None], /) -> None: ...
    def attributes(self, path: bytes, fh: int | None = None) -> Attributes: ...
    def folder_items(self, offset: int, fh: int) -> list[tuple[bytes, Attributes]]: ...
    def readlink(self, path: str) -> str: ...
    def listxattr(self, path: str) -> list[str]: ...
    def getxattr(self, path: str, name: str) -> bytes: ...
    def open(self, path: str, flags: int) -> int: ...
    def is_direct(self, fh: int) -> bool: ...
    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes: ...
    def lseek(self, path: str | None, offset: int, whence: int, fh: int) -> int: ...
    def release(self, path: str | None, fh: int) -> int: ...
    def opendir(self, path: str) -> int: ...
    def releasedir(self, path: str | None, fh: int) -> int: ...
    def statfs(self, path: str) -> dict[str, int]: ...


class Requests:
    """Answers requests by their number. Safe to call from several threads."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.nodes = Nodes()
        #: Set when the kernel should be asked to forget some.
        self.crowded = threading.Event()
        self._fleeting = operations.fleeting
        operations.listen(self._drop)
        self.answers: dict[int, Callable[[int, memoryview], Answer]] = {
            LOOKUP: self._lookup,
            FORGET: self._forget,
            BATCH_FORGET: self._forget_many,
            GETATTR: self._getattr,
            READLINK: self._readlink,
            OPEN: self._open,
            READ: self._read,
            STATFS: self._statfs,
            RELEASE: self._release,
            GETXATTR: self._getxattr,
            LISTXATTR: self._listxattr,
            OPENDIR: self._opendir,
            READDIR: self._readdir,
            READDIRPLUS: self._readdirplus,
            RELEASEDIR: self._releasedir,
            LSEEK: self._lseek,
        }

    def take_back(self, opcode: int, answer: Answer) -> None:
        """The kernel did not take this answer: what it was to hold by it is not held."""
        if opcode == LOOKUP and answer:
            self.nodes.forget(_node(answer, 0), 1)
        at = 0
        while opcode == READDIRPLUS and answer and at < len(answer):
            self.nodes.forget(_node(answer, at), 1)
            (length,) = struct.unpack_from("<I", answer, at + len(_NOTHING) + 16)
            at += len(_NOTHING) + _DIRENT.size + (length + 7 & ~7)

    def answer(self, opcode: int, node: int, body: memoryview) -> Answer:
        """What to reply, None where no reply is due. OSError carries the number to reply instead;
        ENOSYS tells the kernel not to ask for such again."""
        handler = self.answers.get(opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return handler(node, body)

    def _drop(self, name: bytes) -> None:
        self.nodes.drop(name)
        self.crowded.set()

    def _seconds(self, path: bytes) -> int:
        """How long what was said of ``path`` holds."""
        fleeting = self._fleeting and path.count(b"/") == 1
        return KEEP_FLEETING_SECONDS if fleeting else KEEP_SECONDS

    def to_forget(self) -> bytes | None:
        """What asks the kernel to forget one file, or one folder with all that is in it
        (``fuse_notify_inval_entry_out``); None when none is too many."""
        found = self.nodes.oldest()
        if found is None:
            return None
        parent, name = found
        return struct.pack("<QII", parent, len(name), 0) + name + b"\0"

    def text(self, node: int) -> str:
        return self.nodes.path(node).decode(ENCODING)

    # -- names and attributes --

    def _lookup(self, node: int, body: memoryview) -> Answer:
        path = _below(self.nodes.path(node), _name(body))
        try:
            attributes = self.operations.attributes(path)
        except FileNotFoundError:
            missing = KEEP_MISSING_SECONDS
            if self._fleeting and path.count(b"/") <= 2:  # a point that cannot be opened may be whole soon
                missing = KEEP_FLEETING_SECONDS
            return _ENTRY.pack(0, 0, missing, 0, 0, 0) + bytes(_ATTR.size)
        return self._entry(path, attributes)

    def _entry(self, path: bytes, attributes: Attributes) -> bytes:
        given = self.nodes.give(path, is_file=not attributes.is_directory)
        if self.nodes.too_many:
            self.crowded.set()
        seconds = KEEP_SECONDS if not self._fleeting else self._seconds(path)
        return _ENTRY.pack(given, 0, seconds, seconds, 0, 0) + pack_attributes(attributes)

    def _forget(self, node: int, body: memoryview) -> None:
        self.nodes.forget(node, *struct.unpack_from("<Q", body))

    def _forget_many(self, node: int, body: memoryview) -> None:
        (count,) = struct.unpack_from("<I", body)
        for at in range(8, 8 + 16 * count, 16):
            self.nodes.forget(*struct.unpack_from("<QQ", body, at))

    def _getattr(self, node: int, body: memoryview) -> Answer:
        flags, _, handle = struct.unpack_from("<IIQ", body)
        return self.told(node, handle if flags & _BY_HANDLE else None)

    def told(self, node: int, handle: int | None) -> bytes:
        path = self.nodes.path(node)
        attributes = self.operations.attributes(path, handle)
        return _ATTR_HEAD.pack(self._seconds(path), 0, 0) + pack_attributes(attributes)

    def _readlink(self, node: int, body: memoryview) -> Answer:
        return self.operations.readlink(self.text(node)).encode(ENCODING)

    def _getxattr(self, node: int, body: memoryview) -> Answer:
        name = bytes(body[_XATTR_IN.size :]).split(b"\0", 1)[0].decode(ENCODING)
        return _sized(self.operations.getxattr(self.text(node), name), body)

    def _listxattr(self, node: int, body: memoryview) -> Answer:
        names = self.operations.listxattr(self.text(node))
        return _sized(b"".join(name.encode(ENCODING) + b"\0" for name in names), body)

    def _statfs(self, node: int, body: memoryview) -> Answer:
        facts = self.operations.statfs(self.text(node))
        return _STATFS.pack(
            facts["f_blocks"], 0, 0, 0, 0, facts["f_bsize"], facts["f_namemax"], facts["f_frsize"], 0
        )

    # -- files --

    def _open(self, node: int, body: memoryview) -> Answer:
        handle = self.operations.open(self.text(node), *struct.unpack_from("<I", body))
        return _OPENED.pack(handle, _DIRECT_IO if self.operations.is_direct(handle) else _KEEP_CACHE, 0)

    def _read(self, node: int, body: memoryview) -> Answer:
        handle, offset, size = _READ_IN.unpack_from(body)
        return self.operations.read(None, size, offset, handle)

    def _lseek(self, node: int, body: memoryview) -> Answer:
        handle, offset, whence = struct.unpack_from("<QqI", body)
        return struct.pack("<q", self.operations.lseek(None, offset, whence, handle))

    def _release(self, node: int, body: memoryview) -> Answer:
        self.operations.release(None, *struct.unpack_from("<Q", body))
        return b""

    # -- folders --

    def _opendir(self, node: int, body: memoryview) -> Answer:
        return _OPENED.pack(self.operations.opendir(self.text(node)), 0, 0)

    def _releasedir(self, node: int, body: memoryview) -> Answer:
        self.operations.releasedir(None, *struct.unpack_from("<Q", body))
        return b""

    def _readdir(self, node: int, body: memoryview) -> Answer:
        handle, offset, room = _READ_IN.unpack_from(body)
        out: list[bytes] = []
        for name, attributes in self.operations.folder_items(offset, handle):
            offset += 1
            record = pack_dirent(offset, name, attributes.inode, attributes.mode)
            room -= len(record)
            if room < 0:
                break
            out.append(record)
        return b"".join(out)

    def _readdirplus(self, node: int, body: memoryview) -> Answer:
        """Names with attributes, where they are known: the kernel then asks no more for ``ls -l``. Without a
        node id it takes the name alone."""
        handle, offset, room = _READ_IN.unpack_from(body)
        above = _below(self.nodes.path(node), b"")
        out: list[bytes] = []
        for name, attributes in self.operations.folder_items(offset, handle):
            offset += 1
            record = pack_dirent(offset, name, attributes.inode, attributes.mode)
            room -= len(record) + len(_NOTHING)
            if room < 0:
                break
            alone = not attributes.nlink or offset > MAX_PLUS or name in _DOTS
            out.append(_NOTHING if alone else self._entry(above + name, attributes))
            out.append(record)
        return b"".join(out)


def pack_attributes(a: Attributes) -> bytes:
    """``struct fuse_attr``."""
    used = a.size if a.allocated is None else a.allocated
    accessed, accessed_ns = divmod(a.atime_ns, _SECOND)
    modified, modified_ns = divmod(a.mtime_ns, _SECOND)
    changed, changed_ns = divmod(a.ctime_ns, _SECOND)
    # fmt: off
    return _ATTR.pack(
        a.inode, a.size, (used + 511) >> 9, accessed & _MAX_U64, modified & _MAX_U64, changed & _MAX_U64,
        accessed_ns, modified_ns, changed_ns, a.mode, a.nlink, a.uid, a.gid, _device(a.rdev), _UNKNOWN_BLOCK, 0,
    )
    # fmt: on


_MAX_U64 = 2**64 - 1


def pack_dirent(position: int, name: bytes, inode: int, mode: int) -> bytes:
    """``struct fuse_dirent`` with its name, filled up to 8 bytes; ``position`` is where to go on."""
    length = len(name)
    return _DIRENT.pack(inode, position, length, mode >> 12) + name + _FILLING[length & 7]


def _device(number: int) -> int:
    """A device number as the kernel packs it into 32 bits (``new_encode_dev``)."""
    if not number:
        return 0
    major, minor = os.major(number), os.minor(number)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _node(answer: bytes, at: int) -> int:
    return int.from_bytes(answer[at : at + 8], "little")


def _name(body: memoryview) -> bytes:
    return bytes(body).split(b"\0", 1)[0]


def _below(path: bytes, name: bytes) -> bytes:
    """``name`` in ``path``; ``.`` and ``..`` are asked for by a file server that exports the mount."""
    if name == b".":
        return path
    if name == b"..":
        return os.path.dirname(path)
    return path + name if path == b"/" else path + b"/" + name


def _sized(value: bytes, body: memoryview) -> bytes:
    """An attribute's value, or how long it is where the kernel asks for that; ERANGE where it does not fit."""
    (room, _) = _XATTR_IN.unpack_from(body)
    if not room:
        return _XATTR_IN.pack(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
