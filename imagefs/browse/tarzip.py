"""The two archive formats, written in order to something that only takes bytes.

tar: POSIX.1-2001 (pax) headers by ``tarfile``: times in nanoseconds, ``SCHILY.xattr.*`` as star, GNU tar and bsdtar
read them, GNU.sparse 1.0 for files with holes ("Storing Sparse Files" in the manual of GNU tar), hard links always.
zip: by ``zipfile``, with data descriptors and zip64; modes, owners (Info-ZIP's ``ux``), times (``UT``, and NTFS's
in 100 ns). Knows no file system: members come with an entry and their content.
"""

from __future__ import annotations

import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from imagefs.browse.copying import Ranges
from imagefs.errors import BrowseError, TargetError
from imagefs.interfaces import Entry, EntryType

#: Holes of fewer bytes than this in all are written as zeros; a map of more pieces than that is not kept.
_WORTH, _MAX_MAP = 64 << 10, 100_000
_BLOCK, _RECORD = 512, 10_240
_PIECE = 1 << 20
_ZIP_NAME_MAX = 65_000
_EPOCH_1601 = 11_644_473_600 * 10**9


@dataclass(frozen=True, slots=True)
class Member:
    """One thing in the archive; ``name`` is its path in it."""

    name: bytes
    entry: Entry
    xattrs: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Content:
    """``size`` bytes of which ``runs`` (offset, length) may hold data and the rest is zeros;
    ``pieces`` gives the bytes of a range."""

    size: int
    runs: Ranges
    pieces: Callable[[int, int], Iterator[bytes]]


