"""FAT through pyfatfs: the second way, for volumes that The Sleuth Kit refuses. The only module that
knows pyfatfs, which is imported when first needed (it pulls in pkg_resources).

pyfatfs parses; it is never asked to follow anything by itself: cluster chains are walked here, so
that a loop or a number out of range is an error and not an endless read. It reads the whole FAT into
a list, so volumes with a large one are refused. It gets a file that is not writable: it takes
``writable()`` as permission to set a dirty bit.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, tzinfo
from typing import Any

from imagefs.block.views import ReaderFile
from imagefs.browse import usage
from imagefs.browse.content import MappedReader, Piece, damaged
from imagefs.browse.fatdentry import LOCAL_TIMES, READ_ONLY, Dentries
from imagefs.browse.listing import Listings
from imagefs.browse.names import join, printable, repeated, safe_name, shown_name
from imagefs.errors import BrowseError, ImagefsError, NotAFileSystem
from imagefs.interfaces import Entry, EntryType, Place, Reader

#: One FAT, and all of them together, in bytes. TSK opens what is larger and in order.
_MAX_FAT, _MAX_FATS = 4 << 20, 16 << 20
_SLOT = 32
_LOWER_BASE, _LOWER_SUFFIX = 0x08, 0x10
_VOLUME_ID, _DIRECTORY, _LONG_NAME = 0x08, 0x10, 0x0F


def open_fat(reader: Reader, *, zone: tzinfo = UTC) -> FatFileSystem:
    """The FAT file system on ``reader``, which stays the caller's; NotAFileSystem if it is none."""
    boot = reader.read_at(0, 512)
    if not _plausible(boot):
        raise NotAFileSystem("the volume is not FAT")
    fat = _pyfat_class()()
    try:
        fat.set_fp(ReaderFile(_Counted(reader, boot)))
    except ImagefsError:
        raise
    except Exception as error:  # pyfatfs raises whatever its parsing stumbles over
        raise NotAFileSystem("the volume is not FAT", reason=str(error)) from error
    return FatFileSystem(reader, fat, zone)


def _plausible(boot: bytes) -> bool:
    if len(boot) < 512 or boot[510:] != b"\x55\xaa" or boot[0] not in (0xEB, 0xE9):
        return False
    sector, per_cluster, reserved, fats = struct.unpack_from("<HBHB", boot, 11)
    per_fat = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
    size = per_fat * sector
    return bool(per_cluster and reserved and 0 < size <= _MAX_FAT and 0 < fats * size <= _MAX_FATS)


def _pyfat_class() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources, about itself
        from pyfatfs.PyFat import PyFat
    # What pyfatfs thinks of a volume would go to stderr, past everybody who reports errors here.
    warnings.filterwarnings("ignore", category=Warning, module="pyfatfs")

    class BoundedFat(PyFat):  # type: ignore[misc]
        """PyFat whose chains end."""

        def get_cluster_chain(self, first_cluster: int) -> Iterator[int]:
            return iter(chain(self.fat, self.fat_type, first_cluster))

    return BoundedFat


class _Counted:
    """A volume whose boot sector counts its sectors in 32 bits, where it does so in 64."""

    def __init__(self, reader: Reader, boot: bytes) -> None:
        self._reader = reader
        self.size = reader.size
        self._boot = boot
        if not any(boot[19:21] + boot[32:36]):
            count = min(struct.unpack_from("<Q", boot, 82)[0], 0xFFFFFFFF)
            self._boot = boot[:32] + struct.pack("<I", count) + boot[36:]

    def read_at(self, offset: int, length: int, /) -> bytes:
        data = self._reader.read_at(offset, length)
        head = self._boot[offset : offset + len(data)]
        return head + data[len(head) :]

    def close(self) -> None:
        pass


