"""File systems through The Sleuth Kit: the only module that knows pytsk3.

TSK is fed through ``Img_Info.read`` alone: opened by name, a VHD would silently be read as raw. The
parts that do the work (``tskhandle``, ``tskdir``, ``tskcontent``, ``tskentry``) take TSK's objects as
they come and never import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytsk3

from imagefs.browse import tskentry, usage, wof
from imagefs.browse.content import MappedReader
from imagefs.browse.extinode import ExtInodes, read_superblock
from imagefs.browse.extxattr import ExtAttributes
from imagefs.browse.fatdentry import Dentries
from imagefs.browse.hfsplus import open_trees
from imagefs.browse.listing import Listings, MacNames
from imagefs.browse.mft import Mft, record_size
from imagefs.browse.names import FOLDED_KINDS, could_be_short, fold, parts, printable, safe_name
from imagefs.browse.records import ByRecords
from imagefs.browse.tskcontent import Contents
from imagefs.browse.tskdir import Directories
from imagefs.browse.tskhandle import TSK_ERRORS, Facts, Handle, reason
from imagefs.errors import ImagefsError, NotAFileSystem, PathNotFound
from imagefs.interfaces import (
    Entry,
    EntryType,
    Named,
    NameTimes,
    Place,
    Reader,
    Stream,
    Whole,
)

if TYPE_CHECKING:
    from imagefs.browse.deleted import Deleted

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
#: TSK keeps 32 bits of an ext block number, and would read elsewhere without saying so.
_MAX_EXT_BLOCKS = 1 << 32


class _Image(pytsk3.Img_Info):  # type: ignore[misc]
    """A Reader as TSK's image; ``error`` is what the last failed read raised.

    TSK reads 64 KiB at a time for its cache; when that fails it asks again for just the bytes it
    needs. So a failed read gives nothing at first, and a smaller one right after it that succeeds
    takes the error back: a damaged spot does not spoil what lies beside it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.error: BaseException | None = None
        self._failed: tuple[int, int] | None = None
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def get_size(self) -> int:
        return self._reader.size

    def read(self, offset: int, length: int) -> bytes:
        failed, self._failed = self._failed, None
        try:
            data = self._reader.read_at(offset, length)
        except Exception as error:
            if self.error is None:
                self._failed = offset, offset + length
                self.error = error
            return b""
        except BaseException as error:
            self.error = error
            raise
        if failed is not None and failed[0] <= offset and offset + length < failed[1]:
            self.error = None
        return data

    def close(self) -> None:
        pass


def open_tsk(reader: Reader, *, fat_zone: tzinfo = UTC) -> TskFileSystem:
    """The file system on ``reader``, which stays the caller's; NotAFileSystem when TSK finds none."""
    image = _Image(reader)
    try:
        info = _detect(image)
    except TSK_ERRORS as error:
        if image.error is not None:
            raise image.error from None
        raise NotAFileSystem("no file system was found", reason=reason(error)) from error
    kind = _KINDS.get(int(info.info.ftype))
    if kind is None:
        raise NotAFileSystem("the file system is of a type that cannot be browsed")
    return TskFileSystem(Handle(image, info), _facts(reader, info, kind, fat_zone))


def _facts(reader: Reader, info: Any, kind: str, fat_zone: tzinfo) -> Facts:
    superblock = read_superblock(reader) if kind.startswith("ext") else None
    if superblock is not None and superblock.blocks > _MAX_EXT_BLOCKS:
        raise NotAFileSystem(
            f"the {kind} file system has {superblock.blocks} blocks, more than can be browsed",
            hint="mount the image and let the kernel mount the partition from its pN.raw",
        )
    ext = ExtInodes(reader, superblock) if superblock else None
    return Facts(
        kind,
        reader,
        block_size=int(info.info.block_size),
        root_inode=int(info.info.root_inum),
        ext=ext,
        xattrs=ExtAttributes(reader, superblock, ext) if superblock and ext else None,
        fat=Dentries(reader, exfat=kind == "exfat", zone=fat_zone) if "fat" in kind else None,
        mft=_mft(reader, info) if kind == "ntfs" else None,
        hfs=open_trees(reader) if kind == "hfs" else None,
    )


