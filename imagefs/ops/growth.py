"""What accounts for the size of one image's own layer: files, directories, metadata, what belongs to nothing.

A chunk is stored as soon as one block of it changed. So its bytes in the image go to whom the blocks belong that
differ from the parent's; of a full image, to whom the bytes of the chunk belong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from imagefs.block.ranges import Range, joined, without
from imagefs.errors import ImagefsError
from imagefs.format.codec import FRAME_SIZE
from imagefs.image.disk import VirtualDisk
from imagefs.interfaces import EntryType, FileSystem, NoProgress, Progress, Volume
from imagefs.ops.affected import Source, find_affected, in_image
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.located import partition
from imagefs.ops.records import is_own, number_of, paths_by_links, records_in

#: Changes are told apart in blocks of so many bytes, as file systems write them.
_BLOCK = 4096
#: The inode of ext's journal, which no directory lists.
_EXT_JOURNAL = 8


class Owner(NamedTuple):
    """``kind`` is ``file``, ``directory``, ``metadata`` (of the file system, or of what holds volumes), ``free`` (no
    file's, nor known to be metadata), ``closed`` (of a volume that cannot be opened) or ``outside`` (in no volume).
    ``name`` is the raw path in the volume with the id ``volume``, or words."""

    volume: str | None
    kind: str
    name: bytes


_OUTSIDE = Owner(None, "outside", b"outside of all volumes")


@dataclass(slots=True)
class Growth:
    """``shares``: bytes of the image by owner, largest first, and in how many chunks; with ``overhead`` (header, index
    and what else is no chunk) they add up to the size of the image. ``notes`` tell what could not be looked into."""

    shares: list[tuple[Owner, int, int]] = field(default_factory=list)
    chunks: int = 0
    overhead: int = 0
    notes: list[str] = field(default_factory=list)


class _Stored(NamedTuple):
    """A chunk of the layer: its bytes in the image, and the parts of the disk for which it is there."""

    size: int
    parts: list[Range]


def growth(image: DiskImage, parent: VirtualDisk | None, *, progress: Progress | None = None) -> Growth:
    """The shares in the layer of ``image``, which was made from ``parent``. Damage costs names, or raises
    IntegrityError where the chunks themselves are damaged."""
    progress = progress or NoProgress()
    leaf = image.disk.chain.leaf
    stored = list(_stored(image.disk, parent, progress))
    found = Growth(chunks=len(stored), overhead=leaf.size - sum(each.size for each in stored))
    owners = _owners(image, joined(part for each in stored for part in each.parts), found.notes, progress)
    sums: dict[Owner, list[int]] = defaultdict(lambda: [0, 0])
    for each in stored:
        for owner, share in _shared(each, owners).items():
            sums[owner][0] += share
            sums[owner][1] += 1
    shares = [(owner, size, chunks) for owner, (size, chunks) in sums.items()]
    found.shares = sorted(shares, key=lambda row: (-row[1], row[0].volume or "", row[0].name))
    return found


def _stored(disk: VirtualDisk, parent: VirtualDisk | None, progress: Progress) -> Iterator[_Stored]:
    leaf, size = disk.chain.leaf, disk.chunk_size
    progress.start("chunks", leaf.rows * size)
    for rows in leaf.blocks():
        for number, length in zip(rows.chunk_no.tolist(), rows.stored_length.tolist(), strict=True):
            first, end = number * size, min((number + 1) * size, disk.size)
            parts = [(first, end)]
            if parent is not None:
                parts = (
                    _changed(disk.read_at(first, end - first), parent.read_at(first, end - first), first)
                    or parts
                )
            yield _Stored(FRAME_SIZE + length, parts)
            progress.advance(size)


def _changed(new: bytes, old: bytes, start: int) -> list[Range]:
    """Where, in blocks, ``new`` differs from ``old``, which may be shorter."""
    shared = min(len(new), len(old)) // _BLOCK * _BLOCK
    rows = [np.frombuffer(data, np.uint8, shared).reshape(-1, _BLOCK) for data in (new, old)]
    differs = (rows[0] != rows[1]).any(axis=1)
    found = [(start + at * _BLOCK, start + (at + 1) * _BLOCK) for at in np.flatnonzero(differs).tolist()]
    if new[shared:] != old[shared:]:
        found.append((start + shared, start + len(new)))
    return joined(found)


class _Owners:
    """Who owns which bytes of the disk; of two that claim a byte, the one that comes first."""

    def __init__(self, claims: Iterable[tuple[int, int, Owner]]) -> None:
        self._first: list[int] = []
        self._claims: list[tuple[int, int, Owner]] = []
        end = 0
        for first, stop, owner in sorted(claims):
            if max(first, end) < stop:
                self._first.append(max(first, end))
                self._claims.append((max(first, end), stop, owner))
                end = stop

    def of(self, first: int, end: int) -> Iterator[tuple[int, Owner | None]]:
        """(bytes, owner) of each part of a range; None where nobody claims it."""
        at = max(0, bisect_right(self._first, first) - 1)
        while first < end:
            start, stop, owner = self._claims[at] if at < len(self._claims) else (end, end, None)
            if stop <= first:
                at += 1
                continue
            if start > first:
                yield min(start, end) - first, None
                first = min(start, end)
                continue
            yield min(stop, end) - first, owner
            first, at = min(stop, end), at + 1


def _shared(chunk: _Stored, owners: _Owners) -> dict[Owner, int]:
    """The bytes of a chunk by owner, to the byte: what division leaves goes to the largest."""
    parts: dict[Owner, int] = defaultdict(int)
    for first, end in chunk.parts:
        for count, owner in owners.of(first, end):
            parts[owner or _OUTSIDE] += count
    total = sum(parts.values())
    shares = {owner: chunk.size * count // total for owner, count in parts.items()}
    shares[max(parts, key=lambda owner: parts[owner])] += chunk.size - sum(shares.values())
    return shares


# -- who owns what --------------------------------------------------------------------------------


def _owners(image: DiskImage, ranges: list[Range], notes: list[str], progress: Progress) -> _Owners:
    """Volumes with files claim what is theirs first, then what holds others, the innermost first."""
    claims: list[tuple[int, int, Owner]] = []
    order = sorted(in_image(image), key=lambda each: (each.reader is None, -each.volume.id.count(".")))
    for source in order:
        free = without(ranges, joined((first, end) for first, end, _ in claims))
        inside = source.where.in_volume(free)
        if not inside or (source.where.loose and "." in source.volume.id):
            continue  # what lies in it is told of the volume that it is in
        progress.start(f"files of {source.volume.id}", None)
        for first, end, owner in _in_volume(image, source, inside, notes):
            claims += [(low, high, owner) for low, high in source.where.on_disk(first, end)]
    return _Owners(claims)


def _in_volume(
    image: DiskImage, source: Source, inside: list[Range], notes: list[str]
) -> list[tuple[int, int, Owner]]:
    """Who owns the ranges ``inside`` of a volume."""
    name, named = source.volume.id, []
    rest = Owner(name, "free", b"free space, and what no file has")
    if source.reader is None:
        notes += [source.closed] if source.closed else []
        rest = Owner(name, "closed", b"what is locked or cannot be read")
        if not source.closed:
            rest = Owner(name, "metadata", b"records of volumes, and what is in none that is read")
        return [(first, end, rest) for first, end in inside]
    try:
        fs = image.filesystem(name)
        records = records_in(fs)
        named = _by_records(fs, source.volume, inside) if records else _by_walk(source, inside, notes)
        if records:
            rest = Owner(name, "free", b"free space")
    except ImagefsError as error:
        notes.append(f"{name}: {error.message}")
    unnamed = without(inside, joined((first, end) for first, end, _ in named))
    return [*named, *((first, end, rest) for first, end in unnamed)]


def _by_records(fs: FileSystem, volume: Volume, ranges: list[Range]) -> list[tuple[int, int, Owner]]:
    records = records_in(fs)
    assert records is not None
    holdings = records.holdings([list(each) for each in ranges])
    numbers = sorted({each.number for each in holdings})
    paths = paths_by_links(records.links(numbers), numbers, number_of(fs.root()))
    entries = dict(zip(numbers, records.entries(numbers), strict=True))
    names: dict[int, Owner] = {}
    for number in numbers:
        if number not in paths:
            is_journal = fs.kind.startswith("ext") and number == _EXT_JOURNAL
            words = b"journal" if is_journal else b"files without a name"
            names[number] = Owner(volume.id, "metadata", words)
            continue
        entry = entries[number]._replace(path=paths[number][0])
        kind = "directory" if entry.type is EntryType.DIRECTORY else "file"
        names[number] = Owner(volume.id, "metadata" if is_own(fs, entry) else kind, entry.path)
    found = [(each.first, each.end, names[each.number]) for each in holdings]
    found += [
        (each.first, each.end, Owner(volume.id, "metadata", each.name.encode()))
        for each in records.structures()
    ]
    return found


def _by_walk(source: Source, ranges: list[Range], notes: list[str]) -> list[tuple[int, int, Owner]]:
    volume = source.volume
    affected = find_affected([source._replace(where=partition(0, volume.length))], ranges)
    notes += affected.notes
    if affected.dropped:
        notes.append(f"{volume.id}: {affected.dropped} places of files are not told apart")
    return [(place.first, place.end, Owner(volume.id, "file", place.path)) for place in affected.places]
