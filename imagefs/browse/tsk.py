"""File systems through The Sleuth Kit: the only module that knows pytsk3.

TSK is fed through ``Img_Info.read`` alone. What goes wrong in there reaches us as a RuntimeError with
a text, or not at all: the original exception is kept on the image and raised again afterwards. One
FS_Info serves one thread at a time, so every call holds the lock of its file system, in portions: no
lock is held while a generator waits for its caller. Names that TSK invents ($OrphanFiles, $MBR, $FAT1,
volume labels, HFS+ and exFAT system files) are hidden; names that stand on the disk ($MFT) are shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytsk3

from imagefs.block.views import BytesReader
from imagefs.browse import reparse, tskentry, usage
from imagefs.browse.content import FetchReader, MappedReader, Piece, damaged
from imagefs.browse.extinode import ExtInodes, read_superblock
from imagefs.browse.fatdentry import Dentries
from imagefs.browse.listing import Listings
from imagefs.browse.names import FOLDED_KINDS, join, printable, repeated, safe_name, shown_name
from imagefs.errors import BrowseError, ImagefsError, NotAFileSystem
from imagefs.interfaces import Entry, EntryType, Reader

_KINDS = {
    int(getattr(pytsk3, f"TSK_FS_TYPE_{constant}")): kind
    for constant, kind in {
        "NTFS": "ntfs",
        "FAT12": "fat12",
        "FAT16": "fat16",
        "FAT32": "fat32",
        "EXFAT": "exfat",
        "EXT2": "ext2",
        "EXT3": "ext3",
        "EXT4": "ext4",
        "HFS": "hfs",
        "ISO9660": "iso9660",
        "FFS1": "ufs1",
        "FFS1B": "ufs1",
        "FFS2": "ufs2",
        "YAFFS2": "yaffs2",
        "APFS": "apfs",
    }.items()
}
#: The order in which types are forced when two file systems are found in one volume: mke2fs leaves
#: the boot sector of what was there before, the others do not leave ext's superblock.
_FORCED = ("EXT_DETECT", "NTFS_DETECT", "FAT_DETECT", "HFS_DETECT", "ISO9660_DETECT", "FFS_DETECT")
_TSK_ERRORS = (OSError, RuntimeError, SystemError, ValueError, TypeError, OverflowError, MemoryError)
_BATCH = 128
_VIRTUAL_TYPES = (10, 11)
_NAME_DIRECTORY, _NAME_UNALLOCATED = 3, 2
_MAX_LINK = 64 * 1024


class _Image(pytsk3.Img_Info):  # type: ignore[misc]
    """A Reader as TSK's image; ``error`` is what the last failed read raised."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.error: BaseException | None = None
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def get_size(self) -> int:
        return self._reader.size

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._reader.read_at(offset, length)
        except BaseException as error:
            self.error = error
            raise

    def close(self) -> None:
        pass


def open_tsk(reader: Reader) -> TskFileSystem:
    """The file system on ``reader``, which stays the caller's; NotAFileSystem when TSK finds none."""
    image = _Image(reader)
    try:
        info = _detect(image)
    except _TSK_ERRORS as error:
        if image.error is not None:
            raise image.error from None
        raise NotAFileSystem("no file system was found", reason=_reason(error)) from error
    kind = _KINDS.get(int(info.info.ftype))
    if kind is None:
        raise NotAFileSystem("the file system is of a type that cannot be browsed")
    return TskFileSystem(reader, image, info, kind)


def _detect(image: _Image) -> Any:
    try:
        return pytsk3.FS_Info(image)
    except OSError as error:
        if image.error is not None or " or " not in _reason(error):
            raise
    for name in _FORCED:
        try:
            return pytsk3.FS_Info(image, type=getattr(pytsk3, f"TSK_FS_TYPE_{name}"))
        except OSError:
            if image.error is not None:
                raise
    raise OSError("no type opens it")


def _reason(error: BaseException) -> str:
    """What TSK says, without the place in pytsk3 it comes from."""
    text = str(error)
    for mark in ("with error: ", "directory: ", "file: ", "error: "):
        if mark in text:
            text = text.split(mark, 1)[1]
    return text.strip()[:200]


