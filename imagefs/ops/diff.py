"""What differs between two points in time, volume by volume.

On a file system that keeps records (ext, NTFS) only what lies in chunks that differ is looked at: records that
changed, files and directories of which a byte changed, and the names of these. Any other is walked twice.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from imagefs.block.ranges import Range, overlaps
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError
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
from imagefs.ops.pairing import natural, same_volume
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
    ``container`` (what it holds is compared, ``why`` tells what it is), ``unreadable``. ``notes`` tell what could not
    be read: there may be further differences. ``volume`` is the id at the newer point, or at the older one where only
    that has it; there another may have the id now, so ``name`` tells them apart."""

    volume: str
    name: str
    way: str
    why: str = ""
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def diff(
    old: DiskImage,
    new: DiskImage,
    changes: list[Range],
    *,
    only: str | None = None,
    progress: Progress | None = None,
) -> Iterator[VolumeDiff]:
    """The differences of each volume, those inside others too, or of ``only`` one (an id), shadow copies only so.
    Outside of ``changes``, ranges of the disk, both disks are the same (``image.changes``). Raises BrowseError where
    neither has volume ``only``."""
    for pair in _pairs(old, new, only):
        yield _volume(pair, changes, progress or NoProgress(), named=only is not None)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A volume at two points in time; None where it is not there."""

    old: DiskImage
    new: DiskImage
    before: Volume | None
    after: Volume | None

    @property
    def volume(self) -> Volume:
        here = self.after or self.before
        assert here is not None
        return here

    @property
    def there(self) -> list[tuple[DiskImage, Volume]]:
        """Where it is, the older first."""
        pairs = ((self.old, self.before), (self.new, self.after))
        return [(image, volume) for image, volume in pairs if volume is not None]


def _pairs(old: DiskImage, new: DiskImage, only: str | None) -> list[_Pair]:
    """Each volume of either, in order."""
    simple = only is not None and only[1:].isdigit()
    before, after = ((image.volumes if simple else image.all_volumes) for image in (old, new))
    pairs = [_Pair(old, new, same_volume(each, after, before), each) for each in after]
    known = {pair.before.id for pair in pairs if pair.before is not None}
    pairs += [_Pair(old, new, each, None) for each in before if each.id not in known]
    if only is None:
        return sorted(
            (pair for pair in pairs if not pair.volume.moment), key=lambda pair: natural(pair.volume.id)
        )
    found = [pair for pair in pairs if pair.volume.id == only][:1]
    if not found:
        new.volume(only)  # tells why there is none
    return found


def _volume(pair: _Pair, changes: list[Range], progress: Progress, *, named: bool) -> VolumeDiff:
    """``named``: it was asked for, so that it holds others is no answer."""
    found = VolumeDiff(pair.volume.id, pair.volume.name, "walk")
    try:
        inside = _changed(pair, found, changes)
        if found.way == "unchanged":
            return found
        what = _container(pair)
        if what and not named:
            found.way, found.why = "container", what
            return found
        sides = _opened(pair.there)
    except ImagefsError as error:
        found.way, found.why = "unreadable", "; ".join(filter(None, (found.why, error.message)))
        found.notes.append(error.message)
        return found
    one = sides[0] if pair.before is not None else None
    other = sides[-1] if pair.after is not None else None
    _compare(found, one, other, inside, progress)
    found.differences = [each for each in found.differences if not _is_own(each, (one, other))]
    found.differences.sort(key=lambda each: each.path)
    return found


def _changed(pair: _Pair, found: VolumeDiff, changes: list[Range]) -> list[Range]:
    """Where in the volume its bytes may differ; what is to be told of that. BrowseError where one of the images may
    have it in what cannot be opened."""
    there = pair.there
    whole = [(0, max(volume.length for _, volume in there))]
    if pair.before is None or pair.after is None:
        newer, here = pair.before is None, there[0][1]
        (pair.old if newer else pair.new).find_volume(here.id)
        found.why = f"only the {'newer' if newer else 'older'} image has it"
        return whole
    older, newer_one = (image.located(volume) for image, volume in there)
    inside = newer_one.changed(older, changes)
    if inside is None:
        found.why = "it lies at another place of the disk"
        return whole
    if not inside:
        found.way = "unchanged"
    return inside


def _container(pair: _Pair) -> str:
    """What the volume is if it only holds others, which have rows of their own; else empty. BrowseError for one that
    cannot be opened."""
    found = (image.container(volume.id) for image, volume in pair.there)
    containers = [None if each is not None and each.is_file_system else each for each in found]
    for each in containers:
        if each is not None and each.state in ("locked", "refused"):
            raise BrowseError(each.message)
    said = [each.message for each in containers if each is not None]
    return said[-1] if len(said) == len(containers) else ""


def _opened(volumes: Sequence[tuple[DiskImage, Volume]]) -> list[Side]:
    return [Side(image.near(volume.id), image.volume_reader(volume)) for image, volume in volumes]


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
                progress.start(f"comparing {found.volume}", None)
                found.differences = _Comparison(old, new, changes, progress).by_records()
                found.way = "records"
                return
            except ImagefsError as error:
                found.why = f"its records do not tell ({error.message})"
    progress.note(f"{found.volume} is walked twice: {found.why}")
    progress.start(f"entries of {found.volume}", None)
    try:
        trees = [_tree(side.fs, found, progress) if side else {} for side in (old, new)]
    except ImagefsError as error:  # of a root: what lies below is in the notes
        found.way, found.why = "unreadable", error.message
        found.notes.append(error.message)
        return
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
        if self._new.fs.kind in ("fat12", "fat16", "fat32", "exfat"):
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
