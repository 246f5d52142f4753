"""Every version of one path over the images of a set, oldest first.

An image in which nothing that the path depends on has changed is answered from the one before it: of most images
only the list of their own chunks is read. Content is compared by the digests of chunks, and read only where
metadata and digests leave a doubt.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from functools import partial

from imagefs.block.ranges import Range, joined, overlaps
from imagefs.browse.names import parts, printable
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.image.catalog import Catalog
from imagefs.image.changes import changes_between, changes_of_child, is_child
from imagefs.image.tail import ImageInfo
from imagefs.interfaces import (
    Entry,
    EntryType,
    FileSystem,
    ListsNames,
    NoProgress,
    Progress,
)
from imagefs.ops.compare import bytes_differ, differences
from imagefs.ops.points import Opener, Point, Wanted, opener_of
from imagefs.ops.records import is_same_file, number_of, paths_of, records_in


class Change(enum.StrEnum):
    """What became of a path; the words of the command line."""

    FIRST = "first seen"
    CHANGED = "changed"
    RENAMED = "renamed"  # gone from this path: the file lives on under another
    DELETED = "deleted"
    BACK = "back again"


@dataclass(frozen=True, slots=True)
class Version:
    """What a path was from ``image`` to ``last``, the first and the last of ``images`` images in a row.

    ``number`` counts from 1, the oldest; a newer image never changes it. ``entry`` is None where the path is not
    there (DELETED, RENAMED). ``what`` tells in which respects it differs from the version before: ``content``,
    ``size``, ``mtime``, ``mode``, ``owner``, ``type``, ``links``, ``metadata`` (what else the file system keeps),
    ``replaced`` (another file under the same name); of a directory also ``entries``, and their names in ``added``
    and ``removed``. ``other`` is the path in the volume that the file had before or, with RENAMED, has now. ``volume``
    is what ``image`` calls the volume.
    """

    number: int
    change: Change
    image: ImageInfo
    last: ImageInfo
    images: int
    entry: Entry | None
    what: tuple[str, ...] = ()
    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    other: bytes | None = None
    volume: str = ""


@dataclass(slots=True)
class History:
    """The versions of ``path`` (raw bytes in the volume with the id ``volume``), oldest first. ``notes`` tell which
    images could not be looked into: what they held of it nobody knows. ``opened`` counts those whose file system was
    looked at."""

    volume: str
    path: bytes
    versions: list[Version] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    opened: int = 0

    def version(self, number: int) -> Version:
        """Version ``number``, which there is content of. Raises BrowseError."""
        found = next((each for each in self.versions if each.number == number), None)
        if found is None:
            raise BrowseError(
                f"there is no version {number}", hint=f"`imagefs history` lists {len(self.versions)} of them"
            )
        if found.entry is None:
            raise BrowseError(
                f"version {number} is where it was {found.change}",
                hint="take one that is there, such as the one before",
            )
        return found


def path_history(
    catalog: Catalog,
    volume: str,
    path: bytes,
    *,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> History:
    """The history of ``path`` in volume ``volume`` (``p3.1``) over all images of ``catalog``.

    ``opener`` opens an image; without it our own parsers do, FAT times read as UTC. Raises BrowseError
    (PathNotFound) when no image has the path; what single images cannot give becomes a note.
    """
    reading = _Reading(catalog, History(volume, path), opener or opener_of(catalog))
    try:
        return reading.read(progress or NoProgress())
    finally:
        reading.close()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a path was at one point: its entry and, of a directory, the names in it (and their addresses).

    ``footprint`` is where everything lies on which this depends, in bytes of the volume; None: anywhere.
    """

    entry: Entry | None = None
    names: dict[bytes, str] = field(default_factory=dict)
    footprint: list[Range] | None = None


