"""ext and NTFS by our own decoders alone, in this process: what comparing points in time asks, without the start of
a worker.

These decoders are Python and numpy: what a hostile disk can make of them is an error, or that they take long or
much memory, which every read looks at (``_Watched``). Whatever they leave to TSK, whatever fails and whatever takes
too much is asked of the file system apart (``apart.py``), which is opened then. So every answer and every error is
what it would say, only sooner; but TSK refuses some damaged volumes that these decoders read.
"""

from __future__ import annotations

import math
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from imagefs.block.views import BytesReader, extents_of
from imagefs.browse import mft
from imagefs.browse.content import MappedReader, Piece
from imagefs.browse.extinode import ExtInodes, Superblock, read_superblock
from imagefs.browse.extxattr import ExtAttributes
from imagefs.browse.names import FOLDED_KINDS, printable
from imagefs.browse.ntfsrecords import NtfsRecords
from imagefs.browse.records import ByRecords
from imagefs.browse.tskcontent import Contents
from imagefs.browse.tskdir import Directories
from imagefs.browse.tskentry import NTFS_DATA, EntryMaker, address, of_record
from imagefs.browse.tskhandle import Facts
from imagefs.errors import BrowseError
from imagefs.interfaces import Entry, EntryType, Extent, FileSystem, Named, Place, Reader

#: What one question may take here, in seconds and bytes of memory; that is looked at once in so many reads.
_SECONDS, _MEMORY, _OFTEN = 30.0, 512 << 20, 16
#: What is answered here, of what comparing asks.
_NEAR = (
    *("tables", "trace", "footprint", "holdings", "owners", "links", "listed", "entries", "identities"),
    "structures",
)
#: Opens the file system in a worker: that of another one, which is closed by this, or a new one.
OpenApart = Callable[[FileSystem | None], FileSystem]

_EXT_ROOT, _NTFS_ROOT, _BAD_CLUSTERS = 2, 5, 8
_BOOT_MARK = b"\x55\xaa"
_HAS_JOURNAL, _EXTENTS = 0x4, 0x40
#: TSK keeps 32 bits of a block number, and refuses what is larger.
_MAX_BLOCKS = 1 << 32


class OnlyTskKnows(Exception):
    """What was asked is none of our decoders' business."""


class TooMuch(Exception):
    """It takes longer, or more memory, than is given to it here."""


class _NoTsk:
    """In the place of a Handle: whoever needs TSK goes no further."""

    image: Any = None
    info: Any = None
    lock = threading.Lock()

    def hold(self, what: str) -> NoReturn:
        raise OnlyTskKnows(what)

    def check_open(self) -> None:
        """There is nothing that could be closed."""

    def close(self) -> None:
        """Nor here."""


