"""What differs between two points in time, volume by volume.

On a file system that keeps records (ext, NTFS) only what lies in chunks that differ is looked at: records that
changed, files and directories of which a byte changed, and the names of these. Any other is walked twice.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from imagefs.block.ranges import Range, cut, overlaps
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError
from imagefs.interfaces import (
    Entry,
    EntryType,
    FileSystem,
    KeepsRecords,
    Link,
    NoProgress,
    Progress,
    Volume,
)
from imagefs.ops.compare import Side, bytes_differ, differences, narrowed
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.records import changed_records, is_own, number_of, paths_by_links, records_in

#: Of each volume; what could not be read.
_MAX_NOTES = 20


class Kind(enum.StrEnum):
    """What became of a file; the words of the command line."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True)
class Difference:
    """``path`` is raw bytes in the volume, that of the newer point but for REMOVED. ``old`` and ``new`` are None where
    there is none. ``what`` as in ``history.Version``; ``other`` is the path before a RENAMED, and the former path of
    what CHANGED inside a directory that was renamed."""

    kind: Kind
    path: bytes
    old: Entry | None
    new: Entry | None
    what: tuple[str, ...] = ()
    other: bytes | None = None


@dataclass(slots=True)
class VolumeDiff:
    """``way``: ``unchanged`` (no chunk of it differs), ``records``, ``walk`` (both were walked, ``why`` tells why),
    ``unreadable``. ``notes`` tell what could not be read: there may be further differences."""

    number: int
    way: str
    why: str = ""
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def diff(
    old: DiskImage,
    new: DiskImage,
    changes: list[Range],
    *,
    only: int | None = None,
    progress: Progress | None = None,
) -> Iterator[VolumeDiff]:
    """The differences of each volume, or of ``only`` one, in order of their numbers. Outside of ``changes``, ranges of
    the disk, both disks are the same (``image.changes``). Raises BrowseError where neither has volume ``only``."""
    before = {volume.number: volume for volume in old.volumes}
    after = {volume.number: volume for volume in new.volumes}
    if only is not None and only not in before:
        new.volume(only)
    for number in sorted(before.keys() | after.keys() if only is None else {only}):
        yield _volume(old, new, before.get(number), after.get(number), changes, progress or NoProgress())


def _volume(
    old: DiskImage,
    new: DiskImage,
    one: Volume | None,
    other: Volume | None,
    changes: list[Range],
    progress: Progress,
) -> VolumeDiff:
    here = one or other
    assert here is not None
    found = VolumeDiff(here.number, "walk")
    inside = [(0, max(each.length for each in (one, other) if each))]
    if one is None or other is None:
        found.why = f"only the {'newer' if one is None else 'older'} image has it"
    elif one.start == other.start:
        inside = cut(changes, one.start, one.start + max(one.length, other.length))
        if not inside and one.length == other.length:
            found.way = "unchanged"
            return found
    else:
        found.why = "it lies at another place of the disk"
    try:
        sides = _opened(old, one), _opened(new, other)
    except ImagefsError as error:
        found.way, found.why = "unreadable", error.message
        found.notes.append(error.message)
        return found
    _compare(found, sides[0], sides[1], inside, progress)
    found.differences = [each for each in found.differences if not _is_own(each, sides)]
    found.differences.sort(key=lambda each: each.path)
    return found


def _opened(image: DiskImage, volume: Volume | None) -> Side | None:
    return Side(image.near(volume.number), image.volume_reader(volume)) if volume else None


def _is_own(each: Difference, sides: Sequence[Side | None]) -> bool:
    pairs = zip(sides, (each.old, each.new), strict=True)
    return any(side and entry and is_own(side.fs, entry) for side, entry in pairs)


