"""What the searches for deleted entries share: the words, the bounds, and where a deleted folder is shown."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from imagefs.block.views import hole_bytes
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, Reader

#: Where entries are shown whose folder is not known; The Sleuth Kit's word.
ORPHANS = b"/$OrphanFiles"
#: A deleted name whose inode or record belongs to another file now, or that never told it.
REALLOCATED = "reallocated"
#: Levels of folders inside one another.
MAX_DEPTH = 256


class Collector:
    """One search: its errors, what it may still read, and the paths it gave to deleted folders.

    Every block belongs to one directory, so directories that hold more than the volume has are a trap,
    and the search ends there.
    """

    def __init__(self, reader: Reader, lookup: Callable[[bytes], Entry]) -> None:
        self._lookup = lookup
        self._left = reader.size - hole_bytes(reader, 0, reader.size) + (1 << 20)
        self._paths: dict[bytes, str] = {}
        self.error: ImagefsError | None = None

    def apart(self) -> Collector:
        """One for a look ahead, which tells nothing and gives no paths away."""
        other = copy(self)
        other._paths, other.error = {}, None
        return other

    def note(self, error: ImagefsError) -> None:
        """What cannot be read; the first such error is raised at the end of the search."""
        self.error = self.error or error

    def spend(self, count: int) -> None:
        """So many bytes of directories are read; BrowseError when they are more than there can be."""
        self._left -= count
        if self._left < 0:
            raise BrowseError(
                "the directories hold more than the volume, so the search for deleted files ends here",
                hint="the file system is damaged",
            )

    def folder(self, entry: Entry) -> bytes:
        """The path below which the entries of a deleted folder are told: its own, with ``~<inode>`` where
        another folder, deleted or not, has it."""
        path = entry.path
        while self._paths.get(path, entry.inode) != entry.inode or self._is_live(path):
            path += b"~" + entry.inode.encode()
        self._paths[path] = entry.inode
        return path

    def _is_live(self, path: bytes) -> bool:
        """Whether a live entry has this path; below a deleted folder there is none."""
        if path in self._paths or path.rpartition(b"/")[0] in self._paths or path.startswith(ORPHANS):
            return False
        try:
            self._lookup(path)
        except ImagefsError:
            return False
        return True
