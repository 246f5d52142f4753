"""Paths to entries: directory listings, kept for a while, and the walk from name to name.

Works over any function that scans one directory; both file system adapters use it. What is kept is
bounded in entries; a directory too large to keep is scanned anew each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from imagefs.browse.names import fold, join, mac_key, parts, printable
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import Entry, EntryType

#: Entries kept in all listings together, and in a single one.
KEPT_ENTRIES = 100_000
KEPT_LISTING = 80_000


class Listing:
    """A whole directory: its entries, by name, and by folded name where case does not matter. Most are listed and
    never searched: tables are made for the first search."""

    def __init__(self, entries: list[Entry], folds: bool) -> None:
        self.entries = entries
        self._folds = folds
        self._names: tuple[dict[bytes, Entry], dict[bytes, Entry]] | None = None

    def find(self, name: bytes) -> Entry | None:
        if self._names is None:
            self._names = self._tables()
        names, folded = self._names
        return names.get(name) or (folded.get(fold(name)) if self._folds else None)

    def _tables(self) -> tuple[dict[bytes, Entry], dict[bytes, Entry]]:
        folded = dict[bytes, Entry]()
        for entry in self.entries if self._folds else ():
            folded.setdefault(fold(entry.name), entry)
        return {entry.name: entry for entry in self.entries}, folded


class MacNames:
    """Finds a child as macOS does, where a listing does not. The keys of the directory that was asked last are kept."""

    def __init__(self, children: Callable[[Entry], Iterator[Entry]]) -> None:
        self._children = children
        self._last: tuple[tuple[str, bytes, bool], dict[str, Entry]] | None = None

    def find(self, directory: Entry, name: bytes, *, folds: bool) -> Entry | None:
        asked, last = (directory.inode, directory.path, folds), self._last
        if last is None or last[0] != asked:
            table = dict[str, Entry]()
            for child in self._children(directory):
                table.setdefault(mac_key(child.name, folds=folds), child)
            last = asked, table
            if len(table) <= KEPT_LISTING:
                self._last = last
        return last[1].get(mac_key(name, folds=folds))

    def clear(self) -> None:
        self._last = None


class Listings:
    """Children and lookups over ``scan``. Safe in several threads; never locked while scanning.

    ``scan`` may raise after it has yielded what can be read of a damaged directory: the caller gets
    the same, and nothing is kept. ``find`` gives the few children that may have a name, or None
    where a scan must tell; ``other`` the child that has a name which no scan tells (a short one).
    """

    def __init__(
        self,
        scan: Callable[[Entry], Iterator[Entry]],
        *,
        case_insensitive: bool,
        readlink: Callable[[Entry], bytes],
        find: Callable[[Entry, bytes], list[Entry] | None] = lambda directory, name: None,
        other: Callable[[Entry, bytes], Entry | None] = lambda directory, name: None,
    ) -> None:
        self._scan = scan
        self._find = find
        self._other = other
        self._readlink = readlink
        self._folds = case_insensitive
        self._kept: OrderedDict[tuple[str, bytes], Listing] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def children(self, directory: Entry) -> Iterator[Entry]:
        if directory.type is not EntryType.DIRECTORY:
            raise BrowseError(f"'{printable(directory.path)}' is not a directory", path=directory.path)
        listing = self._get(directory)
        if listing is not None:
            return iter(listing.entries)
        return self._scan_and_keep(directory)

    def kept(self, directory: Entry) -> Iterator[Entry] | None:
        """The children of a directory that is kept, None of any other."""
        listing = self._get(directory)
        return None if listing is None else iter(listing.entries)

    def lookup(self, root: Entry, path: bytes) -> Entry:
        entry = root
        for name in parts(path):
            if entry.type is not EntryType.DIRECTORY:
                raise self._not_a_directory(entry, path)
            found = self._child(entry, name) or self._other(entry, name)
            if found is None:
                raise _missing(entry, name, path)
            entry = found
        return entry

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._total = 0

    def _child(self, directory: Entry, name: bytes) -> Entry | None:
        listing = self._get(directory)
        if listing is not None:
            return listing.find(name)
        exact = by_fold = None
        key = fold(name)
        known = self._find(directory, name)
        try:
            for child in self._scan_and_keep(directory) if known is None else known:
                if child.name == name:
                    exact = exact or child
                elif self._folds and by_fold is None and fold(child.name) == key:
                    by_fold = child
        except ImagefsError:
            if exact is None and by_fold is None:
                raise
        return exact or by_fold

    def _get(self, directory: Entry) -> Listing | None:
        key = directory.inode, directory.path
        with self._lock:
            listing = self._kept.get(key)
            if listing is not None:
                self._kept.move_to_end(key)
            return listing

    def _scan_and_keep(self, directory: Entry) -> Iterator[Entry]:
        seen: list[Entry] | None = []
        for child in self._scan(directory):
            if seen is not None:
                seen.append(child)
                if len(seen) > KEPT_LISTING:
                    seen = None
            yield child
        if seen is not None:
            self._keep(directory, seen)

    def _keep(self, directory: Entry, children: list[Entry]) -> None:
        listing = Listing(children, self._folds)
        with self._lock:
            key = directory.inode, directory.path
            old = self._kept.pop(key, None)
            self._total += len(children) + 1 - (len(old.entries) + 1 if old else 0)
            self._kept[key] = listing
            while self._total > KEPT_ENTRIES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._total -= len(dropped.entries) + 1

    def _not_a_directory(self, entry: Entry, path: bytes) -> PathNotFound:
        shown = printable(entry.path)
        if entry.type is not EntryType.SYMLINK:
            return PathNotFound(f"'{shown}' is not a directory", path=path)
        try:
            target = printable(self._readlink(entry))
        except ImagefsError:
            target = "something that cannot be read"
        return PathNotFound(
            f"'{shown}' is a symbolic link to {target}",
            hint="links are not followed: give the path of what it points to",
            path=path,
        )


def _missing(directory: Entry, name: bytes, path: bytes) -> PathNotFound:
    hint = "separate names with '/', not with a backslash" if b"\\" in name else ""
    shown = printable(join(directory.path, name))
    return PathNotFound(f"there is no '{shown}'", hint=hint, path=path)
