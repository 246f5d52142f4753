"""In which respects two entries of two points in time differ, and whether their contents do."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from imagefs.block.ranges import Range, joined, overlaps
from imagefs.errors import ImagefsError
from imagefs.interfaces import METADATA, Entry, EntryType, FileSystem, Reader

_PIECE = 1 << 20
#: Where bytes differ is told by sectors; more than so much is not read for it.
_SECTOR, _MOST = 512, 64 << 20


@dataclass(frozen=True, slots=True)
class Side:
    """One of two points in time: its file system and the bytes of the volume."""

    fs: FileSystem
    volume: Reader


def differences(old: Side, one: Entry, new: Side, other: Entry, changes: list[Range]) -> tuple[str, ...]:
    """The words of ``Version.what``. Outside of ``changes``, ranges of the volume, both volumes are the same.

    Times of reading are not looked at. Content is read only where metadata and ``changes`` leave a doubt.
    """
    words = []
    if one.type is not other.type:
        words.append("type")
    elif other.type is not EntryType.DIRECTORY and content_differs(old, one, new, other, changes):
        words.append("content")
    if one.size != other.size and other.type is not EntryType.DIRECTORY:
        words.append("size")
    if one.mtime_ns != other.mtime_ns:
        words.append("mtime")
    if one.mode != other.mode:
        words.append("mode")
    if (one.uid, one.gid) != (other.uid, other.gid):
        words.append("owner")
    if one.nlink != other.nlink and other.type is not EntryType.DIRECTORY:
        words.append("links")
    if not words and (one.ctime_ns, one.crtime_ns, one.flags) != (
        other.ctime_ns,
        other.crtime_ns,
        other.flags,
    ):
        words.append("metadata")
    return tuple(words)


def content_differs(old: Side, one: Entry, new: Side, other: Entry, changes: list[Range]) -> bool:
    """Whether the content of two entries of the same type differs, named streams not looked at.

    Where one of them cannot be read nobody can say that they are the same, so they differ.
    """
    try:
        return _content_differs(old, one, new, other, changes)
    except ImagefsError:
        return True


def _content_differs(old: Side, one: Entry, new: Side, other: Entry, changes: list[Range]) -> bool:
    if other.type is EntryType.SYMLINK:
        return old.fs.readlink(one) != new.fs.readlink(other)
    if other.type is EntryType.DEVICE:
        return one.rdev != other.rdev
    if other.type is not EntryType.FILE:
        return False
    if one.size != other.size:
        return True
    if other.size == 0:
        return False
    before, after = _content_places(old.fs, one), _content_places(new.fs, other)
    if before == after and before:  # as it lies on the disk, so of what cannot be decoded too
        return bytes_differ(old.volume, new.volume, overlaps(after, changes))
    with contextlib.ExitStack() as opened:
        mine = opened.enter_context(contextlib.closing(old.fs.open(one)))
        theirs = opened.enter_context(contextlib.closing(new.fs.open(other)))
        return bytes_differ(mine, theirs, [(0, theirs.size)])


def _content_places(fs: FileSystem, entry: Entry) -> list[Range]:
    return [(place.first, place.end) for place in fs.places(entry) if place.stream != METADATA]


def bytes_differ(one: Reader, other: Reader, ranges: list[Range]) -> bool:
    if one.size != other.size and any(end > min(one.size, other.size) for _, end in ranges):
        return True
    for first, end in ranges:
        for at in range(first, end, _PIECE):
            count = min(_PIECE, end - at)
            if one.read_at(at, count) != other.read_at(at, count):
                return True
    return False


def narrowed(one: Reader, other: Reader, ranges: list[Range]) -> list[Range]:
    """The sectors in ``ranges``, which are in order, of which a byte differs: chunks are a hundred times as large as
    what changes in them. What is too much to read stays as it is, and so does what cannot be read."""
    if sum(end - first for first, end in ranges) > _MOST:
        return ranges
    return joined(
        part
        for first, end in ranges
        for at in range(first, end, _PIECE)
        for part in _differing(one, other, at, min(at + _PIECE, end))
    )


def _differing(one: Reader, other: Reader, first: int, end: int) -> list[Range]:
    try:
        mine, theirs = (np.frombuffer(each.read_at(first, end - first), np.uint8) for each in (one, other))
    except ImagefsError:
        return [(first, end)]
    if len(mine) != len(theirs) or len(mine) % _SECTOR:
        return [(first, end)]
    differs = (mine != theirs).reshape(-1, _SECTOR).any(axis=1)
    return [(at, at + _SECTOR) for at in (first + np.flatnonzero(differs) * _SECTOR).tolist()]
