"""One file as The Sleuth Kit describes it -> one Entry. Takes TSK's objects, never imports pytsk3.

TSK's own word is taken for names, types and sizes; what it loses or bends is read beside it from the
disk (``extinode``, ``fatdentry``, ``reparse``). NTFS, FAT and exFAT have no Unix permissions: their
directories are 0755 and files 0644 (0444 when marked read-only), owned by 0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from imagefs.browse import decmpfs, reparse
from imagefs.browse.bigdir import Name
from imagefs.browse.content import Piece
from imagefs.browse.extinode import ExtInodes
from imagefs.browse.fatdentry import LOCAL_TIMES, READ_ONLY, Dentries, Dentry
from imagefs.browse.hfsplus import HfsPlus
from imagefs.browse.mft import FileName, Mft, Record, decode_name
from imagefs.browse.names import safe_name
from imagefs.browse.tskhandle import Handle
from imagefs.errors import ImagefsError
from imagefs.interfaces import Entry, EntryType, NameTimes

# Attribute types, attribute flags and metadata flags of TSK (tsk_fs.h).
NTFS_INFORMATION, NTFS_ATTRIBUTE_LIST, NTFS_NAME, NTFS_DATA = 16, 32, 48, 128
NTFS_INDEX_ROOT, NTFS_REPARSE = 144, 192
HFS_DATA, HFS_RESOURCE, HFS_ATTRIBUTE = 4352, 4353, 4354
RESIDENT, ENCRYPTED, COMPRESSED = 4, 16, 32
META_COMPRESSED = 16
_RUN_FILLER, _RUN_SPARSE = 1, 2
_INFORMATION = struct.Struct("<4QI")
_MAX_NAME = 66 + 2 * 255

_META_TYPES = {
    1: EntryType.FILE,
    2: EntryType.DIRECTORY,
    3: EntryType.FIFO,
    4: EntryType.DEVICE,
    5: EntryType.DEVICE,
    6: EntryType.SYMLINK,
    8: EntryType.SOCKET,
}
_NAME_TYPES = {
    1: EntryType.FIFO,
    2: EntryType.DEVICE,
    3: EntryType.DIRECTORY,
    4: EntryType.DEVICE,
    5: EntryType.FILE,
    6: EntryType.SYMLINK,
    7: EntryType.SOCKET,
}
_DEVICE_FLAGS: dict[int, tuple[str, ...]] = {4: ("char",), 5: ("block",)}
#: Type bits of a mode -> (type, whether it has a size).
_MODE_TYPES = {
    0x1000: (EntryType.FIFO, False),
    0x2000: (EntryType.DEVICE, False),
    0x4000: (EntryType.DIRECTORY, True),
    0x6000: (EntryType.DEVICE, False),
    0x8000: (EntryType.FILE, True),
    0xA000: (EntryType.SYMLINK, True),
    0xC000: (EntryType.SOCKET, False),
}
_OTHER = (EntryType.OTHER, True)
_WITHOUT_SIZE = frozenset({EntryType.DEVICE, EntryType.FIFO, EntryType.SOCKET})
_ID_MASK = 0xFFFFFFFF
_PLAIN_MODES = {EntryType.DIRECTORY: 0o755, EntryType.SYMLINK: 0o777}


@dataclass(frozen=True, slots=True)
class Stream:
    """One attribute of a file; ``size`` in bytes, never below 0."""

    type: int
    id: int
    name: bytes
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a stream in blocks. A ``filler`` is one that TSK knows nothing of: on ext a hole, on
    other file systems a damaged list."""

    offset: int
    length: int
    address: int
    hole: bool
    filler: bool


def runs_of(file: Any, stream: Stream) -> list[Run]:
    for attribute in file:
        if int(attribute.info.type) == stream.type and int(attribute.info.id) == stream.id:
            return [
                Run(
                    int(run.offset),
                    int(run.len),
                    int(run.addr),
                    hole=bool(int(run.flags) & (_RUN_SPARSE | _RUN_FILLER)),
                    filler=bool(int(run.flags) & _RUN_FILLER),
                )
                for run in attribute
            ]
    return []


