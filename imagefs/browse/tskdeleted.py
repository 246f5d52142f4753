"""Deleted entries as The Sleuth Kit finds them: FAT, exFAT, and whatever else it lists them for.

On FAT a deleted entry keeps its place, its size and its first cluster; its directory may be gone. So
the entries of directories that nothing leads to are searched for in unused clusters, where they are told
by their looks. Never imports pytsk3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imagefs.block.views import extents_of
from imagefs.browse import tskentry
from imagefs.browse.allocated import Allocated
from imagefs.browse.fatdentry import FIRST_INODE, SLOT, Dentries
from imagefs.browse.names import join, safe_name
from imagefs.browse.remains import MAX_DEPTH, ORPHANS, REALLOCATED, Collector
from imagefs.browse.tskhandle import TSK_ERRORS, Handle
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import HOLES, Entry, EntryType, Reader

_UNALLOCATED, _ALLOCATED = 2, 1
_VIRTUAL = (10, 11)
_DOTS = (b".", b"..")
#: So many entries of lost directories are told at most; so much is searched in one go.
MAX_ORPHANS, _STEP = 1_000_000, 4 << 20
#: What no short name holds: control characters, lower case, and what DOS forbids.
_FORBIDDEN = np.zeros(256, bool)
_FORBIDDEN[list(range(0x20)) + list(b'"*+,./:;<=>?[\\]|\x7f') + list(range(0x61, 0x7B))] = True
_U8 = npt.NDArray[np.uint8]


class Found(NamedTuple):
    """A name in a directory as TSK gives it."""

    name: bytes
    inode: int
    deleted: bool
    type: EntryType


class TskDeleted:
    """Finds what was deleted on one volume."""

    def __init__(self, handle: Handle, maker: tskentry.EntryMaker, root: int) -> None:
        self._handle = handle
        self._maker = maker
        self._root = root

    def entries(self, collector: Collector, orphans: Orphans | None = None) -> Iterator[Entry | None]:
        """None again and again while nothing is found."""
        visited, named = {self._root}, set[int]()
        yield from self._below(b"/", self._root, False, visited, named, collector)
        if orphans is None:
            yield from self._lost(visited, named, collector)
            return
        numbers, folders = list[int](), list[int]()
        for found in orphans.search(collector):
            if found is None:
                yield None
            elif found not in named:
                numbers.append(found)
                folders += [found] if orphans.is_folder(found) else []
        ahead, seen = collector.apart(), set(visited)
        for number in folders:  # what a lost directory lists is shown below it
            if number not in seen:
                seen.add(number)
                for _ in self._below(b"/", number, True, seen, named, ahead):
                    yield None
        for number in numbers:
            if number not in named:
                yield from self._orphan(number, orphans.name(number), visited, named, collector)

    def _lost(self, visited: set[int], named: set[int], collector: Collector) -> Iterator[Entry | None]:
        """What TSK itself calls orphans, where its own search is the only one."""
        with self._handle.hold("the orphaned files") as info:
            last = int(info.info.last_inum)
            if int(info.open_meta(inode=last).info.meta.type) not in _VIRTUAL:
                return
        for each in self._list(last, collector):
            if each.deleted and each.inode not in named:
                yield from self._orphan(each.inode, each.name, visited, named, collector)

    def _orphan(
        self, number: int, name: bytes, visited: set[int], named: set[int], collector: Collector
    ) -> Iterator[Entry | None]:
        found = Found(name, number, True, EntryType.OTHER)
        entry = self._entry(ORPHANS + b"/" + safe_name(name), found, collector)
        if entry is None or REALLOCATED in entry.flags or entry.name in _DOTS:
            return
        yield entry
        if entry.type is EntryType.DIRECTORY and number not in visited:
            visited.add(number)
            yield from self._below(entry.path, number, True, visited, named, collector)

    def _below(
        self,
        path: bytes,
        number: int,
        gone: bool,
        visited: set[int],
        named: set[int],
        collector: Collector,
    ) -> Iterator[Entry | None]:
        """The deleted entries in and below a directory; ``gone`` when it is deleted itself."""
        stack = [(path, gone, self._list(number, collector))]
        while stack:
            above, is_gone, names = stack[-1]
            found = next(names, None)
            if found is None:
                stack.pop()
                yield None
                continue
            below = join(above, safe_name(found.name))
            if found.deleted or is_gone:
                named.add(found.inode)
                entry = self._entry(below, found, collector)
                if entry is None:
                    continue
                yield entry
                below, is_folder = entry.path, entry.type is EntryType.DIRECTORY
                is_folder = is_folder and REALLOCATED not in entry.flags
            else:
                is_folder = found.type is EntryType.DIRECTORY
            if is_folder and found.inode not in visited and len(stack) < MAX_DEPTH:
                visited.add(found.inode)
                stack.append((below, found.deleted or is_gone, self._list(found.inode, collector)))

    def _list(self, number: int, collector: Collector) -> Iterator[Found]:
        names: list[Found] = []
        try:
            with self._handle.hold("a directory") as info:
                names = [_found(file) for file in info.open_dir(inode=number)]
            collector.spend(len(names) * SLOT)
        except ImagefsError as error:
            collector.note(error)
        wanted = (each for each in names if each.name not in _DOTS and each.type is not None)
        return (each for each in wanted if each.type is not EntryType.OTHER or each.deleted)

    def _entry(self, path: bytes, found: Found, collector: Collector) -> Entry | None:
        entry: Entry | None = None
        try:
            with self._handle.hold("a deleted file") as info, suppress(*TSK_ERRORS):
                file = info.open_meta(inode=found.inode)
                if not int(file.info.meta.flags) & _ALLOCATED:
                    entry = self._maker.make(path, file)._replace(deleted=True)
        except ImagefsError as error:
            collector.note(error)
        if entry is None:
            entry = Entry(path, found.type, 0, str(found.inode), deleted=True, flags=(REALLOCATED,))
        elif entry.type is EntryType.DIRECTORY:
            entry = entry._replace(path=collector.folder(entry))
        return entry


def _found(file: Any) -> Found:
    name = file.info.name
    deleted = bool(int(name.flags) & _UNALLOCATED)
    kind = EntryType.OTHER if int(name.type) in _VIRTUAL else tskentry.name_type(file)
    return Found(bytes(name.name or b""), int(name.meta_addr), deleted, kind)


class Orphans:
    """Directory entries of FAT and exFAT in clusters that nothing uses."""

    def __init__(self, reader: Reader, dentries: Dentries, allocated: Allocated, *, exfat: bool) -> None:
        self._reader = reader
        self._dentries = dentries
        self._allocated = allocated
        self._exfat = exfat

    def search(self, collector: Collector) -> Iterator[int | None]:
        """The addresses of what looks like one, in the order of the disk; None again and again between."""
        start, count = self._dentries.start, 0
        looks = _looks_exfat if self._exfat else _looks_fat
        for first, end in self._stretches(start):
            yield None
            if first == end:
                continue
            try:
                raw = self._reader.read_at(first, end - first)
            except ImagefsError as error:
                collector.note(error)
                continue
            rows = np.frombuffer(raw[: len(raw) // SLOT * SLOT], np.uint8).reshape(-1, SLOT)
            for row in np.flatnonzero(looks(rows)).tolist():
                at = first + row * SLOT
                if self._allocated.used(at, at + SLOT)[0]:
                    continue
                count += 1
                if count > MAX_ORPHANS:
                    collector.note(BrowseError(f"more than {MAX_ORPHANS} lost entries; the rest is left out"))
                    return
                yield FIRST_INODE + (at - start) // SLOT

    def _stretches(self, start: int) -> Iterator[tuple[int, int]]:
        """What may hold entries: captured, not zeros, and not all in use. Empty ones where all is in use."""
        for extent in extents_of(self._reader, start, max(0, self._reader.size - start)):
            if extent.state in HOLES:
                continue
            stop = extent.offset + extent.length
            first = start + (extent.offset - start) // SLOT * SLOT
            for at in range(first, stop, _STEP):
                end = min(stop, at + _STEP)
                used, units = self._allocated.used(at, end)
                yield at, end if used < units else at

    def is_folder(self, number: int) -> bool:
        return bool(self._dentries.get(number).attributes & 0x10)

    def name(self, number: int) -> bytes:
        """As the entry itself tells it, in the words of TSK: ``_`` for the first letter that FAT lost."""
        at = self._dentries.start + (number - FIRST_INODE) * SLOT
        try:
            raw = self._reader.read_at(at, 20 * SLOT if self._exfat else SLOT)
        except ImagefsError:
            raw = b""
        name = _exfat_name(raw) if self._exfat else _short_name(raw)
        return name or b"OrphanFile-%d" % number


def _short_name(raw: bytes) -> bytes:
    if len(raw) < SLOT:
        return b""
    base, ending = raw[:8].rstrip(b" "), raw[8:11].rstrip(b" ")
    base = {0xE5: b"_", 0x05: b"\xe5"}.get(raw[0], raw[:1]) + base[1:]
    base = base.lower() if raw[12] & 0x08 else base
    ending = ending.lower() if raw[12] & 0x10 else ending
    return base + (b"." + ending if ending else b"")


def _exfat_name(raw: bytes) -> bytes:
    """The name in the entries behind that of a file and its stream."""
    slots = [raw[at : at + SLOT] for at in range(2 * SLOT, SLOT * (2 + raw[1] - 1), SLOT)] if raw else []
    text = b"".join(slot[2:] for slot in slots if len(slot) == SLOT and slot[0] & 0x7F == 0x41)
    return text[: 2 * raw[SLOT + 3]].decode("utf-16-le", "replace").encode() if len(raw) > 2 * SLOT else b""


def _looks_exfat(rows: _U8) -> npt.NDArray[np.bool_]:
    """A file entry, in use or not, with the stream entry that must follow it."""
    file = np.isin(rows[:, 0], (0x05, 0x85)) & (rows[:, 1] >= 2) & (rows[:, 1] <= 18)
    stream = np.isin(rows[:, 0], (0x40, 0xC0))
    file[:-1] &= stream[1:]
    return file


def _looks_fat(rows: _U8) -> npt.NDArray[np.bool_]:
    """A short entry with a name, an attribute and dates that can be."""
    attributes = rows[:, 11]
    good = (attributes & 0xC8 == 0) & (rows[:, 0] != 0) & (rows[:, 0] != 0x2E) & (rows[:, 13] <= 199)
    few = np.flatnonzero(good)
    some = rows[few]
    fine = ~_FORBIDDEN[some[:, 1:11]].any(axis=1)
    fine &= ~_FORBIDDEN[some[:, 0]] | (some[:, 0] == 5)
    words = (
        some[:, 14:26].copy().view("<u2")
    )  # created time, date; accessed; high cluster; written time, date
    for date, needed in ((words[:, 5], True), (words[:, 1], False), (words[:, 2], False)):
        month, day = date >> 5 & 15, date & 31
        right = (month >= 1) & (month <= 12) & (day >= 1)
        fine &= right if needed else right | (date == 0)
    for time in (words[:, 4], words[:, 0]):
        fine &= (time >> 11 <= 23) & (time >> 5 & 63 <= 59) & (time & 31 <= 29)
    good[few] = fine
    return np.asarray(good, bool)
