"""The deleted entries of a file system as a tree of their own: walked, searched, extracted and mounted by
what does that for live ones.

The live folders that lead to a deleted entry are in it too, ``deleted`` not set. Equal names in one
folder carry ``~<inode>``; folders keep theirs. Nothing is searched for before something is asked.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator

from imagefs.browse.names import fold, join, parts, printable, repeated, shown_name
from imagefs.browse.remains import ORPHANS, REALLOCATED
from imagefs.browse.walk import OnError
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import Entry, EntryType, FileSystem, KeepsDeleted, Place, Reader, Whole

#: More entries are not held, at some 500 bytes each.
MAX_KEPT = 250_000


class DeletedTree:
    """A FileSystem of what was deleted on ``fs``, which stays the caller's; BrowseError where ``fs`` knows
    nothing of that. ``onerror`` hears what could not be read, once something was asked for."""

    def __init__(self, fs: FileSystem, *, onerror: OnError = lambda error: None) -> None:
        if not isinstance(fs, KeepsDeleted):
            raise BrowseError(
                f"deleted files cannot be found on this {fs.kind} file system",
                hint="The Sleuth Kit does not open it, and nothing else here tells of deleted files",
            )
        self.kind, self.label, self.case_insensitive = fs.kind, fs.label, fs.case_insensitive
        self.used_bytes: int | None = None
        self._onerror = onerror
        self._fs = fs
        self._keeper: KeepsDeleted = fs
        self._lock = threading.Lock()
        self._folders: dict[bytes, dict[bytes, Entry]] | None = None
        self._folded: dict[bytes, bytes] = {}

    def root(self) -> Entry:
        return self._fs.root()

    def lookup(self, path: bytes, /) -> Entry:
        wanted = b"/" + b"/".join(parts(path))
        if wanted == b"/":
            return self.root()
        folders = self._built()
        above, _, name = wanted.rpartition(b"/")
        found = folders.get(above or b"/", {}).get(name)
        if found is None and self.case_insensitive:
            above, _, name = self._folded.get(fold(wanted), wanted).rpartition(b"/")
            found = folders.get(above or b"/", {}).get(name)
        if found is None:
            raise PathNotFound(f"there is no deleted '{printable(wanted)}'", path=path)
        return found

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        if entry.type is not EntryType.DIRECTORY:
            raise BrowseError(f"'{printable(entry.path)}' is not a directory", path=entry.path)
        return iter(self._built().get(entry.path, {}).values())

    def open(self, entry: Entry, /) -> Reader:
        return self._fs.open(entry)

    def readlink(self, entry: Entry, /) -> bytes:
        return self._fs.readlink(entry)

    def places(self, entry: Entry, /) -> list[Place]:
        return self._fs.places(entry)

    def wholeness(self, entry: Entry, /) -> Whole:
        return self._keeper.wholeness(entry)

    def close(self) -> None:
        """The file system is its owner's to close."""

    def _built(self) -> dict[bytes, dict[bytes, Entry]]:
        with self._lock:
            if self._folders is None:
                self._folders = self._build()
                if self.case_insensitive:
                    shown = (entry.path for folder in self._folders.values() for entry in folder.values())
                    self._folded = {fold(path): path for path in shown}
            return self._folders

    def _build(self) -> dict[bytes, dict[bytes, Entry]]:
        listed: dict[bytes, list[Entry]] = defaultdict(list)
        for entry in self._found():
            listed[entry.path.rpartition(b"/")[0] or b"/"].append(entry)
        known = {entry.path for each in listed.values() for entry in each if _is_folder(entry)}
        for path in list(listed):
            while path != b"/" and path not in known:
                known.add(path)
                above = path.rpartition(b"/")[0] or b"/"
                listed[above].append(self._live(path))
                path = above
        return {path: _told_apart(path, entries) for path, entries in listed.items()}

    def _found(self) -> Iterator[Entry]:
        count = 0
        try:
            for entry in self._keeper.deleted():
                count += 1
                if count > MAX_KEPT:
                    raise BrowseError(f"more than {MAX_KEPT} deleted entries: the rest is left out")
                yield entry
        except ImagefsError as error:
            self._onerror(error)

    def _live(self, path: bytes) -> Entry:
        """A folder that leads to something deleted, as it is on the file system."""
        if not path.startswith(ORPHANS):
            try:
                found = self._fs.lookup(path)
                if found.type is EntryType.DIRECTORY:
                    return found._replace(path=path)
            except ImagefsError:
                pass
        inode = "" if path == ORPHANS else f"in {printable(path)}"
        return Entry(path, EntryType.DIRECTORY, 0, inode, mode=0o755)


def _is_folder(entry: Entry) -> bool:
    return entry.type is EntryType.DIRECTORY and REALLOCATED not in entry.flags


def _told_apart(folder: bytes, entries: list[Entry]) -> dict[bytes, Entry]:
    """By name; files that share a name with each other or with a folder get their address behind it."""
    folders = {entry.name: entry for entry in entries if _is_folder(entry)}
    files = [entry for entry in entries if not _is_folder(entry)]
    twice = repeated([*folders, *(entry.name for entry in files)])
    taken = frozenset([*folders, *(entry.name for entry in files)])
    found = dict(folders)
    for entry in files:
        name = shown_name(entry.name, entry.inode, twice=twice, taken=taken)
        if name not in found:
            found[name] = entry if name == entry.name else entry._replace(path=join(folder, name))
    return found
