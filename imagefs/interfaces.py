"""Every socket of the house: the Protocols that rooms on different floors meet at, and the small
values that pass through them. Nothing here does any work.

A disk is anything that answers ``read_at(offset, length)``.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Reader(Protocol):
    """Random-access bytes of a fixed size: a device, an image, a chain, a partition, a file.

    - ``read_at`` MUST return exactly ``max(0, min(length, size - offset))`` bytes or raise; it
      MUST never come back short otherwise. ``offset`` and ``length`` are >= 0 (ValueError if not);
      an offset at or past the end gives ``b""``.
    - It MUST have no position: any number of threads may call it at once.
    - What it raises MUST be an ``ImagefsError``.
    - ``close`` MUST be safe to call twice; a closed reader's ``read_at`` raises.
    """

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int, /) -> bytes: ...

    def close(self) -> None: ...


class State(enum.IntEnum):
    """What a stretch of disk holds; the numbers are those of the container (FORMAT.md)."""

    ABSENT = 0  # see the parent; never in a resolved view
    STORED = 1
    ZERO = 2
    SKIPPED = 3  # not captured: unallocated; reads as zeros
    UNREADABLE = 4  # the source could not read it; reads as zeros


#: What a copy may pass over; of what the source could not read nobody knows that it was zeros.
HOLES = frozenset({State.ZERO, State.SKIPPED})


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of equal state, in bytes."""

    state: State
    offset: int
    length: int


@runtime_checkable
class Extents(Protocol):
    """Optional face of a Reader that knows where it holds data.

    ``extents(offset, length)`` MUST yield extents that cover exactly the asked range (cut at
    ``size``), in order, without overlap, neighbours differing in state. STORED means "may hold
    data"; every other state promises that ``read_at`` gives zeros there.
    """

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]: ...


class Sink(Protocol):
    """Whatever takes bytes at offsets: a target file or device, standard output.

    - ``write_at`` MUST write all of ``data`` or raise TargetError.
    - ``zero_at`` MUST make the range read as zeros: written, punched or zeroed out, never assumed.
    - ``finish(size)`` MUST make everything durable; a regular file ends at exactly ``size`` bytes.
    - ``close`` MUST be safe to call twice, and after a failure.
    """

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None: ...

    def zero_at(self, offset: int, length: int, /) -> None: ...

    def finish(self, size: int) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Writable(Reader, Protocol):
    """A Reader whose bytes can be changed, never its size: a disk with an overlay, a partition of it.

    - ``write_at`` and ``zero_at`` MUST change the whole range or raise; what they changed is what every
      later read gives, in any thread and through any slice. A range past the end is an error.
    - ``sync`` MUST make durable all that was changed before it was called.
    """

    def write_at(self, offset: int, data: bytes | memoryview, /) -> None: ...

    def zero_at(self, offset: int, length: int, /) -> None: ...

    def sync(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a store: its name, size in bytes, time of last change (ns since 1970) and, where the
    store has such a thing, the number that a replaced object does not share (its inode)."""

    name: str
    size: int
    mtime_ns: int
    inode: int = 0


class ObjectWriter(Protocol):
    """An object being written, append only.

    Nothing MUST be visible under the object's name before ``commit`` returns; after ``commit`` or
    ``abort`` the writer takes nothing more. A failed ``append`` or ``commit`` poisons it: only
    ``abort`` or ``suspend`` may follow. ``abort`` MUST be safe to call twice and after ``commit``
    (then it does nothing). ``sync`` makes durable what was appended. ``suspend`` ends the writer and
    leaves what was appended as a partial, for ``ObjectStore.reopen``.
    """

    @property
    def position(self) -> int: ...

    def append(self, data: bytes | memoryview, /) -> None: ...

    def sync(self) -> None: ...

    def commit(self) -> None: ...

    def suspend(self) -> None: ...

    def abort(self) -> None: ...


class ObjectStore(Protocol):
    """A flat place of named, write-once objects.

    - ``list`` MUST yield finished objects only; ``partials`` the unfinished ones left by a crash.
    - ``open`` MUST give a Reader over a finished object, StoreError if there is none.
    - ``open_partial`` and ``reopen`` take a name as ``partials`` gives it; ``reopen`` goes on with a
      partial behind its first ``size`` bytes, and MUST refuse one that is being written.
    - ``create`` MUST refuse a name that exists (StoreError), at the latest in ``commit``.
    - ``lock`` MUST be exclusive between processes and MUST vanish with a killed one.
    """

    @property
    def url(self) -> str: ...

    def list(self) -> Iterator[ObjectInfo]: ...

    def partials(self) -> Iterator[ObjectInfo]: ...

    def open(self, name: str, /) -> Reader: ...

    def create(self, name: str, /) -> ObjectWriter: ...

    def open_partial(self, name: str, /) -> Reader: ...

    def reopen(self, name: str, size: int, /) -> ObjectWriter: ...

    def delete(self, name: str, /) -> None: ...

    def lock(self) -> Lock: ...

    def free_bytes(self) -> int | None: ...


class DerivedCache(Protocol):
    """Keeps bytes by name that can be made again. What it gives may be old, cut or forged.

    Neither MUST raise. ``get`` gives None for what is not there or longer than ``limit``; ``put`` MUST
    make all ``parts`` appear under ``name`` at once, or leave what was there.
    """

    def get(self, name: str, limit: int, /) -> bytes | None: ...

    def put(self, name: str, parts: Iterable[bytes], /) -> None: ...


class Lock(Protocol):
    """Held from ``lock()`` until ``release()``; releasing twice is harmless."""

    def release(self) -> None: ...


class EntryType(enum.StrEnum):
    """What an entry of a file system is; the words of the command line."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    DEVICE = "device"
    FIFO = "fifo"
    SOCKET = "socket"
    OTHER = "other"

    __hash__ = str.__hash__  # Enum's own is written in Python, and every look-up by type pays for it

    @classmethod
    def of_mode(cls, mode: int) -> EntryType:
        """By the type bits of a Unix mode (``st_mode``)."""
        return _OF_MODE.get(stat.S_IFMT(mode), cls.OTHER)


_OF_MODE = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFBLK: EntryType.DEVICE,
    stat.S_IFCHR: EntryType.DEVICE,
    stat.S_IFIFO: EntryType.FIFO,
    stat.S_IFSOCK: EntryType.SOCKET,
}


