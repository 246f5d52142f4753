"""What the mount remembers of file systems: entries by path and whole folders, bounded in entries.

An image never changes, so nothing here ever goes stale; it is only dropped, least used first.
Knows nothing of FUSE and never reads anything itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from imagefs.browse.names import fold
from imagefs.interfaces import Entry, Named

#: One entry costs some 500 bytes, so both caches together stay under some 40 MB.
MAX_ENTRIES = 65_536
MAX_PATHS = 16_384


class Folder:
    """Every entry of one directory by name. What has been listed answers for every name: also for
    those that file managers probe for in each folder (``.hidden``, ``autorun.inf``, ``desktop.ini``)."""

    __slots__ = ("_folded", "entries", "in_full")

    def __init__(self, entries: dict[bytes, Entry | Named]) -> None:
        self.entries = entries
        self.in_full = not any(isinstance(entry, Named) for entry in entries.values())
        self._folded: dict[bytes, Entry | Named] | None = None

    def find(self, name: bytes, *, case_insensitive: bool) -> Entry | Named | None:
        """The entry called ``name``, without case where that does not matter; None if there is none."""
        found = self.entries.get(name)
        if found is not None or not case_insensitive:
            return found
        if self._folded is None:
            folded: dict[bytes, Entry | Named] = {}
            for each, entry in self.entries.items():
                folded.setdefault(fold(each), entry)
            self._folded = folded
        return self._folded.get(fold(name))


class EntryCache:
    """Folders and single paths, each with a bound. Safe to call from several threads.

    Keys are ``(slot, path)``: the file system's slot and a raw path inside it. A path that is known
    not to be there is kept as None.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_paths: int = MAX_PATHS) -> None:
        self._lock = threading.Lock()
        self._folders: OrderedDict[tuple[int, bytes], Folder] = OrderedDict()
        self._paths: OrderedDict[tuple[int, bytes], Entry | None] = OrderedDict()
        self._held = 0
        self._max_entries = max_entries
        self._max_paths = max_paths

    @property
    def largest_folder(self) -> int:
        """Folders with more entries than this are not kept; one must not push out all others."""
        return self._max_entries // 2

    def folder(self, slot: int, path: bytes) -> Folder | None:
        with self._lock:
            folder = self._folders.get((slot, path))
            if folder is not None:
                self._folders.move_to_end((slot, path))
            return folder

    def keep_folder(self, slot: int, path: bytes, entries: dict[bytes, Entry | Named]) -> None:
        """Keep a complete listing; a folder that is too large is silently not kept."""
        if len(entries) > self.largest_folder:
            return
        folder = Folder(entries)
        with self._lock:
            old = self._folders.pop((slot, path), None)
            self._held += _weight(folder) - (_weight(old) if old else 0)
            self._folders[slot, path] = folder
            while self._held > self._max_entries:
                _, dropped = self._folders.popitem(last=False)
                self._held -= _weight(dropped)

    def path(self, slot: int, path: bytes) -> tuple[bool, Entry | None]:
        """(known, entry): entry is None where the path is known not to exist."""
        with self._lock:
            if (slot, path) not in self._paths:
                return False, None
            self._paths.move_to_end((slot, path))
            return True, self._paths[slot, path]

    def keep_path(self, slot: int, path: bytes, entry: Entry | None) -> None:
        with self._lock:
            self._paths[slot, path] = entry
            self._paths.move_to_end((slot, path))
            while len(self._paths) > self._max_paths:
                self._paths.popitem(last=False)

    def part(self, first: int) -> EntryCache:
        """The same memory, with the same bounds, for other file systems: their slots begin at ``first``."""
        return _Part(self, first)

    def counts(self) -> tuple[int, int]:
        """(entries held by folders, single paths held)."""
        with self._lock:
            return self._held, len(self._paths)


class _Part(EntryCache):
    """A cache that keeps everything in another."""

    def __init__(self, whole: EntryCache, first: int) -> None:
        self._whole = whole
        self._first = first
        self._max_entries = whole._max_entries

    def folder(self, slot: int, path: bytes) -> Folder | None:
        return self._whole.folder(self._first + slot, path)

    def keep_folder(self, slot: int, path: bytes, entries: dict[bytes, Entry | Named]) -> None:
        self._whole.keep_folder(self._first + slot, path, entries)

    def path(self, slot: int, path: bytes) -> tuple[bool, Entry | None]:
        return self._whole.path(self._first + slot, path)

    def keep_path(self, slot: int, path: bytes, entry: Entry | None) -> None:
        self._whole.keep_path(self._first + slot, path, entry)


def _weight(folder: Folder) -> int:
    return len(folder.entries) + 1  # an empty folder is not free either
