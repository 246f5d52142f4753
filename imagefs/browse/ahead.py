"""Which folders a walk will list next, so that one message to a worker brings many of them.

Walks go down before they go on, whoever walks: ours, find, tar, rsync. Once some folders were asked for in that
order, the next ones go along with a request, and what came with the answer is kept until it is asked for or the
next answer comes. Knows nothing of processes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from imagefs.interfaces import Entry, EntryType, Named

#: So many folders in a walk's order make a walk; so many of the next ones are named in a request, with paths of so
#: many bytes.
_SURE, _NAMED, _NAMED_BYTES = 4, 1000, 1 << 20
#: With fewer listings than that in hand, more are fetched.
_LOW = 40
#: After a guess that was wrong or deadly, so many folders are listed by themselves.
_REST = 500
_MOST = 100_000
#: So many files are opened with one request, and the files of so many folders are remembered.
_FILES, _LISTINGS = 64, 16

Found = Sequence[Entry | Named]


class Ahead:
    """What was asked of one file system lately, and what is expected. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack: list[Entry] = []
        self._hits = 0
        self._listed: dict[tuple[str, str, bytes], Found] = {}

    def take(self, method: str, folder: Entry) -> tuple[Found | None, list[Entry], int]:
        """(what is known of a folder that is now asked for, else the folders that will be asked for next, where
        its own folders belong)."""
        with self._lock:
            if self._stack and _same(self._stack[-1], folder):
                self._stack.pop()
                self._hits += 1
            else:
                self._stack, self._hits = [], min(0, self._hits)
            found = self._listed.pop((method, folder.inode, folder.path), None)
            if found is not None:
                self._expect(found, len(self._stack))
                return found, [], 0
            if self._listed:  # it was not what was asked for
                self._listed, self._hits = {}, -_REST
            return None, self._named() if self._hits >= _SURE else [], len(self._stack)

    def _named(self) -> list[Entry]:
        named, room = self._stack[: -_NAMED - 1 : -1], _NAMED_BYTES
        for at, folder in enumerate(named):
            room -= len(folder.path)
            if room < 0:
                return named[:at]
        return named

    def next(self, method: str) -> tuple[bytes, Found]:
        """(path, listing) of the folder that will be listed next; nothing where it is not known."""
        with self._lock:
            if not self._stack:
                return b"", ()
            folder = self._stack[-1]
            return folder.path, self._listed.get((method, folder.inode, folder.path), ())

    def has(self, method: str, folder: Entry) -> bool:
        """Whether the listing of a folder is known."""
        return (method, folder.inode, folder.path) in self._listed

    def is_low(self) -> bool:
        """Whether few listings are left."""
        return len(self._listed) < _LOW

    def expect(self, found: Found, place: int) -> None:
        """A portion of a listing of the folder that belongs at ``place``: who reads all of it first will ask
        for these folders after those of earlier portions."""
        with self._lock:
            self._expect(found, place)

    def keep(self, method: str, listings: Iterable[tuple[str, bytes, Found]]) -> None:
        """Whole listings (address, path, listing) that were not asked for yet."""
        with self._lock:
            for inode, path, listing in listings:
                self._listed[method, inode, path] = listing

    def rest(self) -> None:
        """A request with more than one folder failed."""
        with self._lock:
            self._hits = -_REST

    def _expect(self, found: Found, place: int) -> None:
        if len(self._stack) < _MOST:
            self._stack[place:place] = folders_of(found)[::-1]


class Files:
    """The files of folders that were listed lately, and the contents of those that will be opened next: whoever
    copies, searches or digests a tree opens them in the order of the listing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listings: OrderedDict[bytes, list[Entry]] = OrderedDict()
        #: The files of the listing that is gone through, and how many of them are behind us or asked for.
        self._now: list[Entry] = []
        self._at = 0
        #: The folder whose files were put behind those.
        self._beyond = b""
        self._hits = 0
        self._known: dict[tuple[str, bytes], Any] = {}

    def note(self, found: Found) -> None:
        """A listing of a folder, or a part of one."""
        files = files_of(found)
        if not files:
            return
        folder = _above(files[0])
        with self._lock:
            self._listings.pop(folder, None)
            self._listings[folder] = files
            if len(self._listings) > _LISTINGS:
                self._listings.popitem(last=False)

    def has(self, file: Entry) -> bool:
        return (file.inode, file.path) in self._known

    def is_low(self) -> bool:
        return len(self._known) < _FILES // 2

    def take(self, file: Entry) -> tuple[Any, list[Entry]]:
        """(what is known of a content, or None; the files that will be opened behind it)."""
        with self._lock:
            known = self._known.pop((file.inode, file.path), None)
            if known is not None:
                return known, []
            if not (self._at < len(self._now) and _same(self._now[self._at], file)):
                self._now, self._beyond = self._listings.get(_above(file), []), b""
                self._at = next((at for at, each in enumerate(self._now[:_FILES]) if _same(each, file)), -1)
                self._hits = self._hits // 2 if self._at == 0 and self._hits > 0 else min(0, self._hits)
            if self._at < 0:
                self._now, self._at, self._hits = [], 0, min(0, self._hits + 1)
                return None, []
            self._at += 1
            self._hits += 1
            return None, self._coming() if self._hits >= _SURE else []

    def coming(self, folder: bytes, beyond: Found) -> list[Entry]:
        """The files behind those; where they end, those of ``beyond``, the listing of ``folder``, which comes
        next."""
        with self._lock:
            if self._hits < 0:
                return []
            if beyond and folder != self._beyond and len(self._now) - self._at < _FILES:
                self._now, self._at, self._beyond = self._now[self._at :] + files_of(beyond), 0, folder
            return self._coming()

    def _coming(self) -> list[Entry]:
        files = self._now[self._at : self._at + _FILES]
        self._at += len(files)
        return files

    def keep(self, files: Sequence[Entry], contents: Sequence[Any]) -> None:
        """What is known of the contents of the first of ``files``."""
        with self._lock:
            if len(self._known) > 4 * _FILES:
                self._known.clear()
            for file, content in zip(files, contents, strict=False):
                self._known[file.inode, file.path] = content

    def rest(self) -> None:
        """What was asked for did not come."""
        with self._lock:
            self._hits, self._now, self._at = -_REST, [], 0


def folders_of(found: Found) -> list[Entry]:
    """The folders of a listing, in order."""
    return [each for each in found if type(each) is Entry and each.type is EntryType.DIRECTORY]


def files_of(found: Found) -> list[Entry]:
    """The files of a listing, in order."""
    return [each for each in found if type(each) is Entry and each.type is EntryType.FILE]


def _above(entry: Entry) -> bytes:
    return entry.path.rpartition(b"/")[0]


def _same(one: Entry, other: Entry) -> bool:
    return one.inode == other.inode and one.path == other.path