def pieces_of(runs: list[Run], block_size: int, *, size: int, valid: int) -> list[Piece]:
    """Runs as pieces in bytes, cut at ``size``; what lies past ``valid`` is a hole."""
    pieces, end = [], 0
    for run in runs:
        start = run.offset * block_size
        length = min(run.length * block_size, size - start)
        if length <= 0 or start < end:
            continue
        end = start + length
        source = None if run.hole else run.address * block_size
        kept = length if source is None else max(0, min(length, valid - start))
        if kept:
            pieces.append(Piece(start, kept, source))
        if kept < length:
            pieces.append(Piece(start + kept, length - kept, None))
    return pieces


def is_encrypted(streams: list[Stream]) -> bool:
    """NTFS: EFS marks the data stream and keeps its keys in $EFS."""
    return any((s.flags & ENCRYPTED and s.type == NTFS_DATA) or s.name == b"$EFS" for s in streams)


def unreadable(path: bytes, inode: int, kind: EntryType) -> Entry:
    """A live name whose metadata cannot be read; the directory may say what it is."""
    return Entry(path, kind, 0, str(inode), flags=("unreadable",))


def name_type(file: Any) -> EntryType:
    """What TSK's name says that it is."""
    return _NAME_TYPES.get(int(file.info.name.type), EntryType.OTHER)


def fetcher(handle: Handle, file: Any, stream: Stream, shown: str) -> Callable[[int, int], bytes]:
    """Reads a stream through TSK, each call under the lock."""

    def fetch(offset: int, length: int) -> bytes:
        with handle.hold(shown):
            return bytes(file.read_random(offset, length, stream.type, stream.id))

    return fetch


def renamed(entry: Entry, path: bytes) -> Entry:
    return entry._replace(path=path)


def streams_of(file: Any) -> list[Stream]:
    out = []
    for attribute in file:
        info = attribute.info
        name, size = info.name or b"", max(0, int(info.size))
        out.append(Stream(int(info.type), int(info.id), name, size, int(info.flags)))
    return out


def data_stream(kind: str, streams: list[Stream]) -> Stream | None:
    """The stream that is the content of the file: unnamed $DATA on NTFS."""
    wanted = {"ntfs": NTFS_DATA, "hfs": HFS_DATA}.get(kind, 1)
    return next((s for s in streams if s.type == wanted and (kind != "ntfs" or not s.name)), None)


def named_streams(kind: str, streams: list[Stream]) -> list[Stream]:
    """The streams beside the content: named $DATA on NTFS, on HFS+ the resource fork, which gets a name."""
    if kind == "ntfs":
        return [s for s in streams if s.type == NTFS_DATA and s.name]
    if kind == "hfs":
        return [replace(s, name=b"rsrc") for s in streams if s.type == HFS_RESOURCE and s.size]
    return []


def stream_entry(owner: Entry, stream: Stream) -> Entry:
    """A named stream as a file of its own, under the address that TSK gives it (``64-128-5``)."""
    encrypted = stream.flags & ENCRYPTED or "encrypted" in owner.flags
    return owner._replace(
        path=owner.path + b":" + safe_name(stream.name),
        type=EntryType.FILE,
        size=stream.size,
        inode=f"{address(owner.inode)}-{stream.type}-{stream.id}",
        mode=owner.mode & 0o666,
        flags=("stream", "encrypted") if encrypted else ("stream",),
    )


def addressed(kind: str, streams: list[Stream], inode: str) -> Stream | None:
    """The stream that an address of three numbers names where that is data, else the content."""
    for stream in streams:
        if kind == "ntfs" and stream.type == NTFS_DATA and inode.split("-")[1:] == ["128", str(stream.id)]:
            return stream
    return data_stream(kind, streams)


def read_reparse(file: Any, streams: list[Stream]) -> reparse.Reparse | None:
    """The reparse point of an NTFS file, None when it has none."""
    for stream in streams:
        if stream.type == NTFS_REPARSE and stream.size:
            size = min(stream.size, reparse.MAX_BUFFER)
            return reparse.decode(file.read_random(0, size, stream.type, stream.id))
    return None


