"""Deleted files of a file system that The Sleuth Kit opened: finding them, and how whole each one is.

How whole a file is is told from three things: where its bytes were (its inode, record or directory
entry), which of those blocks belong to another file now (the file system's own map), and which of
them this image holds (the extents of the reader below). Never imports pytsk3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cached_property

from imagefs.block.views import extents_of
from imagefs.browse import tskentry
from imagefs.browse.allocated import Allocated, Bitmap, ExtBitmaps, FatTable
from imagefs.browse.bigdir import Name
from imagefs.browse.content import MappedReader
from imagefs.browse.extdeleted import ExtDeleted
from imagefs.browse.fatdentry import Dentry
from imagefs.browse.names import printable, safe_name
from imagefs.browse.ntfsdeleted import AnyRecord, NtfsDeleted
from imagefs.browse.remains import ORPHANS, REALLOCATED, Collector
from imagefs.browse.tskdeleted import Orphans, TskDeleted
from imagefs.browse.tskhandle import TSK_ERRORS, Facts, Handle
from imagefs.browse.usage import EXFAT_BITMAP
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import METADATA, Entry, EntryType, FileSystem, State, Whole

_ADDRESS = re.compile(r"(\d{1,20})(?:-(\d{1,10})(?:-(\d{1,10}))?)?")
_LOST = (State.SKIPPED, State.UNREADABLE)
_HAS_BYTES = frozenset({EntryType.FILE, EntryType.DIRECTORY, EntryType.SYMLINK})
_WHY = {
    Whole.ABSENT: "its blocks are not in this image, which holds only what was in use",
    Whole.UNKNOWN: "nothing says where its bytes were",
}


class Deleted:
    """KeepsDeleted for a file system over TSK. ``fs`` is asked for live entries only."""

    def __init__(self, handle: Handle, facts: Facts, maker: tskentry.EntryMaker, fs: FileSystem) -> None:
        self._handle = handle
        self._facts = facts
        self._fs = fs
        self._mft = AnyRecord.like(facts.mft) if facts.mft is not None else None
        self._maker = maker
        if self._mft is not None:
            self._maker = tskentry.EntryMaker(facts.kind, mft=self._mft)

    # -- finding --------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Every deleted entry; what cannot be read is raised after everything that can."""
        return (entry for entry in self.steps() if entry is not None)

    def steps(self, *, lost: bool = True) -> Iterator[Entry | None]:
        """The same, and None again and again while none is found. Without ``lost`` unused clusters of FAT and
        exFAT are not looked through."""
        self._handle.check_open()
        collector = Collector(self._facts.reader, self._fs.lookup)
        try:
            yield from self._search(collector, lost)
        except ImagefsError as error:
            collector.note(error)
        if collector.error is not None:
            raise collector.error

    def _search(self, collector: Collector, lost: bool) -> Iterator[Entry | None]:
        facts = self._facts
        if facts.ext is not None and facts.ext.last and self._ext_bitmaps is not None:
            ext = ExtDeleted(facts.reader, facts.block_size, facts.ext, self._ext_bitmaps, self._maker)
            return ext.entries(collector)
        if self._mft is not None:
            ntfs = NtfsDeleted(facts.reader, facts.block_size, self._mft, self._of_record)
            return ntfs.entries(collector)
        tsk = TskDeleted(self._handle, self._maker, facts.root_inode)
        return tsk.entries(collector, self._orphans if lost else None)

    @property
    def _orphans(self) -> Orphans | None:
        facts = self._facts
        if facts.fat is None or self._allocated is None:
            return None
        return Orphans(facts.reader, facts.fat, self._allocated, exfat=facts.kind == "exfat")

    def _of_record(self, path: bytes, number: int) -> Entry:
        entry = self._maker.from_disk(path, Name(b"", number))
        return entry if entry is not None else self._of_tsk(path, number)

    def _of_tsk(self, path: bytes, number: int) -> Entry:
        try:
            with self._handle.hold(f"'{printable(path)}'") as info:
                return self._maker.make(path, info.open_meta(inode=number))
        except BrowseError:
            return tskentry.unreadable(path, number, EntryType.OTHER)

    def at(self, inode: str) -> Entry:
        """The entry at an address as ``fls`` prints it, deleted or not; PathNotFound."""
        match = _ADDRESS.fullmatch(inode)
        if match is None:
            raise PathNotFound(
                f"'{inode}' is no address of a file", hint="take it from `ls --deleted`, such as 37-128-1"
            )
        number, deleted = int(match[1]), self._is_unused(int(match[1]))
        if deleted is None:
            raise PathNotFound(f"there is no file at address {inode}", hint="`ls --deleted` shows them")
        entry = self._find_deleted(number, match[3]) if deleted else self._find_live(number)
        if match[3] is not None and entry.inode.count("-") == 2:
            entry = self._stream_at(entry, inode)
        return entry

    def _is_unused(self, number: int) -> bool | None:
        """Whether the metadata at an address belongs to no file; None where there is none."""
        try:
            with self._handle.hold("an address") as info:
                return not int(info.open_meta(inode=number).info.meta.flags) & 1
        except (BrowseError, *TSK_ERRORS):
            return None

    def _find_live(self, number: int) -> Entry:
        root = self._fs.root()
        if tskentry.address(root.inode) == number:
            return root
        for entry in walk(self._fs, root, onerror=lambda error: None):
            if tskentry.address(entry.inode) == number and "unreadable" not in entry.flags:
                return entry
        return self._of_tsk(b"/" + self._orphan_name(number), number)

    def _find_deleted(self, number: int, stream: str | None) -> Entry:
        try:
            for entry in self.steps(lost=False):
                if entry and tskentry.address(entry.inode) == number and REALLOCATED not in entry.flags:
                    return entry
        except ImagefsError:
            pass  # what can be read did not have it
        name = self._orphans.name(number) if self._orphans is not None else self._orphan_name(number)
        path = ORPHANS + b"/" + safe_name(name)
        return self._of_tsk(path, number)._replace(deleted=True)

    @staticmethod
    def _orphan_name(number: int) -> bytes:
        return b"OrphanFile-%d" % number

    def _stream_at(self, entry: Entry, inode: str) -> Entry:
        """The stream of ``entry`` at its full address."""
        if entry.inode == inode:
            return entry
        with self._handle.hold(f"'{inode}'") as info:
            streams = tskentry.streams_of(info.open_meta(inode=tskentry.address(inode)))
        for stream in streams:
            if inode == f"{tskentry.address(inode)}-{stream.type}-{stream.id}":
                path = entry.path + (b":" + bytes(stream.name) if stream.name else b"")
                return entry._replace(path=path, type=EntryType.FILE, size=stream.size, inode=inode)
        raise PathNotFound(f"there is no stream at address {inode}", hint="leave the last numbers out")

    # -- how whole ------------------------------------------------------------------------------------

    def check(self, entry: Entry) -> None:
        """Raise BrowseError for a deleted file of which no byte can be given."""
        word = self.wholeness(entry)
        why = _WHY.get(word)
        if word in (Whole.OVERWRITTEN, Whole.PARTLY) and self._has_lost_start(entry):
            why = "its first cluster belongs to another file now, and with it where the others were is lost"
        if why:
            raise BrowseError(f"'{printable(entry.path)}' is deleted, and {why}", path=entry.path)

    def _has_lost_start(self, entry: Entry) -> bool:
        """FAT: whether TSK knows of less than the whole file."""
        if self._facts.fat is None or entry.type is not EntryType.FILE:
            return False
        return sum(place.end - place.first for place in self._fs.places(entry)) < entry.size

    def wholeness(self, entry: Entry) -> Whole:
        if REALLOCATED in entry.flags or "unreadable" in entry.flags:
            return Whole.UNKNOWN
        if entry.type not in _HAS_BYTES:
            return Whole.INTACT
        try:
            places = self._places(entry)
        except ImagefsError:
            places = None
        if places is None:
            return Whole.UNKNOWN
        return self._judge(entry, places)

    def _places(self, entry: Entry) -> list[tuple[int, int]] | None:
        """Where the bytes of a deleted entry were, (first, end) in bytes of the volume: an empty list where
        they are in its own metadata or there are none, None where nothing tells."""
        if self._mft is not None:
            return self._ntfs_places(entry)
        inode = self._facts.ext.get(int(entry.inode)) if self._facts.ext is not None else None
        if inode is not None and (inode.link is not None or inode.is_inline):
            return []
        found = self._fs.places(entry)
        places = [(place.first, place.end) for place in found if place.stream != METADATA]
        if self._facts.fat is not None:
            return self._fat_places(entry, places)
        empty = self._facts.ext is None and not entry.size  # Linux clears the size with the block map
        return places if places or empty else None

    def _fat_places(self, entry: Entry, places: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """What TSK takes for the clusters of a file; it gives up where the first is in use, and then they
        are counted from there."""
        size = entry.size if entry.type is EntryType.FILE else 1
        if not size or sum(end - first for first, end in places) >= size:
            return places
        dentry, allocated = self._fat_entry(entry), self._allocated
        if dentry.first_cluster < 2 or not isinstance(allocated, (FatTable, Bitmap)):
            return None
        first = allocated.base + (dentry.first_cluster - 2) * allocated.unit
        return [(first, first + size)]

    def _fat_entry(self, entry: Entry) -> Dentry:
        return self._facts.fat.get(int(entry.inode)) if self._facts.fat is not None else Dentry()

    def _ntfs_places(self, entry: Entry) -> list[tuple[int, int]] | None:
        with self._handle.hold(f"'{printable(entry.path)}'") as info:
            file = info.open_meta(inode=tskentry.address(entry.inode))
            streams = tskentry.streams_of(file)
            stream = tskentry.addressed(self._facts.kind, streams, entry.inode)
            if stream is None:
                return [] if entry.type is EntryType.DIRECTORY or not entry.size else None
            if stream.flags & tskentry.RESIDENT:
                return []
            runs = tskentry.runs_of(file, stream)
            if any(run.filler for run in runs):
                return None
            size, block = stream.size, self._facts.block_size
            pieces = tskentry.pieces_of(runs, block, size=size, valid=size)
            return [(each.source, each.source + each.length) for each in pieces if each.source is not None]

    def _judge(self, entry: Entry, places: list[tuple[int, int]]) -> Whole:
        if not places:
            return Whole.INTACT
        reader, allocated = self._facts.reader, self._allocated
        if allocated is None or max(end for _, end in places) > reader.size:
            return Whole.UNKNOWN
        used = units = lost = total = 0
        for first, end in places:
            in_use, touched = allocated.used(first, end)
            used, units, total = used + in_use, units + touched, total + end - first
            extents = extents_of(reader, first, end - first)
            lost += sum(extent.length for extent in extents if extent.state in _LOST)
        if used >= units:
            return Whole.OVERWRITTEN
        if lost + used * total // units >= total:
            return Whole.ABSENT
        if used or lost:
            return Whole.PARTLY
        return Whole.GUESS if self._is_guess(entry, units) else Whole.INTACT

    def _is_guess(self, entry: Entry, units: int) -> bool:
        """FAT: the chain of a deleted file is gone, only its first cluster is known, and on FAT32 Windows
        clears the upper half of that too."""
        if self._facts.fat is None:
            return False
        dentry = self._fat_entry(entry)
        if units > 1:
            return not dentry.is_contiguous
        return isinstance(self._allocated, FatTable) and (
            self._allocated.clusters > 1 << 16 and dentry.first_cluster < 1 << 16
        )

    # -- the file system's own map ----------------------------------------------------------------------

    @cached_property
    def _ext_bitmaps(self) -> ExtBitmaps | None:
        if self._facts.ext is None:
            return None
        bitmaps = ExtBitmaps(self._facts.reader, self._facts.ext.descriptor)
        return bitmaps if bitmaps.usable else None

    @cached_property
    def _allocated(self) -> Allocated | None:
        """Which blocks are in use now; None where that cannot be told."""
        facts = self._facts
        if facts.ext is not None:
            return self._ext_bitmaps if facts.ext.last else None
        try:
            if self._mft is not None:
                bits = self._fs.open(self._fs.lookup(b"/$Bitmap"))
                return Bitmap(bits, base=0, unit=facts.block_size)
            if facts.kind == "exfat":
                return self._exfat_bitmap()
        except ImagefsError:
            return None
        return FatTable(facts.reader, facts.kind) if facts.fat is not None else None

    def _exfat_bitmap(self) -> Bitmap | None:
        boot = self._facts.reader.read_at(0, 512)
        heap, count = struct.unpack_from("<II", boot, 88)
        base, unit = heap << boot[108], 1 << boot[108] + boot[109]
        with self._handle.hold("the allocation bitmap") as info:
            for file in info.open_dir(inode=self._facts.root_inode):
                if file.info.name.name == EXFAT_BITMAP and file.info.meta is not None:
                    stream = tskentry.data_stream("exfat", tskentry.streams_of(file))
                    runs = tskentry.runs_of(file, stream) if stream else []
                    size = min(stream.size, -(-count // 8)) if stream else 0
                    pieces = tskentry.pieces_of(runs, self._facts.block_size, size=size, valid=size)
                    bits = MappedReader(self._facts.reader, size, pieces, label="the allocation bitmap")
                    return Bitmap(bits, base=base, unit=unit)
        return None
