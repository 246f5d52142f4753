"""Which files lie in given places of a disk: in bad sectors, in damaged chunks, in what differs."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from imagefs.block.ranges import Range, Ranges, joined
from imagefs.block.views import SliceReader
from imagefs.errors import ImagefsError
from imagefs.interfaces import METADATA, Entry, FileSystem, NoProgress, Place, Progress, Reader, Volume
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.located import Located, partition

#: Files of NTFS that no directory lists; what happens to them happens to the whole volume.
_NTFS_OWN = (
    b"/$MFT",
    b"/$MFTMirr",
    b"/$LogFile",
    b"/$Bitmap",
    b"/$Boot",
    b"/$UpCase",
    b"/$Secure",
    b"/$BadClus",
)
#: More places than this are counted, not kept.
MAX_PLACES = 100_000
#: Of each volume; each may name a file that could not be looked up.
MAX_NOTES = 20


class Source(NamedTuple):
    """A volume in which files are looked for, its bytes, and where these lie on the disk. ``reader`` is None where
    there is nothing to look for: because the volume only holds others, or, told in ``closed``, because it cannot be
    opened. ``keys`` are those of ``open_filesystem``."""

    volume: Volume
    reader: Reader | None
    where: Located
    closed: str = ""
    keys: Mapping[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class AffectedPlace:
    """Bytes ``first`` to before ``end`` of the disk hold a part of a file. ``path`` is raw bytes in
    volume ``volume``; ``stream`` is empty for the content, ``metadata`` for the file's own record."""

    volume: str
    path: bytes
    stream: bytes
    first: int
    end: int


@dataclass(slots=True)
class Affected:
    """``places`` in the order of the disk; ``notes`` tell what could not be looked into, ``closed`` which volumes
    there are locked or refused."""

    places: list[AffectedPlace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    dropped: int = 0
    _reach: list[int] = field(default_factory=list)

    def settle(self) -> None:
        """Put the places in order, before anybody asks ``files_in``."""
        self.places.sort(key=lambda place: place.first)
        self._reach = list(accumulate((place.end for place in self.places), max))

    def files_in(self, first: int, end: int) -> list[str]:
        """``/p1/path`` of each file that lies in a range, once, as text."""
        names: dict[str, None] = {}
        at = bisect_right(self._reach, first)
        while at < len(self.places) and self.places[at].first < end:
            if self.places[at].end > first:
                names[_shown(self.places[at])] = None
            at += 1
        return list(names)


def on_disk(disk: Reader, volumes: Sequence[Volume]) -> list[Source]:
    """Partitions of ``disk``."""
    return [
        Source(each, SliceReader(disk, each.start, each.length), partition(each.start, each.length))
        for each in volumes
    ]


def in_image(image: DiskImage) -> Iterator[Source]:
    """The volumes of an image, those inside others too, but no shadow copies. Raises Locked, UsageError as
    ``DiskImage.inner``."""
    for volume in image.all_volumes:
        if volume.moment:
            continue
        where, container = image.located(volume), image.container(volume.id)
        if container is not None and not container.is_file_system:
            closed = container.message if container.state in ("locked", "refused") else ""
            yield Source(volume, None, where, closed)
        elif where.loose:
            yield Source(volume, None, where, f"{volume.id}: nobody tells where on the disk its files lie")
        else:
            yield Source(volume, image.volume_reader(volume), where, keys=image.keys_of(volume))


def find_affected(
    sources: Iterable[Source], ranges: Iterable[Range], *, progress: Progress | None = None
) -> Affected:
    """What lies in ``ranges`` of the disk ((first, end) in bytes). Damage costs names, it never raises."""
    progress = progress or NoProgress()
    ranges = joined(ranges)
    found = Affected()
    for each in sources:
        inside = each.where.in_volume(ranges)
        if not inside:
            continue
        if each.reader is None:
            found.closed += [each.closed] if each.closed else []
            continue
        progress.start(f"files of {each.volume.id}", None)
        try:
            with contextlib.closing(_open(each.reader, each.keys)) as fs:
                _search(fs, each, Ranges(inside), found)
        except ImagefsError as error:
            found.notes.append(f"{each.volume.id}: {error.message}")
    found.settle()
    return found


def _open(reader: Reader, keys: Mapping[str, bytes] | None) -> FileSystem:
    from imagefs.browse.apart import open_apart

    return open_apart(reader, keys=dict(keys or {}))


def _search(fs: FileSystem, source: Source, wanted: Ranges, found: Affected) -> None:
    from imagefs.browse.walk import walk

    volume = source.volume
    errors: list[str] = []
    records = _bad_records(fs, wanted) if fs.kind == "ntfs" else {}
    for entry in _all_entries(fs, walk(fs, fs.root(), onerror=lambda error: errors.append(error.message))):
        number = entry.inode.partition("-")[0]
        places: list[Place] = []
        try:
            places = fs.places(entry)
        except ImagefsError as error:
            if number not in records:  # else that is why, and it is named below
                errors.append(error.message)
        for place in places:
            for first, end in wanted.within(place.first, place.end):
                _add(found, source, entry, place.stream, first, end)
        if number in records:
            _add(found, source, entry, METADATA, *records[number])
    found.notes += [f"{volume.id}: {message}" for message in errors[:MAX_NOTES]]
    if len(errors) > MAX_NOTES:
        found.notes.append(f"{volume.id}: and {len(errors) - MAX_NOTES} more like these")


def _all_entries(fs: FileSystem, walked: Iterator[Entry]) -> Iterator[Entry]:
    """The root, what only NTFS itself knows, and everything below the root."""
    yield fs.root()
    for path in _NTFS_OWN if fs.kind == "ntfs" else ():
        with contextlib.suppress(ImagefsError):
            yield fs.lookup(path)
    yield from walked


def _add(found: Affected, source: Source, entry: Entry, stream: bytes, first: int, end: int) -> None:
    for low, high in source.where.on_disk(first, end):
        if len(found.places) >= MAX_PLACES:
            found.dropped += 1
            return
        found.places.append(AffectedPlace(source.volume.id, entry.path, stream, low, high))


def _bad_records(fs: FileSystem, wanted: Ranges) -> dict[str, tuple[int, int]]:
    """Numbers of the MFT's records that lie in the ranges, and where: small files are kept in them whole."""
    records: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(ImagefsError):
        entry = fs.lookup(b"/$MFT")
        head = fs.open(entry).read_at(0, 32)
        size = int.from_bytes(head[28:32], "little")
        if not 512 <= size <= 65536:
            return {}
        at = 0
        for place in _content(fs.places(entry)):
            for first, end in wanted.within(place.first, place.end):
                for number in range((at + first - place.first) // size, -(-(at + end - place.first) // size)):
                    if len(records) < MAX_PLACES:
                        records[str(number)] = (first, end)
            at += place.end - place.first
    return records


def _content(places: list[Place]) -> list[Place]:
    return [place for place in places if not place.stream]


def _shown(place: AffectedPlace) -> str:
    from imagefs.browse.names import printable

    stream = f" ({printable(place.stream)})" if place.stream else ""
    return f"/{place.volume}{printable(place.path)}{stream}"