def address(inode: str) -> int:
    """TSK's metadata address of ``5``, ``5-144`` or ``5-144-3``."""
    return int(inode.split("-", 1)[0])


class EntryMaker:
    """Makes the entries of one file system. Owns nothing."""

    def __init__(
        self,
        kind: str,
        *,
        ext: ExtInodes | None = None,
        fat: Dentries | None = None,
        mft: Mft | None = None,
        hfs: HfsPlus | None = None,
    ) -> None:
        self._kind = kind
        self._ext = ext
        self._fat = fat
        self._mft = mft
        self._hfs = hfs

    def make(self, path: bytes, file: Any) -> Entry:
        """The entry of a file that TSK has opened."""
        if self._kind == "ntfs":
            return _ntfs(path, file)
        meta = file.info.meta
        number, type_number = int(meta.addr), int(meta.type)
        entry = self.from_disk(path, Name(b"", number))
        if entry is not None:
            return entry
        kind = _META_TYPES.get(type_number, EntryType.OTHER)
        size = 0 if kind in _WITHOUT_SIZE else max(0, int(meta.size))
        if self._fat is not None:
            return _fat(path, kind, size, number, self._fat.get(number))
        flags = _DEVICE_FLAGS.get(type_number, ())
        if self._ext is not None and (refused := self._ext.must_refuse(None)):
            flags += (refused,)
        if self._kind == "hfs" and int(meta.flags) & META_COMPRESSED:
            flags += ("compressed",)
            with suppress(ImagefsError):  # who opens it will hear of it
                told = decmpfs.told_of(self._hfs, number)
                size = told[0].size if told is not None else size
        return Entry(
            path,
            kind,
            size,
            str(number),
            mode=int(meta.mode) & 0o7777,
            uid=int(meta.uid) & _ID_MASK,
            gid=int(meta.gid) & _ID_MASK,
            nlink=max(0, int(meta.nlink)),
            mtime_ns=_ns(meta.mtime, meta.mtime_nano),
            atime_ns=_ns(meta.atime, meta.atime_nano),
            ctime_ns=_ns(meta.ctime, meta.ctime_nano),
            crtime_ns=_ns(meta.crtime, meta.crtime_nano),
            flags=flags,
        )

    def from_disk(self, path: bytes, found: Name) -> Entry | None:
        """The entry of an ext inode or an NTFS record, without TSK; None where only TSK knows."""
        if self._mft is not None:
            record = self._mft.get(found.inode)
            right = record is not None and found.sequence in (None, record.sequence)
            return of_record(path, found.inode, record) if record and right else None
        number = found.inode
        inode = self._ext.get(number) if self._ext is not None else None
        if self._ext is None or inode is None:
            return None
        kind, sized = _MODE_TYPES.get(inode.mode & 0xF000, _OTHER)
        flags: tuple[str, ...] = ()
        rdev = None
        if kind is EntryType.DEVICE:
            flags = _DEVICE_FLAGS[4 if inode.mode & 0xF000 == 0x2000 else 5]
            rdev = inode.rdev
        if self._ext.may_refuse and (refused := self._ext.must_refuse(inode)):
            flags = (*flags, refused)
        return Entry(
            path,
            kind,
            inode.size if sized else 0,
            str(number),
            inode.mode & 0o7777,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.mtime_ns,
            inode.atime_ns,
            inode.ctime_ns,
            inode.crtime_ns,
            False,
            rdev,
            flags,
        )


def _fat(path: bytes, kind: EntryType, size: int, number: int, dentry: Dentry) -> Entry:
    return Entry(
        path,
        kind,
        size,
        str(number),
        mode=_plain_mode(kind, read_only=bool(dentry.attributes & READ_ONLY)),
        mtime_ns=dentry.mtime_ns,
        atime_ns=dentry.atime_ns,
        crtime_ns=dentry.crtime_ns,
        flags=(LOCAL_TIMES,) if dentry.is_local else (),
    )


