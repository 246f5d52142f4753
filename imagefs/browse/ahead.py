"""Which folders a walk will list next, so that one message to a worker brings many of them.

Walks go down before they go on, whoever walks: ours, find, tar, rsync. Once some folders were asked for in that
order, the next ones go along with a request, and what came with the answer is kept until it is asked for or the
next answer comes. Knows nothing of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from imagefs.interfaces import Entry, EntryType, Named

#: So many folders in a walk's order make a walk; so many of the next ones are named in a request.
_SURE, _NAMED = 4, 40
#: With fewer listings than that in hand, more are fetched.
_LOW = 40
#: After a guess that was wrong or deadly, so many folders are listed by themselves.
_REST = 500
_MOST = 100_000

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
            named = self._stack[: -_NAMED - 1 : -1] if self._hits >= _SURE else []
            return None, named, len(self._stack)

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


def folders_of(found: Found) -> list[Entry]:
    """The folders of a listing, in order."""
    return [each for each in found if type(each) is Entry and each.type is EntryType.DIRECTORY]


def _same(one: Entry, other: Entry) -> bool:
    return one.inode == other.inode and one.path == other.path