def _mft(reader: Reader, info: Any) -> Mft | None:
    """The records of $MFT, which TSK has found; None where they are best left to it."""
    size = record_size(reader.read_at(0, 512))
    try:
        file = info.open_meta(inode=0)
        stream = tskentry.data_stream("ntfs", tskentry.streams_of(file))
        runs = tskentry.runs_of(file, stream) if stream else []
    except TSK_ERRORS:
        return None
    if size is None or stream is None or any(run.hole for run in runs):
        return None
    pieces = tskentry.pieces_of(runs, int(info.info.block_size), size=stream.size, valid=stream.size)
    return Mft(MappedReader(reader, stream.size, pieces, label="$MFT"), size)


def _detect(image: _Image) -> Any:
    try:
        return pytsk3.FS_Info(image)
    except OSError as error:
        if image.error is not None or " or " not in reason(error):
            raise
    for name in _FORCED:
        try:
            return pytsk3.FS_Info(image, type=getattr(pytsk3, f"TSK_FS_TYPE_{name}"))
        except OSError:
            if image.error is not None:
                raise
    raise OSError("no type opens it")


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """``name:stream`` in two; Windows also writes ``name:stream:$DATA``, and ``name::$DATA`` for the content."""
    owner, colon, name = path.rpartition(b":")
    typed = name.upper() == b"$DATA"
    if typed:
        owner, colon, name = owner.rpartition(b":")
    return (owner, name) if colon and (name or typed) and b"/" not in name else None


