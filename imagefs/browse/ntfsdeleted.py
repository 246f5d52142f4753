"""Deleted entries of NTFS: records of the MFT that are no longer in use, and names left in directories.

A record keeps names, times and runs of its file until it is used again; each name holds the number and
sequence of its folder, so paths are put together from the records alone. What lies behind the end of a
directory's entries are names of files that were renamed or moved, or whose record is used again.
Layout: the documentation of the Linux-NTFS project. Knows nothing of TSK.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from imagefs.block.views import extents_of
from imagefs.browse.bigdir import unfixed_index
from imagefs.browse.content import MappedReader
from imagefs.browse.mft import Mft, Record, Stream, decode, pieces_of, unfixed_record
from imagefs.browse.names import join, safe_name
from imagefs.browse.remains import MAX_DEPTH, ORPHANS, REALLOCATED, Collector
from imagefs.errors import ImagefsError
from imagefs.interfaces import HOLES, Entry, EntryType, Reader

_ROOT, _NUMBER = 5, (1 << 48) - 1
_IN_USE, _IS_DIRECTORY = 1, 2
_NAME, _DATA, _LIST, _END = 48, 128, 32, 0xFFFFFFFF
_DOS_NAME, _INDEXED = 2, 0x10000000
_STEP, _KEPT_PATHS = 1024, 65_536
_INDEX_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_HEAD = struct.Struct("<H2xHHI").unpack_from
_attribute = struct.Struct("<IIBBHHHIH").unpack_from


class FileName(NamedTuple):
    """One name of a record, and the folder it is in."""

    parent: int
    sequence: int
    name: bytes


class Remains(NamedTuple):
    """What a record tells: ``names`` without those for DOS; ``streams`` are (id, name, size) of its
    data, the unnamed one among them; ``is_split`` where other records hold a part."""

    sequence: int
    in_use: bool
    is_directory: bool
    names: list[FileName]
    streams: list[tuple[int, bytes, int]]
    is_split: bool


class AnyRecord(Mft):
    """Records whether they are in use or not: how an entry is made of one that is not."""

    @classmethod
    def like(cls, mft: Mft) -> AnyRecord:
        return cls(mft.table, mft._size)

    def get(self, number: int) -> Record | None:
        raw = self.raw(number)
        return decode(raw[:22] + bytes([raw[22] | _IN_USE]) + raw[23:]) if len(raw) > 48 else None

    def remains(self, number: int) -> Remains | None:
        return parse(self.raw(number))

    def has_name(self, number: int, folder: int, name: bytes) -> bool:
        """Whether a record, in use or not, tells that name itself; so does one that there cannot be."""
        remains = self.remains(number)
        if remains is None:
            return number >= self._count
        return any(each.parent == folder and each.name == name for each in remains.names)

    def folder_inode(self, number: int) -> str:
        """TSK's address of a directory."""
        record = self.get(number)
        return f"{number}-144-{record.root.id}" if record and record.root else str(number)

    def scan(self) -> Iterator[int]:
        """The numbers of records that are not in use, and of all that are directories."""
        for first, count in self._stretches():
            for start in range(first, first + count, _STEP):
                yield from self._wanted(start, min(_STEP, first + count - start))

    def _wanted(self, first: int, count: int) -> list[int]:
        raw = self._read(first, count)
        rows = np.frombuffer(raw[: len(raw) // self._size * self._size], np.uint8).reshape(-1, self._size)
        marked = (rows[:, :4] == np.frombuffer(b"FILE", np.uint8)).all(axis=1)
        alone = ~rows[:, 32:38].any(axis=1)
        wanted = (rows[:, 22] & _IN_USE == 0) | (rows[:, 22] & _IS_DIRECTORY != 0)
        return (np.flatnonzero(marked & alone & wanted) + first).tolist()

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """(first, count) of records that may hold something."""
        end = self._count * self._size
        for extent in extents_of(self.table, 0, end):
            if extent.state not in HOLES:
                first = extent.offset // self._size
                yield first, min(self._count, -(-(extent.offset + extent.length) // self._size)) - first


class NtfsDeleted:
    """Finds what was deleted on one volume. ``make(path, number)`` is the entry of a record through
    whatever knows it whole."""

    def __init__(
        self, reader: Reader, cluster: int, records: AnyRecord, make: Callable[[bytes, int], Entry]
    ) -> None:
        self._reader = reader
        self._cluster = cluster
        self._records = records
        self._make = make

    def entries(self, collector: Collector) -> Iterator[Entry | None]:
        """None after each record that was looked at."""
        paths = _Paths(self._records, collector)
        try:
            for number in self._records.scan():
                try:
                    remains = self._records.remains(number)
                    if remains is None:
                        continue
                    if not remains.in_use:
                        yield from self._of_record(number, remains, paths)
                    if remains.is_directory:
                        yield from self._left_in(number, not remains.in_use, paths, collector)
                    yield None
                except ImagefsError as error:
                    collector.note(error)
        except ImagefsError as error:
            collector.note(error)

    def _of_record(self, number: int, remains: Remains, paths: _Paths) -> Iterator[Entry]:
        if not remains.names and not remains.streams and not remains.is_split:
            return  # a record that was never used
        for name in remains.names or [FileName(0, 0, b"OrphanFile-%d" % number)]:
            path = join(paths.of(name), safe_name(name.name))
            if remains.is_directory and name in remains.names[:1]:
                path = paths.of_folder(number)
            entry = self._make(path, number)._replace(deleted=True)
            yield entry
            for stream, text, size in remains.streams:
                if text:
                    yield entry._replace(
                        path=path + b":" + safe_name(text),
                        type=EntryType.FILE,
                        size=size,
                        inode=f"{number}-{_DATA}-{stream}",
                        flags=(),
                    )

    def _left_in(self, number: int, gone: bool, paths: _Paths, collector: Collector) -> Iterator[Entry]:
        """Names left in a directory whose record does not have them, or not there."""
        record, seen = self._records.get(number), set[tuple[int, bytes]]()
        if record is None or record.root is None or record.root.resident is None:
            return
        for node in self._nodes(record.root.resident, record.allocation, collector):
            free = 16 if gone else int.from_bytes(node[4:8], "little")
            for child, name, kind in _left_over(node, free, number):
                if (child, name) in seen or self._records.has_name(child, number, name):
                    continue
                seen.add((child, name))
                path = join(paths.of_folder(number), safe_name(name))
                yield Entry(path, kind, 0, str(child), deleted=True, flags=(REALLOCATED,))

    def _nodes(self, root: bytes, tree: Stream | None, collector: Collector) -> Iterator[bytes]:
        """Each node of an index, from its header on."""
        if len(root) < 32:
            return
        yield root[16:]
        size = int.from_bytes(root[8:12], "little")
        pieces = pieces_of(tree, self._cluster, self._reader.size) if tree and tree.resident is None else None
        if tree is None or pieces is None or size not in _INDEX_SIZES:
            return
        content = MappedReader(self._reader, tree.size, pieces, label="a directory")
        for piece in pieces:
            if piece.source is None:
                continue
            collector.spend(piece.length)
            for at in range(-(-piece.start // size) * size, piece.start + piece.length, size):
                try:
                    block = unfixed_index(content.read_at(at, size))
                except ImagefsError as error:
                    collector.note(error)
                    continue
                if block is not None:
                    yield block[24:]


class _Paths:
    """Where folders are, by the numbers of their records. Keeps the last it told."""

    def __init__(self, records: AnyRecord, collector: Collector) -> None:
        self._records = records
        self._collector = collector
        self._kept = OrderedDict[int, bytes]({_ROOT: b"/"})

    def of(self, name: FileName) -> bytes:
        """The path of the folder that a name is in, ORPHANS where another file has its record now."""
        return self.of_folder(name.parent) if self._is_right(name) else ORPHANS

    def of_folder(self, number: int) -> bytes:
        """The path below which the entries of a folder are told."""
        trail: list[tuple[int, Remains]] = []
        above = self._kept.get(number)
        while above is None:
            remains = self._records.remains(number)
            if remains is None or any(number == before for before, _ in trail) or len(trail) >= MAX_DEPTH:
                above = ORPHANS
                break
            trail.append((number, remains))
            name = remains.names[0] if remains.names else None
            if name is None or not self._is_right(name):
                above = ORPHANS
                break
            number = name.parent
            above = self._kept.get(number)
        for number, remains in reversed(trail):
            above = self._keep(number, remains, above)
        return above

    def _keep(self, number: int, remains: Remains, above: bytes) -> bytes:
        own = remains.names[0].name if remains.names else b"OrphanFile-%d" % number
        path = join(above, safe_name(own))
        if not remains.in_use:
            path = self._collector.folder(
                Entry(path, EntryType.DIRECTORY, 0, self._records.folder_inode(number))
            )
        self._kept[number] = path
        if len(self._kept) > _KEPT_PATHS:
            self._kept.popitem(last=False)
            self._kept[_ROOT] = b"/"
        return path

    def _is_right(self, name: FileName) -> bool:
        """Whether the record of the folder is still the one meant: its sequence counts its deletion."""
        if name.parent == _ROOT:
            return True
        remains = self._records.remains(name.parent)
        if remains is None or not remains.is_directory:
            return False
        return name.sequence == remains.sequence or (
            not remains.in_use and name.sequence + 1 == remains.sequence
        )


def parse(raw: bytes) -> Remains | None:
    """A record, in use or not, that is the first of its file; None where it makes no sense."""
    fixed = unfixed_record(raw)
    if fixed is None or fixed[32:40] != bytes(8):
        return None
    sequence, at, flags, used = (*_HEAD(fixed, 16),)
    names: list[tuple[int, FileName]] = []
    streams, is_split = [], False
    used = min(used, len(fixed))
    while at + 24 <= used:
        kind, length, away, name_length, name_at, _, number, size, value = _attribute(fixed, at)
        if kind == _END or length < 24 or at + length > used:
            break
        if kind == _NAME and not away and size >= 66 and value + size <= length:
            names.append(_name_at(fixed, at + value, size))
        elif kind == _DATA:
            text = _text(fixed[at + name_at : at + name_at + 2 * name_length])
            known = struct.unpack_from("<Q", fixed, at + 48)[0] if away and length >= 64 else size
            streams.append((number, text, 0 if known >> 63 else known))
        is_split |= kind == _LIST
        at += length
    proper = [name for space, name in names if space != _DOS_NAME] or [name for _, name in names]
    return Remains(sequence, bool(flags & _IN_USE), bool(flags & _IS_DIRECTORY), proper, streams, is_split)


def _name_at(record: bytes, at: int, size: int) -> tuple[int, FileName]:
    """(name space, name) of a $FILE_NAME."""
    reference, count = struct.unpack_from("<Q", record, at)[0], record[at + 64]
    text = _text(record[at + 66 : at + min(size, 66 + 2 * count)])
    return record[at + 65], FileName(reference & _NUMBER, reference >> 48, text)


def _left_over(node: bytes, free: int, folder: int) -> Iterator[tuple[int, bytes, EntryType]]:
    """The names in an index node from ``free`` on: each entry has the number of its folder in it."""
    mark, at = folder.to_bytes(6, "little"), max(16, free) + 15
    while (at := node.find(mark, at + 1)) >= 0:
        entry = at - 16
        if at % 8 or entry < free or at + 66 > len(node):
            continue
        reference, length, key = struct.unpack_from("<QHH", node, entry)
        count, space = node[at + 64], node[at + 65]
        child, created = reference & _NUMBER, struct.unpack_from("<Q", node, at + 8)[0]
        sensible = count and space <= 3 and key >= 66 + 2 * count and length >= key + 16
        if not sensible or space == _DOS_NAME or at + 66 + 2 * count > len(node):
            continue
        if not child or not 0 < created < 1 << 63:
            continue
        flags = struct.unpack_from("<I", node, at + 56)[0]
        kind = EntryType.DIRECTORY if flags & _INDEXED else EntryType.FILE
        yield child, _text(node[at + 66 : at + 66 + 2 * count]), kind


def _text(raw: bytes) -> bytes:
    return raw.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
