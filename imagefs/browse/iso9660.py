"""ISO 9660 with Rock Ridge or Joliet, read by ourselves: The Sleuth Kit 4.15 knows no Rock Ridge (symlinks are
empty files, modes and owners are missing) and tells no times at all.

Rock Ridge is taken where there is some, as by Linux, else Joliet. The address of a file is the byte of the
volume where its directory record begins, that of a folder the byte where its list does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imagefs.browse import isorecord
from imagefs.browse.content import MappedReader, Piece, damaged
from imagefs.browse.isorecord import HAS_MORE, IS_ASSOCIATED, IS_DIRECTORY, Record, RockRidge
from imagefs.browse.listing import Listings
from imagefs.browse.names import join, printable, repeated, safe_name, shown_name
from imagefs.errors import BrowseError, NotAFileSystem
from imagefs.interfaces import Entry, EntryType, Place, Reader, device_flags

_SECTOR, _FIRST = 2048, 16
_MAX_DESCRIPTORS, _MAX_FOLDER, _MAX_PARTS = 64, 64 << 20, 4096
_JOLIET = (b"%/@", b"%/C", b"%/E")
_TYPES = {
    0x1000: EntryType.FIFO,
    0x2000: EntryType.DEVICE,
    0x4000: EntryType.DIRECTORY,
    0x6000: EntryType.DEVICE,
    0x8000: EntryType.FILE,
    0xA000: EntryType.SYMLINK,
    0xC000: EntryType.SOCKET,
}


def open_iso(reader: Reader) -> IsoFileSystem:
    """The file system on ``reader``, which stays the caller's; NotAFileSystem if it is none."""
    primary = joliet = None
    for number in range(_FIRST, _FIRST + _MAX_DESCRIPTORS):
        raw = reader.read_at(number * _SECTOR, _SECTOR)
        if len(raw) < _SECTOR or raw[1:6] != b"CD001" or raw[0] == 255:
            break
        if raw[0] == 1:
            primary = primary or raw
        elif raw[0] == 2 and raw[88:91] in _JOLIET:
            joliet = joliet or raw
    root = isorecord.decode(primary[156:190]) if primary else None
    block = struct.unpack_from("<H", primary, 128)[0] if primary else 0
    if primary is None or root is None or block not in (512, 1024, 2048):
        raise NotAFileSystem("the volume is not ISO 9660")
    return IsoFileSystem(reader, block, primary, joliet)