def _compare(
    found: VolumeDiff, old: Side | None, new: Side | None, changes: list[Range], progress: Progress
) -> None:
    if old is not None and new is not None and not found.why:
        if old.fs.kind != new.fs.kind:
            found.why = f"its file system was {old.fs.kind} and is {new.fs.kind} now"
        elif records_in(old.fs) is None or records_in(new.fs) is None:
            found.why = f"nothing but a walk tells what changed on {new.fs.kind}"
        else:
            try:
                progress.start(f"comparing p{found.number}", None)
                found.differences = _Comparison(old, new, changes, progress).by_records()
                found.way = "records"
                return
            except ImagefsError as error:
                found.why = f"its records do not tell ({error.message})"
    progress.note(f"p{found.number} is walked twice: {found.why}")
    progress.start(f"entries of p{found.number}", None)
    trees = [_tree(side.fs, found, progress) if side else {} for side in (old, new)]
    if old is None or new is None:
        kind, tree = (Kind.ADDED, trees[1]) if old is None else (Kind.REMOVED, trees[0])
        found.differences = [
            Difference(kind, path, None if old is None else entry, entry if old is None else None)
            for path, entry in tree.items()
        ]
        return
    found.differences = _Comparison(old, new, changes, progress).by_trees(*trees)


def _tree(fs: FileSystem, found: VolumeDiff, progress: Progress) -> dict[bytes, Entry]:
    def told(error: ImagefsError) -> None:
        if len(found.notes) < _MAX_NOTES:
            found.notes.append(error.message)

    tree = {b"/": fs.root()}
    for entry in walk(fs, fs.root(), onerror=told):
        tree[entry.path] = entry
        progress.advance(1)
    return tree


class _Comparison:
    """Two points in time of one volume."""

    def __init__(self, old: Side, new: Side, changes: list[Range], progress: Progress) -> None:
        self._old = old
        self._new = new
        self._changes = changes
        self._progress = progress

    # -- by records -------------------------------------------------------------------------------

    def by_records(self) -> list[Difference]:
        """By what changed in records, contents and lists. What a directory that did not change lists, it listed
        before, so names are searched for at the newer point alone."""
        old, new = records_in(self._old.fs), records_in(self._new.fs)
        assert old is not None
        assert new is not None
        self._changes = narrowed(self._old.volume, self._new.volume, self._changes)
        numbers = changed_records(
            old.tables(), new.tables(), self._old.volume, self._new.volume, self._changes
        )
        numbers |= self._touched(new, numbers)
        numbers = {each for side in (old, new) for each in side.owners(sorted(numbers))}
        if not numbers:
            return []
        before, after = (set(side.listed(sorted(numbers))) for side in (old, new))
        # Records tell of whatever a directory lists otherwise, but in file systems that were damaged or altered.
        numbers |= {link.number for link in before ^ after}
        links = new.links(sorted(numbers))
        then = [*before, *(link for link in links if link.parent not in numbers)]
        same = _same_files(old, new, numbers)
        return self._joined(
            _entries(old, self._old.fs, numbers, then), _entries(new, self._new.fs, numbers, links), same
        )

    def _touched(self, new: KeepsRecords, known: set[int]) -> set[int]:
        """Files whose record is the same, and of which another byte changed."""
        found: set[int] = set()
        for each in new.holdings([list(part) for part in self._changes]):
            if each.number in known or each.number in found:
                continue
            if bytes_differ(self._old.volume, self._new.volume, [(each.first, each.end)]):
                found.add(each.number)
        return found

    # -- by trees ---------------------------------------------------------------------------------

    def by_trees(self, before: dict[bytes, Entry], after: dict[bytes, Entry]) -> list[Difference]:
        """All of both volumes, by path."""
        kept = {path for path in before.keys() & after.keys() if self._is_same(before[path], after[path])}
        old = {path: entry for path, entry in before.items() if path not in kept}
        new = {path: entry for path, entry in after.items() if path not in kept}
        return self._joined(old, new, self._same_by_entries(old, new))

    def _is_same(self, one: Entry, other: Entry) -> bool:
        """Whether there is nothing to say of two entries, by all that they tell and where the content lies."""
        if one._replace(atime_ns=other.atime_ns) != other:
            return False
        if other.type is not EntryType.FILE or not other.size:
            return True
        places = [(place.first, place.end) for place in self._new.fs.places(other)]
        return not overlaps(places, self._changes)

    def _same_by_entries(self, old: dict[bytes, Entry], new: dict[bytes, Entry]) -> set[int]:
        """Records that are of the same file, as far as entries tell; FAT has no records that stay."""
        if self._new.fs.case_insensitive and self._new.fs.kind != "ntfs":
            return set()
        born = {number_of(entry): (entry.crtime_ns, entry.type) for entry in old.values()}
        return {
            number_of(entry)
            for entry in new.values()
            if born.get(number_of(entry)) == (entry.crtime_ns, entry.type)
        }

    # -- both -------------------------------------------------------------------------------------

    def _joined(self, old: dict[bytes, Entry], new: dict[bytes, Entry], same: set[int]) -> list[Difference]:
        """What to say of entries that may differ, by path; ``same`` are the records that are of one file."""
        found: list[Difference] = []
        moved: list[tuple[bytes, bytes]] = []
        gone = {path: entry for path, entry in old.items() if path not in new}
        came = {path: entry for path, entry in new.items() if path not in old}
        for path, was, now in _renamed(gone, came, same):
            del gone[was.path], came[path]
            words = self._words(was, now)
            if not _moved_with(moved, was.path, path):
                found.append(Difference(Kind.RENAMED, path, was, now, words, was.path))
                if now.type is EntryType.DIRECTORY:
                    moved.append((was.path, path))
            elif words:
                found.append(Difference(Kind.CHANGED, path, was, now, words, was.path))
        found += [Difference(Kind.REMOVED, path, entry, None) for path, entry in gone.items()]
        found += [Difference(Kind.ADDED, path, None, entry) for path, entry in came.items()]
        for path in old.keys() & new.keys():
            words = self._words(old[path], new[path])
            number = number_of(new[path])
            if (
                self._keeps_numbers
                and (number != number_of(old[path]) or number not in same)
                and path != b"/"
            ):
                words = (*(word for word in words if word != "metadata"), "replaced")
            if words:
                found.append(Difference(Kind.CHANGED, path, old[path], new[path], words))
        return found

    @property
    def _keeps_numbers(self) -> bool:
        return records_in(self._new.fs) is not None

    def _words(self, one: Entry, other: Entry) -> tuple[str, ...]:
        words = differences(self._old, one, self._new, other, self._changes)
        if other.type is EntryType.DIRECTORY:  # its time is that of its entries, which are told themselves
            words = tuple(word for word in words if word != "mtime")
        return words