class _Watched:
    """A Reader that raises TooMuch when what is done in a ``with`` of it takes too much. Used by one thread then."""

    def __init__(self, reader: Reader) -> None:
        self.size = reader.size
        self._reader = reader
        self._until = math.inf
        self._most = self._reads = 0

    def __enter__(self) -> None:
        self._until = time.monotonic() + _SECONDS
        self._most, self._reads = _peak() + _MEMORY, 0

    def __exit__(self, *_: object) -> None:
        self._until = math.inf

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._until < math.inf:
            if time.monotonic() > self._until or (not self._reads % _OFTEN and _peak() > self._most):
                raise TooMuch
            self._reads += 1
        return self._reader.read_at(offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return extents_of(self._reader, offset, length)

    def close(self) -> None:
        """The reader is another's to close."""


def _peak() -> int:
    """The most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def open_near(reader: Reader, open_apart: OpenApart, after: FileSystem | None = None) -> FileSystem:
    """The file system on ``reader``. ``open_apart`` is called with ``after`` when our own decoders do not know enough:
    at once of anything but ext and NTFS. Raises what that raises."""
    spare = after.leave() if isinstance(after, NearFileSystem) else after
    watched = _Watched(reader)
    with suppress(Exception), watched:  # who opens it apart will hear of it
        facts = _facts(watched)
        if facts is not None:
            own = Decoders(facts)
            if own.tables():
                return NearFileSystem(own, watched, open_apart, spare)
    return open_apart(spare)


def _facts(reader: Reader) -> Facts | None:
    """None of what TSK might take for something else than we do."""
    boot, superblock = reader.read_at(0, 512), read_superblock(reader)
    is_ntfs = boot[3:11] == b"NTFS    "
    if superblock is not None:
        is_boot = boot[510:] == _BOOT_MARK  # perhaps of a file system that was here before
        return None if is_boot or is_ntfs or superblock.blocks > _MAX_BLOCKS else _ext(reader, superblock)
    return _ntfs(reader, boot) if is_ntfs else None


def _ext(reader: Reader, superblock: Superblock) -> Facts:
    compatible = struct.unpack("<I", reader.read_at(1024 + 92, 4))[0]
    kind = "ext3" if compatible & _HAS_JOURNAL else "ext2"
    kind = "ext4" if superblock.incompat & _EXTENTS else kind
    inodes = ExtInodes(reader, superblock)
    attributes = ExtAttributes(reader, superblock, inodes)
    return Facts(kind, reader, superblock.block_size, _EXT_ROOT, ext=inodes, xattrs=attributes)


def _ntfs(reader: Reader, boot: bytes) -> Facts | None:
    """The MFT by its own first record."""
    size, (sector, per_cluster) = mft.record_size(boot), struct.unpack_from("<HB", boot, 11)
    cluster = sector * per_cluster
    if size is None or sector not in (512, 1024, 2048, 4096) or not 0 < per_cluster <= 128:
        return None
    record = mft.decode(reader.read_at(struct.unpack_from("<Q", boot, 48)[0] * cluster, size))
    if record is None or record.data is None or record.data.resident is not None:
        return None
    pieces = mft.pieces_of(record.data, cluster, reader.size)
    if pieces is None or any(piece.source is None for piece in pieces):
        return None
    table = mft.Mft(MappedReader(reader, record.data.size, pieces, label="$MFT"), size)
    return Facts("ntfs", reader, cluster, _NTFS_ROOT, mft=table)


class Decoders(ByRecords):
    """What can be told without TSK; OnlyTskKnows for all else."""

    def __init__(self, facts: Facts) -> None:
        no_tsk: Any = _NoTsk()
        maker = EntryMaker(facts.kind, ext=facts.ext, mft=facts.mft)
        self.kind = facts.kind
        self._directories = Directories(no_tsk, facts, maker)
        self._contents = Contents(no_tsk, facts)
        super().__init__(facts, maker, self._directories)

    def _walked(self, path: bytes) -> list[Entry]:
        raise OnlyTskKnows(path)

    def _odd(self, number: int) -> Entry:
        if isinstance(self._records, NtfsRecords) and self._records.is_at_home(number):
            record = mft.decode(self._mft.raw(number), listed=True)
            if record is not None:
                return of_record(b"/", number, record)
        raise OnlyTskKnows(number)

    @property
    def _mft(self) -> mft.Mft:
        assert self._facts.mft is not None
        return self._facts.mft

    def root(self) -> Entry:
        return self._numbered(self._facts.root_inode)

    def names(self, entry: Entry, /) -> list[Entry | Named]:
        return list(self._directories.names(entry))

    def readlink(self, entry: Entry, /) -> bytes:
        return self._contents.readlink(entry)

    def open(self, entry: Entry, /) -> Reader:
        if self._facts.mft is None:
            return self._contents.open(entry)
        shown, is_file = printable(entry.path), entry.type is EntryType.FILE and not entry.flags
        for each in self._streams(entry) if is_file and address(entry.inode) != _BAD_CLUSTERS else ():
            if (
                entry.inode == f"{address(entry.inode)}-{NTFS_DATA}-{each.stream.id}"
                and not each.name
                and each.plain
            ):
                if each.stream.resident is not None:
                    return BytesReader(each.stream.resident)
                return MappedReader(self._facts.reader, each.stream.size, self._pieces(each), label=shown)
        raise OnlyTskKnows(shown)

    def places(self, entry: Entry, /) -> list[Place]:
        if self._facts.mft is None:
            return self._contents.places(entry)
        return [
            Place(each.name, piece.source, piece.source + piece.length)
            for each in self._streams(entry)
            if each.stream.resident is None
            for piece in self._pieces(each)
            if piece.source is not None
        ]

    def _streams(self, entry: Entry) -> list[mft.NamedStream]:
        number = address(entry.inode)
        at_home = isinstance(self._records, NtfsRecords) and self._records.is_at_home(number)
        found = mft.decode_streams(self._mft.raw(number), listed=True) if at_home else None
        if found is None:
            raise OnlyTskKnows(entry.path)
        return found

    def _pieces(self, each: mft.NamedStream) -> list[Piece]:
        found = mft.pieces_of(each.stream, self._facts.block_size, self._facts.reader.size)
        if found is None:
            raise OnlyTskKnows(each.name)
        return found


class NearFileSystem:
    """A FileSystem with KeepsRecords and ListsNames, answered here as far as may be. One question at a time."""

    def __init__(
        self, own: Decoders, watched: _Watched, open_apart: OpenApart, spare: FileSystem | None
    ) -> None:
        self.kind = own.kind
        self.case_insensitive = own.kind in FOLDED_KINDS
        self._own: Decoders | None = own
        self._watched = watched
        self._open_apart = open_apart
        self._apart: FileSystem | None = None
        self._spare = spare
        self._lock = threading.RLock()
        self._closed = False
        for name in _NEAR:
            setattr(self, name, partial(self._ask, name))

    def _ask(self, method: str, *args: Any) -> Any:
        with self._lock:
            if self._own is not None and not self._closed:
                try:
                    with self._watched:
                        return getattr(self._own, method)(*args)
                except (TooMuch, MemoryError):
                    self._own = None
                except Exception:  # noqa: S110 # what is the matter is told by whom is asked now
                    pass
            return getattr(self.apart, method)(*args)

    @property
    def apart(self) -> FileSystem:
        """The same file system in a worker."""
        with self._lock:
            if self._closed:
                raise BrowseError("the file system is closed")
            if self._apart is None:
                spare, self._spare = self._spare, None
                self._apart = self._open_apart(spare)
            return self._apart

    def leave(self) -> FileSystem | None:
        """Close this file system, but for the one apart, which is the caller's, if there is one: its own, or that
        which came before."""
        with self._lock:
            found, self._apart, self._spare = self._apart or self._spare, None, None
            self._closed = True
        return found

    @property
    def label(self) -> str:
        return self.apart.label

    @property
    def used_bytes(self) -> int | None:
        return self.apart.used_bytes

    def root(self) -> Entry:
        found: Entry = self._ask("root")
        return found

    def lookup(self, path: bytes, /) -> Entry:
        return self.apart.lookup(path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self.apart.children(entry)

    def names(self, entry: Entry, /) -> Iterator[Entry | Named]:
        return iter(self._ask("names", entry))

    def open(self, entry: Entry, /) -> Reader:
        found: Reader = self._ask("open", entry)
        return found

    def readlink(self, entry: Entry, /) -> bytes:
        return bytes(self._ask("readlink", entry))

    def places(self, entry: Entry, /) -> list[Place]:
        found: list[Place] = self._ask("places", entry)
        return found

    def close(self) -> None:
        self._closed = True
        for each in (self._apart, self._spare):
            if each is not None:
                each.close()
