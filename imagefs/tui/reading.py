"""The jobs of the folder screen, in their threads: reading a folder, searching below it, resolving a link."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from imagefs.browse.find import find
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import Entry, EntryType, FileSystem, Whole
from imagefs.tui.folder import PORTION, Gone, Heed, Order, Rows, arranged, name_test
from imagefs.tui.names import plain
from imagefs.tui.session import Located, OpenPoint

#: Seconds after which what is there of a long listing is shown, and then again.
SOON, AGAIN = 0.3, 0.5


@dataclass(frozen=True, slots=True)
class Listed:
    """A folder that was read: ``shown`` are its rows in order, ``trouble`` why some may be missing."""

    rows: Rows
    shown: Sequence[int]
    trouble: ImagefsError | None = None


def join(folder: bytes, name: bytes) -> bytes:
    return folder.rstrip(b"/") + b"/" + name


def volume_of(path: bytes) -> bytes:
    """``/p2`` of ``/p2/etc/fstab``."""
    return b"/" + path.split(b"/", 2)[1]


def canonical(path: bytes, entry: Entry) -> bytes:
    """The path as the volume spells it, which may be in another case than it was asked for."""
    return volume_of(path) + (b"" if entry.path == b"/" else entry.path)


def parent(path: bytes) -> bytes:
    return posixpath.dirname(path.rstrip(b"/")) or b"/"


def nearest(opened: OpenPoint, path: bytes, *, deleted: bool) -> tuple[bytes, Located, bytes]:
    """(folder, its place, the name in it to go to) for a path that may be a file, or not be there in this image
    any more: then the next folder above that is."""
    wanted, name = path, b""
    while True:
        try:
            place = _place(opened, wanted, deleted=deleted)
        except PathNotFound:
            if parent(wanted) == b"/":
                raise
        else:
            if place.entry.type is EntryType.DIRECTORY:
                return canonical(wanted, place.entry), place, name
        wanted, name = parent(wanted), wanted.rpartition(b"/")[2]


def _place(opened: OpenPoint, path: bytes, *, deleted: bool) -> Located:
    try:
        return opened.live(path)
    except PathNotFound:
        if not deleted:
            raise
        return opened.deleted(path)


def read_folder(
    opened: OpenPoint,
    path: bytes,
    place: Located,
    order: Order,
    *,
    wanted: str = "",
    deleted: bool,
    heed: Heed,
    told: Callable[[Rows, int, str], None],
) -> Listed:
    """Everything in a folder, sorted, what is ``wanted`` of it shown.

    ``told`` hears of the rows that are there when it takes long, in the order they came, and of what is done.
    """
    rows = Rows(path)
    trouble: ImagefsError | None = None
    due = time.monotonic() + SOON
    try:
        for portion in _portions(iter(()) if place.entry.deleted else place.fs.children(place.entry)):
            heed()
            rows.add(portion)
            if time.monotonic() > due:
                told(rows, len(rows), "reading")
                due = time.monotonic() + AGAIN
    except ImagefsError as error:
        trouble = error
    if deleted:
        told(rows, len(rows), "searching for deleted files")
        trouble = _add_deleted(opened, path, rows, heed, told) or trouble
    if len(rows) > PORTION:
        told(rows, len(rows), "sorting")
    return Listed(rows, arranged(rows, order, wanted, heed=heed), trouble)


def _portions(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Few at first, so that something is there soon."""
    count = 64
    while portion := list(islice(entries, count)):
        yield portion
        count = min(count * 2, PORTION)


def _add_deleted(
    opened: OpenPoint, path: bytes, rows: Rows, heed: Heed, told: Callable[[Rows, int, str], None]
) -> ImagefsError | None:
    try:
        tree = opened.deleted(path)
    except PathNotFound:
        return None
    except ImagefsError as error:
        return error
    live = set(rows.names)
    due = time.monotonic() + AGAIN
    for entry in tree.fs.children(tree.entry):
        heed()
        if entry.deleted or entry.name not in live:
            rows.add_gone([Gone(entry, wholeness(tree.fs, entry))])
        if time.monotonic() > due:
            told(rows, len(rows), "looking how whole deleted files are")
            due = time.monotonic() + AGAIN
    return None


def wholeness(fs: FileSystem, entry: Entry) -> Whole | None:
    """How whole a deleted file is; None of folders, and of what is not deleted."""
    if not entry.deleted or entry.type is EntryType.DIRECTORY or not hasattr(fs, "wholeness"):
        return None
    try:
        found: Whole = fs.wholeness(entry)
        return found
    except ImagefsError:
        return Whole.UNKNOWN


def search(
    opened: OpenPoint,
    folder: bytes,
    wanted: str,
    *,
    deleted: bool,
    heed: Heed,
    told: Callable[[Rows, int, str], None],
) -> Listed:
    """Everything below a folder with such a name, by its path from there. ``deleted``: of what was deleted too."""
    rows = Rows(folder)
    trouble: list[ImagefsError] = []
    test = name_test(wanted)
    looked, due = 0, time.monotonic() + SOON

    def matches(path: bytes) -> bool:
        nonlocal looked, due
        heed()
        looked += 1
        if time.monotonic() > due:
            told(rows, len(rows), f"{looked:,} looked at")
            due = time.monotonic() + AGAIN
        return test(path.rpartition(b"/")[2])

    def hits(place: Located) -> Iterator[Entry]:
        return find(place.fs, place.entry, path=matches, onerror=trouble.append)

    place = opened.live(folder)
    below = len(place.entry.path.rstrip(b"/")) + 1
    for entry in hits(place):
        rows.add([entry], names=lambda each: each.path[below:])
    if deleted:
        place = opened.deleted(folder)
        for entry in hits(place):
            if entry.deleted:
                found = Gone(entry, wholeness(place.fs, entry))
                rows.add_gone([found], names=lambda each: each.path[below:])
    return Listed(rows, range(len(rows)), trouble[0] if trouble else None)


def link_target(opened: OpenPoint, path: bytes) -> bytes:
    """Where a symbolic link leads, within its volume and by its text alone. BrowseError where nothing is there."""
    place = opened.live(path)
    target = place.fs.readlink(place.entry)
    above = b"/" if target.startswith(b"/") else posixpath.dirname(place.entry.path)
    inner = posixpath.normpath(posixpath.join(above, target))
    found = volume_of(path) + (b"" if inner in (b"/", b"//") else b"/" + inner.lstrip(b"/"))
    try:
        opened.live(found)
    except BrowseError as error:
        raise BrowseError(
            f"'{plain(place.entry.name)}' is a link to {plain(target)}, where nothing is in this volume"
        ) from error
    return found