class TskFileSystem:
    """A FileSystem over TSK."""

    def __init__(self, reader: Reader, image: _Image, info: Any, kind: str) -> None:
        self.kind = kind
        self.case_insensitive = kind in FOLDED_KINDS
        self._reader = reader
        self._image = image
        self._info: Any = info
        self._lock = threading.Lock()
        self._block_size = int(info.info.block_size)
        self._root_inode = int(info.info.root_inum)
        superblock = read_superblock(reader) if kind.startswith("ext") else None
        self._superblock = superblock
        self._ext = ExtInodes(reader, superblock) if superblock else None
        self._fat = Dentries(reader, exfat=kind == "exfat") if "fat" in kind else None
        self._maker = tskentry.EntryMaker(kind, ext=self._ext, fat=self._fat)
        self._listings = Listings(self._scan, case_insensitive=self.case_insensitive, readlink=self.readlink)

    @property
    def label(self) -> str:
        return usage.label(self.kind, self._reader, self._read_stream)

    @property
    def used_bytes(self) -> int | None:
        return usage.used_bytes(self.kind, self._reader, self._read_stream)

    def root(self) -> Entry:
        with self._tsk("the root directory") as info:
            return self._maker.make(b"/", info.open_meta(inode=self._root_inode))

    def lookup(self, path: bytes, /) -> Entry:
        return self._listings.lookup(self.root(), path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def close(self) -> None:
        with self._lock:
            self._info = None
        self._listings.clear()

    @contextmanager
    def _tsk(self, what: str) -> Iterator[Any]:
        """TSK for a moment: locked, its errors made ours. A failed read below is raised even where
        TSK swallows it."""
        with self._lock:
            if self._info is None:
                raise BrowseError("the file system is closed")
            self._image.error = None
            try:
                yield self._info
            except _TSK_ERRORS as error:
                if self._image.error is None:
                    raise BrowseError(
                        f"{what} cannot be read: {_reason(error)}",
                        hint="the file system is damaged there",
                        path=what,
                    ) from error
            if self._image.error is not None:
                raise self._image.error

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        """The live entries of a directory, read in portions. What cannot be read of it is raised
        after all that can."""
        shown = f"'{printable(directory.path)}'"
        with self._tsk(shown) as info:
            opened = info.open_dir(inode=tskentry.address(directory.inode))
            names = [safe_name(name) for name in self._names(opened, directory)]
            twice = repeated(names)
            taken = frozenset(names) if twice else frozenset()
        del names
        iter(opened)  # back to the first; a `for` over what is left would go back there too
        errors, done = list[BaseException](), set[bytes]()
        while batch := self._batch(opened, directory, errors, shown):
            for name, entry in batch:
                if name in twice:
                    unique = shown_name(name, entry.inode, twice=twice, taken=taken)
                    if unique in done:
                        continue
                    done.add(unique)
                    entry = tskentry.renamed(entry, join(directory.path, unique))
                yield entry
        if errors:
            raise errors[0]

    def _names(self, opened: Any, directory: Entry) -> Iterator[bytes]:
        for file in opened:
            if not self._hidden(file, directory):
                yield bytes(file.info.name.name or b"")

    def _batch(
        self, opened: Any, directory: Entry, errors: list[BaseException], shown: str
    ) -> list[tuple[bytes, Entry]]:
        """The next entries under one hold of the lock; empty at the end."""
        batch: list[tuple[bytes, Entry]] = []
        try:
            with self._tsk(shown):
                while len(batch) < _BATCH and (file := next(opened, None)) is not None:
                    if not self._hidden(file, directory):
                        name = safe_name(bytes(file.info.name.name or b""))
                        batch.append((name, self._entry(join(directory.path, name), file, errors)))
        except ImagefsError as error:
            errors.append(error)
        return batch

    def _entry(self, path: bytes, file: Any, errors: list[BaseException]) -> Entry:
        if file.info.meta is not None:
            try:
                return self._maker.make(path, file)
            except ImagefsError as error:
                errors.append(error)
            except _TSK_ERRORS:
                pass  # one damaged file; if a read failed below, the image has kept it
        return self._maker.unreadable(path, file.info.name)

    def _hidden(self, file: Any, directory: Entry) -> bool:
        name, meta = file.info.name, file.info.meta
        if name is None or int(name.flags) & _NAME_UNALLOCATED:
            return True
        raw = bytes(name.name or b"")
        if raw in (b".", b".."):
            return int(name.type) == _NAME_DIRECTORY or meta is None
        if int(name.type) in _VIRTUAL_TYPES or (meta is not None and int(meta.type) in _VIRTUAL_TYPES):
            return True
        return directory.path == b"/" and self._invented(raw, int(name.meta_addr), meta)

    def _invented(self, name: bytes, inode: int, meta: Any) -> bool:
        """Whether TSK made up this name in the root: volume labels, system files without a name."""
        if self.kind == "hfs":
            return inode < 16 and name.startswith(b"$")
        if self._fat is None or meta is None:
            return False
        if name.endswith(b" (Volume Label Entry)"):
            return int(meta.size) == 0
        return self.kind == "exfat" and name in usage.EXFAT_SYSTEM and not int(meta.mtime)

    def open(self, entry: Entry, /) -> Reader:
        shown = printable(entry.path)
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{shown}' is not a file but a {entry.type}", path=entry.path)
        if "unreadable" in entry.flags:
            raise damaged(shown, 0, "the file system does not say where its bytes lie")
        with self._tsk(f"'{shown}'") as info:
            file = info.open_meta(inode=tskentry.address(entry.inode))
            return self._content(entry, file, shown)
        raise AssertionError("unreachable")

    def _content(self, entry: Entry, file: Any, shown: str) -> Reader:
        streams = tskentry.streams_of(file)
        stream = tskentry.data_stream(self.kind, streams)
        self._refuse(entry, file, streams, stream)
        if stream is None:
            if entry.size or any(s.type == tskentry.NTFS_ATTRIBUTE_LIST for s in streams):
                raise damaged(shown, 0, "the file system does not say where its bytes lie")
            return BytesReader(b"")
        plain = not stream.flags & (tskentry.RESIDENT | tskentry.COMPRESSED | tskentry.ENCRYPTED)
        runs = tskentry.runs_of(file, stream) if plain else []
        if self._ext is None and any(run.filler for run in runs):
            raise damaged(shown, 0, "a part of the list of its clusters is missing")
        layout = None
        if plain:
            pieces = self._pieces(entry, runs, stream.size)
            layout = MappedReader(self._reader, stream.size, pieces, label=shown)
            if self._ext is not None or self._fat is not None:
                return layout
        return FetchReader(stream.size, self._fetch(file, stream, shown), label=shown, layout=layout)

    def _pieces(self, entry: Entry, runs: list[tskentry.Run], size: int) -> list[Piece]:
        valid = size
        if self._fat is not None:
            known = self._fat.get(int(entry.inode)).valid_length
            valid = size if known is None else min(size, known)
        return tskentry.pieces_of(runs, self._block_size, size=size, valid=valid)

    def _fetch(self, file: Any, stream: tskentry.Stream, shown: str) -> Callable[[int, int], bytes]:
        def fetch(offset: int, length: int) -> bytes:
            with self._tsk(f"'{shown}'"):
                return bytes(file.read_random(offset, length, stream.type, stream.id))
            raise AssertionError("unreachable")

        return fetch

    def _refuse(
        self, entry: Entry, file: Any, streams: list[tskentry.Stream], stream: tskentry.Stream | None
    ) -> None:
        """Raise when the stream is not the content: never zeros or ciphertext for a file."""
        reason = ""
        if self._ext is not None:
            reason = self._ext.must_refuse(int(entry.inode))
        elif self.kind == "hfs" and stream is not None:
            if (stream.flags | int(file.info.meta.flags) * 2) & tskentry.COMPRESSED:
                reason = "compressed by macOS"
        elif "encrypted" in entry.flags or tskentry.is_encrypted(streams):
            reason = "encrypted by Windows (EFS)"
        elif point := tskentry.read_reparse(file, streams) if self.kind == "ntfs" else None:
            reason = point.reason if _is_elsewhere(point, file, stream) else ""
        if reason:
            raise BrowseError(
                f"'{printable(entry.path)}' is {reason}, which cannot be decoded",
                hint="mount the image and open the partition's pN.raw with a system that can",
                path=entry.path,
            )

    def readlink(self, entry: Entry, /) -> bytes:
        shown = printable(entry.path)
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"'{shown}' is not a symbolic link", path=entry.path)
        with self._tsk(f"'{shown}'") as info:
            file = info.open_meta(inode=tskentry.address(entry.inode))
            target = self._target(entry, file, shown)
        if not target:
            raise BrowseError(f"the target of '{shown}' cannot be decoded", path=entry.path)
        return target

    def _target(self, entry: Entry, file: Any, shown: str) -> bytes | None:
        if self.kind == "ntfs":
            point = tskentry.read_reparse(file, tskentry.streams_of(file))
            return point.target if point else None
        if self._ext is not None:
            inode = self._ext.get(int(entry.inode))
            if inode is not None and inode.link is not None:
                return inode.link
        elif file.info.meta.link is not None:
            return bytes(file.info.meta.link)
        if entry.size > _MAX_LINK:
            raise damaged(shown, 0, f"a link target of {entry.size} bytes cannot be")
        target = bytes(file.read_random(0, entry.size)).split(b"\0")[0]
        return target if len(target) == entry.size else None

    def _read_stream(self, inode: int | bytes, kind: int) -> bytes:
        """A system file, whole and bounded, by number or by name in the root."""
        with self._tsk("a system file") as info:
            file = info.open_meta(inode=inode) if isinstance(inode, int) else self._in_root(info, inode)
            for stream in tskentry.streams_of(file) if file is not None else []:
                if stream.type == kind and not stream.name:
                    size = min(stream.size, usage.MAX_SYSTEM_FILE)
                    return b"".join(
                        file.read_random(at, min(1 << 20, size - at), stream.type, stream.id)
                        for at in range(0, size, 1 << 20)
                    )
        return b""

    def _in_root(self, info: Any, name: bytes) -> Any:
        for file in info.open_dir(inode=self._root_inode):
            if file.info.name.name == name:
                return file
        return None


def _is_elsewhere(point: reparse.Reparse, file: Any, stream: tskentry.Stream | None) -> bool:
    """Whether the content of a file with this reparse point is not (all) in its data stream."""
    if point.tag == reparse.WOF:
        return True
    if stream is None or not stream.size or stream.flags & tskentry.RESIDENT:
        return False
    return any(run.hole for run in tskentry.runs_of(file, stream))