class IsoFileSystem:
    """A FileSystem. Safe in several threads: it keeps nothing but listings."""

    kind = "iso9660"
    case_insensitive = False

    def __init__(self, reader: Reader, block: int, primary: bytes, joliet: bytes | None) -> None:
        self._reader: Reader | None = reader
        self._block = block
        self._primary = primary
        self._skip = self._rock_ridge_skip(struct.unpack_from("<I", primary, 158)[0])
        self._joliet = joliet is not None and self._skip is None
        self._top = struct.unpack_from("<I", joliet if self._joliet and joliet else primary, 158)[0]
        self._listings = Listings(self._scan, case_insensitive=False, readlink=self.readlink)

    @property
    def label(self) -> str:
        return self._primary[40:72].decode("ascii", "replace").strip(" \0")

    @property
    def used_bytes(self) -> int | None:
        return int(struct.unpack_from("<I", self._primary, 80)[0]) * self._block

    def root(self) -> Entry:
        record = self._record(self._top * self._block, "/")
        return self._entry(b"/", record, self._told(record))

    def lookup(self, path: bytes, /) -> Entry:
        return self._listings.lookup(self.root(), path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def open(self, entry: Entry, /) -> Reader:
        shown = printable(entry.path)
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{shown}' is not a file but a {entry.type}", path=entry.path)
        at, record = int(entry.inode), self._record(int(entry.inode), shown)
        packed = self._told(record).packed
        if packed:
            hint = "mount the image and let the kernel mount the partition from its pN.raw"
            raise BrowseError(f"'{shown}' is {packed}, which cannot be decoded", hint=hint, path=entry.path)
        pieces = self._pieces(at, record, shown)
        return MappedReader(self._opened(), sum(p.length for p in pieces), pieces, label=shown)

    def readlink(self, entry: Entry, /) -> bytes:
        shown = printable(entry.path)
        if entry.type is not EntryType.SYMLINK:
            raise BrowseError(f"'{shown}' is not a symbolic link", path=entry.path)
        target = self._told(self._record(int(entry.inode), shown)).link
        if not target or b"\0" in target:
            raise BrowseError(f"the target of '{shown}' cannot be decoded", path=entry.path)
        return target

    def places(self, entry: Entry, /) -> list[Place]:
        shown = printable(entry.path)
        pieces = self._pieces(int(entry.inode), self._record(int(entry.inode), shown), shown)
        return [Place(b"", p.source, p.source + p.length) for p in pieces if p.source is not None]

    def close(self) -> None:
        self._reader = None
        self._listings.clear()

    # -- records --

    def _opened(self) -> Reader:
        if self._reader is None:
            raise BrowseError("the file system is closed")
        return self._reader

    def _record(self, at: int, shown: str) -> Record:
        record = isorecord.decode(self._opened().read_at(at, 255))
        if record is None:
            raise damaged(shown, 0, "its directory record makes no sense")
        return record

    def _told(self, record: Record) -> RockRidge:
        return RockRidge() if self._skip is None else isorecord.rock_ridge(record, self._skip, self._more)

    def _more(self, block: int, offset: int, length: int) -> bytes:
        return self._opened().read_at(block * self._block + offset, min(length, _SECTOR))

    def _rock_ridge_skip(self, block: int) -> int | None:
        """How much to pass over before what Rock Ridge says, by the first record of the root; None without it."""
        record = isorecord.decode(self._opened().read_at(block * self._block, 255))
        extra = record.extra if record else b""
        if extra[:2] != b"SP" or extra[4:6] != b"\xbe\xef" or record is None:
            return None
        told = isorecord.rock_ridge(record, 0, self._more)
        return None if told.mode is None else extra[6]

    def _pieces(self, at: int, record: Record, shown: str) -> list[Piece]:
        """Where the content lies; a file in several parts has a record for each."""
        pieces, start = [], 0
        for _ in range(_MAX_PARTS):
            if record.size:
                pieces.append(Piece(start, record.size, record.block * self._block))
            start += record.size
            if not record.flags & HAS_MORE:
                return pieces
            at = self._next(at, record)
            record = self._record(at, shown)
        raise damaged(shown, 0, f"it is in more than {_MAX_PARTS} parts")

    def _next(self, at: int, record: Record) -> int:
        """Where the record behind one begins: no record goes over the end of a sector."""
        at += record.length
        return at if self._opened().read_at(at, 1) != b"\0" else -(-at // _SECTOR) * _SECTOR

    def _records(self, directory: Entry) -> Iterator[tuple[int, Record]]:
        """Where each record of a folder begins, and the record; the first two are the folder and its parent."""
        first, shown = int(directory.inode), printable(directory.path)
        size = self._record(first, shown).size
        if size > _MAX_FOLDER:
            raise damaged(shown, 0, f"its list is said to have {size} bytes")
        for start in range(first, first + size, _SECTOR):
            raw, at = self._opened().read_at(start, _SECTOR), 0
            while at < len(raw) and raw[at]:
                record = isorecord.decode(raw[at:])
                if record is None:
                    raise damaged(shown, start + at - first, "its list makes no sense there")
                yield start + at, record
                at += record.length

    # -- entries --

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        entries, goes_on = [], False
        for at, record in self._records(directory):
            part_of_last, goes_on = goes_on, bool(record.flags & HAS_MORE)
            if part_of_last or record.name in (b"\0", b"\1") or record.flags & IS_ASSOCIATED:
                continue
            told = self._told(record)
            if told.moved:
                continue
            path = join(directory.path, safe_name(told.name or self._name(record)))
            if told.child is not None:
                moved = told.child * self._block
                entries.append(self._entry(path, self._record(moved, printable(path)), told))
            else:
                entries.append(self._entry(path, record, told, at=at))
        names = [entry.name for entry in entries]
        twice, taken = repeated(names), frozenset(names)
        for entry in entries:
            name = shown_name(entry.name, entry.inode, twice=twice, taken=taken)
            yield entry._replace(path=join(directory.path, name))

    def _name(self, record: Record) -> bytes:
        """Without the version, and without the dot of a name that ends in one."""
        if self._joliet:
            return (
                record.name.decode("utf-16-be", "surrogatepass")
                .split(";")[0]
                .encode("utf-8", "surrogatepass")
            )
        return record.name.split(b";")[0].rstrip(b".") or record.name

    def _entry(self, path: bytes, record: Record, told: RockRidge, *, at: int = 0) -> Entry:
        is_directory = bool(record.flags & IS_DIRECTORY)
        mode = told.mode if told.mode is not None else 0o40555 if is_directory else 0o100444
        kind = EntryType.DIRECTORY if is_directory else _TYPES.get(mode & 0xF000, EntryType.OTHER)
        kind = EntryType.OTHER if kind is EntryType.DIRECTORY and not is_directory else kind
        inode, size = (record.block * self._block, record.size) if is_directory else (at, 0)
        if kind is EntryType.FILE:
            size = sum(piece.length for piece in self._pieces(at, record, printable(path)))
        elif kind is EntryType.SYMLINK:
            size = len(told.link or b"")
        device = device_flags(mode)
        times = told.times
        return Entry(
            path,
            kind,
            size,
            str(inode),
            mode=mode & 0o7777,
            uid=told.uid,
            gid=told.gid,
            nlink=told.nlink,
            mtime_ns=times.get(1, record.time_ns),
            atime_ns=times.get(2),
            ctime_ns=times.get(3),
            crtime_ns=times.get(0),
            rdev=told.rdev if device else None,
            flags=(*device, "compressed") if told.packed else device,
        )
