"""What a folder shows, without a screen: entries in columns, their order, what of them is shown, what is marked.

Columns, because a folder may hold a million entries: some 130 bytes each instead of 500, and an entry that is
acted on is looked up again by its path.
"""

from __future__ import annotations

import fnmatch
import heapq
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from imagefs.interfaces import Entry, EntryType, Whole

#: So many entries are told to the screen at once, and sorted or searched before another thread has its turn.
PORTION = 4096
#: A run of this length is sorted in one go: some 20 ms in which nothing else of the process moves.
_RUN = 1 << 15
_TYPES = tuple(EntryType)
_NUMBER = {each: number for number, each in enumerate(_TYPES)}
_UNKNOWN = -(1 << 63)
#: Told after each portion; raises to end the work.
Heed = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Gone:
    """A deleted entry and how whole it is; None of a folder."""

    entry: Entry
    word: Whole | None


class Rows:
    """The entries of one folder in the order they were read; ``folder`` is its path as a user writes it."""

    def __init__(self, folder: bytes) -> None:
        self.folder = folder
        self.names: list[bytes] = []
        self.gone: dict[int, Gone] = {}
        self._types = bytearray()
        self._sizes = array("Q")
        self._times = array("q")

    def __len__(self) -> int:
        return len(self.names)

    def add(self, entries: Iterable[Entry], *, names: Callable[[Entry], bytes] | None = None) -> None:
        """Live entries; ``names`` tells what else than its name stands for one (a path, of what was found)."""
        for entry in entries:
            self._types.append(_NUMBER[entry.type])
            self._sizes.append(min(max(entry.size, 0), (1 << 64) - 1))
            time = _UNKNOWN if entry.mtime_ns is None else entry.mtime_ns
            self._times.append(min(max(time, _UNKNOWN), (1 << 63) - 1))
            self.names.append(names(entry) if names else entry.name)

    def add_gone(self, found: Iterable[Gone], *, names: Callable[[Entry], bytes] | None = None) -> None:
        for each in found:
            self.gone[len(self.names)] = each
            self.add([each.entry], names=names)

    def type(self, index: int) -> EntryType:
        return _TYPES[self._types[index]]

    def size(self, index: int) -> int:
        return self._sizes[index]

    def time(self, index: int) -> int | None:
        found = self._times[index]
        return None if found == _UNKNOWN else found

    def path(self, index: int) -> bytes:
        """As a user writes it: ``/p2/etc/fstab``."""
        return self.folder.rstrip(b"/") + b"/" + self.names[index]

    def is_folder(self, index: int) -> bool:
        return self.type(index) is EntryType.DIRECTORY


@dataclass(frozen=True, slots=True)
class Order:
    """How rows are sorted; folders always come first, and equal ones by name."""

    by: str = "name"
    backwards: bool = False

    KEYS = ("name", "size", "time", "kind")

    def next(self) -> Order:
        """The next key; sizes and times begin with the largest and the newest."""
        by = self.KEYS[(self.KEYS.index(self.by) + 1) % len(self.KEYS)]
        return Order(by, by in ("size", "time"))

    @property
    def words(self) -> str:
        down = {"size": "largest first", "time": "newest first"}.get(self.by, "backwards")
        up = {"size": "smallest first", "time": "oldest first"}.get(self.by, "")
        told = down if self.backwards else up
        return f"by {self.by}" + (f", {told}" if told else "")


def arranged(rows: Rows, order: Order, wanted: str = "", *, heed: Heed = lambda: None) -> Sequence[int]:
    """The indices of the rows that are shown, in order. Takes seconds for a million, never long in one go."""
    chosen = list(_filtered(rows, wanted, heed))
    heed()
    key = _key(rows, order, chosen, heed)
    runs = []
    for start in range(0, len(chosen), _RUN):
        runs.append(sorted(chosen[start : start + _RUN], key=key, reverse=order.backwards))
        heed()
    merged = (
        heapq.merge(*runs, key=key, reverse=order.backwards)
        if len(runs) > 1
        else iter(runs[0] if runs else [])
    )
    result = array("Q")
    while portion := array("Q", islice(merged, PORTION)):
        result.extend(portion)
        heed()
    return result


def _filtered(rows: Rows, wanted: str, heed: Heed) -> Iterator[int]:
    test = name_test(wanted)
    for index in range(len(rows)):
        if index % PORTION == 0:
            heed()
        if test(rows.names[index]):
            yield index


def name_test(wanted: str) -> Callable[[bytes], bool]:
    """A test of names without case: a part of it, or a glob of all of it where there is one of ``*?[``."""
    if not wanted:
        return lambda name: True
    if any(char in wanted for char in "*?["):
        match = re.compile(fnmatch.translate(wanted), re.IGNORECASE).match
        return lambda name: match(name.decode("utf-8", "surrogateescape")) is not None
    needle = wanted.casefold()
    return lambda name: needle in name.decode("utf-8", "surrogateescape").casefold()


def _key(rows: Rows, order: Order, chosen: list[int], heed: Heed) -> Callable[[int], Any]:
    """Folders first whichever way round; keys are made once, because comparing them is most of the work."""
    first, second = (b"\1", b"\0") if order.backwards else (b"\0", b"\1")
    keys: list[Any] = [None] * len(rows)
    for number, index in enumerate(chosen):
        if number % PORTION == 0:
            heed()
        name = rows.names[index].lower()
        lead = first if rows.is_folder(index) else second
        if order.by == "name":
            keys[index] = lead + name
        elif order.by == "kind":
            keys[index] = lead + (name.rpartition(b".")[2] if b"." in name[1:] else b"") + b"\0" + name
        else:
            value = rows.size(index) if order.by == "size" else rows.time(index)
            keys[index] = (lead, _UNKNOWN if value is None else value, name)
    return keys.__getitem__


@dataclass(frozen=True, slots=True)
class Mark:
    """Something to be extracted: its path as a user writes it, among the deleted files or the live ones."""

    path: bytes
    deleted: bool = False


@dataclass(slots=True)
class Marks:
    """What is marked at one point in time, with the sizes of files; those of folders are not known yet. ``bytes`` and
    ``folders`` are kept along, since a million may be marked."""

    sizes: dict[Mark, int | None] = field(default_factory=dict)
    bytes: int = 0
    folders: int = 0

    def __contains__(self, mark: Mark) -> bool:
        return mark in self.sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def toggle(self, mark: Mark, size: int | None) -> None:
        sign = -1 if mark in self.sizes else 1
        if sign < 0:
            size = self.sizes.pop(mark)
        else:
            self.sizes[mark] = size
        self.bytes += sign * (size or 0)
        self.folders += sign * (size is None)

    def drop(self, marks: Iterable[Mark]) -> None:
        """These are marked no longer."""
        for mark in list(marks):
            if mark in self.sizes:
                self.toggle(mark, None)


def mark_of(rows: Rows, index: int) -> tuple[Mark, int | None]:
    """What marking a row means, and its size where it is a file."""
    size = None if rows.is_folder(index) else rows.size(index)
    return Mark(rows.path(index), index in rows.gone), size