def chain(fat: list[int], bits: int, first: int) -> list[int]:
    """The clusters of a chain. ValueError where it leaves the FAT, meets a loop or a bad cluster."""
    end = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[bits]
    clusters: list[int] = []
    seen: set[int] = set()
    cluster = first
    while cluster < end:
        if not 2 <= cluster < len(fat):
            raise ValueError(f"cluster {cluster} does not exist")
        if cluster in seen:
            raise ValueError(f"its chain of clusters comes back to {cluster}")
        seen.add(cluster)
        clusters.append(cluster)
        cluster = fat[cluster]
    return clusters


class FatFileSystem:
    """A FileSystem over pyfatfs. Safe in several threads: pyfatfs locks its file, we keep no state."""

    case_insensitive = True

    def __init__(self, reader: Reader, fat: Any, zone: tzinfo) -> None:
        self.kind = f"fat{fat.fat_type}"
        self._reader = reader
        self._fat: Any = fat
        self._dentries = Dentries(reader, exfat=False, zone=zone)
        self._root_start = int(fat.root_dir_sector) * int(fat.bpb_header["BPB_BytsPerSec"])
        self._listings = Listings(
            self._scan, case_insensitive=True, readlink=self.readlink, other=self._by_short_name
        )

    @property
    def label(self) -> str:
        return usage.label(self.kind, self._reader, lambda *_: b"")

    @property
    def used_bytes(self) -> int | None:
        return usage.used_bytes(self.kind, self._reader, lambda *_: b"")

    def root(self) -> Entry:
        self._opened()
        return Entry(b"/", EntryType.DIRECTORY, 0, "2", mode=0o755)

    def lookup(self, path: bytes, /) -> Entry:
        return self._listings.lookup(self.root(), path)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._listings.children(entry)

    def open(self, entry: Entry, /) -> Reader:
        shown = printable(entry.path)
        if entry.type is not EntryType.FILE:
            raise BrowseError(f"'{shown}' is not a file but a {entry.type}", path=entry.path)
        size, sources = self._clusters(entry) if entry.size else (1, [])
        if len(sources) * size < entry.size:
            raise damaged(shown, len(sources) * size, "its chain of clusters ends there")
        wanted = -(-entry.size // size)
        pieces = [Piece(i * size, size, source) for i, source in enumerate(sources[:wanted])]
        return MappedReader(self._reader, entry.size, pieces, label=shown)

    def places(self, entry: Entry, /) -> list[Place]:
        if entry.path == b"/" and self.kind != "fat32":
            return []  # the root directory has a place of its own
        size, sources = self._clusters(entry)
        left = entry.size if entry.type is EntryType.FILE else len(sources) * size
        return [
            Place(b"", source, source + min(size, left - number * size))
            for number, source in enumerate(sources)
            if number * size < left
        ]

    def _clusters(self, entry: Entry) -> tuple[int, list[int]]:
        """(bytes of a cluster, where each cluster of the entry begins)."""
        with self._parsing(printable(entry.path)) as fat:
            root = entry.path == b"/"
            first = int(fat.bpb_header["BPB_RootClus"]) if root else self._slot_cluster(entry)
            clusters = chain(fat.fat, fat.fat_type, first) if first else []
            places = [int(fat.get_data_cluster_address(cluster)) for cluster in clusters]
            return int(fat.bytes_per_cluster), places

    def _by_short_name(self, directory: Entry, name: bytes) -> Entry | None:
        return self._dentries.by_short_name(self.children(directory), name)

    def readlink(self, entry: Entry, /) -> bytes:
        raise BrowseError(f"'{printable(entry.path)}' is not a symbolic link", path=entry.path)

    def close(self) -> None:
        self._fat = None
        self._listings.clear()

    def _opened(self) -> Any:
        if self._fat is None:
            raise BrowseError("the file system is closed")
        return self._fat

    @contextmanager
    def _parsing(self, shown: str) -> Iterator[Any]:
        fat = self._opened()
        try:
            yield fat
        except ImagefsError:
            raise
        except Exception as error:  # pyfatfs raises whatever its parsing stumbles over
            raise BrowseError(
                f"'{shown}' cannot be read: {error}", hint="the file system is damaged there", path=shown
            ) from error

    def _scan(self, directory: Entry) -> Iterator[Entry]:
        with self._parsing(printable(directory.path)) as fat:
            entries = [entry for entry in self._entries(fat, directory) if entry is not None]
        names = [entry.name for entry in entries]
        twice, taken = repeated(names), frozenset(names)
        for entry in entries:
            name = shown_name(entry.name, entry.inode, twice=twice, taken=taken)
            yield entry._replace(path=join(directory.path, name))

    def _entries(self, fat: Any, directory: Entry) -> Iterator[Entry | None]:
        """The entries of a directory, slot by slot: pyfatfs would not say where they lie."""
        long_name = None
        for address in self._slots(fat, directory):
            raw = self._reader.read_at(address, _SLOT)
            if len(raw) < _SLOT or raw[0] == 0:
                return
            if raw[11] & _VOLUME_ID and raw[11] != _LONG_NAME:
                long_name = None
                continue
            parsed, long_name = fat.parse_dir_entries_in_address(address, address + _SLOT, long_name)
            for item in parsed:
                yield self._entry(item, raw, address, directory)

    def _slots(self, fat: Any, directory: Entry) -> Iterator[int]:
        if directory.path == b"/" and fat.fat_type != 32:
            start = self._root_start
            count = int(fat.bpb_header["BPB_RootEntCnt"])
            yield from range(start, start + count * _SLOT, _SLOT)
            return
        root32 = directory.path == b"/"
        first = int(fat.bpb_header["BPB_RootClus"]) if root32 else self._slot_cluster(directory)
        for cluster in chain(fat.fat, fat.fat_type, first):
            start = int(fat.get_data_cluster_address(cluster))
            yield from range(start, start + int(fat.bytes_per_cluster), _SLOT)

    def _entry(self, item: Any, raw: bytes, address: int, directory: Entry) -> Entry | None:
        if raw[0] == ord(".") and raw[:11].rstrip(b" ") in (b".", b".."):
            return None
        inode = (address - self._root_start) // _SLOT + 3
        dentry = self._dentries.get(inode)
        is_directory = bool(raw[11] & _DIRECTORY)
        size = 0 if is_directory else struct.unpack_from("<I", raw, 28)[0]
        return Entry(
            join(directory.path, safe_name(_name(item, raw[12]))),
            EntryType.DIRECTORY if is_directory else EntryType.FILE,
            size,
            str(inode),
            mode=0o755 if is_directory else 0o444 if raw[11] & READ_ONLY else 0o644,
            mtime_ns=dentry.mtime_ns,
            atime_ns=dentry.atime_ns,
            crtime_ns=dentry.crtime_ns,
            flags=(LOCAL_TIMES,),
        )

    def _slot_cluster(self, entry: Entry) -> int:
        """The first cluster of an entry, from its slot. FAT12/16 keep something else in the high half."""
        raw = self._reader.read_at(self._root_start + (int(entry.inode) - 3) * _SLOT, _SLOT)
        if len(raw) < _SLOT:
            raise damaged(printable(entry.path), 0, "its directory entry lies past the end of the volume")
        high = struct.unpack_from("<H", raw, 20)[0] if self.kind == "fat32" else 0
        return int(struct.unpack_from("<H", raw, 26)[0] + (high << 16))


def _name(item: Any, case: int) -> bytes:
    """The long name; else the short one, in the case that Windows NT keeps in two bits."""
    try:
        return str(item.get_long_name()).encode("utf-8", "surrogatepass")
    except Exception:  # there is none: NotAnLFNEntryException, a private class of pyfatfs
        base, dot, suffix = str(item.get_short_name()).partition(".")
    base = base.lower() if case & _LOWER_BASE else base
    suffix = suffix.lower() if case & _LOWER_SUFFIX else suffix
    return (base + dot + suffix).encode("utf-8", "surrogatepass")