def device_flags(mode: int) -> tuple[str, ...]:
    """What ``Entry.flags`` says of a device, by its Unix mode: whether it is one of blocks or of characters."""
    return {stat.S_IFCHR: ("char",), stat.S_IFBLK: ("block",)}.get(stat.S_IFMT(mode), ())


class Entry(NamedTuple):
    """One file or directory of a file system. A named tuple, because a folder has many of them and a
    frozen dataclass takes ten times as long to make.

    ``path`` is raw bytes from the root of the volume (``b"/"`` is the root, ``b"/etc/fstab"``);
    ``name`` its last part, as it is shown: equal names in one directory carry ``~<inode>``.
    Times are ns since 1970 UTC, None when unknown. ``mode`` holds permission bits only.
    ``inode`` is The Sleuth Kit's address as ``fls`` prints it; ``rdev`` (major, minor) of a device.
    """

    path: bytes
    type: EntryType
    size: int
    inode: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime_ns: int | None = None
    atime_ns: int | None = None
    ctime_ns: int | None = None
    crtime_ns: int | None = None
    deleted: bool = False
    rdev: tuple[int, int] | None = None
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> bytes:
        return self.path.rsplit(b"/", 1)[-1]


class Named(NamedTuple):
    """What a directory itself tells of one of its entries, without a look at the entry."""

    name: bytes
    type: EntryType
    inode: str