def _ntfs(path: bytes, file: Any) -> Entry:
    meta, streams = file.info.meta, streams_of(file)
    point = read_reparse(file, streams)
    kind = _META_TYPES.get(int(meta.type), EntryType.OTHER)
    kind = point.type or kind if point else kind
    size, data = max(0, int(meta.size)), data_stream("ntfs", streams)
    if kind is EntryType.FILE:
        size = data.size if data else 0
    elif kind is not EntryType.DIRECTORY:
        size = len(point.target or b"") if point else 0
    flags: tuple[str, ...] = ("encrypted",) if is_encrypted(streams) else ()
    created, modified, changed, accessed, dos = _standard_information(file, streams)
    return Entry(
        path,
        kind,
        size,
        _ntfs_inode(int(meta.addr), streams),
        mode=_plain_mode(kind, read_only=bool(dos & READ_ONLY)),
        nlink=max(0, int(meta.nlink)),
        mtime_ns=_windows_ns(modified),
        atime_ns=_windows_ns(accessed),
        ctime_ns=_windows_ns(changed),
        crtime_ns=_windows_ns(created),
        flags=(*flags, point.flag) if point else flags,
    )


def of_record(path: bytes, number: int, record: Record) -> Entry:
    """The entry of a record of NTFS."""
    created, modified, changed, accessed = record.times
    root, data = record.root, record.data
    if record.is_directory:
        kind, size, mode = EntryType.DIRECTORY, root.size if root else 0, 0o755
    else:
        kind, size = EntryType.FILE, data.size if data else 0
        mode = 0o444 if record.dos & READ_ONLY else 0o644
    inode = f"{number}-144-{root.id}" if root else f"{number}-128-{data.id}" if data else str(number)
    return Entry(
        path,
        kind,
        size,
        inode,
        mode,
        0,
        0,
        record.links,
        _windows_ns(modified),
        _windows_ns(accessed),
        _windows_ns(changed),
        _windows_ns(created),
    )


def name_times(file: Any) -> list[FileName]:
    """The names of an NTFS file that TSK has opened, with their own times."""
    found = [
        decode_name(
            stream.id, bytes(file.read_random(0, min(stream.size, _MAX_NAME), stream.type, stream.id))
        )
        for stream in streams_of(file)
        if stream.type == NTFS_NAME and stream.size
    ]
    return [each for each in found if each is not None]


def named_times(number: int, found: FileName) -> NameTimes:
    created, modified, changed, accessed = (_windows_ns(time) for time in found.times)
    inode = f"{number}-{NTFS_NAME}-{found.id}"
    return NameTimes(found.name, inode, found.size, modified, accessed, changed, created)


def _standard_information(file: Any, streams: list[Stream]) -> tuple[int, int, int, int, int]:
    """Four Windows times (created, modified, changed, accessed) and the DOS attributes. TSK's own
    times end in 2106, and it takes hidden files for read-only ones."""
    for stream in streams:
        if stream.type == NTFS_INFORMATION and stream.size >= 36:
            return _INFORMATION.unpack(file.read_random(0, 36, stream.type, stream.id))
    return 0, 0, 0, 0, 0


def _windows_ns(time: int) -> int | None:
    """100 ns since 1601 to ns since 1970; 0 is no time."""
    return (time - 116_444_736_000_000_000) * 100 if time else None


def _ntfs_inode(number: int, streams: list[Stream]) -> str:
    index = next((s for s in streams if s.type == NTFS_INDEX_ROOT and s.name == b"$I30"), None)
    stream = index or data_stream("ntfs", streams)
    return f"{number}-{stream.type}-{stream.id}" if stream else str(number)


def _plain_mode(kind: EntryType, *, read_only: bool) -> int:
    return _PLAIN_MODES.get(kind, 0o444 if read_only else 0o644)


def _ns(seconds: Any, nanos: Any) -> int | None:
    """TSK says 0 where it knows no time."""
    if not int(seconds):
        return None
    return int(seconds) * 1_000_000_000 + min(int(nanos), 999_999_999)