class Pipe:
    """Takes bytes for ``write``; what goes wrong there is a TargetError, but a closed pipe stays what it is."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        try:
            self._write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise TargetError(f"the archive cannot be written: {error.strerror}") from error
        return len(data)

    def flush(self) -> None:
        pass

    def abandon(self) -> None:
        """Whatever else is written goes nowhere: an archive that was cut off gets no proper end."""
        self._write = len


@contextmanager
def archive_writer(kind: str, write: Callable[[bytes], object]) -> Iterator[TarWriter | ZipWriter]:
    """A writer of a ``tar`` or ``zip`` to ``write``, finished when the block ends well."""
    pipe = Pipe(write)
    try:
        writer = TarWriter(pipe) if kind == "tar" else ZipWriter(pipe)
        yield writer
        writer.finish()
    except BaseException:
        pipe.abandon()
        raise


class TarWriter:
    """A tar, member by member."""

    kind = "tar"
    holds_nodes = holds_links = True

    def __init__(self, out: Pipe) -> None:
        self._out = out
        self._written = 0

    def fit(self, name: bytes) -> bytes:
        """A name of one member; tar takes every byte."""
        return name

    def holds_xattr(self, name: bytes) -> bool:
        return name.isascii() and b"=" not in name

    def directory(self, member: Member) -> None:
        self._head(member, tarfile.DIRTYPE)

    def symlink(self, member: Member, target: bytes) -> None:
        self._head(member, tarfile.SYMTYPE, target=target)

    def link(self, member: Member, first: bytes) -> None:
        self._head(member, tarfile.LNKTYPE, target=first)

    def node(self, member: Member) -> None:
        entry, kind, device = member.entry, tarfile.FIFOTYPE, (0, 0)
        if entry.type is EntryType.DEVICE:
            if entry.rdev is None:
                raise BrowseError("its device numbers are not known")
            kind, device = (tarfile.BLKTYPE if "block" in entry.flags else tarfile.CHRTYPE), entry.rdev
        self._head(member, kind, device=device)

    def file(self, member: Member, content: Content) -> None:
        stored = sum(length for _, length in content.runs)
        if content.size - stored < _WORTH or len(content.runs) > _MAX_MAP:
            self._head(member, tarfile.REGTYPE, size=content.size)
            self._data(content.pieces(0, content.size))
            return
        runs = [*content.runs]
        if not runs or runs[-1][0] + runs[-1][1] < content.size:
            runs.append((content.size, 0))
        table = b"%d\n" % len(runs) + b"".join(b"%d\n%d\n" % run for run in runs)
        table += bytes(-len(table) % _BLOCK)
        self._head(member, tarfile.REGTYPE, size=len(table) + stored, real_size=content.size)
        self._put(table)
        self._data(data for run in content.runs for data in content.pieces(*run))

    def finish(self) -> None:
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self._written % _RECORD))

    def _data(self, parts: Iterator[bytes]) -> None:
        for data in parts:
            self._put(data)
        self._put(bytes(-self._written % _BLOCK))

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)

    def _head(
        self,
        member: Member,
        kind: bytes,
        *,
        size: int = 0,
        target: bytes = b"",
        device: tuple[int, int] = (0, 0),
        real_size: int | None = None,
    ) -> None:
        entry, info = member.entry, tarfile.TarInfo(_text(member.name))
        info.type, info.size, info.linkname = kind, size, _text(target)
        info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
        info.devmajor, info.devminor = device
        info.mtime = (entry.mtime_ns or 0) // 10**9
        info.pax_headers = _pax(member)
        if real_size is not None:
            folder, _, name = info.name.rpartition("/")
            info.pax_headers |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
            info.pax_headers |= {"GNU.sparse.name": info.name, "GNU.sparse.realsize": str(real_size)}
            info.name = f"{folder}/GNUSparseFile.0/{name}".lstrip("/")
        self._put(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _pax(member: Member) -> dict[str, str]:
    entry = member.entry
    times = (("mtime", entry.mtime_ns), ("atime", entry.atime_ns), ("ctime", entry.ctime_ns))
    found = {name: _decimal(ns) for name, ns in times if ns is not None}
    for name, value in member.xattrs.items():
        found[f"SCHILY.xattr.{name.decode()}"] = _text(value)
    return found


def _decimal(ns: int) -> str:
    seconds, rest = divmod(abs(ns), 10**9)
    return f"{'-' if ns < 0 else ''}{seconds}.{rest:09d}"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class ZipWriter:
    """A zip, member by member. It holds no hard links, devices, pipes and attributes."""

    kind = "zip"
    holds_nodes = holds_links = False

    def __init__(self, out: Pipe) -> None:
        stream: Any = out
        #: Without ``tell`` it is told that nothing can be changed afterwards.
        self._zip = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, allowZip64=True)

    def fit(self, name: bytes) -> bytes:
        """Names in a zip are UTF-8, and many programs take a backslash for a slash."""
        text = name.decode("utf-8", "surrogateescape").replace("\\", "%5C")
        parts = (f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text)
        return "".join(parts).encode()

    def holds_xattr(self, name: bytes) -> bool:
        return False

    def directory(self, member: Member) -> None:
        info = _zip_info(member, stat.S_IFDIR, member.name + b"/")
        info.external_attr |= 0x10  # a folder, as DOS says it
        info.compress_type = zipfile.ZIP_STORED
        self._add(info, 0, iter(()))

    def symlink(self, member: Member, target: bytes) -> None:
        info = _zip_info(member, stat.S_IFLNK, member.name)
        info.compress_type = zipfile.ZIP_STORED
        self._add(info, len(target), iter((target,)))

    def link(self, member: Member, first: bytes) -> None:
        raise NotImplementedError("a zip holds no hard links")

    def node(self, member: Member) -> None:
        raise NotImplementedError("a zip holds no devices")

    def file(self, member: Member, content: Content) -> None:
        self._add(
            _zip_info(member, stat.S_IFREG, member.name),
            content.size,
            content.pieces(0, content.size),
        )

    def finish(self) -> None:
        self._zip.close()

    def _add(self, info: zipfile.ZipInfo, size: int, parts: Iterator[bytes]) -> None:
        if len(info.filename.encode()) > _ZIP_NAME_MAX:
            raise BrowseError("its path is too long for a zip")
        info.file_size = size
        with self._zip.open(info, "w") as out:
            for data in parts:
                out.write(data)


def _zip_info(member: Member, kind: int, name: bytes) -> zipfile.ZipInfo:
    entry = member.entry
    seconds = (entry.mtime_ns or 0) // 10**9
    info = zipfile.ZipInfo(name.decode(), _dos_time(seconds))
    info.create_system, info.compress_type = 3, zipfile.ZIP_DEFLATED
    info.external_attr = (kind | (entry.mode & 0o7777)) << 16
    info.extra = struct.pack("<HHBBIBI", 0x7875, 11, 1, 4, entry.uid & 0xFFFFFFFF, 4, entry.gid & 0xFFFFFFFF)
    if entry.mtime_ns is None:
        return info
    if -(1 << 31) <= seconds < 1 << 31:
        info.extra += struct.pack("<HHBi", 0x5455, 5, 1, seconds)
    stamps = [entry.mtime_ns, entry.atime_ns or entry.mtime_ns, entry.crtime_ns or entry.mtime_ns]
    ticks = [(each + _EPOCH_1601) // 100 for each in stamps]
    if all(0 <= each < 1 << 63 for each in ticks):
        info.extra += struct.pack("<HHIHH3Q", 0x000A, 32, 0, 1, 24, *ticks)
    return info


def _dos_time(seconds: int) -> tuple[int, int, int, int, int, int]:
    try:
        year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    except (OverflowError, ValueError, OSError):
        return (1980, 1, 1, 0, 0, 0)
    if not 1980 <= year <= 2107:
        return (1980, 1, 1, 0, 0, 0)
    return (year, month, day, hour, minute, second)