#: What ``Place.stream`` says of an inode or a record of the MFT.
METADATA = b"metadata"


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes ``first`` to before ``end`` of a volume hold a part of ``stream`` (empty: the content;
    ``METADATA``: the file's own record)."""

    stream: bytes
    first: int
    end: int


class FileSystem(Protocol):
    """A read-only file system over a Reader. MUST be safe to call from several threads.

    ``lookup`` raises PathNotFound; matches without case where ``case_insensitive``. ``children``
    yields the live entries of a directory without ``.`` and ``..``. ``open`` gives a Reader of a
    file's content; ``readlink`` a symlink's target bytes. Damage raises BrowseError, never an
    endless loop or wrong bytes; what cannot be decoded is refused, never answered with zeros.
    """

    @property
    def kind(self) -> str:
        """``ntfs``, ``fat12``, ``fat16``, ``fat32``, ``exfat``, ``ext2`` … ``hfs``, ``iso9660`` …"""
        ...

    @property
    def label(self) -> str: ...

    @property
    def case_insensitive(self) -> bool: ...

    @property
    def used_bytes(self) -> int | None: ...

    def root(self) -> Entry: ...

    def lookup(self, path: bytes, /) -> Entry: ...

    def children(self, entry: Entry, /) -> Iterator[Entry]: ...

    def open(self, entry: Entry, /) -> Reader: ...

    def readlink(self, entry: Entry, /) -> bytes: ...

    def places(self, entry: Entry, /) -> list[Place]:
        """Where the streams of a file or the list of a directory lie; what lies in its metadata is left out."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class ListsNames(Protocol):
    """A FileSystem that can list a directory at a fraction of the cost, for who wants names only.

    ``names`` yields what ``children`` does in the same order, but may yield a Named for an entry that
    is no directory and whose type and name need no look at the entry.
    """

    def names(self, entry: Entry, /) -> Iterator[Entry | Named]: ...


class Stream(NamedTuple):
    """A further content of a file: an alternate data stream of NTFS, the resource fork of HFS+ (``rsrc``).
    ``inode`` is its own address where it has one, as ``fls`` prints it (``64-128-5``)."""

    name: bytes
    size: int
    inode: str = ""


@runtime_checkable
class HasStreams(Protocol):
    """A FileSystem whose files and directories may have named contents beside their own."""

    def streams(self, entry: Entry, /) -> list[Stream]:
        """The named streams, none of them the content itself."""
        ...

    def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
        """PathNotFound where there is none of that name; refuses as ``open`` does."""
        ...


@runtime_checkable
class HasXattrs(Protocol):
    """A FileSystem that knows extended attributes."""

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        """By their full names as Linux has them (``user.comment``)."""
        ...


class NameTimes(NamedTuple):
    """What NTFS keeps with one name of a file (``$FILE_NAME``) beside the times of the file: set when the
    name is made, and seldom touched by those who set times. ``size`` is that of the attribute."""

    name: bytes
    inode: str
    size: int
    mtime_ns: int | None
    atime_ns: int | None
    ctime_ns: int | None
    crtime_ns: int | None


@runtime_checkable
class HasNameTimes(Protocol):
    """A FileSystem that may keep further times with the names of its entries."""

    def name_times(self, entry: Entry, /) -> list[NameTimes]:
        """Those of each name that the entry has, DOS's short names aside."""
        ...


class Table(NamedTuple):
    """A stretch of the volume full of records: numbers ``first`` to before ``end``, each ``length`` bytes, from
    byte ``offset`` on."""

    first: int
    end: int
    length: int
    offset: int


class Holding(NamedTuple):
    """Bytes ``first`` to before ``end`` of the volume belong to the file whose record has ``number``: to its contents
    (a directory's are its list) or, with ``is_metadata``, to what tells where these are."""

    number: int
    first: int
    end: int
    is_metadata: bool


class Link(NamedTuple):
    """A name of record ``number`` in the directory with record ``parent``, as the directory has it."""

    number: int
    parent: int
    name: bytes


class Structure(NamedTuple):
    """Bytes ``first`` to before ``end`` of the volume are what the file system keeps for itself: ``inode tables``."""

    name: str
    first: int
    end: int


@runtime_checkable
class KeepsRecords(Protocol):
    """A FileSystem that keeps a record of fixed length for each file at a fixed place (the inodes of ext, the MFT
    of NTFS): two points in time can be compared by records, without a walk.

    A record's number is the first of ``Entry.inode``. Of a file system that has no such records, or where they cannot
    be found, ``tables`` gives none, and nothing else MUST be asked.
    """

    def tables(self) -> list[Table]:
        """Where the records lie; those that were never used may be left out."""
        ...

    def trace(self, path: bytes, /) -> list[Entry]:
        """The entries of the root and of each part of ``path``, as far as there are any; the same as by ``lookup``, but
        no directory is listed for it."""
        ...

    def footprint(self, entries: list[Entry], /) -> list[Place]:
        """Where everything lies on which it depends what a path is, and what is in it, ``entries`` being its ``trace``:
        records and lists of its directories, its own record and contents. While none of these bytes change, ``lookup``
        and ``open`` of it give the same."""
        ...

    def holdings(self, ranges: list[list[int]], /) -> list[Holding]:
        """What of ``ranges`` ([first, end] in bytes of the volume) belongs to files in use, by its records."""
        ...

    def owners(self, numbers: list[int], /) -> list[int]:
        """For each record that of the file it belongs to: itself, but for further records of a file (NTFS)."""
        ...

    def links(self, numbers: list[int], /) -> list[Link]:
        """Every name of these records, and those of all directories above them. What no directory lists is left out."""
        ...

    def listed(self, numbers: list[int], /) -> list[Link]:
        """All names in these directories; of what is none, nothing. What cannot be read of one is left out."""
        ...

    def entries(self, numbers: list[int], /) -> list[Entry]:
        """The entry of each of these records, all with the path ``b"/"``; ``unreadable`` where it cannot be told."""
        ...

    def identities(self, numbers: list[int], /) -> list[str]:
        """For each record what tells the file in it from an earlier or later one with the same number; empty for one
        that is not in use."""
        ...

    def structures(self) -> list[Structure]:
        """What belongs to no file; bytes that are in none of these and no file's are free."""
        ...


class Whole(enum.StrEnum):
    """How much of a deleted file its old place can still give."""

    INTACT = "intact"  # every block is free and captured
    PARTLY = "partly-overwritten"  # some of its blocks belong to another file now
    OVERWRITTEN = "overwritten"
    GUESS = "contiguous-guess"  # the list of its blocks is gone; they are taken for contiguous
    ABSENT = "not-in-this-image"  # its blocks were not captured (mode used)
    UNKNOWN = "unknown"  # nothing says where its bytes were


@runtime_checkable
class KeepsDeleted(Protocol):
    """A FileSystem that still knows deleted files."""

    def deleted(self) -> Iterator[Entry]:
        """Every deleted entry, ``deleted`` set, under its path where that is known, else ``/$OrphanFiles``."""
        ...

    def at(self, inode: str, /) -> Entry:
        """The entry at an address as ``fls`` prints it, deleted or not; PathNotFound."""
        ...

    def wholeness(self, entry: Entry, /) -> Whole: ...


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition: ``[start, start + length)`` in bytes of the disk; ``number`` as Linux counts.

    Number 0 is the whole of an unpartitioned disk. ``type`` is the GPT type GUID (lower case) or
    the MBR type as ``0x0c``; ``uuid`` the GPT partition GUID or ``<disk id>-<nn>``; ``name`` the
    GPT name; ``role`` a word such as ``esp``, ``windows``, ``recovery``, ``linux``, ``swap``.

    A volume inside another has the other's id in ``inside``, its place among those there as ``number`` and 0 as
    ``start``; a shadow copy the time it was made in ``moment`` (``20261117T020004Z``).
    """

    number: int
    start: int
    length: int
    type: str = ""
    uuid: str = ""
    name: str = ""
    role: str = ""
    bootable: bool = False
    inside: str = ""
    moment: str = ""

    @property
    def id(self) -> str:
        if self.moment:
            return f"{self.inside}@{self.moment}"
        return f"{self.inside}.{self.number}" if self.inside else f"p{self.number}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing verify or a parser has to say. ``image`` is an image id, ``message`` one sentence."""

    severity: str  # "error", "warning" or "note"
    code: str
    message: str
    image: str = ""
    chunk: int | None = None
    offset: int | None = None
    length: int | None = None
    files: tuple[str, ...] = ()


class Progress(Protocol):
    """Hears how far a long job is; MUST be cheap and MUST NOT raise except to cancel the job.

    ``start(label, total)`` begins a phase (``total`` bytes or None), ``advance(n)`` adds to it, ``tell``
    gives its other counts by name: ``errors`` in sectors, states in bytes.
    """

    def start(self, label: str, total: int | None, /) -> None: ...

    def advance(self, count: int, /) -> None: ...

    def tell(self, counts: Mapping[str, int], /) -> None: ...

    def note(self, message: str, /) -> None: ...


class NoProgress:
    """The Progress nobody listens to."""

    def start(self, label: str, total: int | None, /) -> None:
        pass

    def advance(self, count: int, /) -> None:
        pass

    def tell(self, counts: Mapping[str, int], /) -> None:
        pass

    def note(self, message: str, /) -> None:
        pass