class _Reading:
    """Goes from image to image. ``_base`` is the last one that was looked into, with what was seen there."""

    def __init__(self, catalog: Catalog, result: History, opener: Opener) -> None:
        self._catalog = catalog
        self._result = result
        self._opener = opener
        self._base: Point | None = None
        self._seen = _Seen()
        self._spare: FileSystem | None = None
        self._open: dict[str, Point] = {}
        newest = catalog.newest()
        self._wanted = Wanted(result.volume, partial(opener, newest) if newest else None)

    def read(self, progress: Progress) -> History:
        images = [*{info.id: info for info in self._catalog.images}.values()]
        progress.start("images", len(images))
        last: ImageInfo | None = None
        for info in images:
            try:
                self._next(last, info)
                last = info
            except ImagefsError as error:
                self._result.notes.append(f"{info.name}: {error.message}")
            self._keep_open(self._base, last)
            progress.advance(1)
        if not self._result.versions:
            raise self._never()
        return self._result

    def _never(self) -> BrowseError:
        shown = f"/{self._result.volume}{printable(self._result.path)}"
        if self._result.notes and not self._result.images:
            return BrowseError(f"no image could be looked into for '{shown}': {self._result.notes[-1]}")
        return PathNotFound(f"no image has '{shown}'", path=self._result.path)

    # -- from one image to the next ---------------------------------------------------------------

    def _next(self, last: ImageInfo | None, info: ImageInfo) -> None:
        changes = self._changes(last, info) if last is not None and self._base is not None else None
        if changes is None or self._touched(changes, info):
            self._look(info, changes)
        self._result.images += 1
        versions = self._result.versions
        if versions:
            versions[-1] = replace(versions[-1], last=info, images=versions[-1].images + 1)

    def _changes(self, last: ImageInfo, info: ImageInfo) -> list[Range]:
        if is_child(last, info):
            return changes_of_child(self._catalog, last, info)
        return changes_between(self._point(last).image.disk, self._point(info).image.disk)

    def _touched(self, changes: list[Range], info: ImageInfo) -> bool:
        """Whether what was seen may be otherwise now."""
        base = self._base
        assert base is not None
        said = overlaps(base.table_ranges, changes)
        if (
            said
            and bytes_differ(base.image.disk, self._point(info).image.disk, said)
            and self._point(info).located != base.located
        ):
            return True
        inside = base.located.in_volume(changes)
        if self._seen.footprint is None or not inside:
            return bool(inside)
        doubt = overlaps(self._seen.footprint, inside)
        return bool(doubt) and self._differs(base, self._point(info), doubt)

    @staticmethod
    def _differs(base: Point, now: Point, ranges: list[Range]) -> bool:
        """Whether the volume's bytes there do. Those of the disk are looked at first, for which nothing inside of it
        has to be opened; encrypted, they differ by whole sectors."""
        where = base.located
        if not where.loose:
            there = [part for first, end in ranges for part in where.on_disk(first, end)]
            if not bytes_differ(base.image.disk, now.image.disk, there):
                return False
            if not where.keys:
                return True
        return bytes_differ(base.bytes, now.bytes, ranges)

    def _look(self, info: ImageInfo, changes: list[Range] | None) -> None:
        point = self._point(info)
        seen = self._see(point)
        old, base = self._seen, self._base
        inside = None
        if changes is not None and base is not None:
            inside = point.located.changed(base.located, changes)
        if inside is None:
            inside = [(0, point.bytes.size)]
        self._tell(info, base, old, point, seen, inside)
        self._base, self._seen = point, seen
        self._spare = base.fs if base is not None and base.fs is not None else self._spare

    def _see(self, point: Point) -> _Seen:
        if point.volume is None:
            return _Seen(footprint=[])
        self._result.opened += 1
        spare, self._spare = self._spare, None
        fs = point.open(spare)
        footprint = None
        records = records_in(fs)
        if records is not None:
            traced = records.trace(self._result.path)
            footprint = joined((place.first, place.end) for place in records.footprint(traced))
            if len(traced) <= len(parts(self._result.path)):
                return _Seen(footprint=footprint)
            entry = traced[-1]
        else:
            try:
                entry = fs.lookup(self._result.path)
            except PathNotFound:
                return _Seen()
        names = {}
        if entry.type is EntryType.DIRECTORY:
            listed = fs.names(entry) if isinstance(fs, ListsNames) else fs.children(entry)
            names = {each.name: each.inode for each in listed}
        return _Seen(entry, names, footprint)

    # -- what to say of it ------------------------------------------------------------------------

    def _tell(
        self, info: ImageInfo, base: Point | None, old: _Seen, point: Point, seen: _Seen, inside: list[Range]
    ) -> None:
        versions = self._result.versions
        if seen.entry is None:
            if old.entry is not None and base is not None:
                now = _moved(base, old.entry, point)
                self._add(Change.RENAMED if now else Change.DELETED, info, None, other=now)
        elif old.entry is None or base is None:
            came = _moved(point, seen.entry, base) if base is not None else None
            self._add(Change.BACK if versions else Change.FIRST, info, seen.entry, other=came)
        else:
            self._tell_changed(info, base, old, point, seen, inside)

    def _tell_changed(
        self, info: ImageInfo, base: Point, old: _Seen, point: Point, seen: _Seen, inside: list[Range]
    ) -> None:
        assert old.entry is not None
        assert seen.entry is not None
        words = differences(base.side, old.entry, point.side, seen.entry, inside)
        came = None
        added = tuple(sorted(name for name, at in seen.names.items() if old.names.get(name) != at))
        removed = tuple(sorted(name for name, at in old.names.items() if seen.names.get(name) != at))
        if added or removed:
            words = ("entries", *words)
        if records_in(base.open()) and _is_replaced(base, old.entry, point, seen.entry):
            words = (*(word for word in words if word != "metadata"), "replaced")
            came = _moved(point, seen.entry, base)
        if words:
            self._add(Change.CHANGED, info, seen.entry, words, added, removed, came)

    def _add(
        self,
        change: Change,
        info: ImageInfo,
        entry: Entry | None,
        what: tuple[str, ...] = (),
        added: tuple[bytes, ...] = (),
        removed: tuple[bytes, ...] = (),
        other: bytes | None = None,
    ) -> None:
        number = len(self._result.versions) + 1
        volume = self._point(info).volume
        name = volume.id if volume is not None else self._result.volume
        self._result.versions.append(
            Version(number, change, info, info, 0, entry, what, added, removed, other, name)
        )

    # -- images that are open ---------------------------------------------------------------------

    def _point(self, info: ImageInfo) -> Point:
        if info.id not in self._open:
            self._open[info.id] = Point(self._opener(info), self._wanted)
        return self._open[info.id]

    def _keep_open(self, *wanted: Point | ImageInfo | None) -> None:
        """Close all others."""
        ids = {each.info.id if isinstance(each, Point) else each.id for each in wanted if each is not None}
        for key in [key for key in self._open if key not in ids]:
            point = self._open.pop(key)
            if self._spare is not None and point.fs is self._spare:
                point.image.let_go(self._spare)
            point.close()

    def close(self) -> None:
        self._keep_open()
        if self._spare is not None:
            self._spare.close()


def _is_replaced(base: Point, old: Entry, point: Point, new: Entry) -> bool:
    """Whether another file has the name now."""
    number = number_of(new)
    return number != number_of(old) or not is_same_file(base.open(), point.open(), number)


def _moved(here: Point, entry: Entry, there: Point) -> bytes | None:
    """The path that the file of ``entry``, seen ``here``, has at another point, where it does not have it here."""
    if here.volume is None or there.volume is None:
        return None
    number, (fs, other) = number_of(entry), (here.open(), there.open())
    if not is_same_file(fs, other, number):
        return None
    known = paths_of(fs, [number]).get(number, [])
    return next((path for path in paths_of(other, [number]).get(number, []) if path not in known), None)