def _entries(
    records: KeepsRecords, fs: FileSystem, numbers: set[int], links: Sequence[Link]
) -> dict[bytes, Entry]:
    """The entries of records, by each path that ``links`` give them."""
    paths = paths_by_links(links, sorted(numbers), number_of(fs.root()))
    pairs = zip(paths, records.entries(list(paths)), strict=True)
    return {path: entry._replace(path=path) for number, entry in pairs for path in paths[number]}


def _same_files(old: KeepsRecords, new: KeepsRecords, numbers: set[int]) -> set[int]:
    """The numbers that are in use for the same file at both points."""
    ordered = sorted(numbers)
    rows = zip(ordered, old.identities(ordered), new.identities(ordered), strict=True)
    return {number for number, one, other in rows if one == other != ""}


def _renamed(
    gone: dict[bytes, Entry], came: dict[bytes, Entry], same: set[int]
) -> list[tuple[bytes, Entry, Entry]]:
    """(new path, entry before, entry now) of files that have another name now, directories before what is in them."""
    by_number: dict[int, list[Entry]] = defaultdict(list)
    for entry in gone.values():
        if number_of(entry) in same:
            by_number[number_of(entry)].append(entry)
    found: list[tuple[bytes, Entry, Entry]] = []
    for path, entry in sorted(came.items()):
        was = by_number.get(number_of(entry))
        if was:
            found.append((path, was.pop(0), entry))
    return found


def _moved_with(moved: Sequence[tuple[bytes, bytes]], old: bytes, new: bytes) -> bool:
    """Whether one of the directories that were ``moved`` (from, to) took a file from path ``old`` to ``new``."""
    return any(new.startswith(here + b"/") and old == there + new[len(here) :] for there, here in moved)
