"""Walking a tree: every entry below a directory, parents first, whatever is damaged on the way.

Trees on disks are not always trees. A directory that is met inside itself is a loop; one that is
met again and again under other names could make a small disk endless. Both end here, with an error
to the caller's ``onerror``, and the walk goes on with the next entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from imagefs.browse.names import printable
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, EntryType, FileSystem

OnError = Callable[[ImagefsError], None]

#: Levels of directories inside one another, and visits of one directory under different names.
MAX_DEPTH = 2048
MAX_VISITS = 1024


class Trail:
    """The directories from the start down to here, and how often each was entered.

    ``enter`` raises BrowseError where going on would not end. Memory follows the number of
    directories.
    """

    def __init__(self, max_depth: int = MAX_DEPTH) -> None:
        self._max_depth = max_depth
        self._path: list[str] = []
        self._on_path: set[str] = set()
        self._visits: Counter[str] = Counter()

    def enter(self, directory: Entry) -> None:
        shown, key = printable(directory.path), directory.inode
        if key in self._on_path:
            raise BrowseError(
                f"'{shown}' is a loop: the directory contains itself",
                hint="the file system is damaged there",
                path=directory.path,
            )
        if len(self._path) >= self._max_depth:
            raise BrowseError(
                f"'{shown[:200]}' lies more than {self._max_depth} directories deep", path=directory.path
            )
        if self._visits[key] >= MAX_VISITS:
            raise BrowseError(f"'{shown}' was met under {MAX_VISITS} names already", path=directory.path)
        self._visits[key] += 1
        self._path.append(key)
        self._on_path.add(key)

    def leave(self) -> None:
        self._on_path.discard(self._path.pop())


def walk(fs: FileSystem, start: Entry, *, onerror: OnError) -> Iterator[Entry]:
    """Everything below ``start`` in pre-order, without ``start`` itself; nothing if it is no directory.

    ``onerror`` hears of each directory that cannot be read, or not wholly; what it raises ends the
    walk.
    """
    if start.type is not EntryType.DIRECTORY:
        return
    trail = Trail()
    trail.enter(start)
    stack = [fs_children(fs, start, onerror)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            trail.leave()
            continue
        yield entry
        if entry.type is not EntryType.DIRECTORY:
            continue
        try:
            trail.enter(entry)
        except BrowseError as error:
            onerror(error)
            continue
        stack.append(fs_children(fs, entry, onerror))


def fs_children(fs: FileSystem, directory: Entry, onerror: OnError) -> Iterator[Entry]:
    """The children that can be read; the error that ends them goes to ``onerror``."""
    try:
        yield from fs.children(directory)
    except ImagefsError as error:
        onerror(error)
