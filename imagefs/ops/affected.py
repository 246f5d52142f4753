"""Which files lie in given places of a disk: in bad sectors, in damaged chunks, in what differs."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from imagefs.block.ranges import Ranges
from imagefs.block.views import SliceReader
from imagefs.errors import ImagefsError
from imagefs.interfaces import METADATA, Entry, FileSystem, NoProgress, Place, Progress, Reader, Volume

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
    """``places`` in the order of the disk; ``notes`` tell what could not be looked into."""

    places: list[AffectedPlace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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


def find_affected(
    disk: Reader,
    volumes: Sequence[Volume],
    ranges: Iterable[tuple[int, int]],
    *,
    progress: Progress | None = None,
) -> Affected:
    """What lies in ``ranges`` ((first, end) in bytes of ``disk``). Damage costs names, it never raises."""
    progress = progress or NoProgress()
    wanted = Ranges(ranges)
    found = Affected()
    for volume in volumes:
        inside = wanted.within(volume.start, volume.start + volume.length)
        if not inside:
            continue
        progress.start(f"files of {volume.id}", None)
        reader = SliceReader(disk, volume.start, volume.length)
        local = Ranges((first - volume.start, end - volume.start) for first, end in inside)
        try:
            with contextlib.closing(_open(reader)) as fs:
                _search(fs, volume, local, found)
        except ImagefsError as error:
            found.notes.append(f"{volume.id}: {error.message}")
    found.settle()
    return found


def _open(reader: Reader) -> FileSystem:
    from imagefs.browse.apart import open_apart

    return open_apart(reader)


def _search(fs: FileSystem, volume: Volume, wanted: Ranges, found: Affected) -> None:
    from imagefs.browse.walk import walk

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
                _add(found, volume, entry, place.stream, first, end)
        if number in records:
            _add(found, volume, entry, METADATA, *records[number])
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


def _add(found: Affected, volume: Volume, entry: Entry, stream: bytes, first: int, end: int) -> None:
    if len(found.places) >= MAX_PLACES:
        found.dropped += 1
        return
    found.places.append(
        AffectedPlace(volume.id, entry.path, stream, first + volume.start, end + volume.start)
    )


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
