"""One file as The Sleuth Kit describes it -> one Entry. Takes TSK's objects, never imports pytsk3.

TSK's own word is taken for names, types and sizes; what it loses or bends is read beside it from the
disk (``extinode``, ``fatdentry``, ``reparse``). NTFS, FAT and exFAT have no Unix permissions: their
directories are 0755 and files 0644 (0444 when marked read-only), owned by 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from imagefs.browse import reparse
from imagefs.browse.content import Piece
from imagefs.browse.extinode import ExtInodes
from imagefs.browse.fatdentry import READ_ONLY, Dentries
from imagefs.browse.tskhandle import Handle
from imagefs.interfaces import Entry, EntryType

# Attribute types, attribute flags and metadata flags of TSK (tsk_fs.h).
NTFS_ATTRIBUTE_LIST, NTFS_DATA, NTFS_INDEX_ROOT, NTFS_REPARSE, HFS_DATA = 32, 128, 144, 192, 4352
RESIDENT, ENCRYPTED, COMPRESSED = 4, 16, 32
META_COMPRESSED = 16
_RUN_FILLER, _RUN_SPARSE = 1, 2

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
_DEVICE_FLAGS = {4: ("char",), 5: ("block",)}
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


def unreadable(path: bytes, inode: int, name_type: int) -> Entry:
    """A live name whose metadata cannot be read; the directory may say what it is."""
    return Entry(path, _NAME_TYPES.get(name_type, EntryType.OTHER), 0, str(inode), flags=("unreadable",))


def fetcher(handle: Handle, file: Any, stream: Stream, shown: str) -> Callable[[int, int], bytes]:
    """Reads a stream through TSK, each call under the lock."""

    def fetch(offset: int, length: int) -> bytes:
        with handle.hold(shown):
            return bytes(file.read_random(offset, length, stream.type, stream.id))

    return fetch


def renamed(entry: Entry, path: bytes) -> Entry:
    return replace(entry, path=path)


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

    def __init__(self, kind: str, *, ext: ExtInodes | None, fat: Dentries | None) -> None:
        self._kind = kind
        self._ext = ext
        self._fat = fat

    def make(self, path: bytes, file: Any) -> Entry:
        meta = file.info.meta
        entry = Entry(
            path,
            _META_TYPES.get(int(meta.type), EntryType.OTHER),
            max(0, int(meta.size)),
            str(int(meta.addr)),
            mode=int(meta.mode) & 0o7777,
            uid=int(meta.uid) & 0xFFFFFFFF,
            gid=int(meta.gid) & 0xFFFFFFFF,
            nlink=max(0, int(meta.nlink)),
            mtime_ns=_ns(meta.mtime, meta.mtime_nano),
            atime_ns=_ns(meta.atime, meta.atime_nano),
            ctime_ns=_ns(meta.ctime, meta.ctime_nano),
            crtime_ns=_ns(meta.crtime, meta.crtime_nano),
        )
        if entry.type in (EntryType.DEVICE, EntryType.FIFO, EntryType.SOCKET):
            entry = replace(entry, size=0, flags=_DEVICE_FLAGS.get(int(meta.type), ()))
        if self._kind == "ntfs":
            return _ntfs(entry, file)
        if self._fat is not None:
            return self._with_dentry(entry, self._fat)
        if self._ext is not None:
            return self._with_inode(entry, self._ext)
        flags = ("compressed",) if self._kind == "hfs" and int(meta.flags) & META_COMPRESSED else ()
        return replace(entry, flags=entry.flags + flags)

    def _with_dentry(self, entry: Entry, dentries: Dentries) -> Entry:
        dentry = dentries.get(int(entry.inode))
        return replace(
            entry,
            mode=_plain_mode(entry.type, read_only=bool(dentry.attributes & READ_ONLY)),
            uid=0,
            gid=0,
            mtime_ns=dentry.mtime_ns,
            atime_ns=dentry.atime_ns,
            ctime_ns=None,
            crtime_ns=dentry.crtime_ns,
        )

    def _with_inode(self, entry: Entry, inodes: ExtInodes) -> Entry:
        inode = inodes.get(int(entry.inode))
        if inode is None:
            return entry
        refused = inodes.must_refuse(int(entry.inode))
        return replace(
            entry,
            mtime_ns=inode.mtime_ns,
            atime_ns=inode.atime_ns,
            ctime_ns=inode.ctime_ns,
            crtime_ns=inode.crtime_ns,
            rdev=inode.rdev,
            flags=(*entry.flags, refused) if refused else entry.flags,
        )


def _ntfs(entry: Entry, file: Any) -> Entry:
    streams = streams_of(file)
    point = read_reparse(file, streams)
    data = data_stream("ntfs", streams)
    kind, size, flags = entry.type, entry.size, []
    if kind is EntryType.FILE:
        size = data.size if data else 0
    if is_encrypted(streams):
        flags.append("encrypted")
    if point is not None:
        flags.append(point.flag)
        kind = point.type or kind
        size = len(point.target or b"") if kind is EntryType.SYMLINK else size
    return replace(
        entry,
        type=kind,
        size=size,
        inode=_ntfs_inode(int(entry.inode), streams),
        mode=_plain_mode(kind, read_only=not entry.mode & 0o222),
        uid=0,
        gid=0,
        flags=tuple(flags),
    )


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