class TskFileSystem(ByRecords):
    """A FileSystem over TSK; ByRecords for comparing two points in time."""

    def __init__(self, handle: Handle, facts: Facts) -> None:
        self.kind = facts.kind
        self.case_insensitive = facts.kind in FOLDED_KINDS
        self._handle = handle
        self._maker = tskentry.EntryMaker(
            facts.kind, ext=facts.ext, fat=facts.fat, mft=facts.mft, hfs=facts.hfs
        )
        self._contents = Contents(handle, facts)
        self._root: Entry | None = None
        self._directories = Directories(handle, facts, self._maker)
        self._listings = Listings(
            self._directories.scan,
            case_insensitive=self.case_insensitive,
            readlink=self.readlink,
            find=self._directories.find,
            other=self._by_other_name,
        )
        self._mac_names = MacNames(self.children)

        super().__init__(facts, self._maker, self._directories)

    @cached_property
    def _deleted(self) -> Deleted:
        from imagefs.browse.deleted import Deleted  # with numpy, half of what a worker's start would take

        return Deleted(self._handle, self._facts, self._maker, self)

    @property
    def label(self) -> str:
        return usage.label(self.kind, self._facts.reader, self._system_file)

    @property
    def used_bytes(self) -> int | None:
        return usage.used_bytes(self.kind, self._facts.reader, self._system_file)

    def root(self) -> Entry:
        with self._handle.hold("the root directory") as info:
            if self._root is None:
                self._root = self._maker.make(b"/", info.open_meta(inode=self._facts.root_inode))
            return self._root

    def lookup(self, path: bytes, /) -> Entry:
        """An entry; ``name:stream`` where no entry has that very name."""
        try:
            return self._listings.lookup(self.root(), path)
        except PathNotFound:
            named = _split(path) if self.kind in ("ntfs", "hfs") else None
            if named is None:
                raise
            entry = self._listings.lookup(self.root(), named[0])
            return self._stream(entry, named[1]) if named[1] else entry

    def _by_other_name(self, directory: Entry, name: bytes) -> Entry | None:
        """The child that is found by a short name, or as macOS finds it on HFS+."""
        if self.kind == "hfs":
            case_matters = self._facts.reader.read_at(1024, 2) == b"HX"
            return self._mac_names.find(directory, name, folds=not case_matters)
        if self._facts.fat is not None:
            return self._facts.fat.by_short_name(self.children(directory), name)
        if self.kind != "ntfs" or not could_be_short(name):
            return None
        number = self._directories.short(directory, name)
        found = (each for each in self.children(directory) if tskentry.address(each.inode) == number)
        return None if number is None else next(found, None)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def names(self, entry: Entry, /) -> Iterator[Entry | Named]:
        return self._listings.kept(entry) or self._directories.names(entry)

    def soon(self, folders: Sequence[Entry], /) -> None:
        """These will be listed next: have what that takes read at once, where the reader has ``fetch``."""
        self._directories.soon(folders)

    def open(self, entry: Entry, /) -> Reader:
        if entry.deleted:
            self._deleted.check(entry)
        return self._contents.open(entry)

    def streams(self, entry: Entry, /) -> list[Stream]:
        found = self._contents.streams(entry)
        # What is the content itself, compressed: on HFS+ the resource fork of such a file is nothing else.
        hidden = wof.STREAM if "wof" in entry.flags else b"rsrc" if "compressed" in entry.flags else b""
        number = tskentry.address(entry.inode)
        return [
            Stream(safe_name(each.name), each.size, f"{number}-{each.type}-{each.id}")
            for each in found
            if each.name != hidden
        ]

    def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
        return self._contents.open(self._stream(entry, name))

    def _stream(self, entry: Entry, name: bytes) -> Entry:
        key = fold if self.case_insensitive else bytes
        found = self._contents.streams(entry)
        for wanted, same in ((name, bytes), (key(name), key)):
            for each in found:
                if same(safe_name(each.name)) == wanted:
                    return tskentry.stream_entry(entry, each)
        shown = f"{printable(entry.path)}:{printable(name)}"
        raise PathNotFound(f"there is no stream '{shown}'", path=entry.path + b":" + name)

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        if self.kind == "hfs" and "unreadable" not in entry.flags:
            return self._contents.mac_xattrs(entry)
        if self._facts.xattrs is None or "unreadable" in entry.flags:
            return {}
        self._handle.check_open()
        return self._facts.xattrs.of(int(entry.inode), printable(entry.path))

    def readlink(self, entry: Entry, /) -> bytes:
        return self._contents.readlink(entry)

    def places(self, entry: Entry, /) -> list[Place]:
        return self._contents.places(entry)

    def name_times(self, entry: Entry, /) -> list[NameTimes]:
        if self.kind != "ntfs":
            return []
        number = tskentry.address(entry.inode)
        found = self._facts.mft.names(number) if self._facts.mft is not None else None
        if found is None:
            with self._handle.hold(f"'{printable(entry.path)}'") as info:
                found = tskentry.name_times(info.open_meta(inode=number))
        return [tskentry.named_times(number, each) for each in found]

    def deleted(self) -> Iterator[Entry]:
        return self._deleted.entries()

    def deleted_in_steps(self) -> Iterator[Entry | None]:
        """The same, and None again and again while none is found: who asks may rest there."""
        return self._deleted.steps()

    def at(self, inode: str, /) -> Entry:
        return self._deleted.at(inode)

    def wholeness(self, entry: Entry, /) -> Whole:
        return self._deleted.wholeness(entry)

    # -- what records do not tell (ByRecords) ------------------------------------------------------

    def _walked(self, path: bytes) -> list[Entry]:
        entries, names = [self.root()], parts(path)
        for count in range(1, len(names) + 1):
            try:
                entries.append(self.lookup(b"/" + b"/".join(names[:count])))
            except PathNotFound:
                break
        return entries

    def _odd(self, number: int) -> Entry:
        try:
            with self._handle.hold(f"record {number}") as info:
                return self._maker.make(b"/", info.open_meta(inode=number))
        except ImagefsError:
            return tskentry.unreadable(b"/", number, EntryType.OTHER)

    def close(self) -> None:
        self._handle.close()
        self._listings.clear()

    def _system_file(self, inode: int | bytes, kind: int) -> bytes:
        """An unnamed stream of a system file, bounded, by number or by name in the root."""
        with self._handle.hold("a system file") as info:
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
        for file in info.open_dir(inode=self._facts.root_inode):
            if file.info.name.name == name:
                return file
        return None
