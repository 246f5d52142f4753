"""What folders need is read at once before they are listed: of ext and NTFS, where the reader has ``fetch``.

One by one, a folder costs a read for each of its blocks and one for each stretch of inodes or records that its
names lead to. Through a worker's socket those are what a walk takes longest for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from imagefs.browse import tskentry
from imagefs.browse.bigdir import KnownNames, Name, Names
from imagefs.browse.content import FetchMany, MappedReader
from imagefs.browse.tskhandle import Facts
from imagefs.errors import ImagefsError
from imagefs.interfaces import Entry, EntryType

#: Folders up to this size are worth it; so many are remembered, and about so many read at once.
_SMALL, _MOST, _ENOUGH = 64 << 10, 2000, 256
#: So few entries are not worth a look at what can be read at once.
_FEW = 3


class Soon:
    """The names of folders that will be listed soon. ``find_names`` gives those of one folder."""

    def __init__(self, facts: Facts, find_names: Callable[[Entry], Names | None]) -> None:
        self._table = facts.ext or facts.mft
        self._find_names = find_names
        self._fetch: FetchMany = getattr(facts.reader, "fetch", lambda ranges: None)
        #: By number of inode or record; None of a folder that is not small.
        self._known: dict[int, Names | None] = {}

    def take(self, folder: Entry) -> Names | None:
        """The names of a folder, where they are known."""
        return self._known.pop(tskentry.address(folder.inode), None) if self._known else None

    def expect(self, folders: Sequence[Entry]) -> None:
        """These will be listed next, and folders in them: read what that takes, level by level."""
        if not folders or tskentry.address(folders[0].inode) in self._known:
            return
        if len(self._known) > _MOST:
            self._known.clear()
        numbers, done = [tskentry.address(each.inode) for each in folders], 0
        while numbers and done < _ENOUGH:
            numbers = [each for each in numbers if each not in self._known][:_ENOUGH]
            done += len(numbers)
            numbers = self._level(numbers)

    def _level(self, numbers: list[int]) -> list[int]:
        """Read the blocks of small folders, then the inodes or records that they name; the folders in them."""
        found: dict[int, Names] = {}
        for number in numbers:
            self._known[number] = None
            with suppress(ImagefsError):
                names = self._find_names(Entry(b"", EntryType.DIRECTORY, 0, str(number)))
                if names is not None and names.size <= _SMALL:
                    found[number] = names
        self.fetch_blocks(found.values())
        known = {number: KnownNames(names) for number, names in found.items()}
        self._known |= known
        inside = [each for names in known.values() for each in names.all()]
        self.fetch_entries(inside)
        return [each.inode for each in inside if each.type is EntryType.DIRECTORY]

    def fetch_blocks(self, folders: Iterable[Names]) -> None:
        """Have the blocks of small folders read at once."""
        contents = [getattr(names, "content", None) for names in folders]
        pieces = [
            each for content in contents if isinstance(content, MappedReader) for each in content.pieces
        ]
        if len(pieces) > 1:
            self._fetch((each.source, each.length) for each in pieces if each.source is not None)

    def fetch_entries(self, names: list[Name]) -> None:
        """Have the inodes or records that ``names`` lead to read at once."""
        if self._table is not None and len(names) > _FEW:
            self._table.soon([each.inode for each in names], self._fetch)
